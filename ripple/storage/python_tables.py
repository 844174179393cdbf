"""Tables in memory, of whatever library, as plain columns with their masks and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import DataError

#: Names of identifier columns that are recognised when none is given, in order of preference; case does not
#: matter.
ID_NAMES = (
    "id", "objectId", "object_id", "objid", "diaObjectId", "source_id", "sourceId", "obj_id", "name",
)  # fmt: skip
#: Units of angles in lower case -> deg.
ANGLES = {
    "deg": 1.0, "degree": 1.0, "rad": 180.0 / np.pi, "radian": 180.0 / np.pi, "hourangle": 15.0, "h": 15.0,
    "arcmin": 1 / 60, "arcsec": 1 / 3600,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlainColumn:
    """One column.

    Parameters
    ----------
    values
        `(N, ...)` native byte order, text decoded; a masked array when rows are missing.
    unit
        As text, empty when the table says none.
    """

    values: NDArray[Any]
    unit: str = ""


def plain_table(table: Any) -> dict[str, PlainColumn]:
    """The columns of a mapping, a structured array, an Arrow, pandas or astropy table.

    Sky coordinates become columns `ra` and `dec` in deg ICRS.

    Raises
    ------
    DataError
        It is no table, or has two columns of one name.
    """
    out: dict[str, PlainColumn] = {}
    for name, value in _named(table):
        for key, column in _columns_of(name, value):
            if key in out:
                raise DataError(f"the table has two columns {key!r}", hint="rename one")
            out[key] = column
    return out


def _named(table: Any) -> list[tuple[str, Any]]:
    """Names and values of the columns, as the library gives them."""
    if table is None:
        return []
    if isinstance(table, pa.Table):
        return [(name, table[name]) for name in table.column_names]
    if isinstance(table, np.ndarray) and table.dtype.names:
        return [(name, table[name]) for name in table.dtype.names]
    # astropy and pandas, without importing either.
    names = getattr(table, "colnames", None)
    names = getattr(table, "columns", None) if names is None else names
    if names is None and not isinstance(table, Mapping):
        raise DataError(f"a {type(table).__name__} is not a table", hint="give a mapping of columns")
    return [(str(name), table[name]) for name in (table if names is None else names)]


def _columns_of(name: str, value: Any) -> list[tuple[str, PlainColumn]]:
    """The column, or the two of sky coordinates."""
    # astropy's SkyCoord knows its own frame; no other kind of column has `icrs`.
    if (sky := getattr(value, "icrs", None)) is not None:
        return [(k, PlainColumn(_values(getattr(sky, k).deg), "deg")) for k in ("ra", "dec")]
    # The numbers of an astropy quantity are in `value`.
    numbers = value.value if hasattr(value, "to_value") and hasattr(value, "unit") else value
    return [(name, PlainColumn(_values(numbers), str(getattr(value, "unit", None) or "")))]


def _values(value: Any) -> NDArray[Any]:
    """An array in native byte order, masked where the library says a value is missing."""
    if isinstance(value, pa.ChunkedArray | pa.Array):
        return _of_arrow(value)
    if hasattr(value, "isna") and hasattr(value, "to_numpy"):  # pandas
        return _of_arrow(pa.array(value, from_pandas=True))
    mask = getattr(value, "mask", None)
    unmasked = getattr(value, "unmasked", value)  # astropy's Masked
    data = np.asarray(unmasked.data if isinstance(unmasked, np.ma.MaskedArray) else unmasked)
    if data.dtype.kind in "iufcSU":
        data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if data.dtype.kind == "S":
        data = np.char.decode(data, "utf-8", "replace")
    if mask is None or not np.any(mask):
        return data
    return np.ma.array(data, mask=np.broadcast_to(np.asarray(mask), data.shape))


def _of_arrow(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """An Arrow column; integers with nulls keep their digits."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    if not whole.null_count:
        return _text(whole.to_numpy(zero_copy_only=False))
    mask = whole.is_null().to_numpy(zero_copy_only=False)
    text = pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type)
    filled = whole.fill_null("" if text else pa.scalar(0).cast(whole.type))
    return np.ma.array(_text(filled.to_numpy(zero_copy_only=False)), mask=mask)


def _text(values: NDArray[Any]) -> NDArray[Any]:
    """Text of Python objects as numpy text; anything else as it is."""
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values):
        return values.astype(str)
    return values


#: Why floats are no ids, for messages.
INEXACT = "ids are floating-point numbers, which hold at most 53 bits"


def inexact(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Floats that are no whole numbers, or of more than 53 bits: as ids they may have lost digits."""
    return np.asarray(~((values == np.floor(values)) & (np.abs(values) <= 2.0**53)))


def known_name(there: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the known names that a table has: exactly, or else in another case."""
    # The exact name first: a table may have both `ra` and `RA`.
    by_lower: dict[str, str] = {}
    for column in there:
        by_lower.setdefault(column.lower(), column)
    for candidate in known:
        if candidate in there:
            return candidate
        if candidate.lower() in by_lower:
            return by_lower[candidate.lower()]
    return None


def exact_ids(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Ids as they are; floating-point ones become integers when they hold every digit.

    Raises
    ------
    DataError
        Floats that are no whole numbers, or of more than 53 bits.
    """
    if values.dtype.kind != "f":
        return values
    wrong = inexact(values)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise DataError(
            f"{name}: {INEXACT}: {values[k]!r} in row {k}", hint="store the ids as integers or as text"
        )
    return values.astype(np.int64)
