#!/usr/bin/env python3
"""A blind search against a search of a catalogue: which of the same lenses each finds, at one threshold.

    .venv/bin/python scripts/bench/blind.py [--patches 3] [--training 12] [--epochs 15] [--steps 16,8] [--directory DIR]
    .venv/bin/python scripts/bench/blind.py --model benchmark/model

Trains a d4cnn of width 4 on one simulated survey (or takes a model for 64 px in gri) and searches another one, of other
sky: once at the positions of the truth, once with windows on a grid. The threshold leaves 1e-3 of the windows that show no lens. A lens counts as found
when a window within 2.5 arcsec of it is above the threshold. Prints Markdown; 15 minutes of two cores.
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

#: Arcsec within which a window sees a lens.
NEAR = 2.5
FPR = 1e-3


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


def best_near(lenses: SkyCoord, windows: SkyCoord, score: np.ndarray) -> np.ndarray:
    """Highest score of a window near each lens, -1 where there is none."""
    best = np.full(len(lenses), -1.0)
    of_lens, of_window, _, _ = search_around_sky(lenses, windows, NEAR * arcsec)
    np.maximum.at(best, of_lens, score[of_window])
    return best


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
    # One threshold for all: of the densest grid, whose windows are the sky that a blind search sees.
    table = accepted(rows[-1][1])
    places, score = sky(table), table["score"].to_numpy()
    far = places.match_to_catalog_sky(lenses)[1] > 6 * arcsec
    threshold = float(np.quantile(score[far], 1 - FPR))
    print(
        f"{len(lenses)} lenses; threshold {threshold:.3f}, above which {FPR:g} of {far.sum():,} windows without one lie\n"
    )
    print("| targets | windows | lenses found | recall | pairs of detections within 5 arcsec |")
    print("|---|---|---|---|---|")
    for step, output in rows:
        table = accepted(output)
        found = int((best_near(lenses, sky(table), table["score"].to_numpy()) >= threshold).sum())
        pairs = "-"
        if step is not None:
            detections = sky(pq.read_table(output / "detections.parquet"))
            close = search_around_sky(detections, detections, 5 * arcsec)
            pairs = str((len(close[0]) - len(detections)) // 2)
        name = "catalogue" if step is None else f"grid of {step:g} px"
        print(f"| {name} | {table.num_rows:,} | {found} | {100 * found / len(lenses):.1f} % | {pairs} |")


if __name__ == "__main__":
    main()
