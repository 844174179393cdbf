"""Grades of several people fused to a probability, with what is known about each of them.

The model is that of Dawid & Skene (1979): an object is a lens or not, and each grader gives A, B, C or X
with probabilities that depend on which, and on the grader. Truth of hidden tests is known, that of other
objects is estimated along (semi-supervised EM). Each grader's probabilities are drawn towards those of all
graders by a Dirichlet prior, so that few grades say little about a person.

Graders err on the same objects, so that a product of their likelihoods is too sure of itself. The slope and
intercept by which its logarithm is corrected come from hidden tests that the model did not know
(cross-validation), and so does the calibration error that is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Levels = NDArray[np.int8]

#: Grades in the order of the levels 0 to 3.
SCALE = ("X", "C", "B", "A")
#: Grades that the prior of a grader is worth, and the prior of all graders together: more X for others, and
#: more A for lenses.
STRENGTH = 8.0
_POOLED = np.array([[4.0, 1.5, 1.0, 0.5], [1.0, 1.5, 2.0, 2.5]])
FOLDS, ROUNDS, DRAWS = 5, 60, 200
#: Slope and intercept before any test is seen, and how far they may be off.
_MEAN, _SPREAD = np.array([1.0, 0.0, 1.0]), np.array([0.5, 1.0, 0.5])


def sigmoid(x: Float) -> Float:
    """Probability of log odds."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(x))))


def logit(p: float | Float) -> Float:
    """Log odds of a probability, which is kept from 0 and 1."""
    q = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(q) - np.log1p(-q))


@dataclass(frozen=True, slots=True)
class Fused:
    """What grades say together.

    Parameters
    ----------
    probability, low, high
        `(N,)` that an object is a lens, and its 95 % interval; of hidden tests without their own truth.
    confusion
        `(J, 2, 4)` probability of X, C, B, A by each grader, for no lens and lens.
    counts
        `(J, 2, 4)` expected numbers of grades behind it, and the prior.
    share
        Share of lenses among the objects that are no tests.
    slope
        By which the logarithm of the likelihood ratio was multiplied; 1 without tests.
    held_out
        `(T,)` probability of each test before it was known, at the share of lenses among tests.
    uncorrected
        `(T,)` the same without slope and intercept.
    """

    probability: Float
    low: Float
    high: Float
    confusion: Float
    counts: Float
    share: float
    slope: float
    held_out: Float
    uncorrected: Float


def fuse(level: Levels, truth: NDArray[np.int8], network: Float | None = None, *, seed: int = 0) -> Fused:
    """Fuse grades.

    Parameters
    ----------
    level
        `(N, J)` 0 to 3 for X, C, B, A; -1 where a grader gave none.
    truth
        `(N,)` 1 and 0 of hidden tests, -1 of other objects.
    network
        `(N,)` log odds that a network gives, to use as the word of one more witness; None to leave it out.
    seed
        Of folds and draws.
    """
    rng = np.random.default_rng(seed)
    tests = np.flatnonzero((truth >= 0) & (level >= 0).any(axis=1))
    fold = rng.permutation(len(tests)) % FOLDS
    held = np.zeros(len(level))  # log likelihood ratios of tests, each from the fold that did not know it
    for k in range(FOLDS if len(tests) else 0):
        hidden = tests[fold == k]
        known = truth.copy()
        known[hidden] = -1
        held[hidden] = log_ratio(level, _learn(level, known)[0])[hidden]
    confusion, counts, _ = _learn(level, truth)
    evidence = log_ratio(level, confusion)
    evidence[tests] = held[tests]
    of_tests, others = truth[tests], (truth < 0) & (level >= 0).any(axis=1)
    line, covariance = _corrected(_features(held, network)[tests], of_tests)
    x = _features(evidence, network) @ line
    share = _share(x[others]) if others.any() else 0.5
    low, high = _interval(level, counts, network, line, covariance, share, rng)
    prior = logit(of_tests.mean()) if len(tests) else 0.0
    return Fused(
        sigmoid(x + logit(share)), low, high, confusion, counts, share, float(line[0]),
        _held_out(_features(held, network)[tests], of_tests, fold), sigmoid(held[tests] + prior),
    )  # fmt: skip


def log_ratio(level: Levels, confusion: Float) -> Float:
    """`(N,)` logarithm of the likelihood of the grades for a lens over that for none."""
    ratio = np.log(confusion[:, 1]) - np.log(confusion[:, 0])  # (J, 4)
    each = np.take_along_axis(ratio.T, np.maximum(level, 0).astype(np.int64), axis=0)
    return np.asarray(np.where(level >= 0, each, 0.0).sum(axis=1))


def _learn(level: Levels, truth: NDArray[np.int8]) -> tuple[Float, Float, Float]:
    """EM: confusion of graders, the counts behind it, and the probability of each object."""
    given = level >= 0
    one_hot = (level[..., None] == np.arange(4)).astype(np.float64)  # (N, J, 4)
    mean = np.where(given, level, 0).sum(axis=1) / np.maximum(given.sum(axis=1), 1)
    q = np.where(truth >= 0, truth, np.clip(mean / 3.0, 0.02, 0.98))
    graded = given.any(axis=1)
    q = np.where(graded, q, 0.0)
    for _ in range(ROUNDS):
        found = np.einsum("zn,njg->jzg", np.stack([np.where(graded, 1 - q, 0.0), q]), one_hot)
        pooled = found.sum(axis=0) + _POOLED
        counts = found + STRENGTH * (pooled / pooled.sum(axis=1, keepdims=True))
        confusion = counts / counts.sum(axis=2, keepdims=True)
        open_ = graded & (truth < 0)
        share = (q[open_].sum() + 1.0) / (open_.sum() + 4.0)
        new = np.where(truth >= 0, truth, sigmoid(log_ratio(level, confusion) + logit(share)))
        new = np.where(graded, new, 0.0)
        if np.abs(new - q).max(initial=0.0) < 1e-5:
            break
        q = new
    return confusion, counts, q


def _features(evidence: Float, network: Float | None) -> Float:
    columns = [evidence, np.ones_like(evidence)]
    return np.stack(columns if network is None else [*columns, network], axis=1)


def _corrected(x: Float, truth: NDArray[np.int8]) -> tuple[Float, Float]:
    """Slope, intercept (and weight of the network) from tests, with their covariance: logistic regression.

    The prior odds of the tests are taken out, so that the result holds for any share of lenses.
    """
    mean, precision = _MEAN[: x.shape[1]], np.diag(1.0 / _SPREAD[: x.shape[1]] ** 2)
    line, offset = mean.copy(), logit(truth.mean()) if len(truth) else 0.0
    curve = precision
    for _ in range(50):
        p = sigmoid(x @ line + offset)
        slope = x.T @ (truth - p) - precision @ (line - mean)
        curve = precision + (x * (p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(curve, slope)
        line = line + np.clip(step, -0.5, 0.5)
        if np.abs(step).max() < 1e-9:
            break
    return line, np.linalg.inv(curve)


def _held_out(x: Float, truth: NDArray[np.int8], fold: NDArray[np.int64]) -> Float:
    """Probabilities of tests, with a correction from the other folds."""
    out = np.zeros(len(truth))
    for k in np.unique(fold):
        line, _ = _corrected(x[fold != k], truth[fold != k])
        prior = logit(truth[fold != k].mean()) if (fold != k).any() else 0.0
        out[fold == k] = sigmoid(x[fold == k] @ line + prior)
    return out


def _share(x: Float) -> float:
    """The share of lenses at which the mean of the probabilities is the share itself."""
    share = 0.2
    for _ in range(200):
        # Two imaginary objects of each kind keep it from 0 and 1.
        share = float((sigmoid(x + logit(share)).sum() + 1.0) / (len(x) + 4.0))
    return share


def _interval(
    level: Levels,
    counts: Float,
    network: Float | None,
    line: Float,
    covariance: Float,
    share: float,
    rng: np.random.Generator,
) -> tuple[Float, Float]:
    """2.5 and 97.5 % of the probability, over what graders and correction may be."""
    draws = np.empty((DRAWS, len(level)))
    for row, of in zip(draws, rng.multivariate_normal(line, covariance, DRAWS), strict=True):
        gamma = rng.standard_gamma(counts)
        confusion = np.maximum(gamma, 1e-12) / gamma.sum(axis=2, keepdims=True)
        row[:] = sigmoid(_features(log_ratio(level, confusion), network) @ of + logit(share))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


def calibration_error(probability: Float, truth: NDArray[np.integer], bins: int = 10) -> float:
    """Mean distance of the probability from the share of lenses, in bins of equally many objects."""
    if not len(truth):
        return float("nan")
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    off = [len(part) * abs(probability[part].mean() - truth[part].mean()) for part in parts]
    return float(sum(off) / len(truth))
