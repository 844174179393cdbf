"""Shortcut and leakage gates: how well a classifier does without looking for arcs.

Each gate sees only what must not tell lenses from non-lenses: the central pixels without arcs (the
deflector), statistics of the pixels beyond the galaxies, PSF and noise or the other columns of the catalogue;
or what knows nothing of shapes: the radial profile, integrated fluxes and colours. A logistic regression and
boosted trees are fitted on the training sky and evaluated on the rest. If a gate comes near the network, the
network may have learnt the simulation and not the lenses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.learn.data.training_set import TrainingSet, positions
from ripple.learn.evaluation.intervals import Estimate, Measure, auroc_estimate
from ripple.sky.splits import SPLITS, TRAIN, drop_neighbours, thumbnails, twin_thumbnails

Float = NDArray[np.float64]
#: From features and labels to a function that ranks features.
Classifier = Callable[[NDArray[np.float32], NDArray[Any]], Callable[[NDArray[np.float32]], Float]]
CHUNK = 256
#: Columns that state the answer or the position, or were measured on the cutout (which shows the arc).
ANSWERS = re.compile(
    r"^(index|id|objectId|label|class|ra|dec|tract|patch|input_.*|x0|y0|dx|dy|x|y|shard|row|accept|qc|size|split"
    r"|qc_.*|norm_.*|theta_E|sigma_v|z_source|source_.*|arc_.*|shear.*|magnification|n_images|truth_.*"
    r"|is_lens.*|morphology|coord_.*|lens_id|parent.*|injected.*|lens_.*|deflector_.*|z_.*|sim_.*|true_.*|score|probability)$"
)
#: Columns that describe the observing conditions.
PSF_NOISE = re.compile(r"(psf|fwhm|seeing|noise|sky|depth|variance|sigma|snr5|background)", re.IGNORECASE)


#: A proven shortcut has all of its interval above the limit, an excluded one all of it below.
Verdict = Literal["ok", "undecided", "shortcut"]


class GateRecord(TypedDict):
    """A `Gate` in JSON; its name is the key."""

    auroc: Measure
    features: int
    passed: bool
    verdict: Verdict


class NearDuplicates(TypedDict):
    """Rows with a twin in another split by position and by pixels; `pairs` of splits, as `train-test`."""

    position: int
    pixels: int
    pairs: list[str]


class GateReport(TypedDict):
    """What `run_gates` finds: `limit` is an AUROC, `columns` those of the catalogue that gates saw."""

    limit: float
    rows: int
    columns: list[str]
    shortcuts: dict[str, GateRecord]
    near_duplicates: NearDuplicates


@dataclass(frozen=True, slots=True)
class Gate:
    """How well one shortcut does.

    Parameters
    ----------
    name
        Of its features, with `_boosted` for boosted trees.
    auroc
        With its interval, on sky that it was not fitted to.
    features
        Numbers per row that it saw.
    limit
        AUROC that it must stay below; 1 for boosted trees that see the light of arcs, which are compared with
        the network alone.
    """

    name: str
    auroc: Estimate
    features: int
    limit: float

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        if self.auroc.low >= self.limit:
            return "shortcut"
        return "ok" if self.auroc.high < self.limit or self.limit >= 1 else "undecided"

    def as_dict(self) -> GateRecord:
        """JSON form."""
        verdict = self.verdict
        return {
            "auroc": self.auroc.as_dict(),
            "features": self.features,
            "passed": verdict != "shortcut",
            "verdict": verdict,
        }


def run_gates(data: TrainingSet, *, limit: float, rows: int, draws: int, seed: int) -> GateReport:
    """Run all gates, and look for near-duplicates across splits; JSON values.

    Parameters
    ----------
    data
        Binary labels and a split.
    limit
        AUROC that a shortcut must stay below.
    rows
        Rows at most, the same number of both classes as far as there are enough.
    draws, seed
        Of the bootstrap, and of the choice of rows.
    """
    chosen = _choose_rows(data, rows, seed)
    label, train = data.labels[chosen], data.split[chosen] == TRAIN
    columns = numeric_columns(data, chosen)
    features, small = pixel_features(data, chosen)
    features |= {
        "psf_noise": _matrix([v for k, v in columns.items() if PSF_NOISE.search(k)], len(chosen)),
        "catalogue": _matrix([v for k, v in columns.items() if not PSF_NOISE.search(k)], len(chosen)),
    }
    return {
        "limit": limit,
        "rows": len(chosen),
        "columns": sorted(columns),
        "shortcuts": gates_of(features, label, train, limit=limit, draws=draws, seed=seed),
        "near_duplicates": near_duplicates(data, small, chosen),
    }


def gates_of(
    features: dict[str, Float],
    label: NDArray[Any],
    train: NDArray[np.bool_],
    *,
    limit: float,
    draws: int,
    seed: int,
) -> dict[str, GateRecord]:
    """Gates, linear and boosted, on features by name; the options are those of `shortcut`."""
    gates: dict[str, GateRecord] = {}
    for name, x in features.items():
        if not x.shape[1]:  # a catalogue may have no such columns
            continue
        for kind, fit in (("", _linear), ("_boosted", _boosted)):
            # Rings and fluxes hold the light of arcs: what trees make of it is no shortcut in itself.
            high = 1.0 if name in SEES_ARCS and (kind or name == "flux_colour") else limit
            gate = shortcut(name + kind, x, label, train, fit, limit=high, draws=draws, seed=seed)
            gates[gate.name] = gate.as_dict()
    return gates


def pixel_features(
    data: TrainingSet, rows: NDArray[np.int64]
) -> tuple[dict[str, Float], NDArray[np.float32]]:
    """Features `(N, F)` of the pixels by name, and thumbnails `(N, B * 64)` of what is finer than 3 pixels.

    A few hundred images are in memory at a time: all of them, with the copies that features need, would take
    several times the memory of the rows.
    """
    parts: dict[str, list[Float]] = {name: [] for name in PIXEL_FEATURES}
    small = []
    for at in range(0, len(rows), CHUNK):
        image = data.dataset.read(rows[at : at + CHUNK]).astype(np.float32)
        for name, make in PIXEL_FEATURES.items():
            parts[name].append(make(image))
        # Only what is finer than 3 pixels: two smooth ellipticals are alike without being copies. Images
        # below 8 pixels cannot be compared that way.
        fine = min(image.shape[2:]) >= 8
        small.append(thumbnails(image - _smooth(image)) if fine else np.zeros((len(image), 1), np.float32))
    return {name: np.concatenate(found) for name, found in parts.items()}, np.concatenate(small)


def too_near(report: GateReport, network: float, distance: float) -> list[str]:
    """One line per shortcut above the limit or closer to the network than `distance`, and per leak.

    An interval decides: what a few rows may show by chance is no finding.
    """
    lines = []
    for name, gate in report["shortcuts"].items():
        found, low = gate["auroc"]["value"], gate["auroc"]["low"]
        if gate["verdict"] == "shortcut":
            lines.append(f"{name}: AUROC {found:.3f} without looking for arcs, limit {report['limit']:g}")
        elif low > max(network - distance, 0.5):
            lines.append(f"{name}: AUROC {found:.3f} is within {distance:g} of the network's {network:.3f}")
    twins = report["near_duplicates"]
    for kind, count in (("position", twins["position"]), ("pixels", twins["pixels"])):
        if count:
            lines.append(f"{count} near-duplicates across splits by {kind}")
    return lines


def shortcut(
    name: str,
    x: Float,
    label: NDArray[Any],
    train: NDArray[np.bool_],
    fit: Classifier,
    *,
    limit: float,
    draws: int,
    seed: int,
) -> Gate:
    """Fit on the training sky, evaluate on the rest.

    Parameters
    ----------
    name
        Of the gate.
    x
        `(N, F)`; values that are not finite are replaced by the mean.
    label
        `(N,)` 1 lens, 0 not.
    train
        `(N,)` rows to fit.
    fit
        From features and labels of the training rows to a function that ranks features.
    limit
        AUROC to stay below.
    draws, seed
        Of the bootstrap.
    """
    if len(np.unique(label[train])) < 2 or len(np.unique(label[~train])) < 2:
        raise DataError(
            f"gate {name} cannot be fitted: a split has only one class",
            hint="use more sky, or a larger --set gate_rows=N",
        )
    # Moments of the training sky only: nothing about the rest may enter the fit. Outliers are clipped.
    mean, std = _moments(x[train])
    scaled = np.where(np.isfinite(x), (x - mean) / std, 0.0).clip(-8, 8).astype(np.float32)
    rank = fit(scaled[train], label[train])
    found = auroc_estimate(label[~train], rank(scaled[~train]), draws=draws, seed=seed)
    return Gate(name, found, x.shape[1], limit)


def _linear(x: NDArray[np.float32], label: NDArray[Any]) -> Callable[[NDArray[np.float32]], Float]:
    from sklearn.linear_model import LogisticRegression  # a second, for those who train

    # Regularised beyond the default of C = 1: 100 pixels per band would be fitted to their noise.
    model = LogisticRegression(C=0.05, class_weight="balanced", max_iter=500)
    return model.fit(x, label).decision_function  # type: ignore[no-any-return]


def _boosted(x: NDArray[np.float32], label: NDArray[Any]) -> Callable[[NDArray[np.float32]], Float]:
    from sklearn.ensemble import HistGradientBoostingClassifier  # as above

    # Small trees: a level of either sign needs two cuts; a few hundred rows forgive no more. No weights of
    # classes, which take scikit-learn through slow quantiles: the rows are half and half as far as possible.
    model = HistGradientBoostingClassifier(
        max_iter=60,
        learning_rate=0.15,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    return model.fit(x, label).decision_function  # type: ignore[no-any-return]


def _moments(x: Float) -> tuple[Float, Float]:
    """Mean and standard deviation of finite values per column; 0 and 1 where there are none."""
    good = np.isfinite(x)
    count = np.maximum(good.sum(0), 1)
    mean = np.where(good, x, 0).sum(0) / count
    std = np.sqrt((np.where(good, x - mean, 0) ** 2).sum(0) / count)
    return mean, np.where(std > 0, std, 1.0)


def _choose_rows(data: TrainingSet, rows: int, seed: int) -> NDArray[np.int64]:
    """At most `rows` rows, half of each class; the common class fills up what the rare one lacks."""
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(data.split >= 0)
    groups = [usable[data.labels[usable] == k] for k in (1, 0)]
    first = min(len(groups[0]), max(rows // 2, rows - len(groups[1])))
    sizes = (first, min(len(groups[1]), rows - first))
    picked = [rng.permutation(g)[:n] for g, n in zip(groups, sizes, strict=True)]
    return np.sort(np.concatenate(picked))


def central_pixels(image: NDArray[np.floating]) -> Float:
    """The central 10x10 pixels of every band without arcs, `(N, B * 100)`.

    Of each pixel and the one opposite, the fainter counts: a deflector is symmetric, an arc is not.
    """
    h, w = image.shape[2:]
    # Odd around the pixel of the target, so that every pixel has its opposite; the last row and column go.
    y, x = max(h // 2 - 5, 0), max(w // 2 - 5, 0)
    part = image[:, :, y : y + 11, x : x + 11]
    faint = np.minimum(part, part[:, :, ::-1, ::-1])[:, :, :10, :10]
    # 10 pixels are 2 arcsec at LSST's scale: the deflector rather than the arcs.
    return np.asarray(faint.reshape(len(image), -1), np.float64)


def pixel_noise(image: NDArray[np.floating]) -> Float:
    """Level, noise and its correlation in the corners of every band, beyond the galaxies, `(N, B * 6)`."""
    h, w = image.shape[2:]
    y, x = np.mgrid[:h, :w]
    corner = np.hypot(y - (h - 1) / 2, x - (w - 1) / 2) > min(h, w) / 2
    values = image[:, :, corner].astype(np.float64)  # (N, B, P)
    q10, median, q90 = np.quantile(values, (0.1, 0.5, 0.9), axis=2)
    scale = np.median(np.abs(values - median[..., None]), axis=2)
    across = np.diff(image, axis=3)[:, :, corner[:, 1:] & corner[:, :-1]]
    along = np.diff(image, axis=2)[:, :, corner[1:] & corner[:-1]]
    # The scatter of differences of neighbours is sqrt(2 (1 - correlation)) times that of the pixels.
    lags = [np.median(np.abs(d), axis=2) for d in (across, along)]
    found = np.stack([median, q10, q90, scale, *(lag / np.maximum(scale, 1e-12) for lag in lags)], axis=2)
    return found.reshape(len(image), -1)


def flux_colour(image: NDArray[np.floating]) -> Float:
    """Mean light within 3 and 8 pixels and in the whole stamp by band, and differences of neighbouring bands,
    `(N, 3 * (2 B - 1))`.
    """
    h, w = image.shape[2:]
    y, x = np.mgrid[:h, :w]
    r = np.hypot(y - h // 2, x - w // 2)
    light = [image[:, :, r < radius].mean(axis=2, dtype=np.float64) for radius in (3, 8, np.inf)]
    return np.concatenate([*light, *(np.diff(band, axis=1) for band in light)], axis=1)


def radial_profile(image: NDArray[np.floating], step: float = 2.0) -> Float:
    """Mean in rings of `step` pixels around the target, per band, `(N, B * R)`."""
    n, b, h, w = image.shape
    y, x = np.mgrid[:h, :w]
    # The mean of a ring knows nothing of shape: an arc and a ring of the same light look alike.
    ring = (np.hypot(y - h // 2, x - w // 2) / step).astype(int).ravel()
    inside = ring < min(h, w) // 2 / step
    weight = np.zeros((h * w, int(ring[inside].max()) + 1), np.float32)
    weight[np.flatnonzero(inside), ring[inside]] = 1
    weight /= weight.sum(0)  # (H * W, R): one product gives the means of all rings
    return (image.reshape(n * b, -1) @ weight).reshape(n, -1).astype(np.float64)


def numeric_columns(data: TrainingSet, rows: NDArray[np.int64]) -> dict[str, Float]:
    """Numeric catalogue columns that vary and do not state the answer, `(len(rows),)` each.

    A column that is empty for one class exists only because of the answer, and is left out.
    """
    found, label = {}, data.labels[rows]
    for name in data.dataset.column_names():
        if ANSWERS.match(name):
            continue
        column = data.dataset.column(name)
        if column.ndim != 1 or column.dtype.kind not in "iufb":
            continue
        values = column[rows].astype(np.float64)
        good = np.isfinite(values)
        known = min(float(good[label == k].mean()) for k in (0, 1))
        # Only what a survey has for nearly every row of both classes.
        if known > 0.9 and values[good].min() < values[good].max():
            found[name] = values
    return found


def _matrix(columns: list[Float], n: int) -> Float:
    """Columns side by side, `(n, F)`; F may be 0."""
    return np.stack(columns, 1) if columns else np.zeros((n, 0))


def near_duplicates(data: TrainingSet, small: NDArray[np.float32], rows: NDArray[np.int64]) -> NearDuplicates:
    """How many rows have a twin in another split: by position (2 arcsec) and by pixels, as thumbnails."""
    split = data.split[rows]
    ra, dec = (values[rows] for values in positions(data.dataset))
    near = drop_neighbours(ra, dec, split, radius=2.0) != split
    first, second = twin_thumbnails(small, split)
    names = [f"{SPLITS[split[a]]}-{SPLITS[split[b]]}" for a, b in zip(first, second, strict=True)]
    return {"position": int(near.sum()), "pixels": len(first), "pairs": sorted(set(names))}


def _smooth(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 3x3 pixels: without it noise remains, which two different objects never share."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    h, w = image.shape[2:]
    total = np.zeros_like(image)
    for k in range(9):
        total += padded[:, :, k // 3 : k // 3 + h, k % 3 : k % 3 + w]
    return np.asarray(total / np.float32(9), np.float32)


#: Name -> features of the pixels.
PIXEL_FEATURES: dict[str, Callable[[NDArray[np.floating]], Float]] = {
    "central_pixels": central_pixels,
    "radial_profile": radial_profile,
    "pixel_noise": pixel_noise,
    "flux_colour": flux_colour,
}
#: Those with the light of arcs in them.
SEES_ARCS = ("radial_profile", "flux_colour")
