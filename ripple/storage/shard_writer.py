"""The HDF5 layout of shards. `FORMAT.md` specifies it in prose.

A shard is built in memory and its bytes are handed to the artefact: HDF5 itself never touches the disk
(on a full disk it crashes the process, killed it leaves files that do not open). Arrays lie unfiltered and
contiguous, so that reading is a view on the bytes: `unpack_*` copies nothing but the catalog, `map_tensors`
reads only what is used. The reader is `ripple.storage.shard_reader`; its functions are to be had here.
"""

from __future__ import annotations

import io
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ripple.config import canonical_json
from ripple.errors import DataError
from ripple.imaging.batch import CutoutBatch, CutoutTable, TensorBatch
from ripple.storage.shard_reader import (
    MAX_ATTRIBUTE_BYTES,
    MAX_COLUMNS,
    SCHEMA,
    WCS,
    TensorPlanes,
    map_planes,
    map_tensors,
    read_attributes,
    unpack_cutouts,
    unpack_tensors,
)

__all__ = [
    "ALIGNMENT",
    "MAX_ATTRIBUTE_BYTES",
    "MAX_COLUMNS",
    "SCHEMA",
    "Draft",
    "TensorPlanes",
    "draft_cutouts",
    "map_planes",
    "map_tensors",
    "pack_cutouts",
    "pack_tensors",
    "read_attributes",
    "unpack_cutouts",
    "unpack_tensors",
]

#: Arrays of at least this many bytes start at a multiple of it: one memory page.
ALIGNMENT = 4096

_NUMBERS = frozenset("biuf")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Draft:
    """A shard whose large arrays are still to come: everything else, and where they go.

    Parameters
    ----------
    size
        Bytes of the file.
    pieces
        `(offset, bytes)` of all that is known, ascending; gaps are zero.
    places
        Large array -> (offset, bytes), in file order.
    """

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    places: dict[str, tuple[int, int]]

    def chunks(self, arrays: Mapping[str, Iterable[Any]]) -> Iterator[Any]:
        """The bytes of the file from start to end, as buffers.

        Parameters
        ----------
        arrays
            For each place an iterable of C-contiguous pieces of the array, in order. They are taken in the
            order of `places`, one array after the other.

        Raises
        ------
        DataError
            An array is shorter or longer than its place.
        """
        parts: list[tuple[int, bytes | str]] = [
            *self.pieces,
            *((at, k) for k, (at, _) in self.places.items()),
        ]
        end = 0
        for offset, part in sorted(parts, key=lambda item: (item[0], isinstance(item[1], bytes))):
            if offset > end:
                yield bytes(offset - end)
            if isinstance(part, bytes):
                yield part
                end = offset + len(part)
            else:
                end = offset
                for piece in arrays[part]:
                    view = memoryview(piece).cast("B")
                    yield view
                    end += len(view)
                if end != sum(self.places[part]):
                    raise DataError(f"{part}: {end - offset} bytes for a place of {self.places[part][1]}")
        if end < self.size:
            yield bytes(self.size - end)


def draft_cutouts(
    shape: tuple[int, int, int, int], table: CutoutTable, attributes: Mapping[str, Any]
) -> Draft:
    """A cutout shard whose `image`, `variance` and `mask`, `(N, B, H, W)`, are still to come.

    Parameters
    ----------
    shape
        Of the three large arrays.
    table
        Everything else.
    attributes
        As in `pack_cutouts`.
    """
    large = {"image": np.float32, "variance": np.float32, "mask": np.uint32}
    wcs = sorted(table.wcs.items())
    root: dict[str, Any] = {
        "kind": "cutouts",
        "schema": SCHEMA,
        "bands": table.bands,
        "mask_planes": table.mask_planes,
        "pixel_scale": float(table.pixel_scale),
        "unit": "nJy",
    }
    small: dict[str, Any] = {
        "psf": _exact(table.psf, "psf", np.float32),
        "psf_index": _exact(table.psf_index, "psf_index", np.int32),
        "psf_cells": _exact(table.psf_cells, "psf_cells", np.int32),
        "wcs/tract": np.array([tract for tract, _ in wcs], np.int32),
        "wcs/cd": np.array([tan.cd for _, tan in wcs], np.float64).reshape(len(wcs), 4),
    }
    small |= {f"wcs/{name}": np.array([getattr(tan, name) for _, tan in wcs], np.float64) for name in WCS}
    return _draft({k: (shape, np.dtype(v)) for k, v in large.items()}, small, table.catalog, root, attributes)


def pack_cutouts(batch: CutoutBatch, attributes: Mapping[str, Any]) -> bytes:
    """The file image of a cutout shard; equal batches give equal bytes.

    Parameters
    ----------
    batch
        N rows; N may be 0.
    attributes
        Further root attributes (provenance): text and numbers as they are, anything else as JSON.

    Raises
    ------
    DataError
        A column or attribute that the layout cannot hold; the message names it.
    """
    arrays = {
        "image": [_exact(batch.image, "image", np.float32)],
        "variance": [_exact(batch.variance, "variance", np.float32)],
        "mask": [_exact(batch.mask, "mask", np.uint32)],
    }
    return b"".join(draft_cutouts(batch.image.shape, batch.table, attributes).chunks(arrays))


def pack_tensors(batch: TensorBatch, attributes: Mapping[str, Any]) -> bytes:
    """The file image of a tensor shard; parameters and errors as in `pack_cutouts`."""
    root: dict[str, Any] = {
        "kind": "tensors",
        "schema": SCHEMA,
        "bands": batch.bands,
        "pixel_scale": float(batch.pixel_scale),
        "psf_fwhm": float(batch.psf_fwhm),
        "unit": batch.unit,
        "normalization": dict(batch.normalization),
        "class_map": dict(batch.class_map),
    }
    large = {
        "image": _exact(batch.image, "image", np.float32, np.float16),
        "valid": _exact(batch.valid, "valid", np.uint8),
    }
    if batch.variance is not None:
        large["variance"] = _exact(batch.variance, "variance", np.float32)
    shapes = {name: (array.shape, array.dtype) for name, array in large.items()}
    draft = _draft(shapes, {}, batch.catalog, root, attributes)
    return b"".join(draft.chunks({name: [array] for name, array in large.items()}))


def _draft(
    large: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    small: Mapping[str, Any],
    catalog: Mapping[str, Any],
    root: Mapping[str, object],
    attributes: Mapping[str, Any],
) -> Draft:
    """Let HDF5 lay the file out on a file that keeps only what is written: the large arrays are not."""
    for name in attributes:
        if name in root or not _NAME.fullmatch(name):
            raise DataError(f"attribute {name!r}: reserved, or not a plain name")
    columns = {f"catalog/{_column_name(name)}": _column(name, values) for name, values in catalog.items()}
    paper = _Paper()
    with h5py.File(
        paper,
        "w",
        libver=("earliest", "v108"),
        track_order=False,
        alignment_threshold=ALIGNMENT,
        alignment_interval=ALIGNMENT,
    ) as file:
        file.create_group("catalog", track_order=False)
        places = {name: _reserve(file, name, *kind) for name, kind in large.items()}
        for name, array in {**small, **dict(sorted(columns.items()))}.items():
            _create(file, name, array)
        for name, value in sorted({**root, **attributes}.items()):
            _set_attribute(file, name, value)
    places = {name: place for name, place in places.items() if place[1]}
    return Draft(paper.size, paper.pieces(), dict(sorted(places.items(), key=lambda item: item[1])))


def _reserve(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """A contiguous dataset with its place in the file, never written by HDF5: (offset, bytes)."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype.newbyteorder("<"), logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, plist)
    size = math.prod(shape) * dtype.itemsize
    return (int(dataset.get_offset()), size) if size else (0, 0)


class _Paper(io.RawIOBase):
    """A file of any size that keeps only what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self._writes: list[tuple[int, bytes]] = []
        self._at, self.size = 0, 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        self._writes.append((self._at, bytes(data)))
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def readinto(self, target: Any) -> int:
        count = max(0, min(len(target), self.size - self._at))
        view = memoryview(target)[:count]
        view[:] = bytes(count)
        for offset, data in self._writes:
            first, last = max(offset, self._at), min(offset + len(data), self._at + count)
            if first < last:
                view[first - self._at : last - self._at] = data[first - offset : last - offset]
        self._at += count
        return count

    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        """What was written, ascending and without overlaps: later writes win."""
        spans: list[tuple[int, bytearray]] = []
        for offset, data in sorted(self._writes, key=lambda write: write[0]):
            if spans and offset <= spans[-1][0] + len(spans[-1][1]):
                grow = offset + len(data) - spans[-1][0] - len(spans[-1][1])
                spans[-1][1].extend(bytes(max(0, grow)))
            else:
                spans.append((offset, bytearray(len(data))))
        starts = [offset for offset, _ in spans]
        for offset, data in self._writes:
            start, span = spans[bisect_right(starts, offset) - 1]
            span[offset - start : offset - start + len(data)] = data
        return tuple((offset, bytes(span)) for offset, span in spans)


def _create(file: Any, name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind == "S":
        array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
    file.create_dataset(name, data=array, track_times=False)


def _exact(array: NDArray[Any], name: str, *kinds: type) -> NDArray[Any]:
    if array.dtype.type not in kinds:
        wanted = " or ".join(np.dtype(k).name for k in kinds)
        raise DataError(f"{name}: dtype {array.dtype}, must be {wanted}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _column_name(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name.encode()) > 255:
        raise DataError(f"catalog column {name!r}: not a name HDF5 can hold", hint="rename the column")
    return name


def _column(name: str, values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind == "b":
        return np.ascontiguousarray(array, np.uint8)
    if array.dtype.kind in _NUMBERS:
        if array.dtype.itemsize > 8:
            raise DataError(f"catalog column {name!r}: dtype {array.dtype} is wider than 64 bits")
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if array.dtype.kind not in "UTO" or array.ndim != 1:
        raise DataError(f"catalog column {name!r}: dtype {array.dtype} is neither number nor text")
    return _encode(name, array)


def _encode(name: str, array: NDArray[Any]) -> NDArray[np.bytes_]:
    """Text as NUL-padded UTF-8 of one length; None becomes the empty string."""
    encoded = []
    for row, text in enumerate(array.tolist()):
        if text is not None and not isinstance(text, str):
            raise DataError(f"catalog column {name!r}, row {row}: {type(text).__name__} is not text")
        try:
            encoded.append((text or "").encode())
        except UnicodeEncodeError:
            raise DataError(f"catalog column {name!r}, row {row}: not valid Unicode") from None
        if encoded[-1].endswith(b"\0"):
            raise DataError(f"catalog column {name!r}, row {row}: text ends in NUL, which cannot be stored")
    return np.array(encoded, f"S{max([1, *map(len, encoded)])}")


def _set_attribute(file: Any, name: str, value: Any) -> None:
    if isinstance(value, (bool, int, float)):
        file.attrs.create(name, np.float64(value) if isinstance(value, float) else np.int64(value))
        return
    if name in ("bands", "mask_planes"):
        array: Any = _encode(name, np.array(list(value), object))
    else:
        text = value.encode() if isinstance(value, str) else canonical_json(value)
        array = np.array(text, f"S{max(1, len(text))}")
    if array.nbytes > MAX_ATTRIBUTE_BYTES:
        raise DataError(f"attribute {name!r}: {array.nbytes} bytes, at most {MAX_ATTRIBUTE_BYTES} fit")
    file.attrs.create(name, array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize)))
