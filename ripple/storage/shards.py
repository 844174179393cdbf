"""Shards as arrays, checked against what the manifest says about them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError, InputError, IntegrityError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.storage.artefact import Artefact
from ripple.storage.files import release_pages
from ripple.storage.shard_reader import map_cutouts, unpack_cutouts, unpack_tensors

#: Rows of mapped cutouts whose memory is given back together.
RELEASE_ROWS = 128


def cutouts_of(artefact: Artefact, k: int) -> CutoutBatch:
    """Shard `k` of cutouts, its bytes and its shape verified.

    Raises
    ------
    IntegrityError
        The bytes differ from those that were written, or the content from the manifest; see `agreeing`.
    """
    return agreeing(artefact, k, unpack_cutouts(artefact.read(k)))


def mapped_cutouts(artefact: Artefact, k: int) -> tuple[CutoutBatch, Callable[[int], None]]:
    """Shard `k` of cutouts, verified as in `cutouts_of`, for a reader that goes through its rows once.

    Returns
    -------
    batch
        Its planes are mapped: a row takes memory once it is read.
    release
        Gives back the memory of all rows before the one of this number; they can still be read.
    """
    path = artefact.checked_path(k)
    batch = agreeing(artefact, k, map_cutouts(path))
    released = 0

    def release(row: int) -> None:
        nonlocal released
        # Many rows at a time: each call costs as much as reading a few.
        if row - released >= RELEASE_ROWS:
            for plane in (batch.image, batch.variance, batch.mask):
                release_pages(plane[released:row])
            released = row

    return batch, release


def some_cutouts(artefact: Artefact, k: int, rows: NDArray[np.int64]) -> CutoutBatch:
    """Some rows of shard `k` of cutouts, for a look at data that are read and verified as a whole later.

    Only their pages are read, and their checksum is not known.

    Raises
    ------
    IntegrityError
        The shard cannot be read, or does not fit the manifest.
    """
    try:
        return agreeing(artefact, k, map_cutouts(artefact.shard_path(k))).take(rows)
    except DataError:
        return cutouts_of(artefact, k).take(rows)  # which says what is wrong with its bytes


def images_of(artefact: Artefact, k: int) -> CutoutBatch | TensorBatch:
    """Shard `k` of cutouts or tensors, as `cutouts_of`; `InputError` where there are no images."""
    if artefact.kind == "cutouts":
        return cutouts_of(artefact, k)
    if artefact.kind != "tensors":
        raise InputError(f"{artefact.directory} contains {artefact.kind}, which have no images")
    return agreeing(artefact, k, unpack_tensors(artefact.read(k)))


def agreeing[B: (CutoutBatch, TensorBatch)](artefact: Artefact, k: int, batch: B) -> B:
    """Return `batch` if its rows, bands and size are those that the manifest gives for shard `k`.

    Raises
    ------
    IntegrityError
        Names the shard and the first thing that differs.
    """
    # The checksum only says that the bytes are those that were written, not that they fit to the others.
    said, path = artefact.manifest["attributes"], artefact.shard_path(k)
    rows, _, height, width = batch.image.shape
    if rows != artefact.shards[k].rows:
        raise IntegrityError(f"{path} has {rows} rows, but the manifest says {artefact.shards[k].rows}")
    if list(batch.bands) != said["bands"]:
        names = [",".join(bands)[:100] for bands in (batch.bands, said["bands"])]
        raise IntegrityError(f"{path} has bands {names[0]}, but the manifest says {names[1]}")
    if rows == 0:  # a shard without rows has no size
        return batch
    size, margin = said.get("size"), said.get("margin", 0)
    # The size in the manifest is without margins.
    inner = [height - 2 * margin, width - 2 * margin]
    if min(inner) < 1:
        raise IntegrityError(
            f"{path} has cutouts of {width} x {height} px, but the manifest says a margin of {margin} px"
        )
    if size is not None and inner != (size if isinstance(size, list) else [size, size]):
        raise IntegrityError(
            f"{path} has cutouts of {width} x {height} px, but the manifest says size {size}"
        )
    return batch
