"""`ripple show --failures`, `--rows`, `--columns`: rows of an index as people ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ripple.config import suggest
from ripple.errors import ConfigError
from ripple.report.cards import csv_bytes
from ripple.storage.artefact import open_artefact
from ripple.storage.files import write_atomic
from ripple.storage.parquet import parquet_bytes

#: Columns of a list of rows, as far as the index has them.
USUAL = (
    "index", "id", "name", "ra", "dec", "status", "reason", "detail", "bands", "label", "rank", "score",
    "probability", "split",
)  # fmt: skip


def rows_of(
    directory: Path, *, failures: bool = False, ids: Sequence[str] = (), columns: Sequence[str] = ()
) -> pa.Table:
    """Rows of the index of an artefact.

    Parameters
    ----------
    directory
        Cutouts, tensors or scores.
    failures
        Only rows that are not `ok`, the rejected ones first.
    ids
        Only rows with these ids.
    columns
        Names; by default `USUAL`.

    Raises
    ------
    ConfigError
        An id or a column does not exist; the message names the nearest ones.
    """
    index = open_artefact(directory).index()
    if failures and "status" in index.column_names:
        bad = index.filter(pc.not_equal(index["status"], "ok"))
        # "rejected" comes after "partial" in the alphabet.
        then = [("index", "ascending")] if "index" in bad.column_names else []
        index = bad.sort_by([("status", "descending"), *then])
    if ids:
        text = pc.cast(index["id"], pa.string())
        absent = set(ids) - set(text.to_pylist())
        if absent:
            name = min(absent)
            raise ConfigError(f"{directory} has no row {name!r}" + suggest(name, text.to_pylist()[:5000]))
        index = index.filter(pc.is_in(text, value_set=pa.array(list(ids))))
    names = [name for name in columns or USUAL if name in index.column_names]
    if unknown := [name for name in columns if name not in index.column_names]:
        raise ConfigError(
            f"{directory} has no column {unknown[0]!r}" + suggest(unknown[0], index.column_names)
        )
    return index.select(names)


def write_rows(table: pa.Table, output: Path) -> None:
    """Write rows as CSV or, by its name, Parquet.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    if output.suffix == ".parquet":
        write_atomic(output, parquet_bytes(table))
        return
    flat = {n: table[n] for n in table.column_names if not pa.types.is_nested(table[n].type)}
    write_atomic(output, csv_bytes(pa.table(flat)))


def as_records(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values; NaN is null."""
    records: list[dict[str, Any]] = table.to_pylist()
    return [{k: None if v != v else v for k, v in row.items()} for row in records]
