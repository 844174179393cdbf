"""Rows 1, 4, 17 and 22 for the verbs that `verbs` and `learning` leave out: see `cases`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import faultlib
import verbs
from cases import PAGE, VERBS, Cases, clear, found, litter
from faultlib import Tally
from rows import named, row, trials_in_time
from verbs import VERB_ROWS


def killed(verb: str, tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    """Killed with all of its workers; the same command makes the same files and leaves no others."""
    cases = Cases(verb, directory)
    for number in trials_in_time(trials):
        tally.trials = number + 1
        trial = cases.trial(number)
        for _ in range(rng.choice([1, 1, 1, 2])):
            run = trial.start()
            trial.wait(run, rng)
            run.kill()
        trial.again(tally, "kill")


def interrupted(verb: str, tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    """A signal: the right exit code within 10 s, and the same command makes the same files."""
    import signal

    cases = Cases(verb, directory)
    for number in trials_in_time(trials):
        tally.trials = number + 1
        trial = cases.trial(number)
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        run = trial.start()
        trial.wait(run, rng)
        run.process.send_signal(signum)
        verbs.signalled(tally, run, signum)
        trial.again(tally, signum.name)


def disk_full(verb: str, tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    """Too small a disk: exit 6 with the bytes needed, no temporary; with room the same files."""
    tally.skipped = faultlib.can_mount()
    if tally.skipped:
        return
    cases = Cases(verb, directory)
    for number in trials_in_time(trials):
        tally.trials = number + 1
        trial = cases.trial(number)
        size = PAGE * rng.randint(1, trial.pages + trial.pages // 20)
        with faultlib.small_disk(cases.work, size):
            run = trial.start()
            code = run.end()
            if code == 0:
                trial.judge(tally, f"{size} bytes", found(cases.work))
                continue
            named(tally, run.text(), "disk full", "bytes needed", str(cases.work))
            if code != 6 or litter(cases.work):
                tally.unnamed += 1
                tally.note(f"{size} bytes: exit {code}, left {litter(cases.work)[:3]}")
            faultlib.grow(cases.work, 1 << 28)
            trial.again(tally, f"{size} bytes")


def many_writers(verb: str, tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    """Two to four at once: one works, the others find it finished or exit 6 naming the output."""
    cases = Cases(verb, directory)
    for number in trials_in_time(trials):
        tally.trials = number + 1
        trial, runs = cases.trial(number), []
        for _ in range(rng.randint(2, 4)):
            runs.append(trial.start())
            time.sleep(rng.choice([0.0, rng.uniform(0, trial.seconds / 2)]))
        codes = [run.end() for run in runs]
        tally.hung += codes.count(None)
        if 0 not in codes or set(codes) - {0, 6, None}:
            tally.lost += 1
            tally.note(f"exit codes {codes}: {[r.text()[-200:] for r in runs]}")
        for run, code in zip(runs, codes, strict=True):
            if code == 6:
                named(tally, run.text(), "is being written by pid", str(cases.work))
        trial.judge(tally, f"{len(runs)} writers", found(cases.work))
        clear(cases.work)


def add_rows() -> None:
    """Four rows for each verb. Trials of the chain take seconds, the others half a second."""
    for verb in VERBS:
        full = 50 if verb in ("run", "simulate") else 200
        for number, what, function, most in (
            ("1", "kill -9 at random moments, run again", killed, full),
            ("4", "disk full at many sizes, run again with room", disk_full, 40),
            ("17", "two to four writers at once", many_writers, full // 4),
            ("22", "SIGINT and SIGTERM at random moments, run again", interrupted, full),
        ):
            row(number, f"{verb}: {what}", full=most, gate=1, into=VERB_ROWS)(_of(verb, function))


def _of(verb: str, function: object) -> object:
    def run(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
        function(verb, tally, rng, trials, directory)  # type: ignore[operator]

    return run


add_rows()
