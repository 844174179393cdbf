"""Functions that run in worker processes: the well-behaved and the others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ripple.errors import DataError
from ripple.storage.files import write_atomic


def square(x: int) -> int:
    return x * x


def pid(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


calls = 0


def prepare() -> None:
    global calls
    calls += 1


def prepared(_: int) -> int:
    return calls


def uneven(x: int) -> tuple[int, int]:
    time.sleep(0.02 * ((x * 7) % 3))
    return x, os.getpid()


def environment(_: int) -> tuple[str, str, int]:
    return os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"], os.getpid()


def large(n: int) -> bytes:
    return bytes(n)


def die(task: tuple[int, str, str]) -> int:
    """`(k, how, once)`: die in this way; when `once` is a path, only on the first visit."""
    k, how, once = task
    if not how:
        return k
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return k
    match how:
        case "SIGSTOP" | "SIGKILL" | "SIGBUS":
            os.kill(os.getpid(), signal.Signals[how])
        case "SIGSEGV":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "abort":
            os.abort()
        case "sleep":
            time.sleep(600)
    return k


def die_late(task: tuple[int, str, str]) -> int:
    """As `die`, when the other workers have long been idle."""
    if task[1]:
        time.sleep(1.5)
    return die(task)


def misbehave(task: tuple[int, str]) -> int:
    k, how = task
    if how == "bug":
        raise ZeroDivisionError("a bug\nin two lines")
    if how == "named":
        raise DataError(f"unit {k} is wrong", hint="mend it")
    if how == "memory":
        return int(np.ones(1 << 28).sum())
    if how == "print":
        sys.stdout.write("noise on standard output\n")
        sys.stdout.flush()
    return k


def nap(task: tuple[int, float, str]) -> int:
    """Leave the pid behind, then sleep."""
    k, seconds, directory = task
    (Path(directory) / str(os.getpid())).touch()
    time.sleep(seconds)
    return k


class Call:
    """Pickles as a call of a function."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


def hostile(task: tuple[int, str, str]) -> object:
    """Results that would run code where they are unpickled."""
    k, how, canary = task
    match how:
        case "system":
            return Call(os.system, f"touch {canary}")
        case "ours":
            return Call(write_atomic, Path(canary), b"")
        case "exec":
            return Call(exec, f"open({canary!r}, 'w')")
    return k


def preprocess_without_shard_1(task: Any) -> Any:
    """What `preprocess` does to a shard; number 1 kills its worker."""
    from ripple.stages.preprocess.preprocess import make_shard

    if task.shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_shard(task)


def inject_without_shard_1(task: Any) -> Any:
    """What `inject` does to a shard; over number 1 it never ends."""
    from ripple.stages.inject.inject import make_shard

    if task.shard == 1:
        time.sleep(600)
    return make_shard(task)
