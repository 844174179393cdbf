"""The table of docs/benchmark.md: every member of every model on held-out sky and on another sky.

Run: python scripts/bench/benchmark.py MODEL... --tensors benchmark/tensors --test benchmark-test/tensors
Prints Markdown. Each member is calibrated by itself on the validation sky it was not trained on, as a model of
one member would be; the last line of a model is its ensemble.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ripple.imaging.simulation.observing import PIXEL_SCALE, magnitude, noise_sigma
from ripple.learn.config import ScoreConfig
from ripple.learn.data.psf_input import widths_told, with_widths
from ripple.learn.evaluation.evaluate import evaluate
from ripple.learn.evaluation.intervals import Measured, printed
from ripple.learn.model import calibrate
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.evaluation import visible
from ripple.learn.scoring.score import outputs, split_names
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.shard_reader import map_tensors

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Labelled, accepted rows with the logits `(n, members)` of a model."""

    label: NDArray[np.int64]
    arc_sb: Float
    logit: Float
    seconds: float


def rows_of(model: Model, artefact: Artefact, split: str) -> Rows:
    """Logits of the rows of one split; `seconds` holds reading, the network and nothing else."""
    label, sb, logit, seconds = [], [], [], 0.0
    for k in range(len(artefact.shards)):
        batch = map_tensors(artefact.verified_path(k))
        keep = (np.asarray(batch.catalog["label"]) >= 0) & (np.asarray(batch.catalog["accept"]) != 0)
        keep &= split_names(model.contract, artefact.digest, batch) == split
        rows = np.flatnonzero(keep)
        width = widths_told(batch.catalog, model.contract.bands, model.contract.psf_input)
        began = time.perf_counter()
        for at in range(0, len(rows), 256):
            some = rows[at : at + 256]
            image = torch.from_numpy(batch.image[some].astype(np.float32))
            values = (
                outputs(model, with_widths(image, None if width is None else width[some]))[0][:, :, 0]
                .numpy()
                .astype(np.float64)
            )
            logit.append(values.reshape(len(image), len(model.nets), -1).mean(2))
        seconds += time.perf_counter() - began
        label.append(np.asarray(batch.catalog["label"])[rows].astype(np.int64))
        sb.append(np.asarray(batch.catalog["arc_sb"], np.float64)[rows])
    return Rows(np.concatenate(label), np.concatenate(sb), np.concatenate(logit), seconds)


def judge(rows: Rows, logit: Float, known: calibrate.Calibration, limit: float) -> dict[str, Any]:
    """Metrics of one ranking; probabilities are moved to the prevalence of these rows."""
    p = known.probability(logit, prevalence=float(rows.label.mean()))
    score = calibrate.sigmoid(logit)
    found: dict[str, Any] = evaluate(rows.label, score, p, threshold=0.5, draws=500)["metrics"]
    bright = (rows.label == 0) | (rows.arc_sb < limit)
    config = ScoreConfig.make({"model": "-", "tensors": ["-"], "output": "-", "visible_sb": limit})
    seen = visible(rows.label[bright], score[bright], config)
    return found | {"visible_auroc": seen["auroc"], "visible_tpr": seen["tpr_at_fpr_1e-2"]}


def shown(entry: Measured) -> str:
    """A number with its interval, if it has one."""
    return printed(entry, 3)


COLUMNS = {
    "visible_auroc": "AUROC visible",
    "visible_tpr": "TPR visible at FPR 1e-2",
    "auroc": "AUROC all",
    "pr_auc": "PR-AUC all",
    "tpr_at_fpr_1e-3": "TPR all at FPR 1e-3",
    "tpr_at_fpr_1e-2": "TPR all at FPR 1e-2",
    "ece": "ECE",
}


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tensors", type=Path, required=True, help="sky that the models were trained on")
    parser.add_argument("--test", type=Path, help="another sky")
    parser.add_argument("--limit", type=float, default=26.0, help="visible: arc_sb below this, mag/arcsec^2")
    args = parser.parse_args()
    sigma = float(magnitude(noise_sigma("g") / PIXEL_SCALE**2))
    print(f"Sky noise of a g pixel {sigma:.2f} mag/arcsec^2; limit {args.limit:g} is "
          f"{10 ** (0.4 * (sigma - args.limit)):.1f} times that.")  # fmt: skip
    skies = {"held-out": (open_artefact(args.tensors, "tensors"), "test")}
    if args.test:
        skies["other"] = (open_artefact(args.test, "tensors"), "test")
    for name, (artefact, split) in skies.items():
        print(
            f"\n## {name}\n\n| network | seed | parameters | rows/s | " + " | ".join(COLUMNS.values()) + " |"
        )
        print("|---" * (4 + len(COLUMNS)) + "|")
        for path in args.models:
            model = load_model(path)
            fitting = rows_of(model, skies["held-out"][0], "validation")
            rows = rows_of(model, artefact, split)
            seeds = [str(m.seed) for m in model.contract.members]
            rankings = [(seeds[k], fitting.logit[:, k], rows.logit[:, k]) for k in range(len(model.nets))]
            if len(model.nets) > 1:
                rankings.append(("mean", fitting.logit.mean(1), rows.logit.mean(1)))
            for seed, before, logit in rankings:
                known = calibrate.fit("temperature", before, fitting.label)
                found = judge(rows, logit, known, args.limit)
                size = sum(p.numel() for p in model.nets[0].parameters())
                members = len(model.nets) if seed == "mean" else 1
                rate = len(rows.label) * len(model.nets) / members / rows.seconds
                cells = [model.contract.architecture.name, seed, f"{size * members:,}", f"{rate:,.0f}"]
                print(f"| {' | '.join(cells + [shown(found[c]) for c in COLUMNS])} |", flush=True)
        lenses, faint = int((rows.label == 1).sum()), int((rows.arc_sb >= args.limit).sum())
        print(f"\n{len(rows.label)} rows, {lenses} lenses, of which {lenses - faint} visible.")


if __name__ == "__main__":
    main()
