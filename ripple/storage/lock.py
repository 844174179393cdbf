"""One writer per directory: an flock that the kernel releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ripple.errors import LockedError

if TYPE_CHECKING:
    pass
from ripple.storage.files import write_error

LOCK = ".lock"


def lock(directory: Path, name: str = LOCK) -> int:
    """Take the writer's lock; the descriptor is not inherited by workers.

    Parameters
    ----------
    directory
        What is written.
    name
        Of the file in it that is locked.

    Raises
    ------
    LockedError
        Another process writes here; the message names it.
    """
    path = directory / name
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as err:
        raise write_error(path, err, 0) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        holder = os.pread(handle, 400, 0).decode(errors="replace").strip() or "unknown process"
        os.close(handle)
        if err.errno != errno.EWOULDBLOCK:
            raise write_error(path, err, 0) from None
        raise LockedError(
            f"{directory} is being written by {holder}", hint="wait for it, or stop it"
        ) from None
    # Informative only: nothing reads the clock back.
    text = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}"
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    return handle


def unlock(handle: int) -> None:
    with suppress(OSError):
        os.ftruncate(handle, 0)
    os.close(handle)


def is_locked(directory: Path) -> bool:
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
