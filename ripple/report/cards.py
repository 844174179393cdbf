"""Static pages: the values that a page shows, and how they become one self-contained HTML file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ripple.imaging.colour import png


@dataclass(frozen=True, slots=True)
class Tile:
    """A number in large type: its name, its value, and a line below it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A small table; `failed` are the positions of rows to show as bad."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    failed: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One object: its picture and what is known about it.

    Parameters
    ----------
    id
        As in the catalogue; only shown, never used as a file name or an HTML id.
    rank
        1 is best; the row number on a page without ranking.
    ra, dec
        Deg ICRS; NaN when unknown.
    picture
        `data:` address of the picture.
    width, height
        Of the picture, pixels.
    truth
        `lens`, `nonlens` or `unknown`.
    kind
        Name of the class, or the verdict of quality control.
    flags
        Names of quality flags.
    extra
        Short facts (`theta_E 1.2`).
    probability, spread
        0 to 1; NaN when there is none.
    """

    id: str
    rank: int
    ra: float
    dec: float
    picture: str
    width: int
    height: int
    truth: str = "unknown"
    kind: str = ""
    flags: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    probability: float = float("nan")
    spread: float = float("nan")

    @property
    def position(self) -> str:
        """RA and Dec in degrees."""
        return f"{self.ra:.5f} {self.dec:+.5f}" if np.isfinite(self.ra + self.dec) else "no position"

    @property
    def sexagesimal(self) -> str:
        """RA in hours and Dec in degrees."""
        return sexagesimal(self.ra, self.dec)

    @property
    def probability_text(self) -> str:
        """Three digits, more near 0 and 1."""
        return _digits(self.probability)

    @property
    def spread_text(self) -> str:
        """Two digits; empty without a spread."""
        return f"{self.spread:.2f}" if np.isfinite(self.spread) else ""

    @property
    def percent(self) -> str:
        """Width of the bar."""
        return f"{100 * min(max(self.probability, 0.0), 1.0):.1f}" if np.isfinite(self.probability) else "0"


def _digits(value: float) -> str:
    if not np.isfinite(value):
        return ""
    # Near 0 and 1 the third digit no longer tells candidates apart.
    return f"{value:.4f}" if min(value, 1 - value) < 0.01 else f"{value:.3f}"


def sexagesimal(ra: float, dec: float) -> str:
    """`hh:mm:ss.ss ±dd:mm:ss.s` of a position in deg ICRS; empty when it is not finite."""
    # Rounded once, to whole ticks, so that no part can round up to 60.
    if not np.isfinite(ra + dec):
        return ""
    ticks = round(ra % 360.0 / 15.0 * 360_000) % (24 * 360_000)  # hundredths of a second
    tenths = round(abs(dec) * 36_000)
    hours = f"{ticks // 360_000:02d}:{ticks // 6000 % 60:02d}:{ticks // 100 % 60:02d}.{ticks % 100:02d}"
    degrees = f"{tenths // 36_000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
    return f"{hours} {'-' if dec < 0 else '+'}{degrees}"


def data_uri(rgb: NDArray[np.uint8]) -> str:
    """An `(H, W, 3)` picture as a `data:` address."""
    return png_uri(png(rgb))


def png_uri(data: bytes) -> str:
    """A PNG file as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def render(template: str, **context: Any) -> bytes:
    """One HTML file: text is escaped, style and script are inside, and only this script may run, by its hash.

    Parameters
    ----------
    template
        File name in `ripple/report/templates`.
    context
        Values for the template; everything except plots made by `ripple.report.plots` is escaped.
    """
    # Inside the file, so that the page can be copied and mailed, and needs no server.
    style, script = _asset("report.css"), _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Style and script are RIPPLe's own files, and plots escape their own text; all else may come from anyone.
    context["plots"] = [Markup(plot) for plot in context.get("plots", ())]  # noqa: S704 - escaped in there
    trusted = {"style": Markup(style), "script": Markup(script)}  # noqa: S704 - files of ours
    page = _environment().get_template(template)
    html: str = page.render(**context, **trusted, script_hash=digest, version=metadata.version("ripple-lsst"))
    return html.encode()


@cache
def _environment() -> Environment:
    # StrictUndefined: a value that is missing in the context is an error, not an empty place on the page.
    return Environment(
        loader=PackageLoader("ripple.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )


@cache
def _asset(name: str) -> str:
    return (files("ripple.report") / "templates" / name).read_text(encoding="utf-8")


#: First characters of cells that a spreadsheet runs as a formula, or skips to reach one.
FORMULA_STARTS = tuple("=+-@\t\r\n")


def csv_bytes(table: pa.Table) -> bytes:
    """A table as CSV; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in table.column_names])
    writer.writerows(_rows(table))
    return out.getvalue().encode()


def _rows(table: pa.Table) -> Iterable[Sequence[Any]]:
    # In parts: a table of Python objects takes many times the memory of its columns.
    for batch in table.to_batches(max_chunksize=10_000):
        yield from zip(*map(_texts, batch.columns), strict=True)


def _texts(column: pa.Array) -> list[Any]:
    """The cells of a column, by its type: asking each value for its own takes three times as long."""
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        # None and NaN are empty cells. Others come back as they were: nine digits of a float32, of a float64
        # the fewest that will do.
        if column.type.bit_width == 64:
            return ["" if v is None or v != v else repr(v).removesuffix(".0") for v in values]
        return ["" if v is None or v != v else f"{v:.9g}" for v in values]
    return values if pa.types.is_integer(column.type) else [_cell(v) for v in values]


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    # Cells that begin so are run as formulas; ids and names may come from anyone (OWASP, CSV injection).
    return "'" + text if text.startswith(FORMULA_STARTS) else text
