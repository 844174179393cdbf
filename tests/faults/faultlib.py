"""Faults as context managers, and the bookkeeping of trials. Knows nothing about what is tested."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(slots=True)
class Tally:
    """One line of the table: everything but `trials` and `seconds` must be 0."""

    row: str
    name: str
    seed: str = "0"
    trials: int = 0
    lost: int = 0
    silent: int = 0
    hung: int = 0
    unnamed: int = 0
    seconds: float = 0.0
    skipped: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.silent or self.hung or self.unnamed)

    def note(self, text: str) -> None:
        """Keep the first few details of what went wrong."""
        if len(self.notes) < 5:
            self.notes.append(f"seed {self.seed}, trial {self.trials}: {text}")


def contents(directory: Path) -> dict[str, str]:
    """SHA-256 by file name of all that must be reproducible: everything but metrics and the lock."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("metrics.json", ".lock")
    }


def temporaries(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name.startswith(".tmp-"))


# Files --------------------------------------------------------------


@contextmanager
def flipped_bit(path: Path, rng: random.Random) -> Iterator[int]:
    """One bit of a file flipped; yields the byte it is in."""
    whole = path.read_bytes()
    place = rng.randrange(len(whole))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << rng.randrange(8)
    with replaced(path, bytes(damaged)):
        yield place


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """Other bytes in place of a file's, in the same inode, as rot does."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


@contextmanager
def missing(path: Path) -> Iterator[None]:
    """The file is not there."""
    away = path.with_name(path.name + ".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@contextmanager
def linked(path: Path) -> Iterator[None]:
    """The file is a symbolic link to its bytes elsewhere."""
    away = path.with_name(path.name + ".away")
    path.rename(away)
    path.symlink_to(away)
    try:
        yield
    finally:
        path.unlink()
        away.rename(path)


@contextmanager
def swapped(a: Path, b: Path) -> Iterator[None]:
    """Two files have changed places."""
    _swap(a, b)
    try:
        yield
    finally:
        _swap(a, b)


def _swap(a: Path, b: Path) -> None:
    third = a.with_name("swap")
    a.rename(third)
    b.rename(a)
    third.rename(b)


# Disks --------------------------------------------------------------


def can_mount() -> str:
    """Empty when a tmpfs can be mounted, else why not."""
    if os.geteuid() != 0:
        return "mounting a tmpfs needs root"
    return "" if shutil.which("mount") else "there is no mount command"


@contextmanager
def small_disk(where: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes mounted at `where`."""
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def grow(where: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(where)], check=True)


# System calls -------------------------------------------------------


def can_trace() -> str:
    """Empty when strace can inject faults, else why not."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "-e", "inject=fsync:error=EIO:when=1", "-o", os.devnull, "true"], capture_output=True
    )
    return "" if probe.returncode == 0 else "strace may not trace here"


def traced(pid: int, options: Sequence[str], seconds: float = 20.0) -> subprocess.Popen[bytes]:
    """strace on a process that has stopped itself, which goes on once strace holds it."""
    tracer = subprocess.Popen(["strace", "-f", "-qq", *options, "-p", str(pid)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text() and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(pid, signal.SIGCONT)
    return tracer


def injection(call: str, what: str, k: int) -> list[str]:
    """Options of strace for a fault at the k-th `call`; `what` is `signal=SIGKILL` or `error=EIO`."""
    return ["-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={k}"]


def counting(calls: Sequence[str], log: Path) -> list[str]:
    """Options of strace that write each of these calls to a log."""
    return ["-o", str(log), "-e", "trace=" + ",".join(calls)]


# Processes ----------------------------------------------------------


def python(*args: str) -> list[str]:
    return [sys.executable, *args]


@contextmanager
def beside(work: Callable[[], None], done: threading.Event) -> Iterator[None]:
    """`work` in a thread of its own, which ends when `done` is set: at the end of the block at the latest."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def harassed(
    pid: int, rng: random.Random, signals: Sequence[int], between: tuple[float, float]
) -> Iterator[list[int]]:
    """Random children of `pid` get random signals, at most `len(signals)`; yields the list of victims."""
    victims: list[int] = []
    done = threading.Event()

    def attack() -> None:
        for signum in signals:
            if done.wait(rng.uniform(*between)):
                return
            with suppress(psutil.Error, OSError, IndexError):
                child = rng.choice(sorted(psutil.Process(pid).children(), key=lambda p: p.pid))
                os.kill(child.pid, signum)
                victims.append(child.pid)

    with beside(attack, done):
        yield victims


def stop_process(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def survivors(pids: Sequence[int], seconds: float = 2.0) -> list[int]:
    """Which of the processes are still alive after a grace period."""
    end = time.monotonic() + seconds
    alive = list(pids)
    while alive and time.monotonic() < end:
        alive = [pid for pid in alive if _alive(pid)]
        time.sleep(0.02)
    return alive


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
