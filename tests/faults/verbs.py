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


@row("39", "a token in the environment appears nowhere", full=20, gate=3, into=VERB_ROWS)
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
