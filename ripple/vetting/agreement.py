"""How far graders agree: with each other, and with themselves at a second look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.int8]


def alpha(level: Levels, levels: int = 4) -> float:
    """Krippendorff's alpha for ordered grades; NaN where nothing can be compared.

    Parameters
    ----------
    level
        `(N, J)` from 0 to `levels - 1`; -1 where a grader gave none.
    levels
        Number of grades on the scale.

    Notes
    -----
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E, with the ordinal metric.
    """
    count = np.stack([(level == k).sum(axis=1) for k in range(levels)], axis=1).astype(np.float64)  # (N, L)
    seen = count.sum(axis=1)
    count, seen = count[seen > 1], seen[seen > 1]
    pairs = np.einsum("nc,nk->nck", count, count) - np.einsum("nc,ck->nck", count, np.eye(levels))
    together = (pairs / (seen - 1)[:, None, None]).sum(axis=0)  # the coincidence matrix
    number = together.sum(axis=1)
    below = np.cumsum(number)
    # Grades between two grades count whole, these themselves half.
    middle = below - number / 2
    distance = (middle[:, None] - middle[None, :]) ** 2
    expected = float((np.outer(number, number) * distance).sum()) / max(float(number.sum()) - 1.0, 1.0)
    return 1.0 - float((together * distance).sum()) / expected if expected > 0 else float("nan")


def kappa(one: Levels, other: Levels) -> float:
    """Cohen's kappa with quadratic weights, on what both graded; NaN for fewer than two objects."""
    from sklearn.metrics import cohen_kappa_score  # takes a second to import

    both = (one >= 0) & (other >= 0)
    a, b = one[both], other[both]
    # All grades equal: agreement by chance is complete, and kappa 0 / 0.
    if both.sum() < 2 or (len(np.unique(a)) == 1 and np.array_equal(a, b)):
        return float("nan")
    return float(cohen_kappa_score(a, b, labels=[0, 1, 2, 3], weights="quadratic"))


def kappas(level: Levels) -> NDArray[np.float64]:
    """`(J, J)` kappa of each pair of graders, NaN on the diagonal."""
    graders = level.shape[1]
    out = np.full((graders, graders), np.nan)
    for i in range(graders):
        for j in range(i):
            out[i, j] = out[j, i] = kappa(level[:, i], level[:, j])
    return out


def offsets(level: Levels) -> NDArray[np.float64]:
    """`(J,)` mean level of each grader minus that of the others on the same objects; NaN without any."""
    given = level >= 0
    value = np.where(given, level, 0).astype(np.float64)
    others = given.sum(axis=1, keepdims=True) - given
    mean = (value.sum(axis=1, keepdims=True) - value) / np.maximum(others, 1)
    use = given & (others > 0)
    total = np.where(use, value - mean, 0.0).sum(axis=0)
    return np.asarray(np.where(use.any(axis=0), total / np.maximum(use.sum(axis=0), 1), np.nan))
