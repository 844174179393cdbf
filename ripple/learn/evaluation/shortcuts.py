"""Shortcut and leakage gates: how well a classifier does without looking for arcs.

Each gate is a logistic regression that sees only what must not tell lenses from non-lenses: the central
pixels (the deflector), PSF and noise, the radial profile, or the columns of the catalogue. It is fitted on
the training sky and evaluated on the rest. If a gate comes near the network, the network may have learnt the
simulation and not the lenses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.learn.data.training_set import TrainingSet, positions
from ripple.learn.evaluation.intervals import Estimate, Measure, auroc_estimate
from ripple.sky.splits import SPLITS, TRAIN, drop_neighbours, twin_images

Float = NDArray[np.float64]
#: Columns that state the answer or the position, or were measured on the cutout (which shows the arc).
ANSWERS = re.compile(
    r"^(index|id|objectId|label|class|ra|dec|tract|patch|input_.*|x0|y0|dx|dy|x|y|shard|row|accept|qc|size|split"
    r"|qc_.*|norm_.*|theta_E|sigma_v|z_source|source_.*|arc_.*|shear.*|magnification|n_images|truth_.*"
    r"|is_lens.*|morphology|coord_.*|lens_id|parent.*)$"
)
#: Columns that describe the observing conditions.
PSF_NOISE = re.compile(r"(psf|fwhm|seeing|noise|sky|depth|variance|sigma|snr5|background)", re.IGNORECASE)


class GateRecord(TypedDict):
    """A `Gate` in JSON; its name is the key."""

    auroc: Measure
    features: int
    passed: bool


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
        central_pixels, psf_noise, radial_profile or catalogue.
    auroc
        With its interval, on sky that the regression was not fitted to.
    features
        Numbers per row that it saw.
    passed
        True below the limit.
    """

    name: str
    auroc: Estimate
    features: int
    passed: bool

    def as_dict(self) -> GateRecord:
        """JSON form."""
        return {"auroc": self.auroc.as_dict(), "features": self.features, "passed": self.passed}


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
    # (n, B, H, W) in memory at once, hence the limit on rows.
    image = data.dataset.read(chosen).astype(np.float32)
    label, train = data.labels[chosen], data.split[chosen] == TRAIN
    columns = numeric_columns(data, chosen)
    features = {
        "central_pixels": central_pixels(image),
        "psf_noise": _matrix([v for k, v in columns.items() if PSF_NOISE.search(k)], len(chosen)),
        "radial_profile": radial_profile(image),
        "catalogue": _matrix([v for k, v in columns.items() if not PSF_NOISE.search(k)], len(chosen)),
    }
    gates = {
        name: shortcut(name, x, label, train, limit=limit, draws=draws, seed=seed).as_dict()
        for name, x in features.items()
        if x.shape[1]  # a catalogue may have no such columns
    }
    return {
        "limit": limit,
        "rows": len(chosen),
        "columns": sorted(columns),
        "shortcuts": gates,
        "near_duplicates": near_duplicates(data, image, chosen),
    }


def too_near(report: GateReport, network: float, distance: float) -> list[str]:
    """One line per shortcut at or above the limit or closer to the network than `distance`, and per leak."""
    lines = []
    for name, gate in report["shortcuts"].items():
        found = gate["auroc"]["value"]
        if found >= report["limit"]:
            lines.append(f"{name}: AUROC {found:.3f} without looking for arcs, limit {report['limit']:g}")
        elif found > network - distance:
            lines.append(f"{name}: AUROC {found:.3f} is within {distance:g} of the network's {network:.3f}")
    twins = report["near_duplicates"]
    for kind, count in (("position", twins["position"]), ("pixels", twins["pixels"])):
        if count:
            lines.append(f"{count} near-duplicates across splits by {kind}")
    return lines


def shortcut(
    name: str, x: Float, label: NDArray[Any], train: NDArray[np.bool_], *, limit: float, draws: int, seed: int
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
    limit
        AUROC to stay below.
    draws, seed
        Of the bootstrap.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(label[train])) < 2 or len(np.unique(label[~train])) < 2:
        raise DataError(
            f"gate {name} cannot be fitted: a split has only one class",
            hint="use more sky, or a larger --set gate_rows=N",
        )
    # Moments of the training sky only: nothing about the rest may enter the fit. Outliers are clipped.
    mean, std = _moments(x[train])
    scaled = np.where(np.isfinite(x), (x - mean) / std, 0.0).clip(-8, 8)
    # Regularised beyond the default of C = 1: 100 pixels per band would be fitted to their noise.
    model = LogisticRegression(C=0.05, class_weight="balanced", max_iter=500)
    model.fit(scaled[train], label[train])
    found = auroc_estimate(label[~train], model.decision_function(scaled[~train]), draws=draws, seed=seed)
    return Gate(name, found, x.shape[1], found.value < limit)


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
    """The central 10x10 pixels of every band, `(N, B * 100)`."""
    h, w = image.shape[2:]
    y, x = h // 2 - 5, w // 2 - 5
    # 10 pixels are 2 arcsec at LSST's scale: the deflector rather than the arcs.
    return image[:, :, y : y + 10, x : x + 10].reshape(len(image), -1).astype(np.float64)


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


def near_duplicates(data: TrainingSet, image: NDArray[np.float32], rows: NDArray[np.int64]) -> NearDuplicates:
    """How many rows have a twin in another split: by position (2 arcsec) and by pixels."""
    split = data.split[rows]
    ra, dec = (values[rows] for values in positions(data.dataset))
    near = drop_neighbours(ra, dec, split, radius=2.0) != split
    # Only what is finer than 3 pixels: two smooth ellipticals are alike without being copies.
    high = image - _smooth(image)
    # `twin_images` bins to 8x8: smaller images cannot be compared that way.
    first, second = twin_images(high, split) if min(image.shape[2:]) >= 8 else (rows[:0], rows[:0])
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
