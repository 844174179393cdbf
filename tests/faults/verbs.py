"""Rows that concern whole verbs: the command line is run, killed, interrupted, and run again.

`SKY` is a simulated survey (`repo/` and `truth.parquet`); who runs the rows sets it.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faultlib
from faultlib import Tally, contents
from rows import named, row

SKY: Path | None = None
VERB_ROWS: list[Any] = []
PATIENCE = 180.0
CANARY = "CANARY-6f1d-secret-token"
RIPPLE = faultlib.python("-c", "from ripple.cli import main; main()")

Argv = Callable[[Path], list[str]]


def fetch_argv(output: Path, *more: str) -> list[str]:
    assert SKY is not None
    selection = [
        "--repo",
        str(SKY / "repo"),
        "--collections",
        "mini",
        "--targets",
        str(SKY / "truth.parquet"),
    ]
    return [
        *RIPPLE,
        "fetch",
        *selection,
        "--bands",
        "gri",
        "--size",
        "48",
        "--workers",
        "2",
        "-o",
        str(output),
        *more,
    ]


def preprocess_argv(cutouts: Path, output: Path, *more: str) -> list[str]:
    return [*RIPPLE, "preprocess", str(cutouts), "--workers", "2", "-o", str(output), *more]


def call(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, **options)


def reference(argv: list[str], output: Path) -> tuple[dict[str, str], float]:
    """Digests of a run without faults, and how long it took."""
    start = time.monotonic()
    done = call(argv)
    assert done.returncode == 0, done.stderr[-2000:]
    return contents(output), time.monotonic() - start


def resume(tally: Tally, argv: list[str], output: Path, want: dict[str, str]) -> None:
    done = call(argv)
    if done.returncode != 0:
        tally.lost += 1
        tally.note(f"resume exits {done.returncode}: {done.stderr[-300:]}")
    elif contents(output) != want:
        tally.silent += 1
        tally.note(f"differs: {sorted(set(contents(output).items()) ^ set(want.items()))[:3]}")


def killed(tally: Tally, rng: random.Random, trials: int, directory: Path, make: Argv) -> None:
    want, length = reference(make(directory / "reference"), directory / "reference")
    for trial in range(trials):
        here, tally.trials = directory / f"kill-{trial}", trial + 1
        process = subprocess.Popen(make(here), stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(rng.uniform(0.3, 1.0) * length)
        except subprocess.TimeoutExpired:
            faultlib.stop_process(process)
        resume(tally, make(here), here, want)


def interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path, make: Argv) -> None:
    want, length = reference(make(directory / "reference"), directory / "reference")
    for trial in range(trials):
        here, tally.trials = directory / f"signal-{trial}", trial + 1
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        process = subprocess.Popen(make(here), stderr=subprocess.PIPE, start_new_session=True)
        try:
            process.wait(rng.uniform(0.3, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signum)
        try:
            _, text = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            tally.hung += 1
            faultlib.stop_process(process)
            text = b""
        # Before a verb installs its handlers a signal has its plain meaning: -15, which a shell shows as 143.
        if process.returncode not in (0, 128 + signum, -signum) or b"Traceback" in text:
            tally.unnamed += 1
            tally.note(f"exit {process.returncode}: {text[-300:]!r}")
        resume(tally, make(here), here, want)


@row("1", "fetch: kill -9 at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def fetch_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    killed(tally, rng, trials, directory, fetch_argv)


@row("1", "preprocess: kill -9 at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def preprocess_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    reference(fetch_argv(directory / "cutouts"), directory / "cutouts")
    killed(tally, rng, trials, directory, lambda out: preprocess_argv(directory / "cutouts", out))


@row("22", "fetch: SIGINT and SIGTERM at random moments, resume", full=200, gate=3, into=VERB_ROWS)
def fetch_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    interrupted(tally, rng, trials, directory, fetch_argv)


@row("29", "preprocess on a damaged cutout artefact", full=300, gate=4, into=VERB_ROWS)
def damaged_input(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    here = directory / "cutouts"
    reference(fetch_argv(here), here)
    files = [*sorted(here.glob("shard-*")), here / "index.parquet", here / "manifest.json"]
    for trial in range(trials):
        tally.trials = trial + 1
        path = files[trial % len(files)]
        with faultlib.flipped_bit(path, rng):
            done = call(preprocess_argv(here, directory / f"tensors-{trial}"))
        if done.returncode != 4 or (directory / f"tensors-{trial}/manifest.json").exists():
            tally.silent += 1
            tally.note(f"{path.name}: exit {done.returncode}")
        named(tally, done.stderr, path.name)


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
    from ripple.fetch import FetchConfig
    from ripple.learn.score_config import ScoreConfig
    from ripple.prepare import PreprocessConfig

    where = {"output": str(directory)}
    score = {"model": "m", "tensors": ["t"]} | where
    return [FetchConfig.make(where), PreprocessConfig.make({"cutouts": "c"} | where), ScoreConfig.make(score)]


@row("37", "every key of every verb changed between runs", full=1000, gate=1000, into=VERB_ROWS, gating=True)
def every_key(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.artefact import ArtefactWriter, create
    from ripple.errors import ConfigError

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
