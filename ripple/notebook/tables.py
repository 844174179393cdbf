"""Tables for notebooks: Arrow to astropy, with units, descriptions and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.table import MaskedColumn, Table
from numpy.typing import NDArray

#: Column -> unit and description of the columns that RIPPLe writes.
COLUMNS: dict[str, tuple[str, str]] = {
    "index": ("", "position among the requested rows, from 0"),
    "id": ("", "identifier"),
    "ra": ("deg", "right ascension, ICRS"),
    "dec": ("deg", "declination, ICRS"),
    "tract": ("", "tract of the sky map"),
    "patch": ("", "patch of the tract, sequential"),
    "x": ("pix", "position in the tract"),
    "y": ("pix", "position in the tract"),
    "status": ("", "ok, partial or rejected"),
    "reason": ("", "why a row is not ok"),
    "detail": ("", "the file or value behind the reason"),
    "bands": ("", "bands that have data"),
    "shard": ("", "number of the shard, -1 for none"),
    "row": ("", "row in the shard, -1 for none"),
    "qc": ("", "quality flags, see the reference"),
    "cutout": ("", "position of the cutout, masked where there is none"),
    "score": ("", "output of the network, 0 to 1"),
    "probability": ("", "probability of a lens at the stated prevalence"),
    "spread": ("", "scatter of the scores of an ensemble"),
    "rank": ("", "1 is the best"),
    "label": ("", "1 lens, 0 not, -1 unknown"),
}


def table_of(columns: Mapping[str, NDArray[Any]]) -> Table:
    """An astropy table of arrays of one length, with the known units and descriptions."""
    out = Table(dict(columns), copy=False)
    for name in out.colnames:
        unit, said = COLUMNS.get(name, ("", ""))
        # The user's own columns may have these names, but not as text.
        if unit and out[name].dtype.kind == "f":
            out[name].unit = unit
        out[name].description = said or None
    return out


def table_of_arrow(table: pa.Table) -> Table:
    """An astropy table of an Arrow table; nulls are masked, integers keep all digits."""
    return table_of({name: _column(table[name]) for name in table.column_names})


def _column(column: pa.ChunkedArray) -> Any:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not column.null_count:
        values = column.to_numpy()
        return values.astype(str) if text else values
    if pa.types.is_null(column.type):
        return MaskedColumn(np.full(len(column), np.nan), mask=True)
    filled = column.fill_null("" if text else pa.scalar(0).cast(column.type)).to_numpy()
    return MaskedColumn(filled.astype(str) if text else filled, mask=column.is_null().to_numpy())
