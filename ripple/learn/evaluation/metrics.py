"""How good is a ranking of lens candidates: curves and the metrics of the literature.

Numpy only. Everything is computed from a `Curve`, the true and false positives above every distinct score,
so that a bootstrap replicate needs counting but no sorting. Intervals: `intervals`; the whole: `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.errors import DataError

Float = NDArray[np.float64]
Metric = Callable[["Curve"], float]

#: beta^2 of the Euclid lens-finding challenge: purity counts a thousand times more than completeness.
BETA2 = 0.001
#: False positive rates at which the true positive rate is reported; 1e-2 is that of the benchmark's goals.
FPRS = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, slots=True)
class Curve:
    """Counts at or above every distinct score, highest score first.

    Parameters
    ----------
    threshold
        `(K,)` distinct scores, falling.
    tp, fp
        `(K,)` lenses and non-lenses with a score of at least `threshold`.
    """

    threshold: Float
    tp: Float
    fp: Float

    @property
    def positives(self) -> float:
        """Number of lenses."""
        return float(self.tp[-1])

    @property
    def negatives(self) -> float:
        """Number of non-lenses."""
        return float(self.fp[-1])

    @property
    def tpr(self) -> Float:
        """`(K,)` true positive rate."""
        return self.tp / self.positives

    @property
    def fpr(self) -> Float:
        """`(K,)` false positive rate."""
        return self.fp / self.negatives


@dataclass(frozen=True, slots=True)
class Ranking:
    """Labelled rows from the highest score down, sorted once for the curves of many replicates.

    Parameters
    ----------
    order
        `(N,)` row at each rank.
    label
        `(N,)` label at each rank: 1 lens, 0 not.
    last
        `(K,)` last rank of each distinct score.
    threshold
        `(K,)` distinct scores, falling.
    """

    order: NDArray[np.int64]
    label: Float
    last: NDArray[np.int64]
    threshold: Float

    def curve(self, weight: Float) -> Curve:
        """The curve when the row at each rank counts `weight` `(N,)` times."""
        tp, fp = (np.cumsum(part * weight)[self.last] for part in (self.label, 1 - self.label))
        return Curve(self.threshold, tp, fp)


def ranked(label: ArrayLike, score: ArrayLike) -> Ranking:
    """Rank rows by their scores `(N,)`; labels and scores are not checked, see `curve`."""
    s = np.asarray(score, np.float64)
    order = np.argsort(-s, kind="stable")
    s = s[order]
    # One point per distinct score: within a tie any order would be arbitrary.
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    return Ranking(order, np.asarray(label, np.float64)[order], last, s[last])


def curve(label: ArrayLike, score: ArrayLike) -> Curve:
    """The curve of a ranking.

    Parameters
    ----------
    label
        `(N,)` 1 lens, 0 not.
    score
        `(N,)`, higher is more lens-like; ties are kept together.

    Raises
    ------
    DataError
        Labels other than 0 and 1, scores that are not finite, or a class without rows.
    """
    y, s = np.asarray(label), np.asarray(score, np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise DataError(f"labels have shape {y.shape}, scores {s.shape}", hint="give one score per label")
    if not np.isin(y, (0, 1)).all():
        raise DataError("there are labels other than 0 and 1", hint="drop unlabelled rows (label -1) first")
    if not np.isfinite(s).all():
        raise DataError(f"{int((~np.isfinite(s)).sum())} scores are not finite")
    if len(np.unique(y)) < 2:
        raise DataError(
            "only one class among the labelled rows", hint="a ranking needs lenses and non-lenses"
        )
    return ranked(y, s).curve(np.ones(len(y)))


def auroc(c: Curve) -> float:
    """Area under the ROC curve; ties count one half."""
    # The trapezium over a tie is what counts its pairs half.
    tpr, fpr = np.append(0.0, c.tpr), np.append(0.0, c.fpr)
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def pr_auc(c: Curve) -> float:
    """Average precision, `sum (R_k - R_{k-1}) P_k`, without interpolation."""
    # Linear interpolation between points of a precision-recall curve would be too optimistic.
    step = np.diff(c.tpr, prepend=0.0)
    return float(np.sum(step * c.tp / np.maximum(c.tp + c.fp, 1)))


def tpr_at_fpr(c: Curve, fpr: float) -> float:
    """Largest TPR reached at a false positive rate of at most `fpr`."""
    return _best(c.tpr, c.fpr <= fpr * (1 + 1e-12))  # 3 of 300 must pass for a rate of 0.01


def tpr0(c: Curve) -> float:
    """TPR above the highest-ranked non-lens (Metcalf et al. 2019, A&A 625, A119)."""
    return _best(c.tpr, c.fp == 0)


def tpr10(c: Curve) -> float:
    """Largest TPR with fewer than ten false positives (Metcalf et al. 2019, A&A 625, A119)."""
    return _best(c.tpr, c.fp < 10)


def f_beta(c: Curve, beta2: float = BETA2) -> float:
    """Largest `F_beta = (1 + b^2) P R / (b^2 P + R)` over thresholds (second lens-finding challenge)."""
    precision = c.tp / np.maximum(c.tp + c.fp, 1)
    below = beta2 * precision + c.tpr  # 0 where no lens has been found yet: F is 0 there
    return float(np.max((1 + beta2) * precision * c.tpr / np.where(below > 0, below, 1)))


def _best(values: Float, allowed: NDArray[np.bool_]) -> float:
    """Largest of the allowed values, 0 when none is."""
    return float(values[allowed].max(initial=0.0))


def threshold_at_fpr(c: Curve, fpr: float) -> float:
    """Lowest threshold with a false positive rate of at most `fpr`; above the top score if there is none."""
    allowed = np.flatnonzero(c.fpr <= fpr * (1 + 1e-12))
    return float(c.threshold[allowed[-1]]) if len(allowed) else float(np.nextafter(c.threshold[0], np.inf))


def at_density(c: Curve, candidates: float, *, lenses: float, sources: float) -> tuple[float, float]:
    """Purity and completeness of the `candidates` best-ranked sources per square degree of real sky.

    The test set has another mix of lenses and non-lenses than the sky, so the two are weighted anew: a
    threshold selects `lenses * TPR + sources * FPR` candidates per square degree.

    Parameters
    ----------
    c
        Curve of the test set.
    candidates
        Candidates per deg^2 that can be looked at.
    lenses
        True lenses per deg^2.
    sources
        Other extended sources per deg^2 that are scored.

    Returns
    -------
    purity, completeness
        Linear between the points of the curve; fewer than the first point gives a part of that point.
    """
    # The curve starts at (0, 0): nothing is selected above the highest score.
    tpr, fpr = np.append(0.0, c.tpr), np.append(0.0, c.fpr)
    selected = lenses * tpr + sources * fpr
    if candidates >= selected[-1]:  # more than there are sources: all of them are looked at
        return lenses / (lenses + sources), 1.0
    completeness = float(np.interp(candidates, selected, tpr))
    return lenses * completeness / candidates, completeness


class Confusion(TypedDict):
    """Numbers of true and false positives and negatives."""

    tp: int
    fp: int
    fn: int
    tn: int


def confusion(label: ArrayLike, score: ArrayLike, threshold: float) -> Confusion:
    """True and false positives and negatives when `score >= threshold` is called a lens."""
    y, called = np.asarray(label) == 1, np.asarray(score, np.float64) >= threshold
    return {
        "tp": int((y & called).sum()),
        "fp": int((~y & called).sum()),
        "fn": int((y & ~called).sum()),
        "tn": int((~y & ~called).sum()),
    }


# --- probabilities --------------------------------------------------------------------------------


def brier(label: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared error of the probabilities."""
    return float(np.mean((np.asarray(probability, np.float64) - np.asarray(label)) ** 2))


class ReliabilityBin(TypedDict):
    """A bin of probabilities: its rows, their mean probability, and the fraction of them that are lenses."""

    rows: int
    probability: float
    fraction: float


def reliability(label: ArrayLike, probability: ArrayLike, bins: int = 15) -> list[ReliabilityBin]:
    """Rows of a reliability diagram in bins of equal width: rows, mean probability, fraction of lenses."""
    y, p = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    which = np.minimum((p * bins).astype(int), bins - 1)  # a probability of 1 belongs to the last bin
    count = np.bincount(which, minlength=bins)
    mean = np.bincount(which, p, bins) / np.maximum(count, 1)
    fraction = np.bincount(which, y, bins) / np.maximum(count, 1)
    return [
        {"rows": int(n), "probability": round(float(m), 6), "fraction": round(float(f), 6)}
        for n, m, f in zip(count, mean, fraction, strict=True)
        if n
    ]


def ece(label: ArrayLike, probability: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error in bins of equal width (Guo et al. 2017, ICML 70, 1321)."""
    y, p = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    which = np.minimum((p * bins).astype(int), bins - 1)
    # The sum of p - y is rows times (mean probability - fraction): no division, so empty bins do no harm.
    gap = np.bincount(which, p - y, bins)
    return float(np.abs(gap).sum() / len(y))
