"""The HDF5 layout of shards, written and read in one place. `FORMAT.md` specifies it in prose.

A shard is built in memory and its bytes are handed to `ripple.artefact`: HDF5 itself never touches the disk
(on a full disk it crashes the process, killed it leaves files that do not open). Arrays lie unfiltered and
contiguous, so that reading is a view on the bytes: `unpack_*` copies nothing but the catalog, `map_tensors`
reads only what is used.

The reader trusts nothing: known names, hard links, contiguous storage inside the file, no filters, and no
array larger than the file that claims to hold it.
"""

from __future__ import annotations

import io
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ripple.config import canonical_json
from ripple.cutouts import CutoutBatch, TensorBatch
from ripple.errors import DataError
from ripple.geometry import Tan

SCHEMA = 1
#: Arrays of at least this many bytes start at a multiple of it: one memory page.
ALIGNMENT = 4096
MAX_COLUMNS = 4096
#: HDF5 stores an attribute in the object header, which holds 64 KiB.
MAX_ATTRIBUTE_BYTES = 60_000

_NUMBERS = frozenset("biuf")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_WCS = ("ra0", "dec0", "x0", "y0")


# Writing ------------------------------------------------------------


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
    shape: tuple[int, int, int, int], batch: CutoutBatch, attributes: Mapping[str, Any]
) -> Draft:
    """A cutout shard whose `image`, `variance` and `mask`, `(N, B, H, W)`, are still to come.

    Parameters
    ----------
    shape
        Of the three large arrays.
    batch
        All but the three large arrays is taken from here; theirs may have no rows.
    attributes
        As in `pack_cutouts`.
    """
    large = {"image": np.float32, "variance": np.float32, "mask": np.uint32}
    wcs = sorted(batch.wcs.items())
    root: dict[str, Any] = {
        "kind": "cutouts", "schema": SCHEMA, "bands": batch.bands, "mask_planes": batch.mask_planes,
        "pixel_scale": float(batch.pixel_scale), "unit": "nJy",
    }  # fmt: skip
    small: dict[str, Any] = {
        "psf": _exact(batch.psf, "psf", np.float32),
        "psf_index": _exact(batch.psf_index, "psf_index", np.int32),
        "wcs/tract": np.array([tract for tract, _ in wcs], np.int32),
        "wcs/cd": np.array([tan.cd for _, tan in wcs], np.float64).reshape(len(wcs), 4),
    }
    small |= {f"wcs/{name}": np.array([getattr(tan, name) for _, tan in wcs], np.float64) for name in _WCS}
    return _draft({k: (shape, np.dtype(v)) for k, v in large.items()}, small, batch.catalog, root, attributes)


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
    return b"".join(draft_cutouts(batch.image.shape, batch, attributes).chunks(arrays))


def pack_tensors(batch: TensorBatch, attributes: Mapping[str, Any]) -> bytes:
    """The file image of a tensor shard; parameters and errors as in `pack_cutouts`."""
    root: dict[str, Any] = {
        "kind": "tensors", "schema": SCHEMA, "bands": batch.bands, "pixel_scale": float(batch.pixel_scale),
        "psf_fwhm": float(batch.psf_fwhm), "unit": batch.unit, "normalization": dict(batch.normalization),
        "class_map": dict(batch.class_map),
    }  # fmt: skip
    large = {
        "image": _exact(batch.image, "image", np.float32, np.float16),
        "valid": _exact(batch.valid, "valid", np.uint8),
    }
    shapes = {name: (array.shape, array.dtype) for name, array in large.items()}
    draft = _draft(shapes, {}, batch.catalog, root, attributes)
    return b"".join(draft.chunks({name: [array] for name, array in large.items()}))


def _draft(
    large: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    small: Mapping[str, Any],
    catalog: Mapping[str, Any],
    root: dict[str, Any],
    attributes: Mapping[str, Any],
) -> Draft:
    """Let HDF5 lay the file out on a file that keeps only what is written: the large arrays are not."""
    for name in attributes:
        if name in root or not _NAME.fullmatch(name):
            raise DataError(f"attribute {name!r}: reserved, or not a plain name")
    columns = {f"catalog/{_column_name(name)}": _column(name, values) for name, values in catalog.items()}
    paper = _Paper()
    with h5py.File(
        paper, "w", libver=("earliest", "v108"), track_order=False, alignment_threshold=ALIGNMENT,
        alignment_interval=ALIGNMENT,
    ) as file:  # fmt: skip
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


# Reading ------------------------------------------------------------


def unpack_cutouts(data: bytes | memoryview) -> CutoutBatch:
    """Read a cutout shard; the big arrays are read-only views of `data`.

    Raises
    ------
    DataError
        Not a cutout shard of this layout; the message names what differs.
    """
    with _Reader.open(data, "cutouts") as file:
        images = {name: file.array(name, np.float32, ndim=4) for name in ("image", "variance")}
        mask = file.array("mask", np.uint32, ndim=4)
        psf, psf_index = file.array("psf", np.float32, ndim=3), file.array("psf_index", np.int32, ndim=2)
        bands, planes = file.names("bands"), file.names("mask_planes")
        shape = images["image"].shape
        if images["variance"].shape != shape or mask.shape != shape or psf_index.shape != shape[:2]:
            raise DataError("image, variance, mask and psf_index differ in shape")
        if psf_index.size and (psf_index.max() >= len(psf) or psf_index.min() < -1):
            raise DataError("psf_index: points outside /psf")
        return CutoutBatch(
            bands=file.bands(bands, shape), image=images["image"], variance=images["variance"], mask=mask,
            mask_planes=planes, psf=psf, psf_index=psf_index, catalog=file.catalog(shape[0]), wcs=file.wcs(),
            pixel_scale=file.number("pixel_scale"),
        )  # fmt: skip


def unpack_tensors(data: bytes | memoryview) -> TensorBatch:
    """Read a tensor shard; `image` and `valid` are views of `data`. Errors as in `unpack_cutouts`."""
    with _Reader.open(data, "tensors") as file:
        return _tensors(file)


def map_tensors(path: Path, *, catalog: bool = True) -> TensorBatch:
    """A tensor shard with `image` and `valid` as read-only `np.memmap`; the caller has checked the digest.

    Parameters
    ----------
    path
        The shard.
    catalog
        Read the columns; without them (some milliseconds less) `catalog` is empty.

    Raises
    ------
    DataError
        Not readable, or not a tensor shard of this layout.
    """
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be mapped: {err}") from None
    with _Reader.open(mapped, "tensors") as file:
        return _tensors(file, catalog=catalog)


def _tensors(file: _Reader, *, catalog: bool = True) -> TensorBatch:
    image = file.array("image", np.float32, np.float16, ndim=4)
    valid = file.array("valid", np.uint8, ndim=4)
    if image.shape != valid.shape:
        raise DataError("image and valid differ in shape")
    class_map = file.json("class_map")
    return TensorBatch(
        bands=file.bands(file.names("bands"), image.shape), image=image, valid=valid,
        catalog=file.catalog(len(image)) if catalog else {}, pixel_scale=file.number("pixel_scale"),
        psf_fwhm=file.number("psf_fwhm"),
        normalization=file.json("normalization"), class_map={k: str(v) for k, v in class_map.items()},
        unit=file.text("unit"),
    )  # fmt: skip


def read_attributes(data: bytes | memoryview | Path) -> dict[str, Any]:
    """All root attributes of a shard: text as str, numbers as int or float, name lists as tuples."""
    buffer = np.memmap(data, np.uint8, mode="r") if isinstance(data, Path) else data
    with _Reader.open(buffer, None) as file:
        return {name: file.attribute(name) for name in file.attribute_names()}


class _View(io.RawIOBase):
    """A buffer as a read-only file, without a copy: HDF5 reads its metadata through this."""

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        super().__init__()
        self._buffer, self._at = memoryview(buffer), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._buffer)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any) -> int:
        part = self._buffer[self._at : self._at + len(target)]
        target[: len(part)] = part
        self._at += len(part)
        return len(part)


class _Reader:
    """Strict access to one shard: every structure is checked before its bytes are touched."""

    def __init__(self, file: Any, buffer: NDArray[np.uint8]) -> None:
        self._file, self._buffer = file, buffer
        self._left = len(buffer)  # bytes that arrays may still claim: overlapping claims cannot multiply

    @classmethod
    @contextmanager
    def open(cls, data: Any, kind: str | None) -> Iterator[_Reader]:
        """Open a shard of `kind`; what HDF5 throws on a damaged file becomes a `DataError`."""
        buffer = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        try:
            with h5py.File(_View(buffer), "r") as file:
                reader = cls(file, buffer)
                if kind is not None:
                    reader._expect(kind)
                yield reader
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeDecodeError) as err:
            raise DataError(f"not a readable shard: {' '.join(str(err).split())[:200]}") from None

    def _expect(self, kind: str) -> None:
        found, schema = self.text("kind"), self.number("schema")
        if found != kind:
            raise DataError(f"shard holds {found[:40]!r}, not {kind!r}")
        if schema != SCHEMA:
            raise DataError(f"shard has schema {schema:g}, this version reads {SCHEMA}")
        known = {"image", "catalog"} | (
            {"variance", "mask", "psf", "psf_index", "wcs"} if kind == "cutouts" else {"valid"}
        )
        for name in self._links(self._file.id):
            if name not in known:
                raise DataError(f"/{name[:80]}: not part of a {kind} shard")

    def _links(self, group: Any) -> list[str]:
        """Names in a group; soft and external links are refused, not followed."""
        if group.get_num_objs() > MAX_COLUMNS:
            raise DataError(f"a group with more than {MAX_COLUMNS} members")
        names: list[bytes] = []
        group.links.iterate(names.append)
        for name in names:
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise DataError(f"{name.decode(errors='replace')[:80]}: a soft or external link")
        return sorted(name.decode() for name in names)

    def _member(self, path: str, kind: type) -> Any:
        group = self._file.id
        *parents, last = path.split("/")
        for part in parents:
            group = self._open(group, part, h5py.h5g.GroupID)
        return self._open(group, last, kind)

    def _open(self, group: Any, name: str, kind: type) -> Any:
        key = name.encode()
        if not group.links.exists(key) or group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise DataError(f"/{name}: missing, or not a hard link")
        member = h5py.h5o.open(group, key)
        if not isinstance(member, kind):
            raise DataError(f"/{name}: not a {kind.__name__}")
        return member

    def array(self, path: str, *kinds: type, ndim: int | None = None) -> NDArray[Any]:
        """A dataset as a view of the buffer, after checking type, layout, filters and extent."""
        dataset = self._member(path, h5py.h5d.DatasetID)
        if kinds and dataset.dtype.type not in kinds:
            raise DataError(f"/{path}: dtype {dataset.dtype}")
        if ndim is not None and dataset.rank != ndim:
            raise DataError(f"/{path}: {dataset.rank} dimensions, expected {ndim}")
        if dataset.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE:
            raise DataError(f"/{path}: not an array")
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        offset = self._storage(path, dataset, size)
        view: NDArray[Any] = self._buffer[offset : offset + size].view(dataset.dtype).reshape(dataset.shape)
        return view

    def _storage(self, path: str, dataset: Any, size: int) -> int:
        """Offset of a contiguous dataset whose `size` bytes lie inside the file."""
        plist = dataset.get_create_plist()
        if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters() or plist.get_external_count():
            raise DataError(f"/{path}: not contiguous and unfiltered inside this file")
        if size > self._left:
            raise DataError(f"/{path}: claims {size} bytes, more than the file holds")
        self._left -= size
        if size == 0:
            return 0
        offset = dataset.get_offset()
        if offset is None or dataset.get_storage_size() != size or offset + size > len(self._buffer):
            raise DataError(f"/{path}: its {size} bytes are not in the file")
        return int(offset)

    def catalog(self, rows: int) -> dict[str, NDArray[np.generic]]:
        """The columns, copied; text as str."""
        return {
            name: self._column(name, rows) for name in self._links(self._member("catalog", h5py.h5g.GroupID))
        }

    def _column(self, name: str, rows: int) -> NDArray[np.generic]:
        member = self._member(f"catalog/{name}", h5py.h5d.DatasetID)
        text = h5py.check_string_dtype(member.dtype)
        if (text is None and member.dtype.kind not in "iuf") or (text is not None and text.length is None):
            raise DataError(f"/catalog/{name}: dtype {member.dtype}")
        raw = self.array(f"catalog/{name}")
        if raw.ndim == 0 or len(raw) != rows:
            raise DataError(f"/catalog/{name}: shape {raw.shape}, expected {rows} rows")
        if text is None:
            return np.array(raw, raw.dtype.newbyteorder("="))
        decoded = [item.decode() for item in raw.ravel().tolist()]
        return np.array(decoded, np.str_).reshape(raw.shape) if decoded else np.empty(raw.shape, "U1")

    def wcs(self) -> dict[int, Tan]:
        """Projections by tract."""
        tract, cd = self.array("wcs/tract", np.int32, ndim=1), self.array("wcs/cd", np.float64, ndim=2)
        parts = {name: self.array(f"wcs/{name}", np.float64, ndim=1) for name in _WCS}
        if cd.shape != (len(tract), 4) or any(len(p) != len(tract) for p in parts.values()):
            raise DataError("/wcs: columns differ in length")
        return {
            int(t): Tan(**{name: float(parts[name][k]) for name in _WCS}, cd=tuple(cd[k].tolist()))
            for k, t in enumerate(tract)
        }

    def attribute_names(self) -> list[str]:
        """Names of the root attributes."""
        if h5py.h5a.get_num_attrs(self._file.id) > 256:
            raise DataError("more than 256 root attributes")
        names: list[bytes] = []
        h5py.h5a.iterate(self._file.id, names.append)
        return sorted(name.decode() for name in names)

    def attribute(self, name: str) -> Any:
        """One root attribute of bounded size, of a plain type."""
        if not h5py.h5a.exists(self._file.id, name.encode()):
            raise DataError(f"attribute {name!r}: missing")
        attr = h5py.h5a.open(self._file.id, name.encode())
        text = h5py.check_string_dtype(attr.dtype)
        if (text is None and attr.dtype.kind not in "iuf") or (text is not None and text.length is None):
            raise DataError(f"attribute {name!r}: dtype {attr.dtype}")
        if math.prod(attr.shape) * attr.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
            raise DataError(f"attribute {name!r}: too large")
        value = np.zeros(attr.shape, attr.dtype)
        attr.read(value)
        plain = value.tolist()
        if text is None:
            return tuple(plain) if value.ndim else plain
        return tuple(item.decode() for item in plain) if value.ndim else plain.decode()

    def text(self, name: str) -> str:
        """A text attribute."""
        value = self.attribute(name)
        if not isinstance(value, str):
            raise DataError(f"attribute {name!r}: not text")
        return value

    def number(self, name: str) -> float:
        """A number attribute."""
        value = self.attribute(name)
        if not isinstance(value, (int, float)):
            raise DataError(f"attribute {name!r}: not a number")
        return float(value)

    def names(self, name: str) -> tuple[str, ...]:
        """A list of names."""
        value = self.attribute(name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise DataError(f"attribute {name!r}: not a list of names")
        return value

    def bands(self, bands: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
        """`bands`, checked against axis 1 of the image."""
        if len(bands) != shape[1] or len(set(bands)) != len(bands):
            raise DataError(f"{len(bands)} distinct band names expected for image of shape {shape}")
        return bands

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object kept in a text attribute."""
        value = json.loads(self.text(name))
        if not isinstance(value, dict):
            raise DataError(f"attribute {name!r}: not a JSON object")
        return value
