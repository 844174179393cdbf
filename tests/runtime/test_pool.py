"""The pool: order, blame, retries, deadlines, signals, no survivors."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest

from ripple.errors import DataError, Interrupted, Reason, UnreadableError, WorkerError
from ripple.runtime.pool import WorkerFailure, ordered_map, starting

HERE = Path(__file__).parents[1] / "support"


def gone(pid: int, seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_values(workers: int) -> None:
    found = list(ordered_map(tasks.square, range(20), workers=workers))
    assert found == [(k, k * k) for k in range(20)]
    assert list(ordered_map(tasks.square, [], workers=workers)) == []


def test_workers_started_ahead_are_used_and_those_left_over_end() -> None:
    with starting(tasks.pid, 3, prepare=tasks.prepare) as started:
        early = {process.pid for process, _ in started.workers}
        found = [pid for _, pid in ordered_map(tasks.pid, range(8), workers=2, started=started)]
        assert set(found) <= early
        assert len(started.workers) == 1
    assert all(gone(pid) for pid in early)


def test_workers_prepare_once_and_before_their_first_task() -> None:
    with starting(tasks.prepared, 1, prepare=tasks.prepare) as started:
        first, *others = [r for _, r in ordered_map(tasks.prepared, range(4), workers=2, started=started)]
    assert first == 1
    assert set(others) == {1}


def test_a_task_given_back_by_a_slot_that_may_not_work_any_more_is_done(tmp_path: Path) -> None:
    """Memory grew short while the last task ran on the second slot, and its worker died."""
    dying = tmp_path / "died"

    def allowed() -> int:
        return 1 if dying.exists() else 2

    work = [(0, "", ""), (1, "SIGKILL", str(dying))]
    found = dict(ordered_map(tasks.die_late, work, workers=2, allowed=allowed))
    assert found == {0: 0, 1: 1}


def test_a_worker_that_dies_before_its_first_task_is_replaced() -> None:
    with starting(tasks.square, 1) as started:
        started.workers[0][0].kill()
        assert list(ordered_map(tasks.square, [2, 3], workers=1, started=started)) == [(0, 4), (1, 9)]


def test_results_come_in_order_whatever_finishes_first() -> None:
    found = list(ordered_map(tasks.uneven, range(30), workers=3))
    assert [k for k, _ in found] == list(range(30))
    assert [r[0] for _, r in found] == list(range(30))  # type: ignore[index]
    pids = {r[1] for _, r in found}  # type: ignore[index]
    assert 1 < len(pids) <= 3
    assert os.getpid() not in pids
    assert all(gone(pid) for pid in pids)


def test_workers_are_pinned_and_serve_many_tasks() -> None:
    found = [r for _, r in ordered_map(tasks.environment, range(5), workers=1)]
    assert {r[:2] for r in found} == {("1", "1")}  # type: ignore[index]
    assert len({r[2] for r in found}) == 1  # type: ignore[index]


def test_large_results_and_few_in_flight(tmp_path: Path) -> None:
    seen = 0
    for _, data in ordered_map(tasks.large, [30_000_000] * 6, workers=2):
        assert isinstance(data, bytes)
        seen += len(data)
    assert seen == 180_000_000
    window = ordered_map(tasks.nap, [(k, 0.0, str(tmp_path)) for k in range(100)], workers=1)
    next(window)
    window.close()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGBUS", "exit", "abort"])
def test_death_is_blamed_on_its_task_alone(how: str, tmp_path: Path) -> None:
    work = [(k, how if k in (2, 5) else "", str(tmp_path / "once") if k == 5 else "") for k in range(8)]
    found = dict(ordered_map(tasks.die, work, workers=2))
    failure = found.pop(2)
    assert isinstance(failure, WorkerFailure)
    assert failure.task == 2
    assert {"exit": "exited with code 3", "abort": "SIGABRT"}.get(how, how) in failure.message
    assert "2 times" in failure.message
    assert found == {k: k for k in range(8) if k != 2}  # task 5 died once and was done elsewhere


@pytest.mark.parametrize("how", ["SIGSTOP", "sleep"])
def test_stuck_worker_is_killed_at_the_deadline(how: str, tmp_path: Path) -> None:
    work = [(k, how if k == 1 else "", str(tmp_path / "once")) for k in range(4)]
    start = time.monotonic()
    assert dict(ordered_map(tasks.die, work, workers=2, deadline=1.0)) == {k: k for k in range(4)}
    work = [(0, how, ""), (1, "", "")]
    found = dict(ordered_map(tasks.die, work, workers=2, deadline=1.0, retries=0))
    assert time.monotonic() - start < 6
    assert isinstance(found[0], WorkerFailure)
    assert "within 1 s" in found[0].message
    assert found[1] == 1


def test_stopped_worker_is_found_without_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ripple.runtime.pool._STOPPED_SECONDS", 0.5)
    work = [(k, "SIGSTOP" if k == 1 else "", str(tmp_path / "once")) for k in range(3)]
    assert dict(ordered_map(tasks.die, work, workers=2)) == {k: k for k in range(3)}


def test_exceptions() -> None:
    found = dict(ordered_map(tasks.misbehave, [(0, ""), (1, "bug"), (2, "print")], workers=1))
    assert found[0] == 0
    assert found[2] == 2
    assert isinstance(found[1], WorkerFailure)
    assert found[1].message == "ZeroDivisionError: a bug in two lines"
    assert "misbehave" in found[1].detail
    with pytest.raises(DataError, match=r"unit 1 is wrong \(mend it\)"):
        list(ordered_map(tasks.misbehave, [(0, ""), (1, "named"), (2, "")], workers=2))


def test_errors_keep_what_they_say_across_processes() -> None:
    for error in (
        DataError("row 1", hint="mend it"),
        UnreadableError("file", hint="x", reason=Reason.WRONG_WCS),
        Interrupted(15),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))
    assert again.code == 143


@pytest.mark.parametrize("how", ["system", "ours", "exec"])
def test_results_cannot_name_a_function(how: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    work = [(0, "", ""), (1, how, str(canary)), (2, "", "")]
    found = dict(ordered_map(tasks.hostile, work, workers=1))
    assert (found[0], found[2]) == (0, 2)
    assert isinstance(found[1], WorkerFailure)
    assert "is not allowed in a result" in found[1].message
    assert not canary.exists()


def test_memory_limit_fails_the_task_not_the_parent() -> None:
    work = [(0, ""), (1, "memory"), (2, "")]
    found = dict(ordered_map(tasks.misbehave, work, workers=1, memory_bytes=1 << 30))
    assert isinstance(found[1], WorkerFailure)
    assert "out of memory" in found[1].message
    assert found[2] == 2


def test_functions_of_main_are_refused_with_a_hint() -> None:
    with pytest.raises(WorkerError, match="top of a module"):
        list(ordered_map(lambda x: x, [1], workers=1))
    assert list(ordered_map(partial(tasks.square), [3], workers=1)) == [(0, 9)]


def test_workers_that_cannot_start_are_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="cannot be started: the last one exited with code 1"):
        list(ordered_map(tasks.square, [1, 2], workers=2))


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_foreign_executors(kind: Any) -> None:
    with kind(2) as executor:
        found = list(ordered_map(tasks.square, range(100), workers=2, executor=executor))
        assert found == [(k, k * k) for k in range(100)]
        bad = dict(ordered_map(tasks.misbehave, [(0, ""), (1, "bug")], workers=1, executor=executor))
        assert isinstance(bad[1], WorkerFailure)


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import pool_tasks
from ripple.errors import Interrupted
from ripple.runtime.pool import ordered_map
print("up", flush=True)
try:
    for k, _ in ordered_map(pool_tasks.nap, [(k, {seconds}, {directory!r}) for k in range(40)], workers=2):
        print(k, flush=True)
except Interrupted as err:
    sys.exit(err.code)
"""


def start_napping(directory: Path, seconds: float) -> subprocess.Popen[str]:
    script = SCRIPT.format(here=str(HERE), directory=str(directory), seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 10
    while len(list(directory.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_stops_in_order(signum: int, code: int, tmp_path: Path) -> None:
    process = start_napping(tmp_path, 60.0)
    start = time.monotonic()
    process.send_signal(signum)
    assert process.wait(10) == code
    assert time.monotonic() - start < 5
    assert all(gone(int(p.name)) for p in tmp_path.iterdir())


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    process = start_napping(tmp_path, 60.0)
    process.kill()
    process.wait()
    pids = [int(p.name) for p in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(gone(pid, 2.0) for pid in pids)


def test_deaths_leak_no_descriptors_threads_or_children(tmp_path: Path) -> None:
    import threading

    import psutil

    me = psutil.Process()
    list(ordered_map(tasks.square, range(3), workers=2))
    before = (me.num_fds(), threading.active_count(), len(me.children()))
    work = [(k, "SIGKILL" if k % 4 == 0 else "", str(tmp_path / str(k))) for k in range(24)]
    assert dict(ordered_map(tasks.die, work, workers=2)) == {k: k for k in range(24)}
    assert (me.num_fds(), threading.active_count(), len(me.children())) == before
