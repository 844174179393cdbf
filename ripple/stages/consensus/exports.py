"""Candidates in the formats of others: FITS, VOTable, and regions for DS9 and Aladin."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from astropy.table import Table

#: Radius of the circles, arcsec.
RADIUS = 3.0
_COLOURS = ((0.5, "green"), (0.1, "yellow"), (0.0, "red"))


def votable(table: pa.Table) -> bytes:
    """A table as VOTable, positions in deg."""
    sink = io.BytesIO()
    _with_units(table).write(sink, format="votable")
    return sink.getvalue()


def fits(table: pa.Table) -> bytes:
    """A table as a FITS binary table, positions in deg; other text than ASCII is escaped as in Python."""
    found = _with_units(table)
    for name in found.colnames:
        if found[name].dtype.kind == "U":
            # FITS has printable ASCII only: an escape keeps every character of an id or note.
            plain = [v.encode("unicode_escape").decode() for v in found[name].tolist()]
            found[name] = np.array(plain or [""], "U")[: len(found)]
    sink = io.BytesIO()
    found.write(sink, format="fits")
    return sink.getvalue()


def _with_units(table: pa.Table) -> Table:
    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    found = Table(columns)
    for name in ("ra", "dec"):
        found[name].unit = "deg"
    return found


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
