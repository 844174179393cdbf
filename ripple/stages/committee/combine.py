"""The arithmetic of a committee: M members, N rows, NaN where a member has no score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ripple.learn.model.calibrate import sigmoid

Float = NDArray[np.float64]
#: Verdicts on a row from the one that counts most: what one member has seen, the committee has.
VERDICTS = ("train", "validation", "unknown", "test")
#: Nearest that a score comes to 0 or 1: a step of float64 below 1. Without, one member's 0 would be a veto.
_LEAST = 2.0**-53


def mean_logit(values: Float) -> Float:
    """Sigmoid of the mean logit of the members that have a row.

    Parameters
    ----------
    values
        `(M, N)` from 0 to 1, NaN where a member has none.

    Returns
    -------
    `(N,)`; NaN where no member has one.
    """
    p = np.clip(values, _LEAST, 1 - _LEAST)
    return np.where(np.isfinite(values).any(axis=0), sigmoid(_mean(np.log(p) - np.log1p(-p))), np.nan)


def normalised_ranks(values: Float) -> Float:
    """Where each row stands among those that the member scored: 0 worst, 1 best, both excluded.

    Parameters
    ----------
    values
        `(M, N)`, NaN where a member has none.

    Returns
    -------
    `(M, N)` `(place - 1/2) / n` of the n rows of the member, places from the worst; equal scores share the
    mean of their places. NaN where the member has none.
    """
    out = np.full(values.shape, np.nan)
    for member, mine in zip(out, values, strict=True):
        there = np.isfinite(mine)
        _, which, count = np.unique(mine[there], return_inverse=True, return_counts=True)
        place = np.cumsum(count) - (count - 1) / 2
        member[there] = (place[which] - 0.5) / max(int(there.sum()), 1)
    return out


def mean_rank(values: Float) -> Float:
    """`(N,)` mean of the `normalised_ranks` of the members that have a row; NaN where none has."""
    return _mean(normalised_ranks(values))


def spread(values: Float) -> Float:
    """`(N,)` standard deviation over the members that have a row (divided by their number).

    NaN where fewer than two have it.
    """
    count = np.isfinite(values).sum(axis=0)
    deviation = np.sqrt(_mean((values - _mean(values)) ** 2))
    return np.asarray(np.where(count > 1, deviation, np.nan))


def verdict(splits: list[NDArray[np.str_]]) -> NDArray[np.str_]:
    """`(N,)` of what the members used a row for, that which counts most: see `VERDICTS`.

    Parameters
    ----------
    splits
        M times `(N,)`; a member without a score of a row has `test` there, as it had no say.
    """
    order = {name: k for k, name in enumerate(VERDICTS)}
    unknown = order["unknown"]
    number = [np.array([order.get(name, unknown) for name in split.tolist()], np.int64) for split in splits]
    return np.array(VERDICTS)[np.min(number, axis=0)]


def _mean(values: Float) -> Float:
    """`(N,)` mean over the finite values of `(M, N)`, NaN where there are none."""
    there = np.isfinite(values)
    total, count = np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return np.asarray(mean, np.float64)
