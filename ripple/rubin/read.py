"""From a planned dataset to an open coadd: local file, object store or http, one function."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from ripple.errors import UnreadableError
from ripple.geometry import Box
from ripple.plan import Dataset
from ripple.rubin.source import Coadd, open_coadd


def open_dataset(dataset: Dataset, boxes: tuple[Box, ...], *, repo: str, size: int) -> Coadd:
    """Open a dataset: whole when many boxes will be cut from it, else only the bytes under them.

    Parameters
    ----------
    dataset
        As planned; its size was recorded by the Butler.
    boxes
        Boxes of the rows that belong to its patch.
    repo
        Butler repository, to resolve a dataset whose address was not kept (signed URLs are secrets).
    size
        Pixels per side of the boxes.

    Raises
    ------
    UnreadableError
        Missing, cut short, damaged, or not a coadd; names the file.
    """
    name = label(dataset)
    data = _bytes(dataset, name, repo)
    if dataset.size > 0 and len(data) != dataset.size:
        raise UnreadableError(
            f"{name}: {len(data)} bytes, the Butler recorded {dataset.size}",
            hint="the file was cut short or replaced; restore it",
        )
    return open_coadd(data, name=name)


def label(dataset: Dataset) -> str:
    """What messages call a dataset: type, data ID and file name, never a query string."""
    parts = urlsplit(dataset.uri)
    return (
        f"{dataset.dataset_type} {dataset.tract}/{dataset.patch}/{dataset.band} "
        f"({Path(unquote(parts.path)).name or dataset.uuid})"
    )


def _bytes(dataset: Dataset, name: str, repo: str) -> bytes:
    parts = urlsplit(dataset.uri)
    if parts.scheme not in ("", "file"):
        from ripple.rubin.remote import read_remote

        return read_remote(dataset, repo=repo)
    path = Path(unquote(parts.path))
    try:
        return path.read_bytes()
    except OSError as err:
        raise UnreadableError(f"{name}: {err.strerror}", hint=f"is {path} readable?") from None
