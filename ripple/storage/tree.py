"""A directory of many files that appears whole or not at all: reports, explanations and exports.

    NAME.partial/          beside the target while it is made
    NAME.partial/.tree     flock of the writer, and the mark that the directory is ours to clear
    NAME/ripple.json       the note, written last: what it was made from, each file's size and SHA-256, a seal

Everything is synced before the directory is renamed, and its parent after. What a killed run leaves is found
by its mark, cleared and made again; a `NAME.partial` without the mark is somebody else's and stays.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ripple.config import canonical_json
from ripple.errors import ConfigError, LockedError, OtherInputsError, WriteError
from ripple.storage.checksums import FileList, check_size, differing, read_listing
from ripple.storage.files import settle, sync_directory, write_atomic, write_error
from ripple.storage.lock import lock, unlock
from ripple.storage.manifest import first_difference, render

NOTE, MARK = "ripple.json", ".tree"
#: Keys of the note that are not what the tree was made from.
_OURS = ("files", "seal")
#: Files that wait for the disk together: it commits them in one go.
_TOGETHER = 16


def write_tree(output: Path, identity: Mapping[str, Any], build: Callable[[Path], None]) -> bool:
    """Make `output` with `build`, unless it was made from the same identity before.

    A finished tree is looked at as `create` looks at a finished artefact: the note is verified, every file is
    there with its size. `verify_tree` reads the bytes.

    Parameters
    ----------
    output
        Directory to make; may exist when empty.
    identity
        JSON values that decide the content.
    build
        Writes the files into the directory it is given.

    Returns
    -------
    False when the same directory was there already.

    Raises
    ------
    ConfigError
        `output` was made from something else; names the first difference.
    IntegrityError
        It was made before, and its note or a file is damaged.
    LockedError
        Another process makes it.
    WriteError
        `output` or `NAME.partial` holds files of others, or cannot be written.
    """
    try:
        output = output.resolve()  # `.` has no name, and a link cannot be renamed over
    except RuntimeError as err:
        raise WriteError(f"{output}: {err}", hint="give another output") from None
    if not output.name:
        raise WriteError(f"{output} cannot be replaced", hint="give a new directory")
    wanted: dict[str, Any] = json.loads(canonical_json(dict(identity)))
    if (output / NOTE).is_file() and _made_before(output, wanted):
        return False  # also where nobody may write
    partial = output.with_name(output.name + ".partial")
    handle, place = _claim(partial), partial
    try:
        if _made_before(output, wanted):
            return False
        _clear(partial)
        build(partial)
        _seal(partial, wanted)
        partial.rename(output)
        place = output
        _sync_name(output)
        return True
    except OSError as err:
        # How much more was to come is not known here, only what there was.
        raise write_error(Path(err.filename or partial), err, _size(partial)) from None
    finally:
        _release(place, handle, made=place is output)


def _claim(partial: Path) -> int:
    """Make the directory, or take over what a killed run left, and lock it."""
    while True:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            seen = partial.lstat()
            names = {path.name for path in partial.iterdir()}
            if not os.path.samestat(seen, partial.lstat()):
                continue  # what was listed is finished by now, and has lost its mark
        except FileNotFoundError:
            continue  # its writer has just renamed or removed it
        except OSError as err:
            raise write_error(partial, err) from None
        if partial.is_symlink() or (names and MARK not in names):
            raise WriteError(
                f"{partial} holds files that are not ours", hint="move it, or give another output"
            )
        try:
            handle = lock(partial, MARK)
        except WriteError as err:
            if isinstance(err, LockedError) or partial.exists():
                raise
            continue
        # The lock may be of a file that was on its way out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(partial / MARK)):
                return handle
        unlock(handle)


def _release(place: Path, handle: int, *, made: bool) -> None:
    """Let go of the lock; of a tree that was not made nothing stays, the mark goes last."""
    with suppress(OSError):
        if not made:
            _empty(place)
        (place / MARK).unlink()
        if not made:
            try:
                place.rmdir()
            except OSError:  # somebody wrote into it just now: the next run must know it for ours
                (place / MARK).touch(exist_ok=False)
    unlock(handle)


def _empty(partial: Path) -> None:
    """Remove all but the mark; threads of a library whose writing failed may still write for a moment."""
    for _ in range(20):
        with suppress(OSError):
            _clear(partial)
            if [path.name for path in partial.iterdir()] == [MARK]:
                return
        time.sleep(0.05)


def _clear(partial: Path) -> None:
    """Remove all but the mark; the lock is held."""
    for path in list(partial.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()


def _made_before(output: Path, wanted: dict[str, Any]) -> bool:
    if (output / NOTE).is_file():
        note, files = read_listing(output / NOTE)
        for name, (size, _) in files.items():
            check_size(output / name, size)
        found = {key: value for key, value in note.items() if key not in _OURS}
        difference = first_difference(found, wanted, str(wanted.get("verb", "options")))
        if difference is not None:
            same_options = found.get("config") == wanted.get("config")
            raise (OtherInputsError if same_options else ConfigError)(
                f"{output} was made with other options or from other data: {difference}",
                hint="give another output directory, or remove this one",
            )
        with suppress(OSError):  # its writer may have been killed just before it did this
            (output / MARK).unlink()
        return True
    if output.exists():
        if not output.is_dir() or any(output.iterdir()):
            raise WriteError(f"{output} holds files that are not ours", hint="give a new or empty directory")
        if output == Path.cwd():
            raise WriteError(f"{output} is the working directory", hint="give a new directory in it")
    return False


def _seal(partial: Path, wanted: dict[str, Any]) -> None:
    """Sync all files and directories, then write the note."""
    names = _names(partial)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        files = dict(zip(names, pool.map(lambda name: settle(partial / name), names), strict=True))
    for directory in sorted(p for p in partial.rglob("*") if p.is_dir()):
        try:
            sync_directory(directory)
        except OSError as err:
            raise write_error(directory, err) from None
    write_atomic(partial / NOTE, render({**wanted, "files": files}))


def _names(directory: Path) -> list[str]:
    """Relative names of all files, sorted, but for the note and the mark; links count as files."""
    found = (p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir())
    names = (p.relative_to(directory).as_posix() for p in found)
    return sorted(name for name in names if name not in (NOTE, MARK))


def _size(directory: Path) -> int:
    """Bytes of all files, as far as they can be asked."""
    total = 0
    with suppress(OSError):
        for path in directory.rglob("*"):
            total += path.lstat().st_size
    return total


def _sync_name(output: Path) -> None:
    try:
        sync_directory(output.parent)
    except OSError as err:
        # Renamed, perhaps, but not known to be on disk: must not pass for a finished tree later.
        shutil.rmtree(output, ignore_errors=True)
        raise write_error(output, err) from None


def read_tree(directory: Path) -> FileList:
    """The files of a finished tree, as its note lists them.

    Raises
    ------
    IntegrityError
        The note is damaged, or of a version without lists.
    """
    return read_listing(directory / NOTE)[1]


def verify_tree(directory: Path, advance: Callable[[int], None] | None = None) -> list[str]:
    """Read every byte and compare; what is wrong, empty when all is whole.

    Parameters
    ----------
    directory
        A finished tree.
    advance
        Called with the number of bytes just read.

    Raises
    ------
    IntegrityError
        The note is damaged.
    """
    files = read_tree(directory)
    strays = [f"{directory / name}: not in the note" for name in _names(directory) if name not in files]
    return differing(directory, files, advance) + strays
