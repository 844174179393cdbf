"""Directories that appear whole or not at all: pages and exports.

    NAME.partial/            beside the output while it is written
    NAME.partial/.tree       flock of the writer, and the mark that RIPPLe may clear the directory
    NAME/manifest.json       written last, as in every directory that RIPPLe writes

Everything is synced before the directory is renamed, and its parent after. What a killed run leaves is
recognised by its mark, cleared and written again; a `NAME.partial` without the mark is not RIPPLe's and
stays.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ripple.config import Config
from ripple.errors import LockedError, WriteError
from ripple.storage.files import settle, sync_directory, write_error
from ripple.storage.lock import lock, unlock
from ripple.storage.manifest import (
    MANIFEST,
    MARK,
    check_files,
    identity_of,
    read_manifest,
    refuse_other,
    write_manifest,
)

#: Files that wait for the disk together: it commits them in one go.
_TOGETHER = 16


def write_directory(
    output: Path, kind: str, config: Config, inputs: Mapping[str, Any], build: Callable[[Path], None]
) -> bool:
    """Write `output` with `build`, unless it is there already with the same options and inputs.

    Parameters
    ----------
    output
        Directory to write; may exist when empty.
    kind
        `page` or `export`.
    config
        Options of the verb.
    inputs
        What else the content depends on, as JSON values with checksums.
    build
        Writes the files into the directory it is given.

    Returns
    -------
    fresh
        False when the same directory was there already.

    Raises
    ------
    ConfigError
        `output` was written with different options or inputs; names the first difference.
    IntegrityError
        It was written before, and its manifest is damaged or a file is missing or has another size.
    LockedError
        Another process is writing it.
    WriteError
        `output` or `NAME.partial` contains files that RIPPLe did not write, or cannot be written.
    """
    identity = identity_of(kind, config.verb, config.canonical(), inputs)
    try:
        output = output.resolve()  # `.` has no name, and a link cannot be renamed over
    except RuntimeError as err:
        raise WriteError(f"{output}: {err}", hint="give another output") from None
    if not output.name:
        raise WriteError(f"{output} cannot be replaced", hint="give a new directory")
    if (output / MANIFEST).is_file() and _written_before(output, identity):
        return False  # before the lock, so that it also works where the user may not write
    partial = output.with_name(output.name + ".partial")
    handle, place = _claim(partial), partial
    try:
        # Again: another run may have finished it while this one waited.
        if _written_before(output, identity):
            return False
        _clear(partial)
        build(partial)
        _finish(partial, identity)
        partial.rename(output)
        place = output
        _sync_name(output)
        return True
    except OSError as err:
        # How much would have been written is not known here, only what was.
        raise write_error(Path(err.filename or partial), err, _size(partial)) from None
    finally:
        _release(place, handle, made=place is output)


def _claim(partial: Path) -> int:
    """Make the directory, or take over what a killed run left, and lock it; returns the lock's handle."""
    # Between any two of these calls another process may rename or remove the directory: then try again.
    while True:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            seen = partial.lstat()
            names = {path.name for path in partial.iterdir()}
            if not os.path.samestat(seen, partial.lstat()):
                continue  # the listed directory is finished by now, and its mark is gone
        except FileNotFoundError:
            continue  # its writer has just renamed or removed it
        except OSError as err:
            raise write_error(partial, err) from None
        if partial.is_symlink() or (names and MARK not in names):
            raise WriteError(
                f"{partial} contains files that RIPPLe did not write", hint="move it, or give another output"
            )
        try:
            handle = lock(partial, MARK)
        except WriteError as err:
            if isinstance(err, LockedError) or partial.exists():
                raise
            continue
        # The lock may be on a file that its owner has removed since.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(partial / MARK)):
                return handle
        unlock(handle)


def _release(place: Path, handle: int, *, made: bool) -> None:
    """Release the lock. An unfinished directory is removed, its mark last."""
    with suppress(OSError):
        if not made:
            _empty(place)
        (place / MARK).unlink()
        if not made:
            try:
                place.rmdir()
            except (
                OSError
            ):  # something was written into it just now: the next run must recognise it by its mark
                (place / MARK).touch(exist_ok=False)
    unlock(handle)


def _empty(partial: Path) -> None:
    """Remove all but the mark; threads of a library whose writing failed may still write for a moment."""
    # A second in all, after which the directory stays, with its mark.
    for _ in range(20):
        with suppress(OSError):
            _clear(partial)
            if [path.name for path in partial.iterdir()] == [MARK]:
                return
        time.sleep(0.05)


def _clear(partial: Path) -> None:
    """Remove all but the mark; the caller holds the lock."""
    for path in list(partial.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()


def _written_before(output: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the same directory is there and finished; raises when it is another one."""
    if (output / MANIFEST).is_file():
        manifest = read_manifest(output)
        check_files(output, manifest)
        refuse_other(output, manifest, identity)
        with suppress(OSError):  # its writer may have been killed just before doing this
            (output / MARK).unlink()
        return True
    if output.exists():
        if not output.is_dir() or any(output.iterdir()):
            raise WriteError(
                f"{output} contains files that RIPPLe did not write", hint="give a new or empty directory"
            )
        if output == Path.cwd():
            raise WriteError(f"{output} is the working directory", hint="give a new directory in it")
    return False


def _finish(partial: Path, identity: Mapping[str, Any]) -> None:
    """Sync all files and directories, then write the manifest."""
    names = _names(partial)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        files = dict(zip(names, pool.map(lambda name: settle(partial / name), names), strict=True))
    for directory in sorted(p for p in partial.rglob("*") if p.is_dir()):
        try:
            sync_directory(directory)
        except OSError as err:
            raise write_error(directory, err) from None
    write_manifest(partial, identity, {"files": files})


def _names(directory: Path) -> list[str]:
    """Relative names of all files except the manifest and the mark, sorted; links count as files."""
    found = (p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir())
    names = (p.relative_to(directory).as_posix() for p in found)
    return sorted(name for name in names if name not in (MANIFEST, MARK))


def _size(directory: Path) -> int:
    """Bytes of all files, as far as they can be found out."""
    total = 0
    with suppress(OSError):
        for path in directory.rglob("*"):
            total += path.lstat().st_size
    return total


def _sync_name(output: Path) -> None:
    try:
        sync_directory(output.parent)
    except OSError as err:
        # Renamed, but perhaps not on disk: after a crash it must not look like a finished directory.
        shutil.rmtree(output, ignore_errors=True)
        raise write_error(output, err) from None
