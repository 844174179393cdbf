"""From a planned dataset to an open coadd: local file, object store or http, one function."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ripple.errors import UnreadableError
from ripple.rubin.afw import afw_active, open_with_afw
from ripple.rubin.coadd import open_coadd_sparse
from ripple.rubin.repo import Dataset
from ripple.rubin.source import Coadd, open_coadd


def open_dataset(dataset: Dataset, sparse: bool, *, repo: str) -> Coadd:
    """Open a dataset.

    Parameters
    ----------
    dataset
        As planned; its size was recorded by the Butler.
    sparse
        Fetch only the bytes under the boxes that are read later; else the whole file now, and what is
        hashed is what is decoded.
    repo
        Butler repository, to resolve a dataset whose address was not kept (signed URLs are secrets).

    Raises
    ------
    UnreadableError
        Missing, cut short, damaged, or not a coadd; names the file.
    SourceError
        A remote repository refuses access or does not answer.
    """
    if dataset.storage_class.startswith("Exposure") and afw_active():
        return open_with_afw(dataset, repo=repo)
    name = label(dataset)
    path = local_path(dataset)
    if sparse:
        size, read = _local_ranges(path, name) if path else _remote_ranges(dataset, repo)
        _check_size(name, size, dataset.size)
        return open_coadd_sparse(read, name=name, size=size)
    data = _read_local(path, name) if path else _read_remote(dataset, repo)
    _check_size(name, len(data), dataset.size)
    return open_coadd(data, name=name)


def label(dataset: Dataset) -> str:
    """What messages call a dataset: type, data ID and file name, never a query string."""
    file = Path(unquote(urlsplit(dataset.uri).path)).name or dataset.uuid
    return f"{dataset.dataset_type} {dataset.tract}/{dataset.patch}/{dataset.band} ({file})"


def local_path(dataset: Dataset) -> Path | None:
    """Path of a dataset on this file system, None when it is remote or must be resolved again."""
    parts = urlsplit(dataset.uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def _check_size(name: str, found: int, recorded: int) -> None:
    if recorded >= 0 and found != recorded:
        raise UnreadableError(
            f"{name}: {found} bytes, the Butler recorded {recorded}",
            hint="the file was cut short or replaced; restore it",
        )


def _read_local(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise UnreadableError(f"{name}: {err.strerror}", hint=f"is {path} readable?") from None


def _local_ranges(path: Path, name: str) -> tuple[int, Callable[[int, int], bytes]]:
    """Size of a file, and a function that reads ranges of it; the file stays open as long as that lives."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as err:
        raise UnreadableError(f"{name}: {err.strerror}", hint=f"is {path} readable?") from None

    def read(offset: int, length: int) -> bytes:
        try:
            return os.pread(file.fileno(), length, offset)
        except (OSError, ValueError, OverflowError) as err:
            raise UnreadableError(f"{name}: {length} bytes at {offset} cannot be read: {err}") from None

    return os.fstat(file.fileno()).st_size, read


def _read_remote(dataset: Dataset, repo: str) -> bytes:
    from ripple.rubin.remote import read_remote

    return read_remote(dataset, repo=repo)


def _remote_ranges(dataset: Dataset, repo: str) -> tuple[int, Callable[[int, int], bytes]]:
    """As `_local_ranges`; stores without byte ranges over http are read whole."""
    from ripple.rubin.remote import open_remote

    if urlsplit(dataset.uri).scheme in ("", "http", "https"):
        file = open_remote(dataset, repo=repo)
        if file.size < 0:
            file.read_range(0, 1)  # a remote Butler records no size: the answer tells it
        return file.size, file.read_range
    data = _read_remote(dataset, repo)
    return len(data), lambda offset, length: data[offset : offset + length]
