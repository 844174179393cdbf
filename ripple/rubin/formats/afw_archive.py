"""The archive of an afw FITS file: binary tables that hold PhotoCalib, PSF and other components.

`ARCHIVE_INDEX` says for each object id which tables and rows hold it and its class; subclasses share a table
and table names repeat, so only the index tells the class (lsst.afw.table.io, `InputArchive`). Tables are read
here with numpy alone; every length is checked against the bytes that are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.errors import UnreadableError
from ripple.rubin.formats.fits import Hdu
from ripple.sky.geometry import Box

#: AB zero point in nJy, as `lsst.cpputils.referenceFlux` (Oke & Gunn 1983).
REFERENCE_FLUX = 1e23 * 10 ** (48.6 / -2.5) * 1e9

_MOST_NESTED = 8  # nesting of product fields; deeper is a damaged or hostile file
# FITS column type (section 7.3.1) to numpy, big-endian.
_TFORM_TYPES = {"L": "i1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "A": "S1"}

#: A calibration field at pixels `(x, y)`, PARENT, broadcast; nJy per count.
Field = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class PhotoCalib:
    """Nanojansky per count.

    Parameters
    ----------
    mean
        Mean over the image.
    field
        Calibration at `(x, y)` when it varies, and the box it holds in; None when constant.
    """

    mean: float
    field: tuple[Field, Box] | None = None

    def at(self, box: Box) -> NDArray[np.float64] | float:
        """Factor of each pixel of `box`, `(H, W)` float64, or one number when constant.

        Pixels outside the field's box are NaN: there is no calibration there.
        """
        if self.field is None:
            return self.mean
        field, domain = self.field
        y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(np.float64)
        factor = np.broadcast_to(field(x, y), x.shape).copy()
        outside = np.ones(box.shape, bool)
        inside = box & domain
        if not inside.empty:
            outside[box.slices(inside)] = False
        factor[outside] = np.nan
        return factor


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in an archive: its class and the rows that hold it, in the order of its tables."""

    kind: str
    rows: tuple[NDArray[np.void], ...]


class Archive:
    """Objects of an afw archive by id.

    Parameters
    ----------
    view
        The whole file.
    hdus
        Its HDUs.
    first
        Position of the `ARCHIVE_INDEX` HDU (AR_HDU - 1).
    name
        File, for messages.
    """

    def __init__(self, view: memoryview, hdus: Sequence[Hdu], first: int, *, name: str) -> None:
        if not 0 < first < len(hdus) or "ARCHIVE_INDEX" not in hdus[first].kinds:
            raise UnreadableError(f"{name}: AR_HDU does not point to an ARCHIVE_INDEX")
        self._view, self._hdus, self.name = view, hdus[first:], name
        self._index = read_table(view, hdus[first], name=name)

    def __getitem__(self, key: int) -> Entry:
        """The object with this id; `UnreadableError` when parts of it are missing."""
        columns = {"id", "cat.archive", "cat.persistable", "row0", "nrows", "name"}
        index = self._index
        if index.dtype.names is None or not columns <= set(index.dtype.names):
            missing = ", ".join(sorted(columns - set(index.dtype.names or ())))
            raise UnreadableError(f"{self.name}: damaged, ARCHIVE_INDEX has no columns {missing}")
        lines = index[index["id"] == key]
        # Tables of one object in the order in which its class wrote them, which the readers count on.
        lines = lines[np.argsort(lines["cat.persistable"], kind="stable")]
        if not len(lines):
            raise UnreadableError(f"{self.name}: the archive has no object {key}")
        rows = []
        for line in lines:
            catalogue = int(line["cat.archive"])
            # Table 0 is the index itself.
            if not 0 < catalogue < len(self._hdus):
                raise UnreadableError(f"{self.name}: the archive has no table {catalogue}")
            table = read_table(self._view, self._hdus[catalogue], name=self.name)
            start, count = int(line["row0"]), int(line["nrows"])
            if start < 0 or count < 0 or start + count > len(table):
                raise UnreadableError(f"{self.name}: object {key} of the archive lies outside its table")
            rows.append(table[start : start + count])
        return Entry(text(lines["name"][0]), tuple(rows))

    def photo_calib(self, key: int) -> PhotoCalib:
        """PhotoCalib with this id, or the older Calib as one.

        Notes
        -----
        `PhotoCalib` version 0 was in maggies and is refused as afw refuses it. `Calib` held the counts of a
        source of magnitude 0: nJy per count = reference flux / fluxmag0.
        """
        entry = self[key]
        row = self._single(entry, key)
        if entry.kind == "Calib":
            return calib_from_zero_point(self.number(row, "fluxmag0"), name=self.name)
        if entry.kind != "PhotoCalib":
            raise UnreadableError(f"{self.name}: the calibration is a {entry.kind}, not a PhotoCalib")
        if "version" not in (row.dtype.names or ()) or self.integer(row, "version") < 1:
            raise UnreadableError(f"{self.name}: PhotoCalib version 0 (maggies) is not supported")
        mean = self.number(row, "calibrationMean")
        if not (np.isfinite(mean) and mean > 0):
            raise UnreadableError(f"{self.name}: PhotoCalib has mean {mean}, which is not positive")
        # Flags are bits from the left; isConstant is the only one.
        if "flags" in (row.dtype.names or ()) and int(np.ravel(row["flags"])[0]) & 0x80:
            return PhotoCalib(mean)
        return PhotoCalib(mean, self._field(self.integer(row, "field"), 0))

    def _field(self, key: int, depth: int) -> tuple[Field, Box]:
        """BoundedField with this id, and its box."""
        if depth > _MOST_NESTED:
            raise UnreadableError(f"{self.name}: calibration fields are nested more than {_MOST_NESTED} deep")
        entry = self[key]
        if entry.kind == "ChebyshevBoundedField":
            return self._chebyshev(self._single(entry, key))
        if entry.kind != "ProductBoundedField":
            raise UnreadableError(
                f"{self.name}: the calibration varies as {entry.kind}, which only lsst.afw can evaluate",
                hint="run where the LSST stack is installed",
            )
        # Bounded like the nesting: a damaged table cannot ask for work without end.
        factors = [self._field(self.integer(row, "id"), depth + 1) for row in entry.rows[0][:16]]
        if not factors or len(factors) != len(entry.rows[0]):
            raise UnreadableError(
                f"{self.name}: damaged, a product of {len(entry.rows[0])} calibration fields"
            )

        def product(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            value = np.ones(np.broadcast(x, y).shape)
            for factor, _ in factors:
                value = value * factor(x, y)
            return value

        # All factors hold over the box of the image; the first one stands for them.
        return product, factors[0][1]

    def _chebyshev(self, row: np.void) -> tuple[Field, Box]:
        """Chebyshev polynomial of the first kind in both axes over its box (`ChebyshevBoundedField.cc`)."""
        box = Box(
            self.integer(row, "bbox_min_x"),
            self.integer(row, "bbox_min_y"),
            self.integer(row, "bbox_max_x") + 1,  # afw boxes include their last pixel
            self.integer(row, "bbox_max_y") + 1,
        )
        values = np.ravel(self._column(row, "coefficients")).astype(np.float64)
        nx = self.integer(row, "order_x") + 1
        if nx < 1 or values.size % nx or not values.size or not np.isfinite(values).all():
            raise UnreadableError(f"{self.name}: damaged Chebyshev coefficients")
        # (order_y + 1, order_x + 1): x runs fastest.
        coefficients = values.reshape(-1, nx)
        if box.empty and values.size > 1:
            raise UnreadableError(f"{self.name}: damaged, a varying calibration field on an empty box")

        def field(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            if values.size == 1:
                return np.full(np.broadcast(x, y).shape, values[0])
            # The box as reals ends half a pixel outside its outer pixels.
            u = (2 * x - (box.x0 + box.x1 - 1)) / box.width
            v = (2 * y - (box.y0 + box.y1 - 1)) / box.height
            return np.asarray(np.polynomial.chebyshev.chebval2d(u, v, coefficients.T))

        return field, box

    def _single(self, entry: Entry, key: int) -> np.void:
        if not entry.rows or len(entry.rows[0]) != 1:
            raise UnreadableError(f"{self.name}: object {key} ({entry.kind}) of the archive must be one row")
        row: np.void = entry.rows[0][0]
        return row

    def single(self, key: int) -> np.void:
        """The only row of object `key`."""
        return self._single(self[key], key)

    def _column(self, row: np.void, column: str) -> NDArray[np.generic]:
        if column not in (row.dtype.names or ()):
            raise UnreadableError(f"{self.name}: an archive table has no column {column}")
        return np.asarray(row[column])

    def number(self, row: np.void, column: str) -> float:
        """A number of a row."""
        value = self._column(row, column)
        if value.size != 1 or value.dtype.kind not in "iuf":
            raise UnreadableError(f"{self.name}: column {column} of the archive is not a number")
        return float(value.reshape(-1)[0])

    def integer(self, row: np.void, column: str) -> int:
        """An integer of a row."""
        value = self.number(row, column)
        if not value.is_integer():
            raise UnreadableError(f"{self.name}: column {column} of the archive is not an integer")
        return int(value)

    def numbers(self, row: np.void, column: str) -> NDArray[np.float64]:
        """An array column of a row, float64."""
        value = self._column(row, column)
        if value.dtype.kind not in "iuf":
            raise UnreadableError(f"{self.name}: column {column} of the archive is not numeric")
        return np.ravel(value).astype(np.float64)


def calib_from_zero_point(fluxmag0: float, *, name: str) -> PhotoCalib:
    """PhotoCalib of an image whose source of magnitude 0 (AB) has `fluxmag0` counts."""
    if not (np.isfinite(fluxmag0) and fluxmag0 > 0):
        raise UnreadableError(f"{name}: FLUXMAG0 is {fluxmag0}, which is not positive")
    return PhotoCalib(REFERENCE_FLUX / fluxmag0)


def text(value: object) -> str:
    """A text field of a table."""
    raw = (
        value.tobytes()
        if isinstance(value, np.ndarray | np.bytes_)
        else bytes(str(value), "ascii", "replace")
    )
    return raw.split(b"\0", 1)[0].decode("ascii", "replace").strip()


def read_table(view: memoryview, hdu: Hdu, *, name: str) -> NDArray[np.void]:
    """A FITS binary table as a structured array, big-endian, without its heap (FITS 4.0, section 7.3).

    Bit columns become bytes, variable-length columns their descriptors.

    Raises
    ------
    UnreadableError
        When the header does not describe the table.
    """
    try:
        width, rows, count = hdu.integer("NAXIS1"), hdu.integer("NAXIS2"), hdu.integer("TFIELDS")
        if not (0 <= count <= 999 and width >= 0 and rows >= 0 and hdu.data + width * rows <= len(view)):
            raise UnreadableError("impossible size")
        # 999 columns is the limit of the standard (section 7.3.1).
        fields = [_column_type(hdu, k + 1) for k in range(count)]
        dtype = np.dtype(fields)
    except (UnreadableError, ValueError, TypeError) as error:
        raise UnreadableError(f"{name}: damaged table, {hdu.label}: {error}") from None
    # With the columns packed, any other width means that one of the formats is damaged.
    if dtype.itemsize != width or width == 0:
        raise UnreadableError(f"{name}: damaged table, {hdu.label}: rows of {width} bytes")
    return np.frombuffer(view, dtype, rows, hdu.data)


def _column_type(hdu: Hdu, k: int) -> tuple[str, str, tuple[int, ...]] | tuple[str, str]:
    """Field of a numpy dtype for column `k`."""
    form = hdu.text(f"TFORM{k}")
    match = re.match(r"(\d{0,9})([A-Z])", form)
    if match is None:
        raise UnreadableError(f"TFORM{k} is {form!r}")
    repeat, code = int(match[1] or 1), match[2]
    name = hdu.text(f"TTYPE{k}") or f"column{k}"
    if code == "X":
        return name, "u1", (-(-repeat // 8),)  # X: bits, eight to a byte
    if code in "PQ":
        return name, ">i4" if code == "P" else ">i8", (2 * repeat,)
    if code == "A":
        return name, f"S{repeat}" if repeat else "V0"
    if code not in _TFORM_TYPES:
        raise UnreadableError(f"TFORM{k} is {form!r}")
    return (name, _TFORM_TYPES[code]) if repeat == 1 else (name, _TFORM_TYPES[code], (repeat,))
