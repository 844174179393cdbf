"""A blind search places its detections to a pixel: windows around the best of the grid, finer and finer.

A network learns from centred objects, so that its score falls where a window is off. What lies between the
windows of a grid is found, too, when those that nearly reach the threshold are looked at more closely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.learn.model.calibrate import logit, sigmoid
from ripple.sky.geometry import Tan
from ripple.stages.plan.targets import Targets
from ripple.stages.search.detections import COLUMNS, accepted

#: Where the finer windows are, in the output of the search: a directory for each pass.
REFINED = "refined"
#: Logits below the threshold from which a window of the grid is looked at more closely: about what a window
#: loses that is 6 px off (scripts/bench/blind.py).
LOOK = 2.0
#: Each pass is so many times finer than the one before.
FINER = 4

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of windows, best first, and the inner patch of each of them in the order of their ids."""

    table: pa.Table
    patch: NDArray[np.integer]


#: Search these positions into a directory.
Search = Callable[[Targets, Path], Scored]


def worth_a_look(threshold: float, output: str) -> float:
    """Score from which windows of a grid are looked at more closely.

    Parameters
    ----------
    threshold
        Score of a detection.
    output
        `lens`, `classes` or `regression`, whose values have no logit.
    """
    if output == "regression" or not 0 < threshold < 1:
        return threshold
    return float(sigmoid(logit(threshold) - LOOK))


def refined(
    best: pa.Table, step: float, tans: Mapping[int, Tan], threshold: float, search: Search, output: Path
) -> pa.Table:
    """The best windows at each place to a pixel.

    Parameters
    ----------
    best
        Windows of a grid, as `best_windows` gives them.
    step
        Of the grid, pixels.
    tans
        Projections of the tracts.
    threshold
        Only places that reach it are followed beyond the first pass.
    search
        Scores windows.
    output
        Of the search, which gets a directory for each pass.

    Returns
    -------
    The same columns; ids are those of the windows of the grid, all else that of the best window around it.

    Notes
    -----
    Windows stay in the inner patch of theirs, so that a search of one patch gives what that of a tract does.
    """
    tract, x, y = pixels_of(best["id"].to_numpy(), step)
    level = 0
    while step > 1 and best.num_rows:
        level, finer = level + 1, max(1.0, float(step // FINER))
        dx, dy = offsets(step, finer)
        # (n, k): the windows around each one, itself first.
        xs, ys = x[:, None] + dx, y[:, None] + dy
        found = search(_targets(tans, tract, xs, ys), output / REFINED / str(level))
        table, at = _chosen(best, found, len(dx))
        rows = np.arange(len(x))
        x, y, best, step = xs[rows, at], ys[rows, at], table, finer
        strong = best["score"].to_numpy() >= threshold
        tract, x, y, best = tract[strong], x[strong], y[strong], best.filter(pa.array(strong))
    return best.take(np.argsort(-best["score"].to_numpy(), kind="stable"))


def pixels_of(window: Int, step: float) -> tuple[Int, Int, Int]:
    """Tract, x and y (PARENT pixels) of the centres of windows of a grid, from their ids."""
    column, row = window & 0xFFFFF, window >> 20 & 0xFFFFF
    x, y = (np.floor((cell + 0.5) * step).astype(np.int64) for cell in (column, row))
    return window >> 40, x, y


def offsets(step: float, finer: float) -> tuple[Int, Int]:
    """`(k,)` pixels from a window to those around it, nearest first: half a step to each side."""
    count = int(np.ceil(step / 2 / finer))
    side = np.arange(-count, count + 1) * int(finer)
    dy, dx = (v.ravel() for v in np.meshgrid(side, side, indexing="ij"))
    order = np.argsort(dx**2 + dy**2, kind="stable")
    return dx[order], dy[order]


def _targets(tans: Mapping[int, Tan], tract: Int, x: Int, y: Int) -> Targets:
    """Windows `(n, k)` as targets, their ids counting through."""
    ra, dec = np.empty(x.shape), np.empty(x.shape)
    for number in np.unique(tract).tolist():
        rows = tract == number
        ra[rows], dec[rows] = tans[number].pixel_to_sky(x[rows], y[rows])
    flat = ra.ravel(), dec.ravel()
    digest = hashlib.sha256(b"".join(v.tobytes() for v in flat)).hexdigest()
    source = {"name": "finer windows", "windows": x.size, "sha256": digest}
    return Targets(np.arange(x.size), *flat, pa.table({}), source=source)


def _chosen(best: pa.Table, found: Scored, around: int) -> tuple[pa.Table, Int]:
    """The best of the `around` windows of each row of `best`, and which it is; the nearest of equal ones."""
    table = accepted(found.table).select(COLUMNS)
    window = table["id"].to_numpy()
    own, other = (found.patch[ids] for ids in (window // around * around, window))
    table = table.filter(pa.array(own == other))
    window = table["id"].to_numpy()
    score = np.full(best.num_rows * around, -np.inf)
    score[window] = table["score"].to_numpy()
    at = score.reshape(-1, around).argmax(1)
    row_of = np.full(len(score), -1)
    row_of[window] = np.arange(len(window))
    row = row_of[np.arange(best.num_rows) * around + at]
    # A window whose own score was not given again keeps what the grid said of it.
    whole = pa.concat_tables([table, best.select(COLUMNS)])
    taken = whole.take(np.where(row >= 0, row, len(window) + np.arange(best.num_rows)))
    return taken.set_column(0, "id", best["id"]), at
