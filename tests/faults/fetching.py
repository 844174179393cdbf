"""`ripple fetch` with small units whose workers die, hang or run out of memory as told.

`FAULT` in the environment names a JSON file: `units`, `how`, `times` (visits that go wrong), `marks` (a
directory that counts them), `pause` (seconds a unit takes at least). It is read for every unit, so workers
that live on (Dask's) see the fault of the trial.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ripple.runtime import pool
from ripple.stages.fetch import fetch as fetching_stage
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import ShardTask, fetch
from ripple.stages.plan import units
from ripple.storage.map_shards import ShardResult

_make_shard = fetching_stage.make_shard
ROWS_PER_UNIT = 6


def make_shard(task: ShardTask) -> ShardResult:
    """The real thing, after what `FAULT` says."""
    fault = json.loads(Path(os.environ["FAULT"]).read_text())
    time.sleep(fault.get("pause", 0))
    # Without datasets it is the parent, which writes down a unit that is lost.
    if (
        task.unit.number in fault.get("units", ())
        and task.unit.datasets
        and _visits(fault, task) < fault["times"]
    ):
        return misbehave(fault["how"], task)
    return _make_shard(task)


def _visits(fault: dict[str, Any], task: ShardTask) -> int:
    marks = Path(fault["marks"])
    seen = len(list(marks.glob(f"{task.unit.number}-*")))
    (marks / f"{task.unit.number}-{seen}-{os.getpid()}").touch()
    return seen


def misbehave(how: str, task: ShardTask) -> ShardResult:
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
    if how == "sleep":
        time.sleep(600)
    if how.startswith("memory"):  # so many MiB more than now, and no further
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (used + (int(how[6:]) << 20), hard))
        try:
            return _make_shard(task)
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return _make_shard(task)


@contextmanager
def faulty(
    directory: Path, *, rows: int = ROWS_PER_UNIT, size: int = 48, bands: int = 3, **fault: Any
) -> Iterator[None]:
    """Fetch with units of so many rows, and this fault."""
    marks = directory / "marks"
    marks.mkdir(exist_ok=True)
    for mark in marks.iterdir():
        mark.unlink()
    kept = units.PATCH_BYTES, units.UNIT_BYTES, pool._STOPPED_SECONDS
    units.PATCH_BYTES = units.UNIT_BYTES = rows * units.PIXEL_BYTES * bands * size**2
    pool._STOPPED_SECONDS = 2.0
    fetching_stage.make_shard = make_shard
    (directory / "fault.json").write_text(json.dumps({"marks": str(marks)} | fault))
    outer = os.environ.get("FAULT")  # one inside another: workers of a cluster start under the outer one
    os.environ["FAULT"] = str(directory / "fault.json")
    try:
        yield
    finally:
        units.PATCH_BYTES, units.UNIT_BYTES, pool._STOPPED_SECONDS = kept
        fetching_stage.make_shard = _make_shard
        del os.environ["FAULT"]
        if outer is not None:
            os.environ["FAULT"] = outer


def run(sky: Path, output: Path, **options: Any) -> None:
    """Fetch the survey in this process, its workers in theirs."""
    values: dict[str, Any] = {
        "repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
        "bands": list("gri"), "size": 48, "workers": 2, "output": str(output),
    }  # fmt: skip
    fetch(FetchConfig.make(values | options))
