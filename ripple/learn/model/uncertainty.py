"""How sure is a score: conformal sets, distance from what was learnt, abstention, risk and coverage.

Numpy only. Fitted on validation sky like the calibration, and stored in the contract; the features that
distances are measured to lie beside the weights in `latent.safetensors`.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

Float = NDArray[np.float64]

#: Share of rows that a set may fail to cover.
ALPHA = 0.1
#: Neighbour whose distance counts (with banks of a thousand rows the nearest finds unknown classes best,
#: `scripts/bench/configs/gap-unknown.yaml`), and the share of validation rows allowed beyond `ood` = 1.
NEIGHBOUR, OUTSIDE = 1, 0.01
#: Weight of the lengths of feature vectors beside their directions, in `latent_distance`.
LENGTH = 0.2
#: Training rows whose features are kept.
BANK = 4096


class Uncertainty(BaseModel):
    """What a contract knows about its doubts.

    `quantiles` are the largest `1 - p(class)` that a class may have and still be in a set, one per class
    (empty for regression), at coverage `1 - alpha`. `ood_limit` is the distance to the `neighbour`-th
    training row that a share `OUTSIDE` of validation rows exceeds. `bytes` and `sha256` are those of the
    features.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: float = Field(default=ALPHA, gt=0, lt=1)
    quantiles: tuple[float, ...] = ()
    neighbour: int = Field(default=NEIGHBOUR, ge=1)
    ood_limit: float = Field(default=1.0, gt=0)
    bytes: int = 0
    sha256: str = ""


def conformal_quantiles(probability: ArrayLike, label: ArrayLike, alpha: float = ALPHA) -> tuple[float, ...]:
    """Per class, the limit on `1 - p(class)` that covers `1 - alpha` of the next rows of that class.

    Split conformal prediction, class by class (Vovk 2003; Angelopoulos & Bates 2023, Found. Trends 16, 494):
    the `ceil((n + 1) (1 - alpha))`-th smallest value; with too few rows the limit is 1, which takes all.

    Parameters
    ----------
    probability
        `(N, K)` of rows not trained on.
    label
        `(N,)`.
    alpha
        Allowed share of rows whose class is not in their set.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(label)
    limits = []
    for k in range(p.shape[1]):
        value = np.sort(1 - p[y == k, k])
        rank = math.ceil((len(value) + 1) * (1 - alpha))
        limits.append(float(value[rank - 1]) if rank <= len(value) else 1.0)
    return tuple(limits)


def conformal_sets(probability: ArrayLike, quantiles: ArrayLike) -> NDArray[np.bool_]:
    """`(N, K)`: is the class in the set of the row."""
    inside: NDArray[np.bool_] = 1 - np.asarray(probability, np.float64) <= np.asarray(quantiles) + 1e-12
    return inside


class Coverage(TypedDict):
    """How conformal sets do: fractions of `rows`, `mean_size` in classes, `single` the sets of one class."""

    coverage: float
    by_class: dict[str, float]
    rows: int
    mean_size: float
    single: float


class RiskCoverage(TypedDict):
    """Fraction of rows answered, error among them, and `aurc`, the mean error over all coverages."""

    coverage: list[float]
    risk: list[float]
    aurc: float


def set_coverage(sets: NDArray[np.bool_], label: ArrayLike) -> Coverage:
    """Share of rows whose class is in their set, over all and by class, and the mean size of sets."""
    y = np.asarray(label, np.int64)
    hit = sets[np.arange(len(y)), y]
    by_class = {str(k): float(hit[y == k].mean()) for k in np.unique(y)}
    single = float((sets.sum(1) == 1).mean())
    return {
        "coverage": float(hit.mean()),
        "by_class": by_class,
        "rows": len(y),
        "mean_size": float(sets.sum(1).mean()),
        "single": single,
    }


def neighbour_distance(bank: ArrayLike, features: ArrayLike, neighbour: int = NEIGHBOUR) -> Float:
    """Distance `(N,)` to the `neighbour`-th nearest row of the bank (Sun et al. 2022, ICML 162, 20827).

    The mean over the members: a network may see an unknown class as one that it knows, and others, trained
    from other weights, do so with other rows (`scripts/bench/configs/gap-unknown.yaml`).

    Parameters
    ----------
    bank
        `(E, M, F)` features of training rows, of each of E members.
    features
        `(E, N, F)`.
    neighbour
        Counts from 1; the farthest row when the bank is smaller.
    """
    known, there = np.asarray(bank), np.asarray(features)
    k = min(neighbour, known.shape[1]) - 1
    out = np.zeros(there.shape[1])
    for ours, theirs in zip(known, there, strict=True):
        x, y = _placed(theirs), _placed(ours)
        # |x - y|² but for |x|², which does not change the order, as one product: in float32, half the time.
        left = np.concatenate([-2 * x, np.ones((len(x), 1))], 1).astype(np.float32)
        right = np.concatenate([y, (y**2).sum(1, keepdims=True)], 1).astype(np.float32).T
        for at in range(0, len(x), 256):
            apart = left[at : at + 256] @ right
            place = np.argpartition(apart, k, axis=1)[:, k] if k else apart.argmin(axis=1)
            # That row's distance in double precision: differences of squares lose it where it is small.
            out[at : at + 256] += np.linalg.norm(x[at : at + 256] - y[place], axis=1) / len(known)
    return out


def latent_distance(features: ArrayLike, others: ArrayLike) -> Float:
    """Distances `(N, K)` of features `(N, F)` to others `(K, F)`: the chord of their directions on the unit
    sphere, and `LENGTH` times the logarithm of the ratio of their lengths, in quadrature.

    Directions tell classes apart, also unknown ones; lengths tell what is no galaxy at all.
    """
    x, y = _placed(features), _placed(others)
    square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.asarray(np.sqrt(np.maximum(square, 0)))


def _placed(features: ArrayLike) -> Float:
    x = np.asarray(features, np.float64)
    length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return np.concatenate([x / length, LENGTH * np.log(length)], 1)


def scaled(bank: ArrayLike, features: ArrayLike) -> Float:
    """Features `(N, F)` about the mean and in units of the spread of the bank `(M, F)`."""
    known = np.asarray(bank, np.float64)
    width = known.std(0)
    # A feature that is always zero in training speaks loudly when it is not: bounded, not ignored.
    width = np.maximum(width, 0.05 * max(float(width.mean()), 1e-9))
    return np.asarray((np.asarray(features, np.float64) - known.mean(0)) / width)


def energy(logits: ArrayLike) -> Float:
    """`-log sum exp` of the logits: high far from all classes (Liu et al. 2020, NeurIPS 33, 21464)."""
    z = np.asarray(logits, np.float64)
    top = z.max(1)
    return np.asarray(-(top + np.log(np.exp(z - top[:, None]).sum(1))))


def ood_limit(distance: ArrayLike) -> float:
    """The distance that a share `OUTSIDE` of validation rows exceeds."""
    return max(float(np.quantile(np.asarray(distance, np.float64), 1 - OUTSIDE)), 1e-6)


def risk_coverage(confidence: ArrayLike, correct: ArrayLike, points: int = 50) -> RiskCoverage:
    """Error of the most certain rows as more and more are answered (El-Yaniv & Wiener 2010, JMLR 11, 1605).

    Parameters
    ----------
    confidence
        `(N,)`, higher is surer.
    correct
        `(N,)` was the answer right.
    points
        Of the curve.

    Returns
    -------
    `coverage` and `risk` of the curve, and `aurc`, the mean risk over all coverages.
    """
    order = np.argsort(-np.asarray(confidence, np.float64), kind="stable")
    wrong = 1 - np.asarray(correct, np.float64)[order]
    risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    at = np.unique(np.linspace(0, len(wrong) - 1, points).round().astype(int))
    return {
        "coverage": ((at + 1) / len(wrong)).tolist(),
        "risk": risk[at].tolist(),
        "aurc": float(risk.mean()),
    }


def class_probabilities(probability: ArrayLike) -> Float:
    """`(N, 2)` of a lens probability `(N,)`; `(N, K)` as it is."""
    p = np.asarray(probability, np.float64)
    return np.stack([1 - p, p], 1) if p.ndim == 1 else p


def doubts(
    known: Uncertainty,
    probability: Float,
    distance: Float,
    names: tuple[str, ...],
    beyond: Float | None = None,
) -> dict[str, NDArray[Any]]:
    """Columns of the scores.

    Parameters
    ----------
    known
        Of the contract.
    probability
        `(N, K)`, K = 0 for regression.
    distance
        `(N,)` from `neighbour_distance`.
    names
        Of the K classes.
    beyond
        `(N,)` other ratios that are above 1 for rows unlike the training rows, such as those of their PSFs.

    Returns
    -------
    `ood` `(N,)` float32, above 1 for rows unlike the training rows; for classes also `set`, the names joined
    by `|`, and `abstain` uint8, 1 when the set has not exactly one class or `ood` is above 1.
    """
    ood = (distance / known.ood_limit).astype(np.float32)
    if beyond is not None:
        ood = np.fmax(ood, beyond.astype(np.float32))
    if not known.quantiles:
        return {"ood": ood}
    sets = conformal_sets(probability, known.quantiles)
    # There are few different sets: name each once.
    code = sets @ (1 << np.arange(sets.shape[1]))
    text = {int(c): "|".join(n for k, n in enumerate(names) if int(c) >> k & 1) for c in np.unique(code)}
    abstain = (sets.sum(1) != 1) | (ood > 1)
    return {
        "ood": ood,
        "set": np.array([text[int(c)] for c in code], dtype=object),
        "abstain": abstain.astype(np.uint8),
    }
