#!/usr/bin/env python3
"""A blind search against a search of a catalogue: which of the same lenses each finds, at one threshold.

    .venv/bin/python scripts/bench/blind.py [--patches 3] [--training 12] [--epochs 15] [--steps 16,8] [--directory DIR]
    .venv/bin/python scripts/bench/blind.py --model benchmark/model

Trains a d4cnn of width 4 on one simulated survey (or takes a model for 64 px in gri) and searches another one, of other
sky: once at the positions of the truth, once with windows on a grid, whose detections are taken as the grid has them
and refined to a pixel. A lens counts as found by a detection within 2.5 arcsec; a detection more than 6 arcsec from any
lens is false. Lenses are counted at the same number of false detections, since the best of many windows has a higher
score than one, and at the threshold of the model. Prints Markdown; 15 minutes of two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.units import arcsec

from ripple.learn.model.calibrate import logit
from ripple.learn.model.contract import load_contract
from ripple.stages.search.detections import best_windows

#: Arcsec within which a detection is that of a lens, and beyond which it is none.
NEAR, FAR = 2.5, 6.0
#: False detections at which lenses are counted.
FALSE = (5, 10, 20)


def ripple(*argv: str) -> None:
    subprocess.run([sys.executable, "-m", "ripple", *argv, "-q"], check=True, stdout=subprocess.DEVNULL)


def survey(directory: Path, patches: int, seed: int, tract: int) -> list[str]:
    """Simulate it once; the options that select it."""
    if not (directory / "manifest.json").exists():
        shape = ["--patches", str(patches), "--seed", str(seed), "--set", f"tract={tract}"]
        ripple("simulate", str(directory), *shape, "--bands", "gri")
    return ["--repo", str(directory / "repo"), "--collections", "mini"]


def trained(work: Path, where: list[str], truth: Path, epochs: int) -> Path:
    """A model of the first survey."""
    model = work / "model"
    if not model.exists():
        shape = ["--bands", "gri", "--size", "64", "--targets", str(truth), "--label-column", "label"]
        ripple("fetch", *where, *shape, "-o", str(work / "cutouts"), "--workers", "2")
        ripple("preprocess", str(work / "cutouts"), "-o", str(work / "tensors"), "--workers", "2")
        how = ["--network", "d4cnn", "--width", "4", "--epochs", str(epochs), "--nside", "4096"]
        ripple("train", str(work / "tensors"), *how, "-o", str(model))
    return model


def sky(table: pa.Table) -> SkyCoord:
    return SkyCoord(table["ra"].to_numpy(), table["dec"].to_numpy(), unit="deg")


def accepted(directory: Path) -> pa.Table:
    table = pq.read_table(directory / "scores.parquet")
    return table.filter(pa.compute.equal(table["accept"], 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=3)
    parser.add_argument("--training", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--steps", default="16,8")
    parser.add_argument(
        "--model", type=Path, help="instead of training one, which a thousand rows do not teach much"
    )
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    work = options.directory or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    model = options.model
    if model is None:
        first = survey(work / "first", options.training, 5, 5063)
        model = trained(work, first, work / "first" / "truth.parquet", options.epochs)
    second = survey(work / "second", options.patches, 9, 4849)
    truth = pq.read_table(work / "second" / "truth.parquet")
    lenses = sky(truth.filter(pa.compute.equal(truth["label"], 1)))
    rows = []
    catalogue = ["--targets", str(work / "second" / "truth.parquet"), "--label-column", "label"]
    for step in (None, *map(float, options.steps.split(","))):
        output = work / ("catalogue" if step is None else f"grid-{step:g}")
        selected = catalogue if step is None else ["--tract", "4849", "--grid", f"{step:g}"]
        ripple("search", str(model), *second, *selected, "-o", str(output), "--workers", "2")
        rows.append((step, output))
    threshold = load_contract(model).threshold
    print(f"{len(lenses)} lenses; threshold of the model {threshold:.3f}\n")
    counts = " | ".join(f"lenses before {n} false" for n in FALSE)
    print(
        f"| targets | windows | {counts} | at the threshold: lenses, false | distance px: median, 90 % | duplicates |"
    )
    print("|---" * (len(FALSE) + 5) + "|")
    for step, output in rows:
        windows = pq.read_metadata(output / "scores.parquet").num_rows
        if step is None:
            print(line("catalogue", windows, accepted(output), lenses, threshold))
            continue
        print(line(f"grid of {step:g} px", windows, best_windows(output, 5.0, 0.0), lenses, threshold))
        finer = sum(pq.read_metadata(p).num_rows for p in output.glob("refined/*/scores.parquet"))
        found = pq.read_table(output / "detections.parquet")
        print(line(f"grid of {step:g} px, refined", windows + finer, found, lenses, threshold))
        centroids(output, lenses, threshold)
    falling(rows[-1][1], lenses, threshold)


def passes(output: Path) -> list[pa.Table]:
    """Accepted windows of the grid, and of the finer passes."""
    return [
        accepted(path.parent)
        for path in (output / "scores.parquet", *sorted(output.glob("refined/*/scores.parquet")))
    ]


def centroids(output: Path, lenses: SkyCoord, threshold: float) -> None:
    """Distance of the mean of windows, weighted by score, within 8 px of detections of lenses."""
    windows = pa.concat_tables([t.select(["ra", "dec", "score"]) for t in passes(output)[1:]])
    found = pq.read_table(output / "detections.parquet")
    places, score = sky(windows), windows["score"].to_numpy()
    of, at, _, _ = search_around_sky(sky(found), places, 8 * 0.2 * arcsec)
    weight = np.bincount(of, score[at], found.num_rows)
    means = [
        np.bincount(of, score[at] * windows[n].to_numpy()[at], found.num_rows) / weight for n in ("ra", "dec")
    ]
    _, apart, _ = SkyCoord(*means, unit="deg").match_to_catalog_sky(lenses)
    near = (sky(found).match_to_catalog_sky(lenses)[1].arcsec < NEAR) & (
        found["score"].to_numpy() >= threshold
    )
    print(
        f"| - centroids of its windows | | | | | | {np.median(apart.arcsec[near]) / 0.2:.1f}, {np.quantile(apart.arcsec[near], 0.9) / 0.2:.1f} | |"
    )


def falling(output: Path, lenses: SkyCoord, threshold: float) -> None:
    """How much lower the score is of windows that are off a lens, for lenses that are found."""
    windows = pa.concat_tables([t.select(["ra", "dec", "score"]) for t in passes(output)])
    value = logit(windows["score"].to_numpy())
    of, at, apart, _ = search_around_sky(lenses, sky(windows), 2.5 * arcsec)
    best = np.full(len(lenses), -np.inf)
    np.maximum.at(best, of, value[at])
    good = best[of] >= logit(threshold)
    print("\nLogits below the best window of a lens that is found, by distance: ", end="")
    pixel = apart.arcsec[good] / 0.2
    for low in range(0, 12, 2):
        inside = (pixel >= low) & (pixel < low + 2)
        print(f"{low}-{low + 2} px {np.median((best[of] - value[at])[good][inside]):.1f}; ", end="")
    print()


def line(name: str, windows: int, found: pa.Table, lenses: SkyCoord, threshold: float) -> str:
    """A row of the table, for detections sorted by score."""
    places = sky(found)
    lens, apart, _ = places.match_to_catalog_sky(lenses)
    near, false = apart.arcsec < NEAR, np.cumsum(apart.arcsec > FAR)
    counts = [
        len(set(lens[near & (false <= n)])) if false[-1] >= n else f"{len(set(lens[near]))} (of {false[-1]})"
        for n in FALSE
    ]
    strong = found["score"].to_numpy() >= threshold
    off = apart.arcsec[near & strong] / 0.2
    pairs = (len(search_around_sky(places, places, 5 * arcsec)[0]) - len(places)) // 2
    of_threshold = f"{len(set(lens[near & strong]))}, {false[strong][-1] if strong.any() else 0}"
    distance = "-" if name == "catalogue" else f"{np.median(off):.1f}, {np.quantile(off, 0.9):.1f}"
    shown = " | ".join(map(str, counts))
    return f"| {name} | {windows:,} | {shown} | {of_threshold} | {distance} | {'-' if name == 'catalogue' else pairs} |"


if __name__ == "__main__":
    main()
