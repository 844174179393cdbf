"""Fusion of grades on a simulated panel: average precision and calibration error of several ways.

    python scripts/bench/vetting.py
    python scripts/bench/vetting.py --crowdkit PYTHON     # an interpreter that has crowd-kit
    python scripts/bench/vetting.py --pictures            # CPU time of a page of 36 pictures, by view

The panel: 2,600 objects, 15 % of them lenses, six graders who each see half of them, 150 hidden tests (75 of
each kind, beyond the 2,600). How clear an object is (`difficulty`) is the same for all graders, so that they err
on the same objects; each has their own offset, noise and share of careless grades. Mean and standard deviation
over five panels. crowd-kit needs transformers and nltk, so it lives in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time

import numpy as np
from sklearn.metrics import average_precision_score

from ripple.vetting.consensus import calibration_error, fuse

OBJECTS, LENSES, GRADERS, TESTS = 2600, 0.15, 6, 150

CROWDKIT = """
import json, sys
import pandas as pd
from crowdkit.aggregation import DawidSkene
table = pd.DataFrame(json.load(sys.stdin), columns=["task", "worker", "label"])
found = DawidSkene(n_iter=100).fit_predict_proba(table)
value = (found * [float(c) for c in found.columns]).sum(axis=1) / 3.0
print(json.dumps({str(k): float(v) for k, v in value.items()}))
"""


def panel(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels `(N, J)`, true kinds `(N,)`, and `(N,)` True for tests."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.random(OBJECTS) < LENSES, np.arange(TESTS) % 2 == 0]).astype(np.int8)
    n = len(truth)
    # What everybody sees of an object: clear lenses and clear others are far apart, and many are neither.
    seen = np.where(truth == 1, 1.25, -1.0) + rng.normal(0, 0.55, n)
    offset, noise = rng.normal(0, 0.42, GRADERS), rng.uniform(0.5, 1.1, GRADERS)
    careless = rng.uniform(0.0, 0.06, GRADERS)
    felt = seen[:, None] + offset + noise * rng.normal(size=(n, GRADERS))
    level = np.digitize(felt, [0.0, 0.7, 1.5]).astype(np.int8)
    level = np.where(rng.random(level.shape) < careless, rng.integers(0, 4, level.shape), level).astype(
        np.int8
    )
    level[rng.random(level.shape) < 0.5] = -1
    is_test = np.arange(n) >= OBJECTS
    return level, truth, is_test


def ways(level: np.ndarray, truth: np.ndarray, is_test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Probability or ranking value of every object, by way."""
    given = level >= 0
    value = np.where(given, level, np.nan).astype(float)
    standard = (value - np.nanmean(value, axis=0)) / np.nanstd(value, axis=0)
    known = np.where(is_test, truth, -1).astype(np.int8)
    fused = fuse(level, known, seed=seed)
    with np.errstate(invalid="ignore"):
        return {
            "mean grade": np.nan_to_num(np.nanmean(value, axis=1)),
            "mean of standardised grades": np.nan_to_num(np.nanmean(standard, axis=1)),
            "ripple, not corrected": _uncorrected(level, known),
            "ripple consensus": fused.probability,
        }


def _uncorrected(level: np.ndarray, known: np.ndarray) -> np.ndarray:
    from ripple.vetting import consensus

    return consensus._learn(level, known)[2]


def crowdkit(python: str, level: np.ndarray, cut: bool) -> np.ndarray:
    """crowd-kit's Dawid-Skene, without hidden tests: of the four grades (their expectation), or cut at C."""
    value = (level > 0).astype(int) * 3 if cut else level
    rows = [[int(i), int(j), int(value[i, j])] for i, j in zip(*np.nonzero(level >= 0), strict=True)]
    command, text = [python, "-c", CROWDKIT], json.dumps(rows)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return np.array([found.get(str(k), 0.0) for k in range(len(level))])


def pictures() -> None:
    """CPU milliseconds for 36 pictures of 64 px in four bands."""
    from ripple.vetting.pictures import VIEWS, Pictures

    rng, side = np.random.default_rng(0), 64
    y, x = np.mgrid[:side, :side] - side // 2
    galaxy = 60 * np.exp(-2 * np.sqrt((x**2 + 1.4 * y**2) / 8 + 0.4))
    pixels = (galaxy + rng.normal(0, 1, (72, 4, side, side))).astype(np.float32)
    drawn = Pictures(pixels, ("g", "r", "i", "z"), np.full(4, 0.8), 0.2)
    for view in (*VIEWS, "g"):
        drawn.png(36, view)  # what is measured once per session
        begin = time.process_time()
        for k in range(36):
            drawn.png(k, view)
        print(f"{view:10s} {1e3 * (time.process_time() - begin):6.0f} ms")


def main() -> None:
    import warnings

    warnings.simplefilter("ignore", RuntimeWarning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--crowdkit", metavar="PYTHON")
    parser.add_argument("--pictures", action="store_true")
    options = parser.parse_args()
    if options.pictures:
        pictures()
        return
    results: dict[str, list[tuple[float, float]]] = {}
    inside = []
    for seed in range(options.seeds):
        level, truth, is_test = panel(seed)
        found = ways(level, truth, is_test, seed)
        if options.crowdkit:
            found["crowd-kit, four grades"] = crowdkit(options.crowdkit, level, cut=False)
            found["crowd-kit, cut at C"] = crowdkit(options.crowdkit, level, cut=True)
        use = ~is_test & (level >= 0).any(axis=1)
        for name, value in found.items():
            ece = (
                calibration_error(value[use], truth[use])
                if value[use].max() <= 1 and value.min() >= 0
                else np.nan
            )
            results.setdefault(name, []).append((average_precision_score(truth[use], value[use]), ece))
        fused = fuse(level, np.where(is_test, truth, -1).astype(np.int8), seed=seed)
        inside.append(
            (
                fused.slope,
                fused.share,
                calibration_error(fused.held_out, truth[is_test & (level >= 0).any(axis=1)]),
            )
        )
    print(f"{'way':30s} {'average precision':>20s} {'calibration error':>20s}")
    for name, rows in results.items():
        mean, std = np.mean(rows, axis=0), np.std(rows, axis=0)
        ece = "" if np.isnan(mean[1]) else f"{mean[1]:.3f} +- {std[1]:.3f}"
        print(f"{name:30s} {mean[0]:12.3f} +- {std[0]:.3f} {ece:>20s}")
    slope, share, held = np.mean(inside, axis=0)
    print(
        f"slope {slope:.2f}, share of lenses {share:.3f} (true {LENSES}), calibration error on tests {held:.3f}"
    )


if __name__ == "__main__":
    main()
