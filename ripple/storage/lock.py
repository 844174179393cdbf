"""One writer per directory: an flock that the kernel releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from ripple.errors import LockedError
from ripple.storage.files import write_error

LOCK = ".lock"
NAMING = 100  # looks, 20 ms apart, at a lock whose holder has not written its name yet


def lock(directory: Path, name: str = LOCK) -> int:
    """Take the writer's lock; returns its file descriptor, which workers do not inherit.

    Parameters
    ----------
    directory
        The directory to write.
    name
        The file in it to lock.

    Raises
    ------
    LockedError
        Another process is writing the directory; the message names it.
    """
    path = directory / name
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as err:
        raise write_error(path, err, 0) from None
    for attempt in range(NAMING):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as err:
            holder = os.pread(handle, 400, 0).decode(errors="replace").strip()
            # The holder writes its name just after it gets the lock and takes it away just before it lets go.
            if err.errno == errno.EWOULDBLOCK and not holder and attempt < NAMING - 1:
                time.sleep(0.02)
                continue
            os.close(handle)
            if err.errno != errno.EWOULDBLOCK:  # for example a file system without locks
                raise write_error(path, err, 0) from None
            raise LockedError(
                f"{directory} is being written by {holder or 'unknown process'}",
                hint="wait for it, or stop it",
            ) from None
    # For people only: RIPPLe never reads the time.
    text = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}"
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    return handle


def unlock(handle: int) -> None:
    """Release a lock."""
    # The file stays: removing it would let two processes lock two files of one name.
    with suppress(OSError):
        os.ftruncate(handle, 0)
    os.close(handle)


def is_locked(directory: Path) -> bool:
    """Whether another process is writing the directory."""
    # A shared lock is refused only while a writer has its exclusive one, and needs no permission to write.
    try:
        handle = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
