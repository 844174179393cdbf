"""The user's files while they are imported: the bytes that are decoded are the bytes that were hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ripple.errors import IntegrityError
from ripple.storage.files import Pin, hash_file, read_whole


class SourceFiles:
    """The files of one import.

    Files of single cutouts are read whole and decoded from those bytes, whose checksum must be the same at
    every read. Files of many rows (HDF5) are too large for that and are read in place: they are hashed before
    they are opened and after the last row, and must not change in between.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, str]] = {}  # size in bytes and SHA-256
        self._pins: dict[Path, Pin] = {}

    def read(self, path: Path) -> bytes:
        """The bytes of a file.

        Raises
        ------
        IntegrityError
            The bytes differ from those of an earlier read, or the file is missing, a link, or not readable.
        """
        data = read_whole(path)
        self._same(path, (len(data), hashlib.sha256(data).hexdigest()))
        return data

    def pin(self, path: Path) -> None:
        """Hash a file that will be read in place; call this before it is opened."""
        self._pins[path] = Pin.of(path)
        self._seen[path] = (self._pins[path].size, self._pins[path].sha256)

    def _same(self, path: Path, found: tuple[int, str]) -> None:
        if self._seen.setdefault(path, found) != found:
            raise IntegrityError(
                f"{path} changed while it was imported", hint="import it again once nothing writes to it"
            )

    def check(self, *, rehash: bool) -> None:
        """Check that the files that are read in place have not changed.

        Parameters
        ----------
        rehash
            Compare checksums; else only sizes and times, which takes no reading.

        Raises
        ------
        IntegrityError
            Names the first file that changed.
        """
        for pin in self._pins.values():
            pin.check(rehash=rehash)

    def fingerprint(self, root: Path, paths: Sequence[Path]) -> str:
        """SHA-256 over names and contents of files; from then on, each of them must stay as it is."""
        total = hashlib.sha256()
        for path in paths:
            # Relative names: the same files in another folder have the same fingerprint.
            name = path.name if path == root else path.relative_to(root).as_posix()
            if path not in self._pins:
                self._same(path, hash_file(path))
            size, digest = self._seen[path]
            total.update(f"{name}\0{size}\0{digest}\n".encode())
        return total.hexdigest()
