"""Rows that concern whole verbs: the command line is run, killed, interrupted, and run again.

`SKY` is a simulated survey (`repo/` and `truth.parquet`); who runs the rows sets it.
"""

from __future__ import annotations

import atexit
import base64
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faultlib
import forked
from faultlib import Tally, contents
from rows import named, row, trials_in_time

SKY: Path | None = None
VERB_ROWS: list[Any] = []
PATIENCE = 180.0
CANARY = "CANARY-6f1d-secret-token"
#: Units of at most 16 targets, so that a small survey has several.
PATCH_BYTES = 16 * 12 * 3 * 48 * 48
RIPPLE = faultlib.python(
    "-c",
    f"from ripple.stages.plan import units; units.PATCH_BYTES = {PATCH_BYTES}; "
    "from ripple.cli import main; main()",
)
Make = Callable[[Path, int], list[str]]
_server: list[forked.Server] = []


def server() -> forked.Server:
    """The fork server of this process, made when it is first asked for."""
    if not _server:
        _server.append(forked.Server())
        atexit.register(_server[0].close)
    return _server[0]


def fetch_argv(output: Path, *more: str, workers: int = 2) -> list[str]:
    assert SKY is not None
    where = ["--repo", str(SKY / "repo"), "--collections", "mini", "--targets", str(SKY / "truth.parquet")]
    what = ["--bands", "gri", "--size", "48", "--workers", str(workers)]
    return [*RIPPLE, "fetch", *where, *what, "-o", str(output), *more]


def preprocess_argv(cutouts: Path, output: Path, *more: str, workers: int = 2) -> list[str]:
    return [*RIPPLE, "preprocess", str(cutouts), "--workers", str(workers), "-o", str(output), *more]


def call(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end in a fresh interpreter."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, **options)


@dataclass
class Run:
    """A command on its way, forked (quick) or in a fresh interpreter; its standard error goes to a file."""

    process: subprocess.Popen[bytes] | forked.Child
    log: IO[bytes]

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def end(self, seconds: float = PATIENCE) -> int | None:
        """The exit code, or None after killing what did not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(argv: list[str], *, fresh: bool = False, **options: Any) -> Run:
    """Start a command in a session of its own."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the run
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        if fresh:
            process: Any = subprocess.Popen(argv, stdout=null, stderr=log, start_new_session=True, **options)
        else:
            process = server().ripple(
                argv[len(RIPPLE) :], stdout=null, stderr=log.fileno(), patch_bytes=PATCH_BYTES, **options
            )
    finally:
        os.close(null)
    return Run(process, log)


@dataclass(frozen=True)
class Mode:
    """How a command is run: its workers, a fresh interpreter or a forked one, and how long it takes."""

    workers: int
    fresh: bool
    seconds: float


def reference(argv: list[str], output: Path) -> tuple[dict[str, str], float]:
    """Digests of a run without faults in a fresh interpreter, and how long it took."""
    begin = time.monotonic()
    done = call(argv)
    assert done.returncode == 0, done.stderr[-2000:]
    return contents(output), time.monotonic() - begin


def modes(tally: Tally, directory: Path, make: Make, want: dict[str, str], fresh: float) -> list[Mode]:
    """The modes of a command; their output is the same. The server gets to know the modules first."""
    found = [Mode(2, True, fresh)]
    for workers in (0, 0, 2):
        here = directory / f"forked-{len(found)}"
        begin = time.monotonic()
        resume(tally, make(here, workers), here, want)
        found.append(Mode(workers, False, time.monotonic() - begin))
    return found


def choose(found: list[Mode], trial: int) -> Mode:
    """Mostly forked without workers; now and then with workers, and in a fresh interpreter."""
    return found[0] if trial % 40 == 39 else found[3] if trial % 8 == 7 else found[2]


def resume(tally: Tally, argv: list[str], output: Path, want: dict[str, str]) -> None:
    run = start(argv)
    code = run.end()
    if code is None:
        tally.hung += 1
        tally.note("the resume hung")
    elif code != 0:
        tally.lost += 1
        tally.note(f"resume exits {code}: {run.text()[-300:]}")
    elif contents(output) != want:
        tally.silent += 1
        tally.note(f"differs: {sorted(set(contents(output).items()) ^ set(want.items()))[:3]}")
    shutil.rmtree(output, ignore_errors=True)


def killed(tally: Tally, rng: random.Random, trials: int, directory: Path, make: Make) -> None:
    """Killed, with all of its workers, at a moment of its run; the resume gives the same bytes."""
    want, length = reference(make(directory / "reference", 2), directory / "reference")
    found = modes(tally, directory, make, want, length)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"kill-{trial}", trial + 1
        mode = choose(found, trial)
        for _ in range(rng.choice([1, 1, 1, 2])):
            run = start(make(here, mode.workers), fresh=mode.fresh)
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(rng.uniform(0.3 if mode.fresh else 0, 1.0) * mode.seconds)
            run.kill()
        resume(tally, make(here, 0), here, want)


def interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path, make: Make) -> None:
    """A signal at a moment of its run: it ends within 10 s with the right code and can be resumed."""
    want, length = reference(make(directory / "reference", 2), directory / "reference")
    found = modes(tally, directory, make, want, length)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"signal-{trial}", trial + 1
        mode = choose(found, trial)
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        run = start(make(here, mode.workers), fresh=mode.fresh)
        try:
            run.process.wait(rng.uniform(0.3 if mode.fresh else 0, 1.0) * mode.seconds)
        except subprocess.TimeoutExpired:
            run.process.send_signal(signum)
        signalled(tally, run, signum)
        resume(tally, make(here, 0), here, want)


def signalled(tally: Tally, run: Run, signum: int) -> None:
    code = run.end(10)
    if code is None:
        tally.hung += 1
        tally.note(f"no answer to signal {signum}: {run.text()[-300:]}")
    # Before a verb installs its handlers a signal has its plain meaning: -15, which a shell shows as 143.
    elif code not in (0, 128 + signum, -signum) or "Traceback" in run.text():
        tally.unnamed += 1
        tally.note(f"exit {code}: {run.text()[-300:]!r}")


def fetched(directory: Path) -> Path:
    """Cutouts for a verb that reads them."""
    cutouts = directory / "cutouts"
    reference(fetch_argv(cutouts), cutouts)
    return cutouts


@row("1", "fetch: kill -9 at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def fetch_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    killed(tally, rng, trials, directory, lambda out, n: fetch_argv(out, workers=n))


@row("1", "preprocess: kill -9 at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def preprocess_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    cutouts = fetched(directory)
    killed(tally, rng, trials, directory, lambda out, n: preprocess_argv(cutouts, out, workers=n))


@row("22", "fetch: SIGINT and SIGTERM at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def fetch_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    interrupted(tally, rng, trials, directory, lambda out, n: fetch_argv(out, workers=n))


@row("22", "preprocess: SIGINT and SIGTERM at random moments, resume", full=200, gate=2, into=VERB_ROWS)
def preprocess_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    cutouts = fetched(directory)
    interrupted(tally, rng, trials, directory, lambda out, n: preprocess_argv(cutouts, out, workers=n))


@row("29", "preprocess on a damaged cutout artefact", full=300, gate=4, into=VERB_ROWS)
def damaged_input(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    here = fetched(directory)
    files = [*sorted(here.glob("shard-*")), here / "index.parquet", here / "manifest.json"]
    for trial in trials_in_time(trials):
        tally.trials = trial + 1
        path = files[trial % len(files)]
        with faultlib.flipped_bit(path, rng):
            run = start(preprocess_argv(here, directory / f"tensors-{trial}", workers=0))
            code = run.end()
        if code != 4 or (directory / f"tensors-{trial}/manifest.json").exists():
            tally.silent += 1
            tally.note(f"{path.name}: exit {code}")
        named(tally, run.text(), path.name)


@row("37", "fetch: option changed on a finished output", full=4, gate=2, into=VERB_ROWS)
def fetch_drift(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    here = directory / "a"
    reference(fetch_argv(here), here)
    changes = [("size", "64"), ("margin", "3"), ("bands", "gr"), ("edge", "reject")]
    for key, value in changes[:trials]:
        tally.trials += 1
        done = call(fetch_argv(here, f"--{key}", value))
        if done.returncode != 2:
            tally.silent += 1
            tally.note(f"{key}: exit {done.returncode}: {done.stderr[-200:]}")
        named(tally, done.stderr, f"fetch.{key}")


def _configs(directory: Path) -> list[Any]:
    """A configuration of each verb that writes an artefact."""
    from ripple.learn.config import ScoreConfig
    from ripple.stages.fetch.config import FetchConfig
    from ripple.stages.preprocess.config import PreprocessConfig

    where = {"output": str(directory)}
    score = {"model": "m", "tensors": ["t"]} | where
    return [FetchConfig.make(where), PreprocessConfig.make({"cutouts": "c"} | where), ScoreConfig.make(score)]


@row("37", "every key of every verb changed between runs", full=1000, gate=1000, into=VERB_ROWS, gating=True)
def every_key(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.errors import ConfigError
    from ripple.storage.writer import ArtefactWriter, create

    for config in _configs(directory):
        here = directory / config.verb
        options: dict[str, Any] = {"kind": "cutouts", "inputs": {}, "units": 1}
        opened = create(here, config=config, **options)
        assert isinstance(opened, ArtefactWriter)
        with opened:
            pass
        for key in sorted(config.canonical())[:trials]:
            tally.trials += 1
            try:
                with create(here, config=config.model_copy(update={key: ["another"]}), **options):
                    tally.silent += 1
                    tally.note(f"{config.verb}.{key} may change")
            except ConfigError as err:
                named(tally, str(err), f"{config.verb}.{key}")


@row("37", "misspelt keys", full=50, gate=50, into=VERB_ROWS, gating=True)
def typos(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.errors import ConfigError

    configs = _configs(directory)
    for trial in range(trials):
        tally.trials = trial + 1
        kind = type(configs[trial % len(configs)])
        key = rng.choice(sorted(kind.model_fields))
        at = rng.randrange(len(key))
        wrong = rng.choice([key[:at] + key[at + 1 :], key[:at] + "z" + key[at:], key.upper(), key + "s"])
        if wrong in kind.model_fields or not wrong:
            continue
        try:
            kind.make({wrong: 1})
            tally.silent += 1
            tally.note(f"{wrong} is taken")
        except ConfigError as err:
            named(tally, str(err), wrong)


@row("39", "a token in the environment appears nowhere", full=26, gate=3, into=VERB_ROWS, gating=True)
def canary(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    out = directory / "out"
    names = (
        "BUTLER_RUBIN_ACCESS_TOKEN",
        "ACCESS_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "LSST_HTTP_AUTH_BEARER_TOKEN",
    )
    environment = {**os.environ, **dict.fromkeys(names, CANARY)}
    failures = [
        fetch_argv(out), fetch_argv(out, "--size", "64"),
        fetch_argv(directory / "b", "--collections", "nowhere"),
        fetch_argv(directory / "c", "--repo", "/nowhere"), preprocess_argv(out, directory / "t"),
        preprocess_argv(directory / "none", directory / "t2"), fetch_argv(directory / "d", "--bands", "x"),
        fetch_argv(directory / "e", "--targets", "/nowhere.csv"), [*RIPPLE, "doctor", "--json"],
        fetch_argv(directory / "f", "--region", "CIRCLE 1"), [*RIPPLE, "fetch", "--sise", "3"],
        [*RIPPLE, "verify", str(out)], [*RIPPLE, "show", str(out)], [*RIPPLE, "verify", "/nowhere"],
        fetch_argv(directory / "g", "--repo", "https://127.0.0.1:9/api"),
        fetch_argv(directory / "h", "--repo", "http://127.0.0.1:9/api"),
        fetch_argv(directory / "i", "--digests", "/nowhere"), fetch_argv(directory / "j", "--dask", "tcp://x:1"),
        [*RIPPLE, "plan", *fetch_argv(out)[4:-2]], [*RIPPLE, "train", str(out), "-o", str(directory / "m")],
        [*RIPPLE, "score", "/nowhere", str(out), "-o", str(directory / "s")],
        [*RIPPLE, "report", str(out), "-o", str(directory / "p")],
        [*RIPPLE, "export", str(out), "--format", "fits", "-o", str(directory / "x")],
        [*RIPPLE, "run", "-c", "/nowhere.yaml"], [*RIPPLE, "locate", "10", "-30"],
    ]  # fmt: skip
    traces = [
        CANARY.encode(),
        base64.b64encode(CANARY.encode()),
        urllib.parse.quote(CANARY, safe="").encode(),
    ]
    for argv in failures[:trials]:
        tally.trials += 1
        done = call(argv, env=environment, cwd=directory)
        files = [p.read_bytes() for p in directory.rglob("*") if p.is_file()]
        if any(t in b for t in traces for b in [done.stdout.encode(), done.stderr.encode(), *files]):
            tally.silent += 1
            tally.note(f"{argv[3:6]}: the token leaks")
        if "Traceback" in done.stderr:
            tally.unnamed += 1
            tally.note(done.stderr[-300:])
