"""The rows of the reliability table that concern the artefact, the pool and the shard reader.

Each row is a function `(trials, seed, directory) -> Tally`. The gate (`test_rows.py`) runs about ten trials
of each, `scripts/faults` the full counts.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faultlib
import victim
from faultlib import Tally, contents

from ripple.errors import ConfigError, InputError, IntegrityError
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.law import check_law
from ripple.storage.writer import ArtefactWriter, create

HERE = Path(__file__).parent
PATIENCE = 30.0


@dataclass(frozen=True)
class Row:
    """A row: its number in the plan, what happens, the function, how many trials make it full or a gate.

    `gating` rows of `verbs` and `sources` belong to the ordinary tests, all others to the slow ones.
    """

    number: str
    name: str
    run: Callable[[int, int, Path], Tally]
    full: int
    gate: int = 10
    gating: bool = False


ROWS: list[Row] = []
#: Which part of the trials this process runs, of how many: `scripts/faults --chunk`.
CHUNK = (0, 1)
#: When long rows stop with the trials done so far (monotonic seconds): `scripts/faults --seconds`.
STOP = [float("inf")]


def trials_in_time(trials: int) -> Iterator[int]:
    """0, 1, ... until `trials` or the time is up; the tally says how many there were."""
    for trial in range(trials):
        if trial and time.monotonic() > STOP[0]:
            return
        yield trial


def row(
    number: str, name: str, full: int, gate: int = 10, into: list[Row] | None = None, *, gating: bool = False
) -> Callable[[Any], Any]:
    """Register a row; the wrapped function gets a fresh `Tally` and a seeded generator."""

    def decorate(function: Callable[[Tally, random.Random, int, Path], None]) -> Any:
        def run(trials: int, seed: int, directory: Path) -> Tally:
            part = f"{seed}" if CHUNK[1] == 1 else f"{seed} chunk {CHUNK[0]}/{CHUNK[1]}"
            tally = Tally(number, name, part)
            start = time.monotonic()
            function(tally, random.Random(f"{part}/{number}/{name}"), trials, directory)
            tally.seconds = time.monotonic() - start
            return tally

        (ROWS if into is None else into).append(Row(number, name, run, full, gate, gating))
        return run

    return decorate


# Running the victim -------------------------------------------------


class Child:
    """A forked child running the victim: everything is imported already, so a trial takes milliseconds."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.exitcode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                run()
                code = 0
            except SystemExit as err:
                code = int(err.code or 0)
            except BaseException:  # noqa: BLE001 - whatever happens, the child must not return into the test
                traceback.print_exc()
            finally:
                os._exit(code)

    def is_alive(self) -> bool:
        if self.exitcode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exitcode = os.waitstatus_to_exitcode(status)
        return self.exitcode is None

    def join(self, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < end:
            time.sleep(0.005)

    def kill(self) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


def spawn(directory: Path, log: Path, **options: Any) -> Child:
    """The victim in a process of its own, quick to start."""
    log.unlink(missing_ok=True)
    return Child(lambda: victim.guarded(str(log), directory, **options))


def finish(process: Child, tally: Tally, patience: float = PATIENCE) -> int:
    """Wait for the victim; a hang is counted and ended."""
    process.join(patience)
    if process.is_alive():
        tally.hung += 1
        tally.note("hung")
        process.kill()
        process.join()
    return -9 if process.exitcode is None else process.exitcode


def judge(tally: Tally, directory: Path, reference: dict[str, str], units: int = 5) -> None:
    """A finished artefact must be the reference; nobody may be missing from it."""
    found = contents(directory)
    if found != reference:
        tally.silent += 1
        tally.note(f"differs: {sorted(set(found.items()) ^ set(reference.items()))[:3]}")
    artefact = open_artefact(directory)
    try:
        check_law(artefact.index(), [s.rows for s in artefact.shards], asked=units * victim.ROWS + 1)
    except IntegrityError as err:
        tally.lost += 1
        tally.note(str(err))


def reference(directory: Path, **options: Any) -> dict[str, str]:
    victim.build(directory / "reference", **options)
    return contents(directory / "reference")


def rerun(tally: Tally, here: Path, log: Path, want: dict[str, str], **options: Any) -> None:
    """Run to the end without faults; must give the reference."""
    code = finish(spawn(here, log, **options), tally)
    if code != 0:
        tally.lost += 1
        tally.note(f"resume exits {code}: {log.read_text() if log.exists() else ''}")
        return
    judge(tally, here, want, options.get("units", 5))


def named(tally: Tally, text: str, *parts: str) -> None:
    """The message must contain all parts, in one line, without a traceback."""
    if "Traceback" in text or any(part not in text for part in parts):
        tally.unnamed += 1
        tally.note(f"message {text[-300:]!r} lacks one of {parts}")


# Rows 1, 2: kill ----------------------------------------------------


@row("1", "kill -9 at random moments, resume", full=200)
def kill_random(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=8)
    log = directory / "log"
    start = time.monotonic()
    finish(spawn(directory / "timing", log, units=8), tally)
    length = time.monotonic() - start
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"kill-{trial}", trial + 1
        for _ in range(rng.randint(1, 3)):
            process = spawn(here, log, units=8)
            time.sleep(rng.uniform(0, length * 1.1))
            process.kill()
            process.join()
        rerun(tally, here, log, want, units=8)


@row("1", "kill -9 of parent with two workers, resume", full=50, gate=4)
def kill_with_workers(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    import psutil

    want = reference(directory, units=8)
    log = directory / "log"
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"pool-{trial}", trial + 1
        process = spawn(here, log, units=8, workers=2, pause=0.05)
        time.sleep(rng.uniform(0.1, 0.8))
        pids = [child.pid for child in psutil.Process(process.pid).children()]
        process.kill()
        process.join()
        # A worker that is still starting learns of it when Python is up: seconds on a busy machine.
        if left := faultlib.survivors(pids, PATIENCE):
            tally.hung += 1
            tally.note(f"workers {left} outlive their parent")
        rerun(tally, here, log, want, units=8, workers=0)


CALLS = ("rename", "fsync", "write", "pwrite64", "unlink", "ftruncate", "flock", "mkdir")


def _traced(directory: Path, log: Path, options: Sequence[str], tally: Tally) -> int:
    """The victim under strace, from its first own call to its end; the exit code."""

    def run() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        victim.guarded(str(log), directory, units=3, size=2000)

    log.unlink(missing_ok=True)
    process = Child(run)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    tracer = faultlib.traced(process.pid, options)
    code = finish(process, tally)
    tracer.wait(PATIENCE)
    return code


def _every_call(
    tally: Tally, rng: random.Random, trials: int, directory: Path, what: str, calls: tuple[str, ...]
) -> Iterator[tuple[Path, str, int, int]]:
    """The victim with a fault at call k, for all k or a random draw of `trials`; yields each exit code."""
    tally.skipped = faultlib.can_trace()
    if tally.skipped:
        return
    log, trace = directory / "log", directory / "trace"
    _traced(directory / "count", log, faultlib.counting(calls, trace), tally)
    counts = {call: trace.read_text(errors="replace").count(f" {call}(") for call in calls}
    plan = [(call, k) for call in calls for k in range(1, counts[call] + 1)]
    if trials < len(plan):
        plan = sorted(rng.sample(plan, trials))
    plan = plan[CHUNK[0] :: CHUNK[1]]
    for number in trials_in_time(len(plan)):
        call, k = plan[number]
        here, tally.trials = directory / f"call-{number}", number + 1
        yield here, call, k, _traced(here, log, faultlib.injection(call, what, k), tally)


@row("2", "kill -9 at system call k of a commit, resume", full=10_000, gate=8)
def kill_at_calls(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=3, size=2000)
    for here, *_ in _every_call(tally, rng, trials, directory, "signal=SIGKILL", CALLS):
        rerun(tally, here, directory / "log", want, units=3, size=2000)


# Rows 4, 5: disks ---------------------------------------------------


@row("4", "disk full at many sizes, resume with room", full=40)
def disk_full(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    tally.skipped = faultlib.can_mount()
    if tally.skipped:
        return
    want = reference(directory, units=6, size=40_000)
    log = directory / "log"
    sizes = [16_384 + k * 290_000 // max(1, trials - 1) for k in range(trials)]
    for trial, size in enumerate(sizes):
        tally.trials = trial + 1
        with faultlib.small_disk(directory / f"disk-{trial}", size // 4096 * 4096) as disk:
            log.unlink(missing_ok=True)
            code = finish(spawn(disk / "a", log, units=6, size=40_000), tally)
            if code == 0:
                judge(tally, disk / "a", want, 6)
                continue
            named(
                tally, log.read_text() if log.exists() else "", "disk full", "bytes needed", str(disk / "a")
            )
            if code != 6 or ((disk / "a").exists() and faultlib.temporaries(disk / "a")):
                tally.unnamed += 1
                tally.note(f"exit {code}, left {faultlib.temporaries(disk / 'a')}")
            faultlib.grow(disk, 1 << 22)
            rerun(tally, disk / "a", log, want, units=6, size=40_000)


def _errors(
    tally: Tally, rng: random.Random, trials: int, directory: Path, error: str, calls: tuple[str, ...]
) -> None:
    """A failing system call: exit 6 with a name, or success with the right bytes; then resume."""
    want = reference(directory, units=3, size=2000)
    log = directory / "log"
    for here, call, k, code in _every_call(tally, rng, trials, directory, f"error={error}", calls):
        said = log.read_text() if log.exists() else ""
        if code == 0 and call != "unlink":  # what unlink leaves behind, the next run takes away
            judge(tally, here, want, 3)
        elif code == 0:
            pass
        elif code == 6:
            # The log itself may be what could not be written.
            named(tally, said or str(here), str(here))
            if here.exists() and call not in ("unlink",) and faultlib.temporaries(here):
                tally.note(f"{call} {k}: left {faultlib.temporaries(here)}")
                tally.unnamed += 1
        else:
            tally.unnamed += 1
            tally.note(f"{call} {k}: exit {code}: {said[-200:]!r}")
        rerun(tally, here, log, want, units=3, size=2000)


@row("4", "ENOSPC at write k of a commit, resume", full=10_000, gate=5)
def no_space_at_calls(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _errors(tally, rng, trials, directory, "ENOSPC", ("write", "rename", "mkdir"))


@row("5", "EIO at fsync, write, rename, close k of a commit, resume", full=10_000, gate=6)
def io_error_at_calls(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _errors(tally, rng, trials, directory, "EIO", ("fsync", "write", "rename", "unlink", "ftruncate"))


# Rows 17, 18: several processes -------------------------------------


@row("17", "two to eight writers at once", full=100, gate=5)
def many_writers(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"writers-{trial}", trial + 1
        logs = [directory / f"log-{trial}-{k}" for k in range(rng.randint(2, 8))]
        processes = []
        for log in logs:
            processes.append(spawn(here, log, pause=0.03))
            time.sleep(rng.uniform(0, 0.03))
        codes = [finish(process, tally) for process in processes]
        if 0 not in codes or set(codes) - {0, 6}:
            tally.lost += 1
            tally.note(f"exit codes {codes}")
        for log, code in zip(logs, codes, strict=True):
            if code == 6:
                named(tally, log.read_text(), "is being written by pid", str(here))
        judge(tally, here, want)


@row("18", "reader while a writer works", full=50, gate=5)
def reader_and_writer(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"reader-{trial}", trial + 1
        process = spawn(here, directory / "log", pause=0.02)
        while process.is_alive():
            try:
                artefact = open_artefact(here)
                for k in range(len(artefact.shards)):
                    if artefact.read(k) != victim.unit_bytes(k, 20_000):
                        tally.silent += 1
                artefact.index()
            except InputError as err:
                named(tally, str(err), str(here))
            time.sleep(rng.uniform(0, 0.01))
        finish(process, tally)
        judge(tally, here, want)


# Rows 19, 20, 22: workers and signals -------------------------------


@row("19", "workers killed by SIGKILL, SIGSEGV, SIGBUS", full=200, gate=5)
def workers_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=8)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"worker-{trial}", trial + 1
        shots = rng.choices([signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS], k=rng.randint(1, 5))
        process = spawn(here, directory / "log", units=8, workers=2, pause=0.1, retries=6)
        with faultlib.harassed(process.pid, rng, shots, (0.05, 0.4)):
            code = finish(process, tally)
        if code != 0:
            tally.lost += 1
            tally.note(f"exit {code}")
            continue
        judge(tally, here, want, 8)


@row("20", "workers stopped (SIGSTOP), deadline 2 s", full=30, gate=3)
def workers_stuck(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=6)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"stuck-{trial}", trial + 1
        process = spawn(here, directory / "log", units=6, workers=2, pause=0.2, deadline=2.0, retries=3)
        with faultlib.harassed(process.pid, rng, [signal.SIGSTOP], (0.4, 0.9)):
            code = finish(process, tally, 2.0 * 1.2 + 20)  # a new worker takes seconds on a busy machine
        if code != 0:
            tally.lost += 1
            tally.note(f"exit {code}")
            continue
        judge(tally, here, want, 6)


@row("22", "SIGINT and SIGTERM at random moments, resume", full=200, gate=6)
def interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=8)
    log = directory / "log"
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"signal-{trial}", trial + 1
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        argv = faultlib.python(str(HERE / "victim.py"), str(here), "8", "20000", "2", "0.2")
        process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        end = time.monotonic() + 5
        while not (here / ".journal").exists() and time.monotonic() < end:
            time.sleep(0.01)  # before that it is Python starting, which no handler of ours can see
        time.sleep(rng.uniform(0.05, 1.0))
        process.send_signal(signum)
        try:
            _, text = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            tally.hung += 1
            process.kill()
            process.communicate()
            continue
        if process.returncode not in (0, 128 + signum):
            tally.unnamed += 1
            tally.note(f"exit {process.returncode}: {text[-300:]!r}")
        elif process.returncode:
            named(tally, text.decode(), "interrupted", "resume")
        rerun(tally, here, log, want, units=8)


# Rows 29, 30: rot ---------------------------------------------------


def _found(directory: Path, path: Path, k: int | None) -> tuple[bool, str]:
    """Whether both `verify` and the first read see the damage, and what is said."""
    said = verify(directory)
    try:
        artefact = open_artefact(directory)
        artefact.index() if k is None else artefact.read(k)
    except (IntegrityError, InputError) as err:
        return bool(said), f"{said} {err}"
    return False, f"{said}: {path.name} was read without an error"


@row("29", "committed shard, index, manifest flipped", full=1000, gate=300)
def flipped(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    victim.build(directory / "a", units=3, size=4000)
    files = [
        *sorted((directory / "a").glob("shard-*")),
        directory / "a/index.parquet",
        directory / "a/manifest.json",
    ]
    for trial in range(trials):
        tally.trials = trial + 1
        path = files[trial % len(files)]
        with faultlib.flipped_bit(path, rng) as place:
            k = files.index(path) if path.name.startswith("shard") else None
            found, said = _found(directory / "a", path, k)
        tally.silent += not found
        named(tally, said, path.name)
        if not found:
            tally.note(f"{path.name} byte {place}: {said}")
    if verify(directory / "a"):
        tally.note("the undamaged artefact does not verify")
        tally.silent += 1


@row("29", "finished shard, index, manifest cut, emptied, swapped, linked, deleted", full=300, gate=60)
def displaced(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    here = directory / "a"
    victim.build(here, units=3, size=4000)
    files = [*sorted(here.glob("shard-*")), here / "index.parquet", here / "manifest.json"]
    for trial in range(trials):
        tally.trials = trial + 1
        path = files[trial % len(files)]
        how = rng.choice(["cut", "empty", "swap", "link", "delete", "grow"])
        with _displacement(how, rng, path, files):
            k = files.index(path) if path.name.startswith("shard") else None
            try:
                found, said = _found(here, path, k)
            except (InputError, IntegrityError) as err:
                found, said = True, str(err)
        tally.silent += not found
        named(
            tally, said, str(here) if how == "swap" else path.name
        )  # a swap damages two files, one is named


def _displacement(how: str, rng: random.Random, path: Path, files: list[Path]) -> Any:
    whole = path.read_bytes()
    match how:
        case "cut":
            return faultlib.replaced(path, whole[: rng.randrange(len(whole))])
        case "empty":
            return faultlib.replaced(path, b"")
        case "swap":
            return faultlib.swapped(path, rng.choice([f for f in files if f != path]))
        case "link":
            return faultlib.linked(path)
        case "delete":
            return faultlib.missing(path)
        case _:
            return faultlib.replaced(path, whole + b"\n")


@row("30", "journal or committed shard of an unfinished artefact damaged, resume", full=1000, gate=40)
def journal_damaged(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want = reference(directory, units=3, size=2000)
    for trial in range(trials):
        here, tally.trials = directory / f"journal-{trial}", trial + 1
        _unfinished(here, 2)
        path = here / rng.choice([".journal", ".journal", "shard-00000.h5", "shard-00001.h5"])
        data = bytearray(path.read_bytes())
        match rng.choice(["flip", "cut", "repeat", "reverse", "foreign"]):
            case "flip":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case "cut":
                del data[rng.randrange(len(data)) :]
            case "repeat":
                data += data[len(data) // 2 :]
            case "reverse":
                data = bytearray(b"\n".join(reversed(bytes(data).split(b"\n"))))
            case _:
                data = bytearray(b"<html>not found</html>\n" * rng.randint(1, 5))
        path.write_bytes(data)
        victim.build(here, units=3, size=2000)
        judge(tally, here, want, 3)


def _unfinished(directory: Path, upto: int) -> None:
    writer = create(directory, kind="cutouts", config=victim.VictimConfig(), inputs={"units": 3}, units=3)
    assert isinstance(writer, ArtefactWriter)
    with writer:
        for unit in range(upto):
            writer.commit(unit, victim.unit_bytes(unit, 2000), victim.ROWS, {"unit": unit})


# Rows 32, 37: hostile files, config drift ---------------------------


@row("32", "hostile HDF5", full=1000, gate=1000)
def hostile_hdf5(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    import hostile

    secret = directory / "secret.txt"
    secret.write_bytes(b"SECRET" * 1000)
    cases = hostile.cases(directory, secret)
    for trial in range(min(trials, len(cases))):
        name, data, kind = cases[trial]
        tally.trials = trial + 1
        start = time.monotonic()
        outcome = hostile.read(data, kind, limit=1 << 30)
        tally.hung += time.monotonic() - start > 5.0
        if not outcome.startswith("DataError"):
            tally.silent += 1
            tally.note(f"{name}: {outcome[:200]}")


@row("37", "each configuration key changed between runs", full=8, gate=8)
def config_drift(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    changes = {"size": 96, "bands": ("g", "i"), "stretch": 2.5, "mode": "b"}
    want = reference(directory, units=3, size=2000)
    for finished in (False, True):
        here = directory / f"drift-{finished}"
        _unfinished(here, 2)
        if finished:
            victim.build(here, units=3, size=2000)
        for key, value in changes.items():
            tally.trials += 1
            try:
                victim.build(here, units=3, size=2000, config=victim.VictimConfig(**{key: value}))
                tally.silent += 1
            except ConfigError as err:
                named(tally, str(err), f"victim.{key}", "->")
        victim.build(here, units=3, size=2000)
        judge(tally, here, want, 3)
