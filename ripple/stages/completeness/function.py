"""Completeness as a smooth function of one to three columns: fit, cross-validation, grid, and crossings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Float = NDArray[np.float64]
Function = Callable[[Float], Float]
#: Columns in which completeness can only rise (1) or fall (-1): name, or its beginning before a band. The
#: Einstein radius is not among them: wide arcs may leave the field of a network, which must stay visible.
MONOTONE = {
    "arc_snr": 1, "depth": 1, "source_mag": -1, "arc_mag": -1, "arc_sb": -1, "noise": -1, "psf_fwhm": -1
}  # fmt: skip
#: Points of the grid along each axis, by the number of columns.
POINTS = {1: 101, 2: 41, 3: 17}
#: Rows that a fit needs, and of either outcome.
LEAST_ROWS, LEAST_EACH = 100, 20


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted function.

    Parameters
    ----------
    kind
        `monotone` or `logistic`.
    function
        `(N, D)` to `(N,)` completeness.
    held_out
        `(N,)` completeness of each row by a fit without its part of the rows.
    loss
        Mean negative log likelihood of the held-out rows, by kind that was tried.
    """

    kind: str
    function: Function
    held_out: Float
    loss: dict[str, float]


def direction(name: str) -> int:
    """Whether completeness rises (1) or falls (-1) with a column by physics; 0: not known."""
    stem, _, band = name.rpartition("_")
    return MONOTONE.get(name) or (MONOTONE.get(stem, 0) if len(band) == 1 else 0)


def unfit(found: NDArray[np.bool_]) -> str:
    """Why no function can be fitted; empty when it can."""
    hits, rows = int(found.sum()), len(found)
    if rows >= LEAST_ROWS and min(hits, rows - hits) >= LEAST_EACH:
        return ""
    return (
        f"{hits:,} of {rows:,} rows were found; a function needs {LEAST_ROWS} rows, {LEAST_EACH} of them "
        f"found and {LEAST_EACH} lost"
    )


def fit(values: Float, found: NDArray[np.bool_], by: Sequence[str], kind: str, folds: int, seed: int) -> Fit:
    """Fit the function, or both kinds and keep the one that predicts held-out rows better.

    Parameters
    ----------
    values, found
        `(N, D)` finite columns, and `(N,)` outcomes.
    by
        D names: they say where the function must rise or fall.
    kind
        `best`, `monotone` or `logistic`.
    folds, seed
        Parts of the cross-validation, and its seed.
    """
    kinds = ("monotone", "logistic") if kind == "best" else (kind,)
    # Every part has as many found rows as the others, give or take one.
    order = np.lexsort((np.random.default_rng([seed, 31]).random(len(found)), found))
    part = np.empty(len(found), np.int64)
    part[order] = np.arange(len(found)) % folds
    held, loss = {}, {}
    for name in kinds:
        held[name] = np.empty(len(found))
        for k in range(folds):
            out = part == k
            held[name][out] = train(name, values[~out], found[~out], by)(values[out])
        p = np.clip(held[name], 1e-6, 1 - 1e-6)
        loss[name] = float(-np.mean(np.where(found, np.log(p), np.log1p(-p))))
    best = min(kinds, key=lambda name: loss[name])
    return Fit(best, train(best, values, found, by), held[best], loss)


def train(kind: str, values: Float, found: NDArray[np.bool_], by: Sequence[str]) -> Function:
    """One fit to all the rows that are given."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    model = _trees(by, len(found)) if kind == "monotone" else _logistic(values)

    def predict(x: Float) -> Float:
        with threadpool_limits(1):
            return np.asarray(model.predict_proba(x)[:, 1], np.float64)

    # On so few rows threads wait for each other most of the time: one is faster than two.
    with threadpool_limits(1):
        model.fit(values, found)
    return predict


def _trees(by: Sequence[str], rows: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier  # a second, for those who fit

    # Few and large leaves: with more of them, held-out rows of a known probability were calibrated worse.
    # Without early stopping nothing is drawn but the sample for the bins of large tables.
    return HistGradientBoostingClassifier(
        learning_rate=0.1, max_iter=60, max_bins=64, max_leaf_nodes=4, min_samples_leaf=max(20, rows // 50),
        l2_regularization=1.0, early_stopping=False, random_state=0,
        monotonic_cst=[direction(name) for name in by],
    )  # fmt: skip


def _logistic(values: Float) -> Any:
    from sklearn.linear_model import LogisticRegression  # as above
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler

    # S/N spans decades: on a linear scale a few bright arcs would bend the function for all others.
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    wide = (values.min(axis=0) > 0) & (high > 10 * low)
    scale = FunctionTransformer(
        lambda x: np.where(wide, np.log(np.where(wide, np.maximum(x, 1e-30), 1.0)), x)
    )
    features = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(scale, StandardScaler(), features, LogisticRegression(max_iter=1000))


def calibration(predicted: Float, found: NDArray[np.bool_], parts: int = 10) -> tuple[Float, Float, float]:
    """Predicted and observed share found in parts of equally many rows, and their mean difference.

    Parameters
    ----------
    predicted, found
        `(N,)` held-out completeness, and outcomes.
    parts
        At most.

    Returns
    -------
    predicted, observed
        `(P,)` means of each part.
    error
        Mean of their absolute differences.
    """
    order = np.argsort(predicted, kind="stable")
    pieces = np.array_split(order, min(parts, len(order)))
    said = np.array([predicted[p].mean() for p in pieces])
    seen = np.array([found[p].mean() for p in pieces])
    return said, seen, float(np.abs(said - seen).mean())


def grid(values: Float) -> tuple[Float, NDArray[np.int64]]:
    """Points at which the function is tabulated, within the central 99 % of each column.

    Evenly, or, along a positive column that spans more than a decade, evenly in its logarithm: S/N.

    Returns
    -------
    points
        `(P, D)` in C order.
    near
        `(P,)` rows within one and a half steps along every axis: with none, the function is a guess.
    """
    low, high = np.quantile(values, (0.005, 0.995), axis=0)
    wide = (values.min(axis=0) > 0) & (high > 10 * low)

    def scaled(x: Float) -> Float:
        return np.where(wide, np.log(np.where(wide, x, 1.0)), x)

    count = POINTS[values.shape[1]]
    axes = [
        np.geomspace(a, b, count) if log else np.linspace(a, b, count)
        for a, b, log in zip(low, high, wide, strict=True)
    ]
    points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    step = np.maximum((scaled(high) - scaled(low)) / (count - 1), 1e-12)
    tree = cKDTree(scaled(values) / step)
    near = tree.query_ball_point(scaled(points) / step, 1.5, p=np.inf, return_length=True)
    return points, np.asarray(near, np.int64)


def crossing(function: Function, values: Float, column: int, level: float) -> float:
    """Smallest value of a column from which the function reaches a level while the others are favourable.

    Parameters
    ----------
    function
        Completeness.
    values
        `(N, D)` rows it was fitted to.
    column
        Which one.
    level
        Completeness to reach.

    Returns
    -------
    value
        By interpolation; -inf when the function is above the level everywhere, inf when it is below.

    Notes
    -----
    Favourable: the others take the decile, among nine, at which the mean function is highest. So the value
    is what is needed even when nothing else is short.
    """
    low, high = np.quantile(values[:, column], (0.01, 0.99))
    line = np.linspace(low, high, 200)
    deciles = np.quantile(values, np.linspace(0.1, 0.9, 9), axis=0)
    axes = [line if k == column else deciles[:, k] for k in range(values.shape[1])]
    points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    table = np.moveaxis(function(points).reshape([len(a) for a in axes]), column, 0).reshape(len(line), -1)
    best = table[:, table.mean(axis=0).argmax()]
    above = best >= level
    if above[0] or not above.any():
        return -np.inf if above[0] else np.inf
    k = int(np.argmax(above))
    share = (level - best[k - 1]) / (best[k] - best[k - 1])
    return float(line[k - 1] + share * (line[k] - line[k - 1]))


def crossing_limits(
    values: Float, found: NDArray[np.bool_], by: Sequence[str], *, level: float, draws: int, seed: int
) -> tuple[Float, Float]:
    """95 % limits `(D,)`, `(D,)` of the crossing of a logistic fit in every column, from rows drawn again."""
    rng = np.random.default_rng([seed, 32])
    out = []
    for _ in range(draws):
        rows = rng.integers(0, len(found), len(found))
        if unfit(found[rows]):
            continue
        again = train("logistic", values[rows], found[rows], by)
        out.append([crossing(again, values, k, level) for k in range(len(by))])
    if not out:
        return np.full(len(by), -np.inf), np.full(len(by), np.inf)
    # Not interpolated: a limit may be infinite.
    low, high = np.quantile(out, (0.025, 0.975), axis=0, method="nearest")
    return np.asarray(low), np.asarray(high)
