"""Candidates in the formats of others: VOTable, and regions for DS9 and Aladin."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa

#: Radius of the circles, arcsec.
RADIUS = 3.0
_COLOURS = ((0.5, "green"), (0.1, "yellow"), (0.0, "red"))


def votable(table: pa.Table) -> bytes:
    """A table as VOTable, positions in deg."""
    from astropy.table import Table

    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    found = Table(columns)
    for name in ("ra", "dec"):
        found[name].unit = "deg"
    sink = io.BytesIO()
    found.write(sink, format="votable")
    return sink.getvalue()


def regions(table: pa.Table) -> bytes:
    """Circles as a DS9 region file, which Aladin reads as well; without a position there is none."""
    lines = ["# Region file format: DS9 version 4.1", "icrs"]
    columns = [table[name].to_pylist() for name in ("id", "ra", "dec", "probability")]
    for name, ra, dec, p in zip(*columns, strict=True):
        if not np.isfinite([ra, dec]).all():
            continue
        colour = next(word for least, word in _COLOURS if not p < least)
        lines.append(f'circle({ra:.7f},{dec:.7f},{RADIUS}") # color={colour} text={{{_word(name)} {p:.2f}}}')
    return ("\n".join(lines) + "\n").encode()


def _word(text: str) -> str:
    """An id without what would end the text or the line of a region."""
    keep: Callable[[str], bool] = lambda c: c.isprintable() and c not in '{}"#;'  # noqa: E731
    return "".join(c if keep(c) else "_" for c in text)[:60]
