"""Pixel values that stand for "no data": constants that repeat where measurements never do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Share of the pixels of a plane that must have one value before it is looked at.
MIN_SHARE = 0.005
#: Planes of fewer different values than this share of their pixels are counts, whose values repeat by
#: themselves.
COUNTS = 0.5
#: More values than these that many pixels share are counts, too.
MOST = 3
#: In counts, a value this many times further off than the others reach is no count.
FAR = 100.0


def fill_values(plane: NDArray[np.floating]) -> tuple[float, ...]:
    """Values of a picture that are no measurements, ascending.

    A value that many pixels share, bit for bit, is a filling: -999, 1e16, a constant plane, a saturated
    plateau. Zero is one only when it fills whole rows or columns at the edge, or all of the picture:
    pictures without noise have zeros that are true.

    Parameters
    ----------
    plane
        `(H, W)`, any unit; NaN where there is no pixel.
    """
    values = np.sort(plane[np.isfinite(plane)])
    if values.size < 16:
        return ()
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    counts = np.diff(starts, append=values.size)
    often = counts >= max(9, MIN_SHARE * values.size)
    if not often.any():
        return ()
    distinct, rest = values[starts], values[starts][~often]
    if len(distinct) == 1:
        return (float(distinct[0]),)
    found = [float(v) for v in distinct[often]]
    others = values.size - int(counts[often].sum())
    if others == 0 or len(found) > MOST or len(rest) < COUNTS * others:
        # Of the extremes alone: counts repeat, but not a thousand times further out than all others.
        inner = distinct[1:-1] if len(distinct) > 3 else rest
        return tuple(v for v in found if v in (distinct[0], distinct[-1]) and _is_far(v, inner))
    return tuple(v for v in found if v != 0 or _is_frame(plane == 0))


def _is_far(value: float, others: NDArray[np.floating]) -> bool:
    if len(others) < 2:
        return False
    reach = float(np.ptp(others))
    return reach > 0 and abs(value - float(np.median(others))) > FAR * reach


def _is_frame(zero: NDArray[np.bool_]) -> bool:
    """Whether these pixels are whole rows and columns at the edges, and nothing else but for a few."""
    rows, columns = zero.all(axis=1), zero.all(axis=0)
    if not (rows[0] or rows[-1] or columns[0] or columns[-1]):
        return False
    framed = rows[:, None] | columns[None, :]
    return bool(np.count_nonzero(zero & ~framed) <= 0.02 * np.count_nonzero(zero))
