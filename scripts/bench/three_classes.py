"""A finder of three classes from a catalogue with text labels: the table of docs/explanation/honest-numbers.md.

Run: python scripts/bench/three_classes.py -o OUT [--rows 2400]
Ellipticals, spirals and lenses, half, three tenths and a fifth of the rows. Prints Markdown: how the lens class ranks, against
a ranking by "not the first class"; shares; calibration by class; the confusion matrix. OUT/page has the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from gap_sky import BANDS, KINDS, Instrument, make_sky, noise_level, observe

from ripple import write_tensors
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.evaluation.intervals import auroc_estimate, printed
from ripple.learn.model.contract import load_contract
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.report import report

#: Shares of `KINDS`: ellipticals, spirals, no pairs, lenses.
SHARES = tuple({"elliptical": 5.0, "spiral": 3.0, "lens": 2.0}.get(kind, 0.0) for kind in KINDS)
SEEING = Instrument(noise=(0.15, 0.15, 0.15))


def main() -> None:
    """Write, train, score and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2400)
    args = parser.parse_args()
    tensors, model, scores = (args.output / name for name in ("tensors", "model", "scores"))
    if not tensors.exists():
        sky = make_sky(args.rows, SHARES, 5)
        flux, _ = observe(sky, SEEING, size=40, look=0)
        image = np.arcsinh(flux / (3 * noise_level(SEEING)[:, None, None])).astype(np.float32)
        catalog = {
            "id": np.arange(args.rows), "ra": sky.ra, "dec": sky.dec,
            "label": np.array([KINDS[k] for k in sky.kind]),
        }  # fmt: skip
        write_tensors(tensors, image, BANDS, catalog, class_map={0: "elliptical", 1: "lens", 2: "spiral"})
    train(TrainConfig.make({
        "tensors": [str(tensors)], "output": str(model), "task": "classes", "nside": 512, "epochs": 14,
        "width": 3, "lr": 0.01, "threads": 1,
    }))  # fmt: skip
    score(ScoreConfig.make({
        "model": str(model), "tensors": [str(tensors)], "output": str(scores), "evaluate": True,
    }))  # fmt: skip
    report(ReportConfig.make({"source": str(scores), "output": str(args.output / "page")}))
    show(model, scores)


def show(model: Path, scores: Path) -> None:
    """The tables."""
    contract = load_contract(model)
    names = [contract.class_map[str(k)] for k in range(len(contract.class_map))]
    found = json.loads((scores / "evaluation.json").read_text())["evaluation"]
    table = pq.read_table(scores / "scores.parquet")
    rows = np.array(table["split"].to_pylist()) == "test"
    label = table["label"].to_numpy()[rows]
    lens = (label == names.index("lens")).astype(int)
    columns = {name: table[f"p_{name}"].to_numpy().astype(float)[rows] for name in names}
    own = np.array(contract.class_calibration.shares)
    print(
        f"Classes {', '.join(f'{k}: {n}' for k, n in enumerate(names))}; {rows.sum()} rows of unseen sky.\n"
    )
    print("| ranking | AUROC of lenses |\n|---|---|")
    ranked = {"the lens class": table["score"].to_numpy()[rows], f"not {names[0]}": 1 - columns[names[0]]}
    for name, value in ranked.items():
        print(f"| {name} | {printed(auroc_estimate(lens, value).as_dict(), 3)} |")
    print(
        "\n| class | share, validation | AUROC | ECE (expected) | "
        + " | ".join(f"called {n}" for n in names)
        + " |"
    )
    print("|---" * (4 + len(names)) + "|")
    for k, name in enumerate(names):
        known = found["calibration"][str(k)]
        error = f"{known['ece']['value']:.3f} ({known['ece_expected']['value']:.3f})"
        counts = " | ".join(str(n) for n in found["confusion_matrix"][k])
        print(f"| {name} | {own[k]:.3f} | {printed(found['auroc'][str(k)], 3)} | {error} | {counts} |")
    best = float(table["probability"].to_numpy().max())
    print(f"\nLargest `probability` at 6 lenses in 10,006 sources: {best:.3f}.")


if __name__ == "__main__":
    main()
