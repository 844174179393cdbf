"""Evaluate rankings, classes and regressions on held-out rows: every number with an interval that holds.

What the test set cannot resolve is None, with the reason: a false positive rate needs three non-lenses or
more above its threshold. Numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.learn.evaluation.intervals import (
    Estimate,
    Measure,
    Measured,
    auroc_estimate,
    auroc_limits,
    bootstrap_limits,
    clopper_pearson,
    ece_expected,
    f_beta_limits,
    mean_estimate,
    score_limits,
    sky_purity,
    tpr_limits,
    unresolved,
)
from ripple.learn.evaluation.metrics import (
    BETA2,
    FPRS,
    Confusion,
    Curve,
    Metric,
    ReliabilityBin,
    at_density,
    auroc,
    confusion,
    curve,
    ece,
    f_beta,
    pr_auc,
    reliability,
    tpr_at_fpr,
)


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


#: The split whose rows are evaluated: unseen, or nobody can say.
Judgeable = Literal["test", "unknown"]


class JudgedRecord(TypedDict):
    """The rows behind the numbers, and whether the model was proven not to be trained on them."""

    rows: int
    split: Judgeable


def judged_words(judged: JudgedRecord) -> str:
    """The rows behind the numbers, in words."""
    if judged["split"] == "unknown":
        return f"{judged['rows']:,} rows, split unknown: these may be training rows"
    return f"{judged['rows']:,} rows of unseen sky"


class Stages(TypedDict):
    """What becomes of the lenses of a split: `asked` for, then fractions with intervals.

    `accepted` by quality control, `found` above the operating point among these, and `completeness`, found
    among all that were asked for.
    """

    asked: int
    accepted: Measure
    found: Measure
    completeness: Measure


def stages(asked: int, accepted: int, found: int) -> Stages:
    """Fractions of lenses from counts, with exact limits."""
    return {
        "asked": asked,
        "accepted": clopper_pearson(accepted, asked).as_dict(),
        "found": clopper_pearson(found, accepted).as_dict(),
        "completeness": clopper_pearson(found, asked).as_dict(),
    }


@final
class LensEvaluation(TypedDict):
    """What `evaluate` finds: numbers of rows, the operating point `threshold` on the score, and metrics."""

    rows: int
    lenses: int
    nonlenses: int
    threshold: float
    confusion: Confusion
    sky: SkyDensity
    metrics: dict[str, Measured]
    reliability: list[ReliabilityBin]
    curves: CurvePoints


class ClassMetrics(TypedDict):
    """The metrics of a multi-class network."""

    accuracy: Measure
    macro_auroc: Measured


@final
class ClassEvaluation(TypedDict):
    """What `evaluate_classes` finds: `auroc` and `calibration` by class, `confusion_matrix` by true, then by
    called class.
    """

    rows: int
    metrics: ClassMetrics
    auroc: dict[str, Measure]
    calibration: dict[str, dict[str, Measured]]
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


@dataclass(frozen=True, slots=True)
class Planned:
    """A metric with the limits that it has from the counts alone, `(low, high)`."""

    metric: Metric
    limits: tuple[float, float]


def ranking_metrics(c: Curve, sky: Sky) -> tuple[dict[str, Planned], dict[str, str]]:
    """The metrics of a ranking that the test set resolves, and why it does not resolve the others.

    Parameters
    ----------
    c
        Curve of the test set.
    sky
        For purity and completeness.
    """
    p, n = c.positives, c.negatives
    found = {
        "auroc": Planned(auroc, auroc_limits(auroc(c), p, n)),
        # Boyd, Eng & Page 2013 (ECML PKDD, 451): the number of lenses decides how sure it is.
        "pr_auc": Planned(pr_auc, score_limits(pr_auc(c), p)),
        "f_beta": Planned(f_beta, f_beta_limits(c, BETA2)),
    }
    missing: dict[str, str] = {}
    for name, first in (("tpr0", 1), ("tpr10", 10)):
        if n < first:
            missing[name] = f"it needs {first} non-lenses, the test set has {n:.0f}"
        else:
            found[name] = _above(c, first)
    for fpr in FPRS:
        # "1e-04" -> "1e-4", the way people write it.
        name = f"tpr_at_fpr_{fpr:.0e}".replace("e-0", "e-")
        if reason := unresolved(fpr, n):
            missing[name] = reason
        else:
            limits = tpr_limits(c, lenses=0.0, others=1.0, budget=fpr)
            found[name] = Planned(lambda c, f=fpr: tpr_at_fpr(c, f), limits)  # type: ignore[misc]
    for count in sky.candidates:
        names = [f"{name}_at_{count:g}_per_deg2" for name in ("purity", "completeness")]
        # Nearly all of the candidates can be false: that rate must be measurable.
        if reason := unresolved(min(count / sky.sources, 1.0), n):
            missing |= dict.fromkeys(names, reason)
            continue
        low, high = tpr_limits(c, lenses=sky.lenses, others=sky.sources, budget=count)
        # Of `count` candidates, lenses * TPR are lenses: the limits of the TPR are those of the purity.
        share = sky.lenses / min(count, sky.lenses + sky.sources)
        for k, limits in enumerate(((share * low, share * high), (low, high))):
            found[names[k]] = Planned(
                lambda c, n=count, k=k: at_density(c, n, lenses=sky.lenses, sources=sky.sources)[k],  # type: ignore[misc]
                limits,
            )
    return found, missing


def _above(c: Curve, first: int) -> Planned:
    """TPR above the `first`-th highest non-lens of this test set, as a rate at a fixed threshold.

    That non-lens is what the number is about: its place among all non-lenses is not part of the interval.
    """
    allowed = np.flatnonzero(c.fp < first)
    k = int(allowed[-1]) if len(allowed) else -1
    rate = clopper_pearson(c.tp[k] if k >= 0 else 0.0, c.positives)
    return Planned(lambda c: float(c.tpr[k]) if k >= 0 else 0.0, (rate.low, rate.high))


def ranking_estimates(
    label: ArrayLike,
    score: ArrayLike,
    sky: Sky,
    *,
    block: NDArray[np.int64] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> dict[str, Measured]:
    """Every metric of a ranking with the wider of its limits from counts and from blocks of sky.

    Parameters
    ----------
    label, score, block, draws, seed
        As in `evaluate`.
    sky
        For purity and completeness.
    """
    c = curve(label, score)
    planned, missing = ranking_metrics(c, sky)
    metrics = {name: plan.metric for name, plan in planned.items()}
    drawn = bootstrap_limits(label, score, metrics, block=block, draws=draws, seed=seed)
    found: dict[str, Measured] = {
        name: _measured(Estimate(plan.metric(c), *plan.limits).wider(drawn[name]))
        for name, plan in planned.items()
    }
    return found | {name: {"value": None, "reason": reason} for name, reason in missing.items()}


def evaluate(
    label: ArrayLike,
    score: ArrayLike,
    probability: ArrayLike,
    *,
    threshold: float,
    block: NDArray[np.int64] | None = None,
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
    block
        `(N,)` cell of the sky of each row, -1 where it has none: rows of one cell are drawn together by the
        bootstrap. None: no row has any.
    sky
        Density of lenses and sources for purity and completeness; default `Sky()`.
    draws, seed
        Of the bootstrap.
    """
    sky = sky or Sky()
    y, s, p = np.asarray(label), np.asarray(score, np.float64), np.asarray(probability, np.float64)
    found = ranking_estimates(y, s, sky, block=block, draws=draws, seed=seed)
    c, table = curve(y, s), confusion(y, s, threshold)
    found |= _threshold_metrics(table, sky)
    # No interval: the ECE of perfect probabilities is not zero, `ece_expected` says what it would be.
    found["ece"] = {"value": round(ece(y, p), 6)}
    found["ece_expected"] = _measured(ece_expected(p, draws=draws, seed=seed))
    found["brier"] = _measured(mean_estimate((p - y) ** 2, block, draws=draws, seed=seed))
    return {
        "rows": len(y),
        "lenses": int(c.positives),
        "nonlenses": int(c.negatives),
        "threshold": float(threshold),
        "confusion": table,
        "sky": {"lenses_per_deg2": sky.lenses, "sources_per_deg2": sky.sources},
        "metrics": found,
        "reliability": reliability(y, p),
        "curves": thin_curves(c),
    }


def _threshold_metrics(table: Confusion, sky: Sky) -> dict[str, Measured]:
    """Rates at the operating point, and what they mean on the sky, from exact limits of both rates."""
    tpr = clopper_pearson(table["tp"], table["tp"] + table["fn"])
    fpr = clopper_pearson(table["fp"], table["fp"] + table["tn"])
    false = Estimate(*(sky.sources * v for v in (fpr.value, fpr.low, fpr.high)))
    found = {
        "tpr_at_threshold": _measured(tpr),
        "fpr_at_threshold": _measured(fpr),
        "false_per_deg2_at_threshold": _measured(false),
    }
    name = "purity_at_threshold"
    if table["fp"] < 3:
        few = f"{table['fp']} non-lenses above the operating point, at least 3 are needed"
        return found | {name: {"value": None, "reason": few}}
    return found | {name: _measured(sky_purity(tpr, fpr, lenses=sky.lenses, others=sky.sources))}


def _measured(found: Estimate) -> Measured:
    rounded = found.as_dict()
    return {"value": rounded["value"], "low": rounded["low"], "high": rounded["high"]}


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
    label: ArrayLike,
    probability: ArrayLike,
    *,
    called: ArrayLike | None = None,
    block: NDArray[np.int64] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> ClassEvaluation:
    """Accuracy, confusion matrix and one-against-rest AUROC of a multi-class network.

    Parameters
    ----------
    label
        `(N,)` integers 0 .. K-1.
    probability
        `(N, K)`, rows sum to 1.
    called
        `(N,)` decisions; None: the most probable class.
    block
        As in `evaluate`.
    draws, seed
        Of the bootstrap.
    """
    y, p = np.asarray(label).astype(np.int64), np.asarray(probability, np.float64)
    k = p.shape[1]
    called = p.argmax(1) if called is None else np.asarray(called)
    matrix = np.bincount(y * k + called, minlength=k * k).reshape(k, k)  # true class by called class
    each = {}
    for c in range(k):
        if 0 < (y == c).sum() < len(y):  # an AUROC needs rows on both sides
            one = auroc_estimate(y == c, p[:, c], block=block, draws=draws, seed=seed)
            each[str(c)] = one.as_dict()
    macro = float(np.mean([e["value"] for e in each.values()])) if each else 0.0
    right = (called == y).astype(np.float64)
    exact = clopper_pearson(float(right.sum()), len(y))
    drawn = mean_estimate(right, block, draws=draws, seed=seed)
    accuracy = exact.wider((drawn.low, drawn.high)).as_dict()
    return {
        "rows": len(y),
        "metrics": {"accuracy": accuracy, "macro_auroc": {"value": round(macro, 6)}},
        "auroc": each,
        "calibration": {
            str(c): {
                "ece": {"value": round(ece(y == c, p[:, c]), 6)},
                "ece_expected": _measured(ece_expected(p[:, c], draws=draws, seed=seed)),
            }
            for c in range(k)
        },
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
