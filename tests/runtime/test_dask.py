"""A Dask scheduler that dies, or has no workers, ends a run in words; no target is blamed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pool_tasks import pid

from ripple.errors import WorkerError
from ripple.runtime import dask
from ripple.storage.map_shards import Workers, map_tasks

pytest.importorskip("distributed")
WORKERS = {"count": 1, "deadline": 600.0, "memory": "1GiB", "need": 1}


@contextmanager
def scheduler(directory: Path, *, worker: bool) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler in a process of its own, and perhaps a worker."""
    log = directory / "scheduler.log"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, cwd=directory, env=env)
    others = []
    try:
        for _ in range(600):
            if found := re.search(r"tcp://[\d.]+:\d+", log.read_text()):
                break
            time.sleep(0.1)
        assert found is not None
        if worker:
            call = [sys.executable, "-m", "distributed.cli.dask_worker", found[0], "--nthreads", "1"]
            call += ["--no-dashboard", "--no-nanny"]
            others.append(subprocess.Popen(call, cwd=directory, env=env, stderr=subprocess.DEVNULL))
        yield process, found[0]
    finally:
        for each in (process, *others):
            each.kill()
            each.wait()


def test_a_scheduler_that_dies_is_named(tmp_path: Path) -> None:
    with scheduler(tmp_path, worker=True) as (process, address):
        results = map_tasks(pid, list(range(10_000)), Workers(**WORKERS, dask=address))
        assert isinstance(next(results), int)
        threading.Timer(0.5, lambda: process.send_signal(signal.SIGKILL)).start()
        with pytest.raises(WorkerError, match="is lost: nothing is rejected"):
            list(results)


def test_no_worker_is_said_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dask, "LOOK", 0.2)
    monkeypatch.setattr(dask, "SAY_AFTER", 0.5)
    monkeypatch.setattr(dask, "GIVE_UP_AFTER", 2.0)
    with (
        scheduler(tmp_path, worker=False) as (_, address),
        pytest.raises(WorkerError, match="has had no worker for 2 s"),
    ):
        list(map_tasks(pid, [1], Workers(**WORKERS, dask=address)))
    assert "has no worker; waiting" in capfd.readouterr().err
