"""Reading shards: every structure is checked before its bytes are touched.

The reader trusts nothing: known names, hard links, contiguous storage inside the file, no filters, and no
array larger than the file that claims to hold it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.sky.geometry import Tan
from ripple.storage.labels import checked_map

SCHEMA = 1
MAX_COLUMNS = 4096
#: HDF5 stores an attribute in the object header, which holds 64 KiB.
MAX_ATTRIBUTE_BYTES = 60_000
#: A root attribute: text, a number, or a list of either.
type Attribute = str | float | tuple[str | float, ...]
#: Columns of the group `wcs` besides `tract` and `cd`.
WCS = ("ra0", "dec0", "x0", "y0")


def unpack_cutouts(data: bytes | memoryview) -> CutoutBatch:
    """Read a cutout shard; the big arrays are read-only views of `data`.

    Raises
    ------
    DataError
        Not a cutout shard of this layout; the message names what differs.
    """
    with _Reader.open(data, "cutouts") as file:
        return _cutouts(file)


def unpack_tensors(data: bytes | memoryview) -> TensorBatch:
    """Read a tensor shard; `image` and `valid` are views of `data`. Errors as in `unpack_cutouts`."""
    with _Reader.open(data, "tensors") as file:
        return _tensors(file)


@dataclass(frozen=True, slots=True)
class TensorPlanes:
    """The arrays of a tensor shard and the names of their bands.

    Parameters
    ----------
    bands
        Names of the B bands.
    image
        `(N, B, H, W)` float32 or float16.
    valid
        `(N, B, H, W)` uint8.
    """

    bands: tuple[str, ...]
    image: NDArray[Any]
    valid: NDArray[np.uint8]


def map_tensors(path: Path) -> TensorBatch:
    """A tensor shard with `image` and `valid` as read-only `np.memmap`; the caller has checked the digest.

    Raises
    ------
    DataError
        Not readable, or not a tensor shard of this layout.
    """
    with _mapped(path) as file:
        return _tensors(file)


def map_cutouts(path: Path) -> CutoutBatch:
    """A cutout shard with the big arrays as read-only `np.memmap`, bytes not verified; as `map_tensors`."""
    with _mapped(path, "cutouts") as file:
        return _cutouts(file)


def has_psf(path: Path) -> bool:
    """Whether any row of a cutout shard has a PSF, without reading its pixels; errors as in `map_tensors`."""
    with _mapped(path, "cutouts") as file:
        return bool(file.array("psf_index", np.int32, ndim=2).max(initial=-1) >= 0)


def psf_fault(path: Path) -> str:
    """What is wrong with the PSFs of a cutout shard; empty when they are odd squares, or it is no shard."""
    with suppress(DataError), _mapped(path, "cutouts") as file:
        return _no_squares(file.array("psf", np.float32, ndim=3))
    return ""


def _no_squares(psf: NDArray[np.float32]) -> str:
    if len(psf) and (psf.shape[1] != psf.shape[2] or psf.shape[1] % 2 == 0):
        return f"psf: kernels of {psf.shape[2]} x {psf.shape[1]} pixels are no odd squares"
    return ""


def map_planes(path: Path) -> TensorPlanes:
    """The pixels only, in half the time; else as `map_tensors`."""
    with _mapped(path) as file:
        return _planes(file)


@contextmanager
def _mapped(path: Path, kind: str = "tensors") -> Iterator[_Reader]:
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be mapped: {err}") from None
    with _Reader.open(mapped, kind) as file:
        yield file


def _cutouts(file: _Reader) -> CutoutBatch:
    images = {name: file.array(name, np.float32, ndim=4) for name in ("image", "variance")}
    mask = file.array("mask", np.uint32, ndim=4)
    psf, psf_index = file.array("psf", np.float32, ndim=3), file.array("psf_index", np.int32, ndim=2)
    bands, planes = file.names("bands"), file.names("mask_planes")
    shape = images["image"].shape
    if images["variance"].shape != shape or mask.shape != shape or psf_index.shape != shape[:2]:
        raise DataError("image, variance, mask and psf_index differ in shape")
    if fault := _no_squares(psf):
        raise DataError(fault)
    if psf_index.size and (psf_index.max() >= len(psf) or psf_index.min() < -1):
        raise DataError("psf_index: points outside /psf")
    return CutoutBatch(
        bands=file.bands(bands, shape),
        image=images["image"],
        variance=images["variance"],
        mask=mask,
        mask_planes=planes,
        psf=psf,
        psf_index=psf_index,
        catalog=file.catalog(shape[0]),
        wcs=file.wcs(),
        pixel_scale=file.number("pixel_scale"),
        psf_cells=file.psf_cells(shape, len(psf)),
    )


def _planes(file: _Reader) -> TensorPlanes:
    image = file.array("image", np.float32, np.float16, ndim=4)
    valid = file.array("valid", np.uint8, ndim=4)
    if image.shape != valid.shape:
        raise DataError("image and valid differ in shape")
    return TensorPlanes(file.bands(file.names("bands"), image.shape), image, valid)


def _tensors(file: _Reader) -> TensorBatch:
    planes = _planes(file)
    class_map = checked_map(file.json("class_map"), "class_map")
    variance = file.array("variance", np.float32, ndim=4) if file.has("variance") else None
    if variance is not None and variance.shape != planes.image.shape:
        raise DataError("image and variance differ in shape")
    return TensorBatch(
        bands=planes.bands,
        image=planes.image,
        valid=planes.valid,
        catalog=file.catalog(len(planes.image)),
        pixel_scale=file.number("pixel_scale"),
        psf_fwhm=file.number("psf_fwhm"),
        normalization=file.json("normalization"),
        class_map=class_map,
        unit=file.text("unit"),
        variance=variance,
    )


def read_attributes(data: bytes | memoryview | Path) -> dict[str, Attribute]:
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
            {"variance", "mask", "psf", "psf_index", "psf_cells", "wcs"}
            if kind == "cutouts"
            else {"valid", "variance"}
        )
        for name in self._links(self._file.id):
            if name not in known:
                raise DataError(f"/{name[:80]}: not part of a {kind} shard")

    def has(self, name: str) -> bool:
        """Whether the shard has a member of this name at its root."""
        return name in self._links(self._file.id)

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
        parts = {name: self.array(f"wcs/{name}", np.float64, ndim=1) for name in WCS}
        if cd.shape != (len(tract), 4) or any(len(p) != len(tract) for p in parts.values()):
            raise DataError("/wcs: columns differ in length")
        return {
            int(t): Tan(**{name: float(parts[name][k]) for name in WCS}, cd=tuple(cd[k].tolist()))
            for k, t in enumerate(tract)
        }

    def psf_cells(self, shape: tuple[int, ...], kernels: int) -> NDArray[np.int32]:
        """Parts of stamps with another PSF; none in a shard that says nothing about them."""
        if not self._file.id.links.exists(b"psf_cells"):
            return np.empty((0, 7), np.int32)
        cells = self.array("psf_cells", np.int32, ndim=2)
        if cells.shape[1] != 7:
            raise DataError(f"/psf_cells: shape {cells.shape}, expected 7 columns")
        row, band, y0, y1, x0, x1, psf = cells.T
        limits = ((row, shape[0]), (band, shape[1]), (y0, shape[2]), (x0, shape[3]), (psf, kernels))
        sound = all(((column >= 0) & (column < limit)).all() for column, limit in limits)
        sound &= bool(((y0 < y1) & (y1 <= shape[2]) & (x0 < x1) & (x1 <= shape[3])).all())
        if not sound or (np.diff(row) < 0).any():
            raise DataError("/psf_cells: rows not ascending, or parts outside the stamps or /psf")
        return cells

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
        shape, dtype = attr.shape, attr.dtype  # h5py asks HDF5 each time
        text = h5py.check_string_dtype(dtype)
        if (text is None and dtype.kind not in "iuf") or (text is not None and text.length is None):
            raise DataError(f"attribute {name!r}: dtype {dtype}")
        if math.prod(shape) * dtype.itemsize > MAX_ATTRIBUTE_BYTES:
            raise DataError(f"attribute {name!r}: too large")
        value = np.zeros(shape, dtype)
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
