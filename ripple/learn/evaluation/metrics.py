"""How good is a ranking of lens candidates: curves, the metrics of the literature, confidence intervals.

Numpy only. Everything is computed from a `Curve`, the true and false positives above every distinct score,
so that a bootstrap resample needs counting but no sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict, final

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

    def resample(self, rng: np.random.Generator) -> Curve:
        """A bootstrap replicate: lenses and non-lenses drawn with replacement, their numbers kept."""
        return Curve(self.threshold, _redraw(self.tp, rng), _redraw(self.fp, rng))


def _redraw(cumulative: Float, rng: np.random.Generator) -> Float:
    """Cumulative counts `(K,)` of as many rows drawn with replacement."""
    n = int(cumulative[-1])
    # Row r of this class lies at the first threshold whose cumulative count exceeds r.
    drawn = np.searchsorted(cumulative, rng.integers(0, n, n), side="right")
    return np.cumsum(np.bincount(drawn, minlength=len(cumulative))).astype(np.float64)


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
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order].astype(np.float64)
    # One point per distinct score: within a tie any order would be arbitrary.
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)  # (K,) last row of each tie
    tp = np.cumsum(y)[last]
    return Curve(s[last], tp, last + 1.0 - tp)  # last + 1 rows are at or above, those not lenses are false


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


class Measure(TypedDict):
    """An `Estimate` in JSON: the number and its 95 % interval, six digits."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> Measure:
        """JSON form, six digits."""
        value, low, high = (round(float(v), 6) for v in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high}


def bootstrap(
    c: Curve, metrics: Mapping[str, Metric], *, draws: int = 500, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics with percentile intervals over resampled rows.

    Parameters
    ----------
    c
        Curve of the test set.
    metrics
        Name -> function of a curve; all see the same replicates.
    draws
        Number of replicates.
    seed
        Of the resampling.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, len(metrics)))
    for k in range(draws):
        # All metrics of one replicate: intervals of two metrics stay comparable.
        replicate = c.resample(rng)
        drawn[k] = [metric(replicate) for metric in metrics.values()]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {
        name: Estimate(metric(c), float(a), float(b))
        for (name, metric), a, b in zip(metrics.items(), low, high, strict=True)
    }


def wilson(successes: float, trials: float) -> Estimate:
    """A fraction with its 95 % Wilson score interval (Wilson 1927, JASA 22, 209)."""
    if trials == 0:
        return Estimate(0.0, 0.0, 1.0)
    z, p = 1.959964, successes / trials  # z: the 97.5 % quantile of the normal distribution
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    # Unlike p +- z sigma, this interval has a width at 0 and at 1, and stays inside [0, 1].
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


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


def _probability_metrics(label: Float, probability: Float, draws: int, seed: int) -> dict[str, Estimate]:
    # Rows are drawn together, unlike in `Curve.resample`: calibration depends on the mix of classes.
    rng, n = np.random.default_rng(seed), len(label)
    drawn = np.empty((draws, 2))
    for k in range(draws):
        rows = rng.integers(0, n, n)
        drawn[k] = ece(label[rows], probability[rows]), brier(label[rows], probability[rows])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {
        "ece": Estimate(ece(label, probability), low[0], high[0]),
        "ece_expected": ece_expected(probability, draws=draws, seed=seed),
        "brier": Estimate(brier(label, probability), low[1], high[1]),
    }


def ece_expected(probability: ArrayLike, bins: int = 15, *, draws: int = 500, seed: int = 0) -> Estimate:
    """The `ece` that perfectly calibrated probabilities would show on so few rows, mean and 95 % interval.

    The estimate of Guo et al. does not average to zero: lenses are counted in every bin, and the size of
    their scatter adds up (Roelofs et al. 2022, AISTATS 151, 4036). An `ece` within this interval is no
    evidence against the calibration; with 160 rows that can be 0.06.
    """
    p, rng = np.asarray(probability, np.float64), np.random.default_rng([seed, 1])
    # Labels drawn with these very probabilities are calibrated by construction.
    drawn = [ece(rng.random(len(p)) < p, p, bins) for _ in range(draws)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(np.mean(drawn)), float(low), float(high))


# --- the whole report -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sky:
    """What one square degree of the survey holds, for purity and completeness there.

    Parameters
    ----------
    lenses
        Lenses per deg^2; about 6 for LSST (10^5 lenses on 18,000 deg^2).
    sources
        Extended sources per deg^2 that are scored; 10^4 to 10^5 depending on the magnitude limit.
    candidates
        How many candidates per deg^2 people can look at.
    """

    lenses: float = 6.0
    sources: float = 1e4
    candidates: tuple[float, ...] = (1.0, 10.0, 100.0)


class SkyDensity(TypedDict):
    """`Sky` in an evaluation: lenses and scored sources per deg^2."""

    lenses_per_deg2: float
    sources_per_deg2: float


class CurvePoints(TypedDict):
    """Points of ROC and precision-recall, one per threshold on the score, which falls."""

    threshold: list[float]
    fpr: list[float]
    tpr: list[float]
    precision: list[float]


@final
class LensEvaluation(TypedDict):
    """What `evaluate` finds: numbers of rows, the operating point `threshold` on the score, and metrics."""

    rows: int
    lenses: int
    nonlenses: int
    threshold: float
    confusion: Confusion
    sky: SkyDensity
    metrics: dict[str, Measure]
    reliability: list[ReliabilityBin]
    curves: CurvePoints


class MacroAuroc(TypedDict):
    """The mean of the one-against-rest AUROCs, which has no interval."""

    value: float


class ClassMetrics(TypedDict):
    """The metrics of a multi-class network."""

    accuracy: Measure
    macro_auroc: MacroAuroc


@final
class ClassEvaluation(TypedDict):
    """What `evaluate_classes` finds: `auroc` by class, `confusion_matrix` rows by true, then called class."""

    rows: int
    metrics: ClassMetrics
    auroc: dict[str, Measure]
    confusion_matrix: list[list[int]]


class Residuals(TypedDict):
    """What `evaluate_regression` finds, in the unit of the quantity; `outliers` is a fraction."""

    rows: int
    bias: float
    scatter: float
    rms: float
    outliers: float


@final
class TargetsEvaluation(TypedDict):
    """Regression: residuals by target; `rows` only where all targets have the same."""

    rows: NotRequired[int]
    metrics: dict[str, Residuals]


type Evaluation = LensEvaluation | ClassEvaluation | TargetsEvaluation


def ranking_metrics(sky: Sky) -> dict[str, Metric]:
    """Name -> metric of a curve, all that are reported."""
    metrics: dict[str, Metric] = {
        "auroc": auroc,
        "pr_auc": pr_auc,
        "tpr0": tpr0,
        "tpr10": tpr10,
        "f_beta": f_beta,
    }
    for fpr in FPRS:
        # "1e-04" -> "1e-4", the way people write it; f=fpr binds the value of this turn of the loop.
        metrics[f"tpr_at_fpr_{fpr:.0e}".replace("e-0", "e-")] = lambda c, f=fpr: tpr_at_fpr(c, f)  # type: ignore[misc]
    for n in sky.candidates:
        for k, name in enumerate(("purity", "completeness")):
            metrics[f"{name}_at_{n:g}_per_deg2"] = lambda c, n=n, k=k: at_density(  # type: ignore[misc]
                c, n, lenses=sky.lenses, sources=sky.sources
            )[k]
    return metrics


def evaluate(
    label: ArrayLike,
    score: ArrayLike,
    probability: ArrayLike,
    *,
    threshold: float,
    sky: Sky | None = None,
    draws: int = 500,
    seed: int = 0,
) -> LensEvaluation:
    """All metrics of a lens finder, with intervals, as JSON values.

    Parameters
    ----------
    label
        `(N,)` 1 lens, 0 not.
    score
        `(N,)` the ranking.
    probability
        `(N,)` calibrated probability of being a lens.
    threshold
        Operating point on `score`, chosen elsewhere (on validation sky).
    sky
        Density of lenses and sources for purity and completeness; default `Sky()`.
    draws, seed
        Of the bootstrap.
    """
    sky = sky or Sky()
    y, s, p = np.asarray(label), np.asarray(score, np.float64), np.asarray(probability, np.float64)
    c = curve(y, s)
    estimates = bootstrap(c, ranking_metrics(sky), draws=draws, seed=seed)
    estimates |= _probability_metrics(y.astype(np.float64), p, draws, seed)
    # At a fixed threshold rates are binomial: no bootstrap is needed.
    table = confusion(y, s, threshold)
    estimates["tpr_at_threshold"] = wilson(table["tp"], table["tp"] + table["fn"])
    estimates["fpr_at_threshold"] = wilson(table["fp"], table["fp"] + table["tn"])
    return {
        "rows": len(y),
        "lenses": int(c.positives),
        "nonlenses": int(c.negatives),
        "threshold": float(threshold),
        "confusion": table,
        "sky": {"lenses_per_deg2": sky.lenses, "sources_per_deg2": sky.sources},
        "metrics": {name: estimate.as_dict() for name, estimate in estimates.items()},
        "reliability": reliability(y, p),
        "curves": thin_curves(c),
    }


def thin_curves(c: Curve, points: int = 200) -> CurvePoints:
    """ROC and precision-recall points for a plot, thinned where the curve is dense."""
    k = len(c.threshold)
    head = np.arange(min(k, points // 2))  # the first thresholds, where low FPR and high purity are decided
    rest = np.unique(np.linspace(0, k - 1, points).astype(int))
    keep = np.unique(np.concatenate([head, rest]))
    precision = c.tp / np.maximum(c.tp + c.fp, 1)
    columns = (c.threshold, c.fpr, c.tpr, precision)
    threshold, fpr, tpr, purity = ([round(float(v), 7) for v in values[keep]] for values in columns)
    return {"threshold": threshold, "fpr": fpr, "tpr": tpr, "precision": purity}


# --- other tasks ----------------------------------------------------------------------------------


def evaluate_classes(
    label: ArrayLike, probability: ArrayLike, *, draws: int = 200, seed: int = 0
) -> ClassEvaluation:
    """Accuracy, confusion matrix and one-against-rest AUROC of a multi-class network.

    Parameters
    ----------
    label
        `(N,)` integers 0 .. K-1.
    probability
        `(N, K)`, rows sum to 1.
    draws, seed
        Of the bootstrap.
    """
    y, p = np.asarray(label).astype(np.int64), np.asarray(probability, np.float64)
    k = p.shape[1]
    called = p.argmax(1)
    matrix = np.bincount(y * k + called, minlength=k * k).reshape(k, k)  # true class by called class
    each = {}
    for c in range(k):
        if 0 < (y == c).sum() < len(y):  # an AUROC needs rows on both sides
            one = curve((y == c).astype(int), p[:, c])
            each[str(c)] = bootstrap(one, {"auroc": auroc}, draws=draws, seed=seed)["auroc"].as_dict()
    macro = float(np.mean([e["value"] for e in each.values()])) if each else 0.0
    accuracy = wilson(float((called == y).sum()), len(y)).as_dict()
    return {
        "rows": len(y),
        "metrics": {"accuracy": accuracy, "macro_auroc": {"value": round(macro, 6)}},
        "auroc": each,
        "confusion_matrix": matrix.tolist(),
    }


def evaluate_regression(truth: ArrayLike, estimate: ArrayLike) -> Residuals:
    """Bias (median), scatter (1.4826 MAD), RMS, and fraction beyond three scatters of one quantity."""
    gap = np.asarray(estimate, np.float64) - np.asarray(truth, np.float64)
    bias = float(np.median(gap))
    # 1.4826 MAD is the standard deviation of a normal distribution, but not moved by a few outliers.
    scatter = float(1.4826 * np.median(np.abs(gap - bias)))
    return {
        "rows": len(gap),
        "bias": round(bias, 6),
        "scatter": round(scatter, 6),
        "rms": round(float(np.sqrt(np.mean(gap**2))), 6),
        "outliers": round(float(np.mean(np.abs(gap - bias) > 3 * scatter)), 6),
    }
