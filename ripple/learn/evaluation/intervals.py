"""95 % intervals that hold for few rows, for rows that share their sky, and for rates near 0 and 1.

A bootstrap alone is too sure of itself: a set without false positives has none in any replicate. Rates have
exact limits here (Clopper & Pearson 1934, Biometrika 26, 404), areas have approximate ones that keep a width
at 1, and every interval is widened to that of a bootstrap over blocks of sky, whose rows share PSF and
background. `scripts/bench/interval_coverage.py` measures how often they hold the truth. Numpy and scipy only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ripple.learn.evaluation.metrics import Curve, Float, Metric, auroc, curve, ece, ranked

#: Probability beyond each limit of an interval, and the quantile of the normal distribution that leaves it.
TAIL, Z = 0.025, 1.959964
#: Non-lenses above a threshold that a rate must rest on: of a rate of 3 / N, N rows show none once in 20
#: times (the "rule of three": Hanley & Lippman-Hand 1983, JAMA 249, 1743).
LEAST = 3.0


class Measure(TypedDict):
    """A number and its 95 % interval in JSON, six digits."""

    value: float
    low: float
    high: float


class Measured(TypedDict):
    """A `Measure`; a number without an interval; or None and the `reason` why the test set cannot give it."""

    value: float | None
    low: NotRequired[float]
    high: NotRequired[float]
    reason: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> Measure:
        """JSON form."""
        value, low, high = (round(float(v), 6) for v in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high}

    def wider(self, other: tuple[float, float]) -> Estimate:
        """Widened to hold the value and another interval `(low, high)`; NaN is no limit."""
        low = np.nanmin([self.value, self.low, other[0]])
        high = np.nanmax([self.value, self.high, other[1]])
        return Estimate(self.value, float(low), float(high))


def printed(found: Measured | Measure, digits: int = 4) -> str:
    """A number as it is shown to people: `0.9512 [0.9301, 0.9677]`, or why there is none."""
    if found["value"] is None:
        return f"not resolved: {found.get('reason', 'unknown')}"
    words = f"{found['value']:.{digits}f}"
    if "low" in found and "high" in found:
        words += f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return words


def unresolved(fpr: float, negatives: float) -> str:
    """Why a false positive rate cannot be measured with so many non-lenses; empty when it can."""
    # Three of 300 are a rate of 0.01: rounding must not refuse them.
    if fpr * negatives >= LEAST * (1 - 1e-9):
        return ""
    return (
        f"a false positive rate of {fpr:.2g} needs {int(np.ceil(LEAST / fpr - 1e-6)):,} non-lenses, "
        f"the test set has {int(negatives):,}"
    )


# --- rates ------------------------------------------------------------------------------------------


def clopper_pearson(successes: float, trials: float) -> Estimate:
    """A fraction with exact binomial limits; 0 [0, 1] without trials.

    Parameters
    ----------
    successes, trials
        Counts.
    """
    if trials == 0:
        return Estimate(0.0, 0.0, 1.0)
    k, n = float(successes), float(trials)
    low = float(scipy.special.betaincinv(k, n - k + 1, TAIL)) if k > 0 else 0.0
    high = float(scipy.special.betaincinv(k + 1, n - k, 1 - TAIL)) if k < n else 1.0
    return Estimate(k / n, low, high)


def tpr_limits(c: Curve, *, lenses: float, others: float, budget: float) -> tuple[float, float]:
    """95 % limits of the TPR at the threshold where `lenses * TPR + others * FPR` is `budget`.

    Two things are uncertain: where that threshold lies, which the counts above each score bound, and the TPR
    there. Both limits are exact, so that together they hold the truth at least 90 % of the time, and in
    practice more often.

    Parameters
    ----------
    c
        Curve of the test set.
    lenses, others
        Weights of the two rates: 0 and 1 for a given FPR, densities per deg^2 for a given number of
        candidates per deg^2.
    budget
        What may be spent, in the unit of the weights.
    """
    points = range(len(c.threshold))

    def spent(k: int, limit: str) -> float:
        tpr, fpr = clopper_pearson(c.tp[k], c.positives), clopper_pearson(c.fp[k], c.negatives)
        return lenses * float(getattr(tpr, limit)) + others * float(getattr(fpr, limit))

    # Both grow towards lower thresholds. Surely within the budget: up to the last point of the first search.
    within = bisect_right(points, budget, key=lambda k: spent(k, "high"))
    beyond = bisect_left(points, budget, key=lambda k: spent(k, "low"))
    low = clopper_pearson(c.tp[within - 1], c.positives).low if within else 0.0
    high = clopper_pearson(c.tp[beyond], c.positives).high if beyond < len(points) else 1.0
    return low, min(high, budget / lenses if lenses else 1.0)


def sky_purity(tpr: Estimate, fpr: Estimate, *, lenses: float, others: float) -> Estimate:
    """Purity of what a threshold selects on the sky, from its two rates and their limits.

    Parameters
    ----------
    tpr, fpr
        At the threshold.
    lenses, others
        True lenses and other sources per deg^2.
    """

    def purity(t: float, f: float) -> float:
        # Nothing selected at all: no statement, the worst is assumed.
        return lenses * t / (lenses * t + others * f) if t + f > 0 else 0.0

    return Estimate(purity(tpr.value, fpr.value), purity(tpr.low, fpr.high), purity(tpr.high, fpr.low))


def f_beta_limits(c: Curve, beta2: float, points: int = 400) -> tuple[float, float]:
    """95 % limits of the largest F_beta, from the exact limits of both rates at each threshold.

    Parameters
    ----------
    c
        Curve of the test set.
    beta2
        beta^2, see `metrics.f_beta`.
    points
        Thresholds that are tried, dense at the top, where purity is decided.
    """
    k = np.unique(np.geomspace(1, len(c.threshold), points).astype(int)) - 1
    tp, fp, p, n = c.tp[k], c.fp[k], c.positives, c.negatives
    best = []
    for t, f in (
        (_binomial_limit(tp, p, TAIL), _binomial_limit(fp, n, 1 - TAIL)),
        (_binomial_limit(tp, p, 1 - TAIL), _binomial_limit(fp, n, TAIL)),
    ):
        precision = p * t / np.maximum(p * t + n * f, 1e-300)
        best.append(float(np.max((1 + beta2) * precision * t / np.maximum(beta2 * precision + t, 1e-300))))
    return best[0], best[1]


def _binomial_limit(k: Float, n: float, quantile: float) -> Float:
    """Clopper-Pearson limit of counts `(K,)` of n: the lower one for a quantile below a half."""
    if quantile < 0.5:
        return np.where(k > 0, scipy.special.betaincinv(np.maximum(k, 1), n - k + 1, quantile), 0.0)
    return np.where(k < n, scipy.special.betaincinv(k + 1, np.maximum(n - k, 1), quantile), 1.0)


# --- areas ------------------------------------------------------------------------------------------


def auroc_limits(area: float, positives: float, negatives: float) -> tuple[float, float]:
    """95 % limits of an AUROC (Newcombe 2006, Stat. Med. 25, 559, method 5), with a width also at 1.

    Parameters
    ----------
    area
        The AUROC.
    positives, negatives
        Numbers of lenses and non-lenses.
    """
    more = (positives + negatives) / 2 - 1

    def sigma(a: float) -> float:
        # The variance of Hanley & McNeil (1982, Radiology 143, 29) for exponential scores.
        spread = 1 + more * (1 - a) / (2 - a) + more * a / (1 + a)
        return float(np.sqrt(a * (1 - a) * spread / (positives * negatives)))

    # At 1 and 0 the area itself would be a second root: the search stays just inside.
    low = (
        scipy.optimize.brentq(lambda a: area - a - Z * sigma(a), 0.0, min(area, 1 - 1e-12))
        if area > 0
        else 0.0
    )
    high = (
        scipy.optimize.brentq(lambda a: a - area - Z * sigma(a), max(area, 1e-12), 1.0) if area < 1 else 1.0
    )
    return float(low), float(high)


def score_limits(fraction: float, rows: float) -> tuple[float, float]:
    """95 % Wilson limits (1927, JASA 22, 209) of a mean over `rows` numbers in [0, 1]."""
    centre = (fraction + Z * Z / (2 * rows)) / (1 + Z * Z / rows)
    half = Z / (1 + Z * Z / rows) * np.sqrt(fraction * (1 - fraction) / rows + Z * Z / (4 * rows**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


# --- bootstrap --------------------------------------------------------------------------------------


def row_weights(block: NDArray[np.int64], draws: int, seed: int) -> Iterator[Float]:
    """How often each row is in each replicate, `(N,)`: whole blocks are drawn, with replacement.

    Parameters
    ----------
    block
        `(N,)` block of each row; negative: a block of its own.
    draws, seed
        Number of replicates, and of the resampling.
    """
    alone = block < 0
    own = np.where(alone, block.max(initial=0) + 1 + np.cumsum(alone), block)
    number, row = np.unique(own, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = rng.integers(0, len(number), len(number))
        yield np.bincount(drawn, minlength=len(number))[row].astype(np.float64)


def bootstrap_limits(
    label: ArrayLike,
    score: ArrayLike,
    metrics: Mapping[str, Metric],
    *,
    block: NDArray[np.int64] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile limits of metrics over replicates of blocks of sky; NaN where no replicate has both classes.

    Parameters
    ----------
    label, score
        `(N,)` as in `metrics.curve`.
    metrics
        Name -> function of a curve; all see the same replicates.
    block
        `(N,)` block of each row, see `row_weights`; None: each row by itself.
    draws, seed
        Number of replicates, and of the resampling.
    """
    rows = ranked(label, score)
    block = np.full(len(rows.order), -1) if block is None else np.asarray(block)
    drawn = []
    for weight in row_weights(block[rows.order], draws, seed):
        c = rows.curve(weight)
        # A replicate may miss a class when the blocks are few: nothing can be ranked in it.
        if c.positives and c.negatives:
            drawn.append([metric(c) for metric in metrics.values()])
    if not drawn:
        return dict.fromkeys(metrics, (np.nan, np.nan))
    low, high = np.percentile(drawn, (100 * TAIL, 100 * (1 - TAIL)), axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(metrics, low, high, strict=True)}


def auroc_estimate(
    label: ArrayLike,
    score: ArrayLike,
    *,
    block: NDArray[np.int64] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Estimate:
    """AUROC with the wider of its approximate and its bootstrap interval; see `bootstrap_limits`."""
    c = curve(label, score)
    area = auroc(c)
    drawn = bootstrap_limits(label, score, {"auroc": auroc}, block=block, draws=draws, seed=seed)["auroc"]
    return Estimate(area, *auroc_limits(area, c.positives, c.negatives)).wider(drawn)


def mean_estimate(value: ArrayLike, block: NDArray[np.int64] | None, *, draws: int, seed: int) -> Estimate:
    """Mean of numbers `(N,)`, such as squared errors, with the limits of a bootstrap over blocks."""
    x = np.asarray(value, np.float64)
    block = np.full(len(x), -1) if block is None else np.asarray(block)
    drawn = [float((w * x).sum() / w.sum()) for w in row_weights(block, draws, seed)]
    low, high = np.percentile(drawn, (100 * TAIL, 100 * (1 - TAIL)))
    return Estimate(float(x.mean()), float(low), float(high))


def ece_expected(probability: ArrayLike, bins: int = 15, *, draws: int = 500, seed: int = 0) -> Estimate:
    """The `ece` that perfectly calibrated probabilities would show on so few rows, mean and 95 % interval.

    The estimate of Guo et al. does not average to zero: lenses are counted in every bin, and the size of
    their scatter adds up (Roelofs et al. 2022, AISTATS 151, 4036). An `ece` within this interval is no
    evidence against the calibration; with 160 rows that can be 0.06.
    """
    p, rng = np.asarray(probability, np.float64), np.random.default_rng([seed, 1])
    # Labels drawn with these very probabilities are calibrated by construction.
    drawn = [ece(rng.random(len(p)) < p, p, bins) for _ in range(draws)]
    low, high = np.percentile(drawn, (100 * TAIL, 100 * (1 - TAIL)))
    return Estimate(float(np.mean(drawn)), float(low), float(high))
