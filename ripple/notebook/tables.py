"""Tables for notebooks: Arrow to astropy, with units, descriptions and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.table import MaskedColumn, Table
from numpy.typing import NDArray

from ripple.storage.parquet import known


def table_of(columns: Mapping[str, NDArray[Any]]) -> Table:
    """An astropy table of arrays of one length, with the known units and descriptions."""
    out = Table(dict(columns), copy=False)
    for name in out.colnames:
        unit, said = known(name, out[name].dtype.kind)
        if unit:
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
