"""From scores to probabilities: calibration on held-out sky, and the prior of the survey.

Numpy and scipy only. Training with balanced batches makes the network believe in a balanced sky; the offset
fitted beside the temperature takes that back, and `prior_shift` moves the result to the prevalence of another
sky.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

Float = NDArray[np.float64]
Method = Literal["none", "temperature", "isotonic"]


class Calibration(BaseModel):
    """A fitted map from mean logit to probability, stored in the contract.

    `temperature`: `p = sigmoid(scale * logit + offset)`. `isotonic`: linear between the knots `(x, y)`; the
    temperature beside it is for prevalences that its steps do not resolve. `prevalence` is the fraction of
    lenses at which the probability holds: in the `rows` it was fitted to, or what the sampler of an
    uncalibrated network showed it; None when nobody knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method = "none"
    scale: float = 1.0
    offset: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    prevalence: float | None = None
    rows: int = 0

    def probability(self, logit: ArrayLike, *, prevalence: float | None = None) -> Float:
        """Probability of being a lens.

        Parameters
        ----------
        logit
            `(N,)` mean logit of the network.
        prevalence
            Fraction of lenses among the sources to be scored; None keeps that of the calibration rows.
        """
        value = np.asarray(logit, np.float64)
        if self.method == "isotonic" and self.resolves(prevalence):
            p = np.interp(value, self.x, self.y)
        else:
            p = sigmoid(self.scale * value + self.offset)
        if prevalence is None or self.prevalence is None:
            return p
        return prior_shift(p, self.prevalence, prevalence)

    def resolves(self, prevalence: float | None) -> bool:
        """Whether the map can be moved to a prevalence.

        The last step of an isotonic map stands for likelihood ratios that its non-lenses cannot measure: at a
        prevalence where a lens needs one of R, about 3 R of them are needed.
        """
        if self.method != "isotonic" or prevalence is None or self.prevalence is None:
            return True
        others = self.rows * (1 - self.prevalence)
        return prevalence >= self.prevalence or others * prevalence / (1 - prevalence) >= 3


class ClassCalibration(BaseModel):
    """A fitted map from mean logits to probabilities of K classes: `softmax(scale * logits + offsets)`.

    `shares` are those of the classes at which it holds, as `Calibration.prevalence`; none when nobody knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: float = 1.0
    offsets: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    rows: int = 0

    def probability(self, logits: ArrayLike, *, shares: ArrayLike | None = None) -> Float:
        """Probabilities `(N, K)` of logits `(N, K)`, at other shares `(K,)` of the classes if given."""
        z = self.scale * np.asarray(logits, np.float64) + (np.array(self.offsets) if self.offsets else 0.0)
        p = softmax(z)
        return p if shares is None or not self.shares else share_shift(p, self.shares, shares)


def softmax(z: ArrayLike) -> Float:
    """Probabilities `(N, K)` of logits."""
    x = np.asarray(z, np.float64)
    # The largest is taken off first: exp would overflow, and the ratio is the same.
    odds = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def share_shift(probability: ArrayLike, before: ArrayLike, after: ArrayLike) -> Float:
    """`prior_shift` for K classes: `(N, K)` under other shares `(K,)`."""
    p = np.asarray(probability, np.float64) * (np.asarray(after) / np.maximum(np.asarray(before), 1e-12))
    return np.asarray(p / np.maximum(p.sum(1, keepdims=True), 1e-300))


def shares_at(shares: ArrayLike, lenses: tuple[int, ...], prevalence: float) -> Float:
    """Shares `(K,)` with this one of all lens classes together; others keep their proportions."""
    s = np.asarray(shares, np.float64)
    lens = np.isin(np.arange(len(s)), lenses)
    return np.where(lens, prevalence * s / s[lens].sum(), (1 - prevalence) * s / s[~lens].sum())


def sigmoid(x: ArrayLike) -> Float:
    """`1 / (1 + exp(-x))` without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))


def logit(p: ArrayLike) -> Float:
    """Inverse of `sigmoid`, finite at 0 and 1."""
    q = np.clip(np.asarray(p, np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(q) - np.log1p(-q))


def one_in(prevalence: float) -> str:
    """A prevalence in words: `one source in 1,668`."""
    return (
        f"one source in {1 / prevalence:,.0f}" if prevalence < 0.1 else f"one source in {1 / prevalence:.3g}"
    )


def prior_shift(probability: ArrayLike, before: float, after: float) -> Float:
    """Probabilities under another prevalence (Saerens, Latinne & Decaestecker 2002, Neural Comput. 14, 21).

    Parameters
    ----------
    probability
        `(N,)` under prevalence `before`.
    before, after
        Fractions of lenses, in (0, 1).
    """
    return sigmoid(logit(probability) + float(logit(after) - logit(before)))


def fit(method: Method, value: ArrayLike, label: ArrayLike, *, prior: float | None = None) -> Calibration:
    """Fit on rows that the network was not trained on.

    Parameters
    ----------
    method
        See `Calibration`.
    value
        `(N,)` mean logits.
    label
        `(N,)` 1 lens, 0 not; both classes present.
    prior
        Fraction of lenses in what the network was shown, at which "none" leaves its probabilities.
    """
    x, y = np.asarray(value, np.float64), np.asarray(label, np.float64)
    prevalence, rows = float(y.mean()), len(y)
    match method:
        case "none":
            return Calibration(prevalence=prior, rows=rows)
        case "temperature":
            scale, offset = fit_temperature(x, y)
            return Calibration(method=method, scale=scale, offset=offset, prevalence=prevalence, rows=rows)
        case "isotonic":
            knots, levels = fit_isotonic(x, y)
            scale, offset = fit_temperature(x, y)
            return Calibration(
                method=method,
                scale=scale,
                offset=offset,
                x=tuple(knots),
                y=tuple(levels),
                prevalence=prevalence,
                rows=rows,
            )


def fit_classes(value: ArrayLike, label: ArrayLike) -> ClassCalibration:
    """Scale and offsets of least cross-entropy, on rows that the network was not trained on.

    Parameters
    ----------
    value
        `(N, K)` mean logits.
    label
        `(N,)` 0 .. K-1; a class may be absent.
    """
    z, y = np.asarray(value, np.float64), np.asarray(label, np.int64)
    n, k = z.shape
    # Half a row for each class, so that none is impossible.
    target = (np.eye(k)[y] + 0.5 / n) / (1 + 0.5 * k / n)

    def loss(w: Float) -> tuple[float, Float]:
        logit = w[0] * z + w[1:]
        gap = softmax(logit) - target
        top = logit.max(1)
        value = np.mean(top + np.log(np.exp(logit - top[:, None]).sum(1)) - (target * logit).sum(1))
        # A constant added to all offsets changes nothing: the small term picks one.
        slope = np.append((gap * z).sum(1).mean(), gap.mean(0) + 1e-6 * w[1:])
        return float(value + 0.5e-6 * (w[1:] ** 2).sum()), slope

    found = scipy.optimize.minimize(loss, np.append(1.0, np.zeros(k)), jac=True, method="L-BFGS-B",
                     bounds=[(1e-3, None), *[(None, None)] * k]).x  # fmt: skip
    return ClassCalibration(
        scale=float(found[0]),
        offsets=tuple(found[1:].tolist()),
        shares=tuple(target.mean(0).tolist()),
        rows=n,
    )


def fit_temperature(value: Float, label: Float) -> tuple[float, float]:
    """Scale (inverse temperature) and offset of least cross-entropy, by Newton steps.

    The targets are smoothed as Platt (1999) does, so that separable rows keep a finite scale.
    """
    positives, negatives = label.sum(), len(label) - label.sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([value, np.ones_like(value)], 1)
    w = np.array([1.0, 0.0])

    def loss(v: Float) -> float:
        z = design @ v
        return float(np.mean(np.logaddexp(0, z) - target * z))

    for _ in range(100):
        p = sigmoid(design @ w)
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) and size > 1e-6:
            size /= 2
        w = w - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    # A finder that ranks backwards is not turned around by its calibration.
    return max(float(w[0]), 1e-3), float(w[1])


def fit_isotonic(value: Float, label: Float) -> tuple[Float, Float]:
    """Knots of the best rising step function (`sklearn.isotonic`).

    Returns
    -------
    x, y
        Two knots per pool (its ends), `y` rising, never exactly 0 or 1 (half a row is added to each side).
    """
    from sklearn.isotonic import IsotonicRegression  # a second, for those who want it

    order = np.argsort(value, kind="stable")
    x, y = value[order], label[order]
    rising = IsotonicRegression().fit_transform(x, y)
    first = np.flatnonzero(np.diff(rising, prepend=-1.0) != 0)  # of each pool of equal levels
    last = np.append(first[1:], len(x)) - 1
    total, count = np.add.reduceat(y, first), last - first + 1
    level = (total + 0.5 * (total == 0) - 0.5 * (total == count)) / count
    ends = np.stack([x[first], x[last]], axis=1)
    return ends.ravel(), np.maximum.accumulate(np.repeat(np.clip(level, 1e-6, 1 - 1e-6), 2))
