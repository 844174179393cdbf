"""Completeness and AUROC of a ranking in slices of truth and observing conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.learn.evaluation.intervals import Measure, auroc_estimate, clopper_pearson
from ripple.learn.evaluation.metrics import Float, confusion

#: Prefixes of columns that only a lens has: their slices keep all non-lenses.
LENS_ONLY = ("theta_E", "arc_", "source_", "magnification", "n_images")
#: Bin widths of columns whose values people know by heart (arcsec, mag); others are cut at quartiles.
STEPS = {"theta_E": 0.5, "arc_sb": 1.0, "arc_mag": 1.0, "lens_mag": 1.0, "deflector_mag": 1.0}


class Slice(TypedDict):
    """One bin of a column, `low` included and `high` not; measures only where there are rows for them."""

    column: str
    low: float
    high: float
    lenses: int
    nonlenses: int
    completeness: NotRequired[Measure]
    fpr: NotRequired[Measure]
    auroc: NotRequired[Measure]


def slices(
    label: ArrayLike,
    score: ArrayLike,
    columns: Mapping[str, ArrayLike],
    *,
    threshold: float,
    block: NDArray[np.int64] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> list[Slice]:
    """Completeness and AUROC in bins of each column.

    Parameters
    ----------
    label, score
        `(N,)` as in `curve`.
    columns
        Name -> `(N,)` values; not finite means "not in any bin". A column with up to six distinct integers is
        cut by value. For columns of `LENS_ONLY` a bin's lenses stand against all non-lenses.
    threshold
        Operating point for completeness and false positive rate.
    block
        `(N,)` cell of the sky of each row, as in `evaluate`.
    draws, seed
        Of the bootstrap of the AUROC.

    Returns
    -------
    One record per bin: column, low, high (half-open), lenses, nonlenses, completeness, fpr, and auroc when
    both classes have at least two rows.
    """
    y, s = np.asarray(label), np.asarray(score, np.float64)
    cell = np.full(len(y), -1) if block is None else np.asarray(block)
    out = []
    for name, raw in columns.items():
        values = np.asarray(raw, np.float64)
        # A non-lens has no Einstein radius, so every slice of that column keeps all of them.
        lens_only = name.startswith(LENS_ONLY)
        edges = bin_edges(name, values[(y == 1) & np.isfinite(values)] if lens_only else values)
        for low, high in pairwise(edges):
            inside = (values >= low) & (values < high)
            chosen = np.where(y == 1, inside, True) if lens_only else inside
            if (chosen & (y == 1)).any() or (chosen & (y == 0)).any():
                bounds = float(low), float(high)
                rows = Ranked(y[chosen], s[chosen], cell[chosen])
                out.append(_slice(name, bounds, rows, threshold, draws, seed))
    return out


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows of a bin: label, score and cell of the sky, `(n,)` each."""

    label: NDArray[Any]
    score: Float
    block: NDArray[np.int64]


def _slice(
    column: str, bounds: tuple[float, float], rows: Ranked, threshold: float, draws: int, seed: int
) -> Slice:
    y, s = rows.label, rows.score
    lenses, others = int((y == 1).sum()), int((y == 0).sum())
    low, high = bounds
    record: Slice = {"column": column, "low": low, "high": high, "lenses": lenses, "nonlenses": others}
    table = confusion(y, s, threshold)
    if lenses:
        record["completeness"] = clopper_pearson(table["tp"], lenses).as_dict()
    if others:
        record["fpr"] = clopper_pearson(table["fp"], others).as_dict()
    if lenses > 1 and others > 1:
        record["auroc"] = auroc_estimate(y, s, block=rows.block, draws=draws, seed=seed).as_dict()
    return record


def bin_edges(name: str, values: Float) -> Float:
    """Edges of the bins of a column: by value, by a known step, or at quartiles; empty without values."""
    finite = np.unique(values[np.isfinite(values)])
    if len(finite) == 0:
        return np.empty(0)
    # Flags and counts: one bin per value, half-open at the next integer.
    if len(finite) <= 6 and (finite == np.round(finite)).all():
        return np.append(finite, finite[-1] + 1)
    step = next((width for prefix, width in STEPS.items() if name.startswith(prefix)), None)
    if step is not None:
        # Edges at multiples of the step, so that the slices of two surveys are the same.
        first, last = np.floor(finite[0] / step), np.floor(finite[-1] / step)
        return np.asarray(np.arange(first, last + 2) * step)
    edges = np.unique(np.quantile(finite, (0, 0.25, 0.5, 0.75, 1.0)))
    edges[-1] = np.nextafter(edges[-1], np.inf)  # half-open bins would lose the largest value
    return np.asarray(edges)
