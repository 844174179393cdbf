"""Completeness in bins of one to three columns, with exact intervals. Numpy and scipy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from ripple.config import suggest
from ripple.errors import ConfigError
from ripple.learn.evaluation.intervals import Estimate, clopper_pearson, score_limits

Float = NDArray[np.float64]
#: Rows per bin that the number of adaptive bins aims at: a half-width of 0.13 at C = 0.5.
AIM = 60
#: Adaptive bins along a column at most; more cannot be read off a picture.
MOST = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """One cell of the table.

    Parameters
    ----------
    low, high
        Edges in each column; a row on an inner edge belongs to the upper bin, on the last one to the last.
    rows, found
        Counts.
    completeness
        Share found with its 95 % limits; None below the least number of rows.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    rows: int
    found: int
    completeness: Estimate | None


def parse_bins(text: str, by: Sequence[str]) -> dict[str, Float] | int | None:
    """`--bins`: edges of some columns, a number of bins, or None for nothing said.

    Raises
    ------
    ConfigError
        A column that is not in `by`, fewer than two edges, or edges that do not rise.
    """
    if not text.strip():
        return None
    if text.strip().isdigit():
        if not 1 <= int(text) <= 100:
            raise ConfigError(f"--bins {text}: give 1 to 100 bins for each column")
        return int(text)
    edges: dict[str, Float] = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or name not in by:
            raise ConfigError(
                f"--bins: {name!r} is not a column of --by{suggest(name, list(by))}",
                hint="write --bins 'theta_E=0.5,1,2; arc_snr=5,20,80', or a number",
            )
        edges[name] = _edges(name, values)
    return edges


def _edges(name: str, text: str) -> Float:
    try:
        values = np.array([float(v) for v in text.split(",")])
    except ValueError:
        raise ConfigError(f"--bins {name}={text}: edges are numbers between commas") from None
    if len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ConfigError(f"--bins {name}={text}: give two or more edges that rise")
    return values


def bin_edges(values: Float, by: Sequence[str], bins: dict[str, Float] | int | None) -> list[Float]:
    """Edges along each column: the given ones, or quantiles.

    Parameters
    ----------
    values
        `(N, D)` columns of the rows, finite.
    by
        D names.
    bins
        As `parse_bins` returns them.
    """
    given = bins if isinstance(bins, dict) else {}
    count = bins if isinstance(bins, int) else _count(len(values), len(by))
    out = []
    for k, name in enumerate(by):
        # Values that many rows share would give bins of no width.
        quantiles = np.unique(np.quantile(values[:, k], np.linspace(0, 1, count + 1)))
        out.append(given[name] if name in given else _widened(quantiles))
    return out


def _count(rows: int, columns: int) -> int:
    """Bins along each column, so that a cell has about `AIM` rows."""
    return int(np.clip((rows / AIM) ** (1.0 / columns), 1, MOST))


def _widened(edges: Float) -> Float:
    """Two edges for a column with one value."""
    return np.array([edges[0] - 0.5, edges[0] + 0.5]) if len(edges) == 1 else edges


def place(values: Float, edges: Sequence[Float]) -> NDArray[np.int64]:
    """`(N,)` number of the cell of each row in C order; -1 outside the edges."""
    total = np.zeros(len(values), np.int64)
    inside = np.ones(len(values), bool)
    for column, edge in zip(values.T, edges, strict=True):
        k = np.searchsorted(edge, column, side="right") - 1
        k = np.where(column == edge[-1], len(edge) - 2, k)
        inside &= (k >= 0) & (k < len(edge) - 1)
        total = total * (len(edge) - 1) + np.clip(k, 0, len(edge) - 2)
    return np.where(inside, total, -1)


def binned(
    values: Float, found: NDArray[np.bool_], edges: Sequence[Float], *, least: int, interval: str
) -> list[Bin]:
    """Completeness of every cell, in C order.

    Parameters
    ----------
    values, found
        `(N, D)` columns, and `(N,)` whether the row was found.
    edges
        Of each column.
    least
        Rows below which a cell has no number.
    interval
        `clopper-pearson` or `wilson`.
    """
    cell = place(values, edges)
    cells = [range(len(edge) - 1) for edge in edges]
    size = int(np.prod([len(c) for c in cells]))
    rows = np.bincount(cell[cell >= 0], minlength=size)
    hits = np.bincount(cell[(cell >= 0) & found], minlength=size)
    out = []
    for n, at in enumerate(product(*cells)):
        low = tuple(float(edge[k]) for edge, k in zip(edges, at, strict=True))
        high = tuple(float(edge[k + 1]) for edge, k in zip(edges, at, strict=True))
        known = fraction(int(hits[n]), int(rows[n]), interval) if rows[n] >= least else None
        out.append(Bin(low, high, int(rows[n]), int(hits[n]), known))
    return out


def fraction(found: int, rows: int, interval: str) -> Estimate:
    """A share with its 95 % limits; 0 [0, 1] without rows."""
    if interval == "wilson" and rows:
        return Estimate(found / rows, *score_limits(found / rows, rows))
    return clopper_pearson(found, rows)


def poisson_rate(count: int, exposure: float) -> Estimate:
    """Events per unit of exposure with exact 95 % limits (Garwood 1936, Biometrika 28, 437)."""
    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * (count + 1))) / 2
    return Estimate(count / exposure, low / exposure, high / exposure)
