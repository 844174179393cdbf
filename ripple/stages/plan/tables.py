"""The user's tables as Arrow tables: CSV, ECSV, FITS, VOTable, Parquet, HATS."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ripple.errors import CatalogueError, ConfigError, IntegrityError
from ripple.storage.files import Pin
from ripple.storage.python_tables import ID_NAMES, plain_table

_ID_NAMES = {name.lower() for name in ID_NAMES}
#: Rows hashed together: hashing copies them, which must not double the memory of a large table. Part of the
#: digest, so it can never change.
_PIECE = 1 << 18


@dataclass(frozen=True)
class UserTable:
    """A table as it was read.

    Parameters
    ----------
    columns
        Arrow table of scalar columns.
    units
        Column -> unit as text, where the file says it.
    sha256
        Of the file; empty for catalogues of many files.
    notes
        Which columns were left out, for the user to read.
    """

    columns: pa.Table
    units: dict[str, str]
    sha256: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """An Arrow table that is in memory already, with its columns without scalar values left out."""
        clean, notes = _scalars(table)
        return cls(clean, {}, "", notes)

    @classmethod
    def in_memory(cls, table: Any) -> Self:
        """A mapping, a structured array, an Arrow, pandas or astropy table, with its masks and units."""
        columns, units = {}, {}
        for name, column in plain_table(table).items():
            values, mask = np.ma.getdata(column.values), np.ma.getmaskarray(column.values)
            # Columns with more than one value per row become lists, which are left out below.
            flat = values.ndim == 1
            try:
                columns[name] = pa.array(values, mask=mask) if flat else pa.array(list(values))
            except (pa.ArrowException, ValueError, TypeError) as err:
                reason = " ".join(str(err).split())[:200]
                raise CatalogueError(f"column {name!r} of type {values.dtype}: {reason}") from None
            if column.unit:
                units[name] = column.unit
        if len(set(map(len, columns.values()))) > 1:
            lengths = ", ".join(f"{n}: {len(c)}" for n, c in columns.items())
            raise CatalogueError(f"the columns of the table have different lengths ({lengths})")
        clean, notes = _scalars(pa.table(columns))
        return cls(clean, units, "", notes)


def read_table(
    path: Path,
    *,
    cone: tuple[float, float, float] | None = None,
    id_column: str | None = None,
    hdu: str | None = None,
) -> UserTable:
    """Read a table, recognising the format by its first bytes, else by its name.

    Parameters
    ----------
    path
        A file, or the directory of a HATS catalogue.
    cone
        `(ra, dec, radius)` deg around all rows of interest: lets HATS catalogues skip sky pixels.
    id_column
        Column of identifiers, when its name does not say so: text files cannot tell `12E34` from a number.
    hdu
        Name or number of the HDU, for FITS files with several tables.

    Raises
    ------
    CatalogueError
        Missing, unreadable, not a table, or changed while it was read.
    """
    if path.is_dir():
        return _read_hats(path, cone)
    try:
        # A large table does not fit into memory as bytes and as columns: the file is hashed before and after.
        pin = Pin.of(path)
        with path.open("rb") as stream:
            start = stream.read(64)
        if hdu is not None and not _is_fits(path, start):
            raise CatalogueError(f"{path}: --hdu {hdu}, but the file is no FITS file")
        found, units = _read_file(path, start, id_column, hdu)
        pin.check()
        clean, notes = _scalars(found)
    except IntegrityError as err:
        raise CatalogueError(err.message, hint=err.hint or "give a readable table") from None
    except OSError as err:
        raise CatalogueError(f"{path}: {err.strerror or err}", hint="give a readable table") from None
    except (pa.ArrowException, ValueError, TypeError, LookupError, UnicodeError) as err:
        # What pyarrow and astropy raise for damaged files; the first 300 characters say enough.
        reason = " ".join(str(err).split())[:300]
        raise CatalogueError(f"{path}: cannot be read as a table: {reason}") from None
    # Arrow allows it, but then a name would not say which column is meant.
    if len(set(found.column_names)) != found.num_columns:
        twice = sorted({n for n in found.column_names if found.column_names.count(n) > 1})
        raise CatalogueError(f"{path}: column {twice[0]!r} occurs twice", hint="rename one")
    return UserTable(clean, units, pin.sha256, notes)


def _is_fits(path: Path, start: bytes) -> bool:
    return start[:6] == b"SIMPLE" or path.name.lower().endswith((".fits.gz", ".fit.gz"))


def _read_file(
    path: Path, start: bytes, id_column: str | None, hdu: str | None
) -> tuple[pa.Table, dict[str, str]]:
    """The table as it is in the file, and the units of its columns; `start` is its first bytes."""
    name = path.name.lower()
    if start[:4] == b"PAR1":
        table = pyarrow.parquet.read_table(path)
        table.validate(full=True)  # else text that is not UTF-8 fails where it is used
        return table, {}
    if _is_fits(path, start):
        return _by_astropy(path, "fits", hdu=_table_hdu(path, hdu))
    if b"%ECSV" in start or name.endswith((".ecsv", ".ecsv.gz")):
        return _by_astropy(path, "ascii.ecsv")
    if start.lstrip()[:5] == b"<?xml" or b"<VOTABLE" in start.upper():
        return _by_astropy(path, "votable")
    # Anything else is text with commas or tabs; pyarrow decompresses .gz by the name.
    delimiter = "\t" if name.endswith((".tsv", ".tsv.gz")) else ","
    return _read_text(path, delimiter, id_column), {}


#: Share of the rows of a catalogue that may be unusable; with more, the table is not what it is taken for.
BAD_SHARE = 0.1

#: Integers as people write them: what else looks like a number (`000123`, `12E34`, `+5`) is a name.
INTEGER = r"^(0|-?[1-9][0-9]*)$"


def _read_text(path: Path, delimiter: str, id_column: str | None) -> pa.Table:
    """A text table with exact integers: ids stay what the file says, long ones do not become floats."""
    uneven: list[Any] = []

    def keep(row: Any) -> str:
        uneven.append(row)
        return "skip"

    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=keep)
    source: Path | pa.Buffer = path
    table = pyarrow.csv.read_csv(path, parse_options=parse)
    if uneven:
        # Rows short of columns, or with too many, stay: their cells are empty, and they are rejected by name.
        if len(uneven) > BAD_SHARE * (len(uneven) + table.num_rows):
            first = uneven[0]
            raise CatalogueError(
                f"{path}: {len(uneven)} rows have another number of columns than the header: "
                f"{first.actual_columns} instead of {first.expected_columns} in {first.text[:80]!r}",
                hint="is the delimiter another one?",
            )
        source = _evened(path, delimiter, uneven)
        table = pyarrow.csv.read_csv(pa.BufferReader(source), parse_options=parse)
    # As text a second time: columns that are called like ids, and those whose integers may not fit a float.
    ids = {n for n in table.column_names if n == id_column or _plain_name(n) in _ID_NAMES}
    doubtful = [n for n in table.column_names if n in ids or _may_have_lost_digits(table[n])]
    if doubtful:
        convert = pyarrow.csv.ConvertOptions(
            include_columns=doubtful, column_types=dict.fromkeys(doubtful, pa.string())
        )
        text_source = path if source is path else pa.BufferReader(source)
        texts = pyarrow.csv.read_csv(text_source, parse_options=parse, convert_options=convert)
        for name in doubtful:
            exact = exact_integers(texts[name], keep_text=name in ids)
            if exact is not None:
                table = table.set_column(table.column_names.index(name), name, exact)
    # HSC's archive writes `# object_id,ra,dec`.
    return table.rename_columns([name.lstrip("# ") or name for name in table.column_names])


def _evened(path: Path, delimiter: str, uneven: list[Any]) -> pa.Buffer:
    """The file with these rows brought to the number of columns of the header; cells of their own stay."""
    text = pa.input_stream(str(path)).read().decode()
    for row in uneven:
        cells = row.text.split(delimiter)[: row.expected_columns]
        even = delimiter.join(cells + [""] * (row.expected_columns - len(cells)))
        text = text.replace(f"\n{row.text}", f"\n{even}", 1)
    return pa.py_buffer(text.encode())


def _plain_name(name: str) -> str:
    return name.lstrip("# ").lower()


def _may_have_lost_digits(column: pa.ChunkedArray) -> bool:
    """Whether floats may have been integers of more than 53 bits in the file."""
    if not pa.types.is_float64(column.type) or column.null_count == len(column):
        return False
    largest = pc.max(pc.if_else(pc.is_finite(column), pc.abs(column), 0.0)).as_py()
    return largest is not None and largest >= 2.0**53


def is_number(kind: pa.DataType) -> bool:
    """Whether a column has whole numbers or floats."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def exact_integers(column: pa.ChunkedArray, *, keep_text: bool) -> pa.ChunkedArray | None:
    """Text as int64 or uint64 when every cell is an integer that fits; empty cells are null.

    Parameters
    ----------
    column
        Text.
    keep_text
        Return the text when it is not; else None.
    """
    text = pc.if_else(pc.equal(column, ""), None, column)
    whole = pc.match_substring_regex(text, INTEGER)
    if text.null_count < len(text) and pc.all(pc.fill_null(whole, True)).as_py():
        for kind in (pa.int64(), pa.uint64()):
            try:
                return text.cast(kind)
            except pa.ArrowInvalid:
                continue  # does not fit
    return text if keep_text else None


def _table_hdu(path: Path, wanted: str | None) -> int:
    """Number of the table to read: the only one, or the one named.

    Raises
    ------
    CatalogueError
        There are several and none is named, or the named one is not there.
    """
    from astropy.io import fits

    with fits.open(path) as hdus:
        kinds = (fits.BinTableHDU, fits.TableHDU)
        # A compressed image is stored as a table, but is none.
        tables = {
            k: h.name
            for k, h in enumerate(hdus)
            if isinstance(h, kinds) and not isinstance(h, fits.CompImageHDU)
        }
    if wanted is None and len(tables) == 1:
        return int(next(iter(tables)))
    found = [
        k for k, name in tables.items() if wanted is not None and wanted.lower() in (str(k), name.lower())
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{k} {name}".strip() for k, name in tables.items()) or "none"
    problem = f"no table {wanted!r}" if wanted is not None else f"{len(tables) or 'no'} tables"
    hint = "say which with --hdu, by its name or number" if tables else "give a table"
    raise CatalogueError(f"{path}: {problem}; the tables are {listed}", hint=hint)


def _by_astropy(path: Path, form: str, **how: int) -> tuple[pa.Table, dict[str, str]]:
    """A table read by astropy; masked values become nulls."""
    from astropy.io.fits import VerifyError
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        # About units and headers that break the standard, which are common and do not matter here.
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            table = Table.read(path, format=form, **how)
        except VerifyError as err:
            raise ValueError(str(err)) from None
    units = {n: str(table[n].unit) for n in table.colnames if getattr(table[n], "unit", None) is not None}
    return pa.table({name: _column(table[name]) for name in table.colnames}), units


def _column(column: Any) -> pa.Array:
    """An astropy column, of numbers or text, as an Arrow array."""
    data = np.asarray(column)
    # Only masked columns have a mask.
    mask = np.broadcast_to(np.asarray(getattr(column, "mask", False)), data.shape)
    if data.ndim != 1:
        return pa.array(list(data))  # lists, which `_scalars` leaves out and names
    if data.dtype.kind == "S":
        data = np.char.decode(data, "utf-8", "replace")
    if data.dtype.kind == "O":
        return pa.array([None if m or v is None else str(v) for v, m in zip(data, mask, strict=True)])
    # FITS is big-endian, which Arrow does not take.
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    return pa.array(native, mask=mask if mask.any() else None)


def _read_hats(path: Path, cone: tuple[float, float, float] | None) -> UserTable:
    """A HATS catalogue through lsdb (an extra)."""
    # The names that HATS has had for its top file; of collections of catalogues as well.
    if not any((path / n).exists() for n in ("hats.properties", "properties", "collection.properties")):
        raise CatalogueError(f"{path}: is a directory, but not a HATS catalogue", hint="give a table file")
    try:
        import lsdb
    except ImportError:
        raise ConfigError(
            f"{path}: reading HATS needs lsdb", hint="pip install 'ripple-lsst[hats]'"
        ) from None
    # lsdb takes the radius in arcsec.
    search = None if cone is None else lsdb.ConeSearch(cone[0], cone[1], cone[2] * 3600.0)
    catalogue = lsdb.open_catalog(path, columns="all", search_filter=search)
    frame = catalogue.compute()
    # The metadata would be a JSON text about pandas.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    return UserTable.of(table)


def _scalars(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The columns of numbers, booleans and text, decoded to plain types, and a note that names the others."""
    kept: dict[str, pa.ChunkedArray] = {}
    dropped: list[str] = []
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        # Kept as text, for there is no such type in HDF5; dates as ISO 8601.
        texts = (pa.types.is_temporal, pa.types.is_decimal, pa.types.is_binary, pa.types.is_large_string)
        if any(is_text(kind) for is_text in texts) or pa.types.is_string_view(kind):
            column = column.cast(pa.string())
        elif pa.types.is_null(kind):  # a column without a single value
            column = column.cast(pa.float64())
        elif not (pa.types.is_primitive(kind) or pa.types.is_string(kind)):
            dropped.append(name)
            continue
        kept[name] = column
    notes = (f"columns without scalar values are left out: {', '.join(dropped)}",) if dropped else ()
    return pa.table(kept), notes


def table_digest(table: pa.Table) -> str:
    """SHA-256 of names, types and values, which does not depend on the file format or on Arrow's chunks.

    Parameters
    ----------
    table
        Columns of numbers, booleans and text.
    """
    total = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        total.update(f"{name}\0{column.type}\0{len(column)}\n".encode())
        for at in range(0, len(column), _PIECE):
            for part in _canonical(column.slice(at, _PIECE)):
                total.update(part)
    return total.hexdigest()


def _canonical(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Bytes to hash for a column: which values are null, then the values (of text lengths and letters)."""
    text = pa.types.is_string(column.type)
    whole = column.combine_chunks()
    yield np.packbits(whole.is_null().to_numpy(zero_copy_only=False)).tobytes()
    # What lies under a null is not defined, so it gets one value.
    blank: Any = "" if text else pa.scalar(0).cast(column.type)
    filled = pc.fill_null(whole, blank) if whole.null_count else whole
    if text:
        # With the lengths: ("ab", "c") and ("a", "bc") must differ.
        yield pc.binary_length(filled).to_numpy().tobytes()
        yield (
            pc.binary_join(pa.ListArray.from_arrays([0, len(filled)], filled), "")[0].as_buffer().to_pybytes()
        )
    else:
        yield filled.to_numpy(zero_copy_only=False).tobytes()


def plain_columns(table: pa.Table) -> pa.Table:
    """The columns without nulls: NaN for floats, -1 for booleans (as int8) and integers, empty text.

    Integers never pass through floats, which keep 53 bits: those that fit into int64 stay integers, others
    with nulls become text. HDF5 and NumPy have no nulls.
    """
    return (
        pa.table({name: _without_nulls(table[name]) for name in table.column_names})
        if len(table.column_names)
        else table
    )


def _without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not column.null_count:
        return column
    if pa.types.is_string(column.type):
        return pc.fill_null(column, "")
    if pa.types.is_boolean(column.type):
        return pc.fill_null(column.cast(pa.int8()), -1)
    if pa.types.is_integer(column.type):
        try:
            return pc.fill_null(column.cast(pa.int64()), -1)
        except pa.ArrowInvalid:
            return pc.fill_null(column.cast(pa.string()), "")
    return pc.fill_null(column, float("nan"))
