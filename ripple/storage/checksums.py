"""Lists of files with size and SHA-256, as a manifest has them, and how files are compared with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ripple.errors import IntegrityError
from ripple.storage.files import REDO, hash_file, opened, read_whole

#: Name -> size and SHA-256.
FileList = dict[str, tuple[int, str]]


def listed(directory: Path, names: Iterable[str]) -> FileList:
    """Size and SHA-256 of the files among `names` that exist."""
    return {name: hash_file(directory / name) for name in names if (directory / name).exists()}


def parse_listing(path: Path, value: Any) -> FileList:
    """The list of files in a record; no name in it leads out of the directory.

    Parameters
    ----------
    path
        The record, for the message.
    value
        The list as read from JSON.

    Raises
    ------
    IntegrityError
        The value is not such a list.
    """
    if not isinstance(value, dict) or not all(_well_formed(name, entry) for name, entry in value.items()):
        raise IntegrityError(f"{path}: its list of files has a wrong layout", hint=REDO)
    return {name: (size, sha256) for name, (size, sha256) in value.items()}


def _well_formed(name: str, entry: Any) -> bool:
    """Whether an entry is a plain relative name with size and checksum."""
    pure = PurePosixPath(name)
    # A manifest may come from others: `../` or an absolute path would read files anywhere.
    inside = str(pure) == name and not pure.is_absolute() and ".." not in pure.parts and "\0" not in name
    pair = isinstance(entry, list) and [type(part) for part in entry] == [
        int,
        str,
    ]  # no bool, which is an int
    return inside and name != "." and pair


def compare(path: Path, found: tuple[int, str], expected: tuple[int, str]) -> None:
    """Raise `IntegrityError` when size or SHA-256 of a file differ from those recorded."""
    # The size first: it says more about what happened, such as a copy that was cut off.
    if found[0] != expected[0]:
        raise _other_size(path, found[0], expected[0])
    if found[1] != expected[1]:
        raise IntegrityError(f"{path}: damaged, its SHA-256 is not the recorded one", hint=REDO)


def read_verified(path: Path, expected: tuple[int, str]) -> bytes:
    """The bytes of a file; `IntegrityError` when size or SHA-256 differ from those recorded."""
    data = read_whole(path)
    compare(path, (len(data), hashlib.sha256(data).hexdigest()), expected)
    return data


def check_size(path: Path, expected: int) -> None:
    """Raise `IntegrityError` when the file is missing or has another size."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != expected:
        raise _other_size(path, size, expected)


def _other_size(path: Path, size: int, expected: int) -> IntegrityError:
    return IntegrityError(f"{path} has {size} bytes, but {expected} were written", hint=REDO)


def differing(
    directory: Path, files: Mapping[str, tuple[int, str]], advance: Callable[[int], None] | None = None
) -> list[str]:
    """Read every byte of the files of a list; returns a message for each that differs, by name.

    Parameters
    ----------
    directory
        Where the files are.
    files
        Their list.
    advance
        Called with the number of bytes just read.
    """
    problems = []
    for name, expected in sorted(files.items()):
        try:
            compare(directory / name, hash_file(directory / name, advance), expected)
        except IntegrityError as err:
            problems.append(err.message)
    return problems
