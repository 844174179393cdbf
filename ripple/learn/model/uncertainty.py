"""How sure is a score: conformal sets, distance from what was learnt, abstention, risk and coverage.

Fitted on validation sky like the calibration, and stored in the contract; the features that distances are
measured to lie beside the weights in `latent.safetensors`. PyTorch is loaded only to measure them.
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
    """`distance.to_neighbour`, `(N,)`, of arrays on the host.

    Parameters
    ----------
    bank
        `(E, M, F)` features of training rows, of each of E members.
    features
        `(E, N, F)`.
    neighbour
        Counts from 1.
    """
    import torch

    from ripple.learn.model.distance import placed, to_neighbour

    known, there = (torch.from_numpy(np.array(value, np.float32)) for value in (bank, features))
    return np.asarray(to_neighbour(placed(known), there, neighbour).numpy(), np.float64)


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


def strangeness(known: Uncertainty, distance: Float, beyond: Float | None = None) -> NDArray[np.float32]:
    """`ood` `(N,)`, above 1 for rows unlike the training rows; parameters as for `doubts`."""
    ood = (distance / known.ood_limit).astype(np.float32)
    return ood if beyond is None else np.fmax(ood, beyond.astype(np.float32))


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
        `(N,)` from `distance.to_neighbour`.
    names
        Of the K classes.
    beyond
        `(N,)` other ratios that are above 1 for rows unlike the training rows, such as those of their PSFs.

    Returns
    -------
    `ood` `(N,)` float32, above 1 for rows unlike the training rows; for classes also `set`, the names joined
    by `|`, and `abstain` uint8, 1 when the set has not exactly one class or `ood` is above 1.
    """
    ood = strangeness(known, distance, beyond)
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
