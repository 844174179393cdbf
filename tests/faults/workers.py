"""Rows that concern the workers of `fetch`: crashed, killed, stuck, out of memory; processes and Dask."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import fetching
import forked
import verbs
from faultlib import Tally, contents
from fetching import faulty
from rows import named, row, trials_in_time
from verbs import VERB_ROWS

from ripple.errors import SourceError, WorkerError
from ripple.rubin import repository
from ripple.storage.artefact import open_artefact


def _sky() -> Path:
    assert verbs.SKY is not None
    return verbs.SKY


def _reference(directory: Path) -> tuple[dict[str, str], int]:
    """Digests of a run in one process without faults, and its number of units."""
    with faulty(directory):
        fetching.run(_sky(), directory / "reference", workers=0)
    return contents(directory / "reference"), len(open_artefact(directory / "reference").shards)


def _compare(tally: Tally, here: Path, want: dict[str, str]) -> None:
    if contents(here) != want:
        tally.silent += 1
        tally.note(f"differs: {sorted(set(contents(here).items()) ^ set(want.items()))[:3]}")


def _run(trial: int, output: Path, **options: Any) -> None:
    """Fetch with two workers: forked ones, and fresh interpreters every tenth time."""
    with nullcontext() if trial % 10 == 9 else forked.forked_workers(verbs.server()):
        fetching.run(_sky(), output, **options)


def _again(tally: Tally, here: Path, want: dict[str, str]) -> None:
    """Resume in this process without faults; the result is the reference."""
    with faulty(here.parent):
        fetching.run(_sky(), here, workers=0)
    _compare(tally, here, want)
    shutil.rmtree(here)


@contextmanager
def _clock(tally: Tally, limit: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    if time.monotonic() - start > limit:
        tally.hung += 1
        tally.note(f"{time.monotonic() - start:.0f} s, at most {limit:.0f} expected")


@row("8", "fetch: a file that always crashes its reader", full=50, gate=2, into=VERB_ROWS)
def crashing_file(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, units = _reference(directory)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"crash-{trial}", trial + 1
        bad, how = rng.randrange(units), rng.choice(["abort", "segfault", "exit", "SIGBUS"])
        with faulty(directory, units=[bad], how=how, times=99), _clock(tally, 60):
            try:
                _run(trial, here)
                tally.silent += 1
                tally.note("a unit without a worker, and no error")
            except WorkerError as err:
                named(tally, str(err), f"shard {bad} ", "2 times", "run again")
        if len(list(here.glob("shard-*"))) != units - 1:
            tally.lost += 1
            tally.note(f"{len(list(here.glob('shard-*')))} of {units - 1} innocent units are there")
        _again(tally, here, want)


@row("8", "fetch --lost reject: only the crashing unit's rows are lost", full=10, gate=1, into=VERB_ROWS)
def crashing_rejected(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _, units = _reference(directory)
    before = open_artefact(directory / "reference").index().to_pylist()
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"reject-{trial}", trial + 1
        bad = rng.randrange(units)
        with faulty(directory, units=[bad], how="abort", times=99):
            _run(trial, here, lost="reject")
        after = open_artefact(here).index().to_pylist()
        if len(after) != len(before):
            tally.lost += 1
        for old, new in zip(before, after, strict=True):
            expected = ("rejected", "worker_lost") if old["shard"] == bad else (old["status"], old["reason"])
            # A row that was rejected in the unit has no shard; it is counted with those of the others.
            if (new["status"], new["reason"]) != expected and new["reason"] != "worker_lost":
                tally.silent += 1
                tally.note(f"{old['id']}: {new['status']} {new['reason']}")


@row("19", "fetch: workers killed once each", full=200, gate=3, into=VERB_ROWS)
def workers_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, units = _reference(directory)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"killed-{trial}", trial + 1
        shot = sorted(rng.sample(range(units), rng.randint(1, min(3, units))))
        how = rng.choice(["SIGKILL", "SIGSEGV", "SIGBUS", "abort"])
        with faulty(directory, units=shot, how=how, times=1), _clock(tally, 60):
            _run(trial, here)
        _compare(tally, here, want)
        shutil.rmtree(here)


@row("20", "fetch: a worker stopped, or a read that never returns", full=30, gate=2, into=VERB_ROWS)
def workers_stuck(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, units = _reference(directory)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"stuck-{trial}", trial + 1
        how = ("SIGSTOP", "sleep")[trial % 2]
        fault = {"units": [rng.randrange(units)], "how": how, "times": 1}
        with faulty(directory, **fault), _clock(tally, 40):
            _run(trial, here, deadline=3600.0 if how == "SIGSTOP" else 4.0)
        _compare(tally, here, want)
        shutil.rmtree(here)


@row("21", "fetch: a worker without memory, at 10 levels", full=50, gate=3, into=VERB_ROWS)
def out_of_memory(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, units = _reference(directory)
    levels = [0, 1, 2, 4, 8, 12, 16, 24, 32, 64]
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"memory-{trial}", trial + 1
        fault = {"units": [rng.randrange(units)], "how": f"memory{levels[trial % 10]}", "times": 99}
        with faulty(directory, **fault), _clock(tally, 60):
            try:
                _run(trial, here)
            except WorkerError as err:
                named(tally, str(err), f"shard {fault['units'][0]} ", "run again")
        _again(tally, here, want)


# Dask ---------------------------------------------------------------


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Worker processes of Dask on this machine."""
    from distributed import LocalCluster

    options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        yield cluster


@row("19", "fetch --dask: a worker process killed", full=20, gate=2, into=VERB_ROWS)
def dask_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    try:
        import distributed  # noqa: F401
    except ImportError:
        tally.skipped = "distributed is not installed"
        return
    want, units = _reference(directory)
    with faulty(directory), _cluster(2) as cluster:
        for trial in trials_in_time(trials):
            here, tally.trials = directory / f"dask-{trial}", trial + 1
            shot = [rng.randrange(units)]
            with faulty(directory, units=shot, how="SIGKILL", times=1, pause=0.1), _clock(tally, 120):
                fetching.run(_sky(), here, dask=cluster.scheduler_address)
            if not list((directory / "marks").iterdir()):
                tally.note("nobody was killed")
                tally.hung += 1
            _compare(tally, here, want)
            shutil.rmtree(here)


# Row 23: a locked registry ------------------------------------------


@contextmanager
def _locked(seconds: float) -> Iterator[None]:
    """The registry held exclusively, at most so long."""
    connection = sqlite3.connect(_sky() / "repo/gen3.sqlite3", check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(seconds, connection.rollback)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        connection.rollback()
        connection.close()


def _said(run: verbs.Run, word: str, patience: float) -> bool:
    """Whether the command says the word in time."""
    end = time.monotonic() + patience
    while word not in run.text() and time.monotonic() < end and run.process.poll() is None:
        time.sleep(0.05)
    return word in run.text()


@row("23", "fetch: registry locked by another process", full=20, gate=2, into=VERB_ROWS)
def locked_registry(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, _ = verbs.reference(verbs.fetch_argv(directory / "reference"), directory / "reference")
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"locked-{trial}", trial + 1
        freed, fresh = trial % 2 == 0, trial % 6 >= 4
        with _locked(8 if freed else 120):
            run = verbs.start(verbs.fetch_argv(here, workers=0), fresh=fresh)
            if not _said(run, "is locked, waiting", 3):
                tally.hung += 1
                tally.note(f"silent for too long: {run.text()[-300:]!r}")
            if not freed:
                run.process.send_signal(signal.SIGINT)
            code = run.end(60 if freed else 10)
        if code is None:
            tally.hung += 1
        elif code != (0 if freed else 130) or "Traceback" in run.text():
            tally.unnamed += 1
            tally.note(f"exit {code}: {run.text()[-300:]}")
        elif freed:
            _compare(tally, here, want)


@row("23", "fetch: registry locked at a random moment: a message, or done without it", full=50, gate=2,
     into=VERB_ROWS)  # fmt: skip
def locked_later(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, _ = verbs.reference(verbs.fetch_argv(directory / "reference"), directory / "reference")
    waited = 0
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"later-{trial}", trial + 1
        run = verbs.start(verbs.fetch_argv(here, workers=0))
        time.sleep(rng.uniform(0.0, 1.5))
        with _locked(6):
            # It waits for the lock, or needs the registry no more and ends.
            told = _said(run, "is locked, waiting", 5)
            waited += told
            if not told and run.process.poll() is None:
                tally.hung += 1
                tally.note(f"silent for too long: {run.text()[-300:]!r}")
            code = run.end(60)
        if code != 0 or "Traceback" in run.text():
            tally.unnamed += 1
            tally.note(f"exit {code}: {run.text()[-300:]}")
            continue
        _compare(tally, here, want)
    tally.note(f"{waited} of them waited")


@row("22", "fetch: SIGINT and SIGTERM while the registry is locked", full=50, gate=2, into=VERB_ROWS)
def locked_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, _ = verbs.reference(verbs.fetch_argv(directory / "reference"), directory / "reference")
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"locked-{trial}", trial + 1
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        with _locked(120):
            run = verbs.start(verbs.fetch_argv(here, workers=0))
            time.sleep(rng.uniform(0.0, 5.0))
            run.process.send_signal(signum)
            verbs.signalled(tally, run, signum)
        if run.process.returncode == 0:
            tally.silent += 1
            tally.note("it did not wait for the lock")
        verbs.resume(tally, verbs.fetch_argv(here, workers=0), here, want)


@row("23", "a registry that stays locked is an error with a name", full=2, gate=1, into=VERB_ROWS)
def locked_for_ever(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    kept, repository.LOCK_TRIES = repository.LOCK_TRIES, 2
    try:
        for trial in range(trials):
            tally.trials = trial + 1
            start = time.monotonic()
            with _locked(60):
                try:
                    fetching.run(_sky(), directory / f"forever-{trial}")
                    tally.silent += 1
                except SourceError as err:
                    named(tally, str(err), "locked for", str(_sky() / "repo"))
            tally.hung += time.monotonic() - start > 15
    finally:
        repository.LOCK_TRIES = kept
