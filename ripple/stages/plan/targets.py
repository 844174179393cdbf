"""Targets: positions on the sky to cut out, and the columns that travel with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.config import Json, suggest
from ripple.errors import CatalogueError, DataError, NoTargetsError, Reason
from ripple.sky.geometry import off_sky
from ripple.sky.neighbours import earlier_neighbours
from ripple.stages.plan.select import matching
from ripple.stages.plan.tables import BAD_SHARE, UserTable, exact_integers, plain_columns
from ripple.storage.labels import label_counts, lens_line, read_labels
from ripple.storage.python_tables import ANGLES, ID_NAMES, INEXACT, inexact, known_name

Float = NDArray[np.float64]

#: Names that are recognised when none is given, in order of preference; case does not matter.
RA_NAMES = ("ra", "coord_ra", "ra_deg", "raj2000", "ra_icrs", "ra_j2000", "_raj2000", "alpha_j2000", "radeg")
DEC_NAMES = (
    "dec", "coord_dec", "dec_deg", "dej2000", "de_icrs", "dec_j2000", "_dej2000", "delta_j2000", "decdeg",
    "decj2000", "decl",
)  # fmt: skip
LABEL_NAMES = ("label",)
#: Columns that RIPPLe writes itself; a user's column of this name gets `input_` in front.
RESERVED = frozenset({
    "index", "id", "ra", "dec", "tract", "patch", "x", "y", "x0", "y0", "dx", "dy", "status", "reason",
    "detail", "bands", "band_mask", "shard", "row", "qc", "size", "accept",
})  # fmt: skip
#: Rows that a message names.
SHOWN = 5


@dataclass(frozen=True)
class Targets:
    """N positions in input order, and what the user said about them.

    Parameters
    ----------
    id
        `(N,)` int64, uint64 or str.
    ra, dec
        `(N,)` float64 deg ICRS.
    extra
        Arrow table of N rows with the user's other columns, `label` among them when given; may be without
        columns.
    size
        `(N,)` int32 pixels when the table gives sizes.
    rejected
        Row -> reason and text, for rows that are already rejected (duplicates).
    source
        What the positions were read from, JSON values, with a checksum where there is one.
    classes
        Class names by label value; empty when neither the user nor the labels name them.
    notes
        How columns were understood, for the user to check.
    """

    id: NDArray[Any]
    ra: Float
    dec: Float
    extra: pa.Table
    size: NDArray[np.int32] | None = None
    rejected: dict[int, tuple[Reason, str]] = field(default_factory=dict)
    source: Json = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def class_map(self) -> dict[str, str]:
        """Label value -> class name."""
        return {str(k): name for k, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.ra)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what; None for those to be recognised by their names.

    Parameters
    ----------
    id, ra, dec, label, size
        Column names.
    ra_unit
        Unit of right ascension; None to take it from the table.
    classes
        Class names by label value; empty to take numbers as they are.
    """

    id: str | None = None
    ra: str | None = None
    dec: str | None = None
    label: str | None = None
    size: str | None = None
    ra_unit: Literal["deg", "hour"] | None = None
    classes: tuple[str, ...] = ()


def from_table(
    table: UserTable,
    columns: Columns,
    *,
    source: Json,
    select: str | None = None,
    keep: Callable[[Float, Float], NDArray[np.bool_]] | None = None,
    duplicate_radius: float = 0.2,
    strict: bool = False,
) -> Targets:
    """Targets from the rows of a table.

    Rows whose position cannot be used are rejected with what they say; see `BAD_SHARE`.

    Parameters
    ----------
    table
        As read.
    columns
        Which columns mean what.
    source
        Where the table came from; `name` is used in messages.
    select
        Condition that rows must satisfy (`ripple.stages.plan.select`).
    keep
        Mask of `(ra, dec)` in deg: which rows to keep (a region, a tract).
    duplicate_radius
        Arcsec within which two rows are the same object.
    strict
        Raise at the first row that cannot be used.

    Raises
    ------
    CatalogueError
        Columns are missing or not understood, no rows are left, or too many positions are not on the sphere;
        names rows, counted from 0.
    """
    name = str(source.get("name", "targets"))
    data, notes = table.columns, list(table.notes)
    id_name = pick(data, columns.id, ID_NAMES, "id", name)
    ra_name = _required(data, columns.ra, RA_NAMES, "ra", name)
    dec_name = _required(data, columns.dec, DEC_NAMES, "dec", name)
    label_name = pick(data, columns.label, LABEL_NAMES, "label", name)
    size_name = pick(data, columns.size, (), "size", name)
    rows = np.arange(data.num_rows)  # in the file, for messages, whatever is left out below
    if select:
        chosen = matching(data, select).to_numpy()
        if not chosen.all():  # all of a table of millions of rows need no copy
            rows = rows[chosen]
            data = data.take(pa.array(rows))
    ra = _ra(data[ra_name], table.units.get(ra_name), columns.ra_unit, f"{name}: {ra_name}", rows, notes)
    dec = _angle(data[dec_name], table.units.get(dec_name), False, f"{name}: {dec_name}", rows, notes)
    bad = off_sky(ra, dec) | np.isnan(ra)  # here an unknown position cannot be cut out either
    if bad.any() and (strict or bad.mean() > BAD_SHARE):
        check_positions(ra, dec, rows, name)
    ra = np.mod(ra, 360.0)  # some catalogues count from -180 to 180
    if keep is not None and len(ra):
        # Where a row without a usable position lies nobody knows: it stays, to be rejected with its reason.
        kept = bad.copy()
        kept[~bad] = keep(ra[~bad], dec[~bad])
        inside = np.flatnonzero(kept)
        bad = bad[inside]
        rows, ra, dec, data = rows[inside], ra[inside], dec[inside], data.take(pa.array(inside))
    if not len(rows):
        left = " are left after --select, --region, --tract and --patch" if select or keep else ""
        raise NoTargetsError(f"{name}: no rows{left}", hint="check that the targets lie where you select")
    ids = _ids(data, id_name, rows, name, notes)
    size = _sizes(data[size_name], rows, f"{name}: {size_name}") if size_name else None
    # The label travels with the user's other columns; the rest has columns of its own.
    used = {n for n in (id_name, ra_name, dec_name, size_name) if n}
    extra, classes = _extra(data, used, label_name, columns.classes, name)
    _describe(notes, name, id_name, ids, ra_name, dec_name, table.units)
    if label_name:
        counted = label_counts(extra["label"].to_numpy(), classes)
        notes.append(f"{name}: labels from {label_name}: {counted}; the lens is {lens_line(classes)}")
    rejected = _unusable(data, (ra_name, dec_name), bad, rows)
    if rejected:
        ra, dec = np.where(bad, np.nan, ra), np.where(bad, np.nan, dec)
        notes.append(f"{name}: {len(rejected):,} rows have no usable position and are rejected")
    good = np.flatnonzero(~bad)
    for k, why in duplicates(ids[good], ra[good], dec[good], duplicate_radius, rows=good).items():
        rejected[k] = why
    rejected = dict(sorted(rejected.items()))
    return Targets(ids, ra, dec, extra, size, rejected, source, classes, tuple(notes))


def _unusable(
    data: pa.Table, names: tuple[str, str], bad: NDArray[np.bool_], rows: NDArray[np.int64]
) -> dict[int, tuple[Reason, str]]:
    """Why rows have no usable position: what the table says there, and in which row, counted from 0."""
    out = {}
    for k in np.flatnonzero(bad).tolist():
        said = ", ".join(f"{name} {data[name][k].as_py()!r}" for name in names)
        out[k] = (Reason.BAD_POSITION, f"row {rows[k]} of the table: {said} is no position on the sky")
    return out


def _describe(
    notes: list[str],
    name: str,
    id_name: str | None,
    ids: NDArray[Any],
    ra_name: str,
    dec_name: str,
    units: Mapping[str, str],
) -> None:
    """Say which columns were taken for what, so that `ripple plan` shows a wrong guess."""
    if id_name:
        first = ", ".join(map(str, ids[:3].tolist()))
        kind = "text" if ids.dtype.kind == "U" else str(ids.dtype)
        notes.append(f"{name}: ids from {id_name} ({kind}): {first}{' ...' if len(ids) > 3 else ''}")
    said = [f"{c} ({units[c]})" if c in units else f"{c} (no unit in the table)" for c in (ra_name, dec_name)]
    notes.append(f"{name}: positions from {said[0]} and {said[1]}, ICRS")


def pick(data: pa.Table, given: str | None, known: tuple[str, ...], what: str, name: str) -> str | None:
    """The column named `given`, or the first known name that the table has; None when there is none."""
    there = data.column_names
    if given is not None:
        if given not in there:
            raise CatalogueError(
                f"{name}: no column {given!r} for {what}{suggest(given, there)}",
                hint=f"columns: {', '.join(there[:30])}{' ...' if len(there) > 30 else ''}",
            )
        return given
    return known_name(there, known)


def _required(data: pa.Table, given: str | None, known: tuple[str, ...], what: str, name: str) -> str:
    found = pick(data, given, known, what, name)
    if found is None:
        there = data.column_names
        raise CatalogueError(
            f"{name}: no column looks like {what}",
            hint=f"name it with --{what}-column; columns: {', '.join(there[:30]) or 'none'}",
        )
    return found


def check_positions(ra: Float, dec: Float, rows: NDArray[np.int64], name: str) -> None:
    """Raise for positions that are not on the sphere.

    Raises
    ------
    CatalogueError
        NaN, right ascension outside [-180, 360] deg or declination outside [-90, 90] deg; names the rows.
    """
    # In this order, so that NaN is not called a declination outside its range.
    checks = (
        (~(np.isfinite(ra) & np.isfinite(dec)), "position is not a number"),
        ((ra < -180) | (ra > 360), "right ascension outside -180 to 360 deg"),
        (np.abs(dec) > 90, "declination outside -90 to 90 deg"),
    )
    for wrong, what in checks:
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise CatalogueError(
                f"{name}: {what} in {int(wrong.sum())} of {len(rows)} rows, {_rows(rows[wrong])}"
                f" (ra {ra[k]}, dec {dec[k]})",
                hint="correct them or leave them out with --select",
            )


def _rows(rows: NDArray[np.int64]) -> str:
    """The first rows for a message, as in `rows 3, 17 counted from 0`."""
    more = " ..." if len(rows) > SHOWN else ""
    return (
        f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN].tolist()))}{more} counted from 0"
    )


def _ra(
    column: pa.ChunkedArray,
    unit: str | None,
    given: str | None,
    name: str,
    rows: NDArray[np.int64],
    notes: list[str],
) -> Float:
    """Right ascension in deg; numbers without unit that could be hours raise `CatalogueError`."""
    # What the user says with --ra-unit overrides the table.
    if unit is None or given is not None:
        unit = {"deg": "deg", "hour": "hourangle", None: None}[given]
    hours = given != "deg"  # of sexagesimal text
    if pa.types.is_string(column.type):
        return _angle(column, unit, hours, name, rows, notes)
    ra = _angle(column, unit, hours, name, rows, notes)
    # A wrong guess would cut real but unrelated sky, without an error.
    known = ra[np.isfinite(ra)]
    enough = len(known) >= (1 - BAD_SHARE) * len(ra)  # with fewer, that is what is wrong with the table
    if unit is None and len(known) and enough and ((known >= 0) & (known <= 24)).all():
        raise CatalogueError(
            f"{name}: all values lie between 0 and 24, which may be hours or degrees",
            hint="say which with --ra-unit deg or --ra-unit hour",
        )
    return ra


def _angle(
    column: pa.ChunkedArray,
    unit: str | None,
    hours: bool,
    name: str,
    rows: NDArray[np.int64],
    notes: list[str],
) -> Float:
    """Angles in deg of a column of numbers (in `unit`, deg by default), also as text, or sexagesimal."""
    if pa.types.is_string(column.type):
        number = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False).to_numpy()
        # All rows or none: a mixture would give some of them the wrong unit.
        if not number.any():
            return _sexagesimal(column, hours, name, rows, notes)
        if number.mean() < 1 - BAD_SHARE:
            bad = column[int(np.flatnonzero(~number)[0])].as_py()
            raise CatalogueError(f"{name}: {bad!r} cannot be read as a number, {_rows(rows[~number])}")
        # Single cells that are no numbers are rows that are rejected later.
        column = pc.if_else(pa.array(number), pc.utf8_trim_whitespace(column), None).cast(pa.float64())
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise CatalogueError(f"{name}: a column of {column.type} cannot be read as an angle")
    values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy()
    if unit is not None and unit.lower() not in ANGLES:
        raise CatalogueError(
            f"{name}: {unit!r} is not a unit of angle", hint=f"{', '.join(ANGLES)} are understood"
        )
    factor = ANGLES[unit.lower()] if unit else 1.0
    if factor != 1.0:
        notes.append(f"{name}: converted from {unit} to deg")
    return np.asarray(values * factor, float)


# Regular expressions of RE2, which Arrow uses.
_NUMBER = r"^\s*[+\-]?(\d+\.?\d*|\.\d+)([eE][+\-]?\d+)?\s*$"
# U+2212 is the minus sign of typeset tables, as in papers and VizieR.
_SEXAGESIMAL = (
    r"^\s*(?P<sign>[+\-\x{2212}]?)\s*(?P<a>\d{1,3})\s*[:hd°\s]\s*(?P<b>\d{1,2})\s*[:m'\s]\s*"
    r"(?P<c>\d{1,2}(?:\.\d*)?)\s*[s\"]?\s*$"
)


def _sexagesimal(
    column: pa.ChunkedArray, hours: bool, name: str, rows: NDArray[np.int64], notes: list[str]
) -> Float:
    """Deg of `03:32:30.5`, `3h32m30.5s`, `-28 06 00`; read as hours for right ascension."""
    text = pc.fill_null(column, "")
    parts = pc.extract_regex(text, _SEXAGESIMAL).combine_chunks()
    wrong = parts.is_null().to_numpy(zero_copy_only=False)
    if wrong.mean() > BAD_SHARE:
        bad = text.to_pylist()[int(np.flatnonzero(wrong)[0])]
        raise CatalogueError(
            f"{name}: {bad!r} is neither a number nor like 03:32:30.5, {_rows(rows[wrong])}",
            hint="give numbers in degrees, or sexagesimal text",
        )
    a, b, c = (
        pc.fill_null(parts.field(k).cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
        for k in ("a", "b", "c")
    )
    late = (b >= 60) | (c >= 60)
    if late.mean() > BAD_SHARE:
        raise CatalogueError(f"{name}: minutes or seconds of 60 or more, {_rows(rows[late])}")
    a = np.where(late, np.nan, a)
    # The sign is kept apart from the degrees: -00 30 00 is negative. Both minus signs count.
    negative = pc.not_equal(pc.fill_null(parts.field("sign"), ""), "").to_numpy(zero_copy_only=False)
    negative &= pc.not_equal(pc.fill_null(parts.field("sign"), ""), "+").to_numpy(zero_copy_only=False)
    value = (a + b / 60 + c / 3600) * np.where(negative, -1.0, 1.0)
    notes.append(f"{name}: values were read as sexagesimal {'hours' if hours else 'degrees'}")
    return np.asarray(value * (15.0 if hours else 1.0), float)


def _ids(
    data: pa.Table, id_name: str | None, rows: NDArray[np.int64], name: str, notes: list[str]
) -> NDArray[Any]:
    """Ids as integers where all are, else as text."""
    if id_name is None:
        notes.append(f"{name}: no column looks like id, so the row number is used")
        return rows.astype(np.int64)
    column = data[id_name]
    if column.null_count:
        empty = column.is_null().to_numpy()
        raise CatalogueError(f"{name}: {id_name} is empty, {_rows(rows[empty])}")
    column = _exact_ids(column, f"{name}: {id_name}", rows)
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy())
    return np.asarray(column.cast(pa.string()).to_numpy(zero_copy_only=False), dtype=str)


def _exact_ids(column: pa.ChunkedArray, name: str, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """An id column as int64, uint64 or text, exactly as the table has it.

    Raises
    ------
    CatalogueError
        Floats that are no whole numbers, or of more than 53 bits: digits were lost before RIPPLe saw them.
    """
    if pa.types.is_string(column.type):
        exact = exact_integers(column, keep_text=True)
        assert exact is not None
        return exact
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy()
        wrong = inexact(values)
        if wrong.any():
            raise CatalogueError(
                f"{name}: {INEXACT}, {_rows(rows[wrong])}", hint="store the ids as integers or as text"
            )
        return column.cast(pa.int64())
    if pa.types.is_boolean(column.type):
        raise CatalogueError(f"{name}: true and false are no ids", hint="name another column: --id-column")
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column  # uint64 beyond int64
    return column


def _sizes(column: pa.ChunkedArray, rows: NDArray[np.int64], name: str) -> NDArray[np.int32]:
    """Sizes in pixels, int32; floats must be whole numbers."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise CatalogueError(f"{name}: sizes must be whole numbers of pixels")
    values = column.cast(pa.float64()).to_numpy()
    # Nulls are NaN here, and fail all comparisons. No tract is as wide as 65536 pixels.
    wrong = ~((values >= 1) & (values <= 65536) & (values == np.floor(values)))
    if wrong.any():
        raise CatalogueError(f"{name}: sizes must be whole numbers of pixels, {_rows(rows[wrong])}")
    return np.asarray(values, np.int32)


def _extra(
    data: pa.Table, used: set[str], label_name: str | None, classes: tuple[str, ...], name: str
) -> tuple[pa.Table, tuple[str, ...]]:
    """The user's other columns, renamed where RIPPLe has a column of that name, and the class names."""
    columns: dict[str, Any] = {}
    for column in data.column_names:
        if column in used:
            continue
        if column == label_name:
            columns["label"], classes = _labels(data[column], classes, f"{name}: {column}")
            continue
        renamed = f"input_{column}" if column in RESERVED or column == "label" else column
        columns[renamed] = data[column]
    if not columns:
        # An Arrow table without columns only keeps its number of rows when it is selected from another.
        return pa.table({"": pa.array(np.zeros(data.num_rows, np.int8))}).select([]), classes
    return plain_columns(pa.table(columns)), classes


def _labels(
    column: pa.ChunkedArray, classes: tuple[str, ...], name: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as int64, -1 when unknown, and the class names."""
    # Integers with nulls never pass through floats.
    whole = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
    filled = pc.fill_null(column, pa.scalar(0).cast(column.type)) if whole else column
    values = np.ma.array(filled.to_numpy(zero_copy_only=False), mask=column.is_null().to_numpy(False))
    try:
        return read_labels(values, classes, name)
    except DataError as err:
        raise CatalogueError(err.message, hint=err.hint) from None


def duplicates(
    ids: NDArray[Any], ra: Float, dec: Float, radius: float, rows: NDArray[np.integer] | None = None
) -> dict[int, tuple[Reason, str]]:
    """Rows that repeat an earlier row: they have its id, or lie within `radius` arcsec of it.

    The first row of a group stays. A row close to a duplicate is a duplicate as well, so chains of close rows
    leave only their first one. `rows`: their numbers, where these are not 0, 1, ...
    """
    number = np.arange(len(ids)) if rows is None else rows
    found = {
        int(number[k]): (Reason.DUPLICATE, f"id {ids[k]} is also that of row {int(number[first])}")
        for k, first in _repeated_ids(ids)
    }
    if radius > 0:
        for k, earlier, apart in earlier_neighbours(ra, dec, radius):
            text = f"{apart:.3f} arcsec from row {int(number[earlier])} (id {ids[earlier]})"
            found.setdefault(int(number[k]), (Reason.DUPLICATE, text))
    return dict(sorted(found.items()))


def _repeated_ids(ids: NDArray[Any]) -> list[tuple[int, int]]:
    """(row, first row with the same id) of each row whose id an earlier one has."""
    # Stable: the earliest row of each id comes first, and every other one repeats it.
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    again = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    first = order[np.searchsorted(ordered, ids[again])]
    return list(zip(again.tolist(), first.tolist(), strict=True))
