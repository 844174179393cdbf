"""An ordered map of a pure function over units, on processes that may die.

Each slot is one thread of the parent and one worker process at a time. The worker is a fresh interpreter
(never a fork: HDF5, threads and CUDA do not survive one) that serves one task after another. A worker that
dies, or is killed because it is stuck, is blamed on the task it held: that task is tried again in a new
worker a bounded number of times, all others go on. Workers die with the parent and ignore Ctrl-C, which is
the parent's to handle; `ripple.runtime.worker` is their side.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pickle import UnpicklingError
from typing import Any, cast

from ripple.errors import RippleError, WorkerError
from ripple.runtime.signals import Stop, stoppable
from ripple.runtime.worker import Failed, limit_memory, receive

#: One thread per worker: the numbers must not depend on the machine, and the workers share its cores.
PINNED = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
    ),
    "1",
)
# How often the parent looks for stuck workers and signals while it waits.
_TICK_SECONDS = 0.2
# Generous: imports of a first start on a network file system are slow.
_STARTUP_SECONDS = 120.0
# A worker that is stopped (SIGSTOP) never answers: it is killed after this, deadline or not.
_STOPPED_SECONDS = 30.0
#: How often in a row a worker may end itself while it starts, and how often something may kill it then.
_STARTUP_TRIES = 3
_STARTUP_KILLS = 10


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """A task that failed: its workers died, hung or ran out of memory, or its function has a bug.

    Parameters
    ----------
    task
        Number of the task.
    message
        One line: what happened to the worker.
    detail
        Traceback in the worker, empty when it was killed.
    """

    task: int
    message: str
    detail: str = ""


def ordered_map[T, R](
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    executor: Executor | None = None,
    memory_bytes: int | None = None,
    deadline: float | None = None,
    retries: int = 1,
    allowed: Callable[[], int] | None = None,
    started: Started | None = None,
    trouble: Callable[[], WorkerError | None] | None = None,
) -> Generator[tuple[int, R | WorkerFailure]]:
    """Yield `(k, function(tasks[k]))` for k = 0, 1, ..., in this order, computed in parallel.

    Parameters
    ----------
    function
        A module-level function (or a `functools.partial` of one) without side effects that matter: it may run
        twice for a task. A `RippleError` from it ends the map; any other exception fails its task.
    tasks
        Small picklable values. At most a few per worker are in flight or waiting to be yielded.
    workers
        Processes; 0 runs in this process, where nothing protects from a crash (tests, debugging).
    executor
        Use this instead of own processes (Dask: `Client.get_executor(retries=1)`).
    memory_bytes
        Private memory each worker may have from its first task on (`RLIMIT_DATA`, on Linux); beyond it the
        task fails and the parent lives.
    deadline
        Seconds a task may take before its worker is killed. A worker that is stopped (SIGSTOP) is killed
        after 30 s in any case.
    retries
        Further workers a task may try after its first one died.
    allowed
        How many of the workers may have a task now, called before each task; workers beyond that number are
        ended, which frees their memory. At least one always works.
    started
        Workers of `starting` for the same function, to be used first.
    trouble
        Why `executor` can finish nothing any more, asked while a task is waited for; None while it can.

    Raises
    ------
    Interrupted
        SIGINT or SIGTERM arrived; workers are killed. A second signal ends this process at once.
    WorkerError
        No worker can be started.
    """
    with stoppable() as stop:
        if executor is not None:
            results = _on_executor(
                function, tasks, executor, stop, max(64, 4 * workers), deadline, trouble or (lambda: None)
            )
        elif workers == 0:
            results = ((k, function(task)) for k, task in enumerate(tasks) if stop.check())
        else:
            pool = _Pool(
                function,
                tasks,
                # More workers than tasks would start for nothing.
                min(workers, len(tasks)),
                memory_bytes,
                deadline,
                retries,
                allowed or (lambda: workers),
                started if started is not None else Started(None, deque()),
            )
            results = pool.results(stop)
        with closing(results):
            for k, result in results:
                if isinstance(result, RippleError):
                    raise result
                yield k, cast("R | WorkerFailure", result)
                stop.check()


@dataclass(frozen=True, slots=True)
class Started:
    """Workers that have no task yet, and what each worker calls first.

    Parameters
    ----------
    prepare
        Called once in each worker before its first task.
    workers
        Processes and our end of their connections.
    """

    prepare: Callable[[], None] | None
    workers: deque[tuple[subprocess.Popen[bytes], Connection]]

    def keep(self, count: int) -> None:
        """End all workers but `count`: there is no work, or no memory, for more."""
        while len(self.workers) > count:
            process, connection = self.workers.pop()
            process.kill()
            process.wait()
            connection.close()


@contextmanager
def starting(
    function: Callable[[Any], Any], count: int, *, prepare: Callable[[], None] | None = None
) -> Iterator[Started]:
    """Start workers while their tasks are still being prepared: interpreter and libraries take a second.

    Parameters
    ----------
    function
        As in `ordered_map`.
    count
        Processes.
    prepare
        A module-level function that each worker calls first, e.g. to import what its tasks need.
    """
    _check_function(function)
    started = Started(prepare, deque())
    try:
        for _ in range(count):
            started.workers.append(_launch(function, prepare))
        yield started
    finally:
        started.keep(0)


# Own processes ------------------------------------------------------


@dataclass(slots=True)
class _Slot:
    """One worker process as seen from the parent."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    connection: Connection | None = None
    since: float = 0.0  # monotonic start of the task, or of the process while it starts
    stopped_since: float = 0.0
    task: int | None = None  # set when the slot takes it, before its worker has started
    why_killed: str = ""  # by the parent, for the message


@dataclass(slots=True)
class _Pool:
    """Slots, the tasks still to do, and the results not yet yielded; `changed` guards all of it."""

    function: Any
    tasks: Sequence[Any]
    size: int
    memory_bytes: int | None
    deadline: float | None
    retries: int
    allowed: Callable[[], int]
    started: Started
    changed: threading.Condition = field(default_factory=threading.Condition)
    todo: deque[int] = field(default_factory=deque)
    finished: dict[int, Any] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    slots: list[_Slot] = field(default_factory=list)
    turn: int = 0  # next task to yield
    closing: bool = False
    fatal: RippleError | None = None

    def results(self, stop: Stop) -> Generator[tuple[int, Any]]:
        """Run the slots and yield in order; however this ends, no worker survives."""
        _check_function(self.function)
        self.todo.extend(range(len(self.tasks)))
        self.slots = [_Slot(k) for k in range(self.size)]
        # Daemons: a thread that waits in C must not keep the program alive after its end.
        threads = [threading.Thread(target=self._run_slot, args=(slot,), daemon=True) for slot in self.slots]
        try:
            for thread in threads:
                thread.start()
            for k in range(len(self.tasks)):
                yield k, self._wait_for_result(k, stop)
        finally:
            self._end_workers(threads)

    def _wait_for_result(self, k: int, stop: Stop) -> Any:
        while True:
            with self.changed:
                self.turn = k
                self.changed.notify_all()
                if k not in self.finished and self.fatal is None:
                    # Woken by each result; the timeout is for `_kill_stuck_workers` below, and for signals.
                    self.changed.wait(_TICK_SECONDS)
                stop.check()
                if self.fatal is not None:
                    raise self.fatal
                if k in self.finished:
                    return self.finished.pop(k)
            self._kill_stuck_workers()

    def _kill_stuck_workers(self) -> None:
        """Kill workers that are past the deadline, stopped, or do not come up."""
        now = time.monotonic()
        for slot in self.slots:
            with self.changed:
                process, ready, since = slot.process, slot.connection is not None, slot.since
            if process is None:
                continue
            # A connection means that the worker has said it is ready; before that it is starting.
            limit = self.deadline if ready else _STARTUP_SECONDS
            if limit is not None and since and now - since > limit:
                self._kill(slot, process, f"gave no answer within {limit:g} s and was killed")
            elif not _is_stopped(process.pid):
                slot.stopped_since = 0.0
            elif not slot.stopped_since:
                slot.stopped_since = now
            elif now - slot.stopped_since > (
                patience := min(self.deadline or _STOPPED_SECONDS, _STOPPED_SECONDS)
            ):
                self._kill(slot, process, f"was stopped for {patience:g} s and was killed")

    def _kill(self, slot: _Slot, process: subprocess.Popen[bytes], why: str) -> None:
        with self.changed:
            # Under the lock again: the answer may have come, or another worker may sit in the slot by now.
            if slot.process is process and slot.since:
                slot.why_killed, slot.since = why, 0.0
                process.kill()

    def _end_workers(self, threads: list[threading.Thread]) -> None:
        with self.changed:
            self.closing = True
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
            self.changed.notify_all()
        for thread in threads:
            if thread.ident is not None:
                # 5 s at most: a worker that hangs in the kernel on a dead disk cannot be reaped.
                thread.join(5.0)

    def _run_slot(self, slot: _Slot) -> None:
        """The thread of one slot: take a task, hand it to the worker, store what comes back."""
        failures = kills = 0
        try:
            while (task := self._next_task(slot)) is not None:
                if slot.connection is None and (end := self._start_worker(slot)) is not None:
                    self._give_back(slot, task)
                    # A negative code is a signal, e.g. of the OOM killer: more of those are allowed.
                    failures, kills = (failures, kills + 1) if end < 0 else (failures + 1, kills)
                    if failures >= _STARTUP_TRIES or kills >= _STARTUP_KILLS:
                        how = slot.why_killed or _how_it_ended(end)
                        message = f"workers cannot be started: the last one {how}"
                        self._fail(WorkerError(message, hint="their own messages are above"))
                    continue
                failures = kills = 0
                self._run_task(slot, task)
        except Exception as err:  # noqa: BLE001 - a dead thread would be a hang: the parent must hear of it
            self._fail(WorkerError(f"worker slot {slot.number}: {type(err).__name__}: {err}"))
        finally:
            self._end_worker(slot)

    def _next_task(self, slot: _Slot) -> int | None:
        """The next task inside the window of in-flight results, or None when there is nothing left to do."""
        # Bounds the results that wait in memory for a slow task before them.
        window = 4 * self.size
        with self.changed:
            while not self.closing and self.fatal is None:
                if slot.number >= max(1, self.allowed()):
                    self._end_worker(slot)
                elif self.todo and self.todo[0] < self.turn + window:
                    slot.task = self.todo.popleft()
                    return slot.task
                if not self.todo:
                    if not any(other.task is not None for other in self.slots):
                        return None
                    # A task whose worker dies comes back, perhaps when its own slot is not allowed any more.
                    self._end_worker(slot)
                self.changed.wait(1.0)
        return None

    def _give_back(self, slot: _Slot, task: int) -> None:
        with self.changed:
            slot.task = None
            # Sorted, so that the oldest task goes first: all results wait for it.
            self.todo.appendleft(task)
            self.todo = deque(sorted(self.todo))
            self.changed.notify_all()

    def _fail(self, error: RippleError) -> None:
        with self.changed:
            self.fatal = self.fatal or error
            self.changed.notify_all()

    def _start_worker(self, slot: _Slot) -> int | None:
        """Start a worker and wait until it says that it is ready; its exit code when it never does."""
        try:
            process, connection = self.started.workers.popleft()
        except IndexError:
            process, connection = _launch(self.function, self.started.prepare)
        with self.changed:
            slot.process, slot.since, slot.why_killed = process, time.monotonic(), ""
            if self.closing:  # `_end_workers` has passed this slot already
                process.kill()
        try:
            receive(connection)
        except (EOFError, OSError, UnpicklingError):
            connection.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            self._end_worker(slot)
            return process.returncode
        if self.memory_bytes is not None:
            # Only from the first task on: a start must not fail for the limit of a task.
            limit_memory(process.pid, self.memory_bytes)
        with self.changed:
            slot.since, slot.connection = 0.0, connection
        return None

    def _run_task(self, slot: _Slot, task: int) -> None:
        connection, process = slot.connection, slot.process
        if connection is None or process is None:
            raise RuntimeError("a slot without a worker was given a task")
        with self.changed:
            slot.since, slot.why_killed = time.monotonic(), ""
        try:
            connection.send(self.tasks[task])
            result = receive(connection)
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # how it ended by itself tells more than our kill
            self._end_worker(slot)
            self._blame_task(slot, task, slot.why_killed or _how_it_ended(process.returncode))
            return
        except UnpicklingError as err:
            self._end_worker(slot)
            self._blame_task(slot, task, f"sent data that are not a result ({err}) and was killed")
            return
        # The worker lives on: an exception in its function is the fault of this task alone.
        if isinstance(result, Failed):
            result = WorkerFailure(task, result.message, result.detail)
        self._store(slot, task, result)

    def _store(self, slot: _Slot, task: int, result: Any) -> None:
        with self.changed:
            self.finished[task], slot.task, slot.since = result, None, 0.0
            self.changed.notify_all()

    def _blame_task(self, slot: _Slot, task: int, message: str) -> None:
        """Blame the death on the task held: again elsewhere, or failed."""
        self.attempts[task] = self.attempts.get(task, 0) + 1
        if self.attempts[task] <= self.retries and not self.closing:
            self._give_back(slot, task)
            return
        times = f", {self.attempts[task]} times" if self.attempts[task] > 1 else ""
        self._store(slot, task, WorkerFailure(task, f"worker {message}{times}"))

    def _end_worker(self, slot: _Slot) -> None:
        """Close and reap the worker of a slot."""
        with self.changed:
            process, connection = slot.process, slot.connection
            slot.process, slot.connection, slot.since, slot.stopped_since = None, None, 0.0, 0.0
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()


def _check_function(function: Any) -> None:
    inner = getattr(function, "func", function)
    # A worker imports the function by name; lambdas and local functions have none that it could find.
    if getattr(inner, "__module__", "__main__") == "__main__" or "<" in getattr(inner, "__qualname__", ""):
        raise WorkerError(f"{inner!r} cannot run in a worker", hint="define it at the top of a module")


def _launch(function: Any, prepare: Callable[[], None] | None) -> tuple[subprocess.Popen[bytes], Connection]:
    """A worker that gets ready for `function`; it says so on the connection."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = _spawn(theirs.fileno())
    connection = Connection(ours.detach())
    with suppress(OSError):  # it has died already: `_start_worker` finds out when it waits for it
        connection.send((function, prepare))
    return process, connection


def _spawn(handle: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter with our import path that serves tasks on the socket `handle`."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import json, sys; "
        "sys.path[:] = json.loads(sys.argv[3]); from ripple.runtime.worker import serve; serve()"
    )
    # -P: the current directory must not shadow our modules; sys.path is handed over instead.
    argv = [sys.executable, "-P", "-c", code, str(handle), str(os.getpid()), json.dumps(sys.path)]
    # Standard output belongs to the parent's data: what a library prints in a worker goes to standard error.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        argv, pass_fds=(handle,), stdin=subprocess.DEVNULL, stdout=2, env={**os.environ, **PINNED}
    )


def _is_stopped(pid: int) -> bool:
    """Whether Linux says that the process is stopped (`T`); elsewhere unknown, so False."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            # After the last bracket: the command name before it may contain anything.
            return file.read(512).rpartition(b")")[2].split()[:1] == [b"T"]
    except OSError:
        return False


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exited with code {code}"


# An executor of another library -------------------------------------


def _on_executor(
    function: Any,
    tasks: Sequence[Any],
    executor: Executor,
    stop: Stop,
    window: int,
    deadline: float | None,
    trouble: Callable[[], WorkerError | None],
) -> Generator[tuple[int, Any]]:
    """Submit a window of tasks ahead; the executor retries lost workers, and what it gives up on fails."""
    waiting: deque[Future[Any]] = deque()
    source = iter(tasks)
    try:
        for k in range(len(tasks)):
            for task in itertools.islice(source, window - len(waiting)):
                waiting.append(executor.submit(function, task))
            yield k, _result_of(k, waiting.popleft(), stop, deadline, trouble)
    finally:
        for future in waiting:
            future.cancel()


def _result_of(
    k: int, future: Future[Any], stop: Stop, deadline: float | None, trouble: Callable[[], WorkerError | None]
) -> Any:
    start = time.monotonic()
    while not wait_for([future], timeout=_TICK_SECONDS).done:
        stop.check()
        if (error := trouble()) is not None:
            future.cancel()  # an executor that closes waits for what was submitted
            return error
        if deadline is not None and time.monotonic() - start > deadline:
            future.cancel()
            return WorkerFailure(k, f"gave no answer within {deadline:g} s")
    try:
        return future.result()
    except RippleError as err:
        return err
    except BrokenExecutor as err:
        return WorkerError(f"the executor broke at unit {k}: {err}", hint="run again to resume")
    except CancelledError:
        # Dask cancels everything when its scheduler is lost: that is no fault of the unit.
        return trouble() or WorkerFailure(k, "was cancelled by the executor")
    except Exception as err:  # noqa: BLE001 - e.g. Dask's KilledWorker; the parent reports it
        if (error := trouble()) is not None:
            return error
        text = " ".join(str(err).split())[:300]
        return WorkerFailure(k, f"{type(err).__name__}: {text}", "".join(traceback.format_exception(err)))
