#!/usr/bin/env python3
"""What a network loses from one instrument to another, and what saves some of it.

    python scripts/bench/rehearsal.py scripts/bench/configs/rehearsal.yaml -o OUT

The first of `runs` sees the training rows as they are, the others with options of `ripple train` (`seeing`, `depth`,
`psf_input`). All are scored on the held-out sky of their own instrument and on all rows of the others, resampled to their
pixels (`ripple score --resample --crop`). The last lines are of networks that were trained on the other instrument
itself, on other sky and without options. Prints Markdown; OUT/rehearsal.json has every number; running again goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from gap import COMMON, FIRST, markdown
from gap_sky import KINDS, Instrument, make_sky, write_tensors
from pydantic import Field

from ripple.config import Config
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.evaluation import metrics
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train

SIZE, SCALE = 40, 0.2
#: Networks of the other instrument, to compare with.
ITSELF = "trained on it"


class Rehearsal(Config):
    """One rehearsal."""

    verb: ClassVar[str] = "rehearsal"

    shares: tuple[float, ...] = Field(description="Of the kinds of galaxies.")
    rows: int = Field(4000, description="Galaxies seen by each instrument.")
    seeds: tuple[int, ...] = Field(description="Of sky, weights and order.")
    train: Instrument = Field(description="Labelled.")
    test: dict[str, Instrument] = Field(description="The others, by name.")
    runs: dict[str, dict[str, Any]] = Field(
        description="Options of `ripple train` by name; of the first, none."
    )
    options: dict[str, Any] = Field({}, description="Options of all trainings.")


def tensors(plan: Rehearsal, base: Path, name: str, instrument: Instrument, seed: int, look: int) -> Path:
    """The sky of a seed as one instrument sees it; others see other sky than the training rows."""
    sky = make_sky(plan.rows, plan.shares, seed + 1000 * look)
    label = (sky.kind == KINDS.index("lens")).astype(np.int64)
    # As much sky as the network takes, and some pixels more for the interpolation.
    size = (
        SIZE
        if instrument.pixel_scale == SCALE
        else int(np.ceil((SIZE + 12) * SCALE / instrument.pixel_scale / 2)) * 2
    )
    classes = {"0": "nonlens", "1": "lens"}
    return write_tensors(base / name, sky, instrument, label, classes, size=size, look=look, by_row=True)


def judged(model: Path, given: Path, out: Path, own: bool) -> dict[str, float]:
    """AUROC and TPR of rows that the network was not trained on."""
    options = {
        "model": str(model), "tensors": [str(given)], "output": str(out), "resample": True, "crop": True,
        "threads": 1, "engine": "torch",
    }  # fmt: skip
    score(ScoreConfig.make(options))
    table = pq.read_table(out / "scores.parquet", columns=["score", "label", "split"])
    split = np.array(table["split"].to_pylist(), str)
    # Sky of another instrument is other sky, whatever the rule says of its positions.
    keep = (split != "train") & (split != "validation") if own else np.ones(len(split), bool)
    curve = metrics.curve(table["label"].to_numpy()[keep], table["score"].to_numpy()[keep])
    return {"auroc": metrics.auroc(curve), "tpr": metrics.tpr_at_fpr(curve, 0.01), "rows": int(keep.sum())}


def trained(plan: Rehearsal, given: Path, model: Path, seed: int, extra: dict[str, Any]) -> Path:
    """A network of these tensors, if it is not there yet."""
    where = {"tensors": [str(given)], "output": str(model), "seed": seed}
    train(TrainConfig.make({**COMMON, **where, **FIRST, **plan.options, **extra}))
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    plan = Rehearsal.make(yaml.safe_load(given.config.read_text()))
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in plan.seeds:
        base = given.output / f"seed-{seed}"
        own = tensors(plan, base, "own", plan.train, seed, 0)
        others = {n: tensors(plan, base, n, i, seed, k + 1) for k, (n, i) in enumerate(plan.test.items())}
        for name, extra in plan.runs.items():
            model = trained(plan, own, base / name.replace(" ", "-"), seed, extra)
            for sky, path in {"own": own, **others}.items():
                numbers = judged(model, path, base / f"{model.name}-{sky}", sky == "own")
                found.setdefault(name, {}).setdefault(sky, []).append(numbers)
                print(seed, name, sky, {k: round(v, 3) for k, v in numbers.items()}, flush=True)
        for k, (name, instrument) in enumerate(plan.test.items()):
            there = tensors(plan, base, f"{name}-train", instrument, seed, len(others) + 1 + k)
            model = trained(plan, there, base / f"trained-on-{name}", seed, {})
            numbers = judged(model, others[name], base / f"{model.name}-scores", False)
            found.setdefault(ITSELF, {}).setdefault(name, []).append(numbers)
            print(seed, ITSELF, name, {k: round(v, 3) for k, v in numbers.items()}, flush=True)
    (given.output / "rehearsal.json").write_text(json.dumps({"config": plan.canonical(), "runs": found}))
    print(table(found))


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Mean and scatter over the seeds; what is lost from the own instrument to another, and how much of that is left."""
    plain, rows = found[next(iter(found))], []
    for name, skies in found.items():
        for sky, records in skies.items():
            cells = [name, sky]
            for key in ("auroc", "tpr"):
                values = np.array([r[key] for r in records])
                cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
                if sky == "own" or name == ITSELF:
                    cells += ["", ""]
                    continue
                lost, first = (
                    float(np.mean([a[key] - b[key] for a, b in zip(part["own"], part[sky], strict=True)]))
                    for part in (skies, plain)
                )
                # Of a loss of nearly nothing there is no share.
                told = skies is not plain and first > 0.005
                cells += [f"{lost:.3f}", f"{lost / first:.0%}" if told else ""]
            rows.append(cells)
    head = [
        "training rows",
        "instrument",
        "AUROC",
        "lost",
        "of what was",
        "TPR at FPR 0.01",
        "lost",
        "of what was",
    ]
    return markdown(head, rows)


if __name__ == "__main__":
    main()
