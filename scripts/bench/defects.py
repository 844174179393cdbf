"""Planted defects in cutouts: which flags catch them, and how many clean rows are flagged for nothing.

    ripple simulate --output sky --patches 16
    ripple fetch ... -o cutouts
    python scripts/bench/defects.py cutouts [--config configs/quality-dp2.yaml] [--places 50]

Prints a Markdown table (docs/quality.md). "Visible" is decided from the pixels before and after the defect was
planted (`tests/support/planted.py`). Clean rows are those that no defect of the survey touches: every
pixel of every band is finite, and none is masked as no data, saturated, cosmic ray or interpolated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ripple.imaging.quality.flags import LABELS, flag_names

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from planted import DEFECTS, confusion

from ripple.cli.options import section
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality import measure
from ripple.stages.preprocess.batch import DataConstants, correlation_of, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import unpack_cutouts

NO_FLAGS = ("rejected", "visible", "found")
DAMAGE = (*measure.UNUSABLE, "INTERPOLATED", "INTRP", "COSMIC_RAY", "CR")


def clean_rows(batch: CutoutBatch) -> np.ndarray[Any, Any]:
    sound = measure.usable(batch) & ((batch.mask & batch.bits(*DAMAGE)) == 0)
    return np.flatnonzero(sound.all(axis=(1, 2, 3)) & (batch.psf_index >= 0).all(axis=1))


def alarms(
    batch: CutoutBatch, config: PreprocessConfig, constants: DataConstants
) -> tuple[int, int, dict[str, int]]:
    """Rows, rejected rows, and rows per flag, of the clean rows of a batch."""
    tensors = preprocess_batch(batch.take(clean_rows(batch)), config, constants)
    found = [flag_names(int(v)) for v in tensors.catalog["qc"]]
    counts = {flag: sum(flag in f for f in found) for flag in LABELS}
    return len(tensors), int((tensors.catalog["accept"] == 0).sum()), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cutouts", type=Path)
    parser.add_argument("--config", type=Path, help="thresholds, as for ripple preprocess")
    parser.add_argument("--places", type=int, default=50)
    args = parser.parse_args()
    cutouts = open_artefact(args.cutouts, "cutouts")
    config = PreprocessConfig.make(section(args.config, "preprocess") if args.config else {})
    margin = int(cutouts.manifest["attributes"]["margin"])
    batches = [unpack_cutouts(cutouts.read(k)) for k in range(len(cutouts.shards))]
    total = correlation_of(batches[0])
    for batch in batches[1:]:
        total = total + correlation_of(batch)
    rho = dict(zip(batches[0].bands, total.rho(), strict=True))
    constants = DataConstants(margin, noise_correlation=rho)
    rows, rejected, marked = 0, 0, dict.fromkeys(LABELS, 0)
    for batch in batches:
        n, r, counts = alarms(batch, config, constants)
        rows, rejected = rows + n, rejected + r
        marked = {flag: marked[flag] + counts[flag] for flag in marked}
    clean = clean_rows(batches[0])
    places = clean[clean > 0][:: max(1, len(clean) // args.places)][: args.places]
    table = confusion(batches[0], places, margin, config, constants)
    print(f"| planted ({len(places)} places each) | must be flagged | caught | of those visible | rejected |"
          " also flagged |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for name, (_, flag) in DEFECTS.items():
        found = table[name]
        also = ", ".join(f"{k} {v}" for k, v in found.items() if v and k not in (flag.label, *NO_FLAGS))
        seen = f"{found['found']} of {found['visible']}"
        print(f"| {name} | {flag.label} | {found[flag.label]} | {seen} | {found['rejected']} | {also} |")
    print(f"\n{rows} clean rows: {rejected} rejected ({100 * rejected / max(rows, 1):.2f} %).", end=" ")
    print("Flags: " + (", ".join(f"{k} {v}" for k, v in marked.items() if v) or "none") + ".")


if __name__ == "__main__":
    main()
