"""Rows of several artefacts are found by their ids, so that no two of one may have the same."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ripple.errors import DataError


def check_distinct(ids: pa.Array | pa.ChunkedArray, directory: Path, rows: str = "rows") -> None:
    """Refuse ids of an artefact that occur twice; `rows` is what the message calls them.

    Raises
    ------
    DataError
        Names the first such id, and how many rows have it.
    """
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        count, name = twice[0]["counts"].as_py(), twice[0]["values"].as_py()
        raise DataError(
            f"{directory}: {count} {rows} have the id {name!r}, and objects are found by their ids",
            hint="fetch or import them so that each object has one row, with an id of its own",
        )
