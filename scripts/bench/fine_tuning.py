"""What a fine-tuned model calls unseen: the table of docs/explanation/honest-numbers.md.

Run: python scripts/bench/fine_tuning.py -o OUT [--rows 800]
A base is trained on one survey and fine-tuned on another of the same sky. Both score the first survey and a third
one on new sky; "before" is the AUROC of the rows that the fine-tuned model would call unseen if it only knew its own
training, with another --split-seed than the base, which is refused now. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from gap_sky import Instrument, make_sky, noise_level, write_tensors

from ripple.errors import ConfigError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.evaluation.intervals import auroc_estimate, printed
from ripple.learn.model.contract import load_contract
from ripple.learn.model.provenance import Split
from ripple.learn.model.weights import load_model, save_model
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train
from ripple.sky.splits import split_blocks

SHARES = (3.0, 2.0, 2.0, 3.0)  # ellipticals, spirals, pairs, lenses
NSIDE = 512
SHALLOW = Instrument(noise=(0.3, 0.3, 0.3))


def options(tensors: Path, output: Path, **more: Any) -> TrainConfig:
    """A short training that learns its rows by heart: that is what must not count as skill."""
    common = {
        "nside": NSIDE,
        "epochs": 15,
        "patience": 30,
        "augment": False,
        "shift": 0,
        "network": "resnet18",
        "lr": 0.001,
        "draws": 50,
        "gate_rows": 200,
        "threads": 1,
    }
    return TrainConfig.make(common | {"tensors": [str(tensors)], "output": str(output)} | more)


def tensors_of(output: Path, rows: int) -> dict[str, Path]:
    """Three surveys: two of one sky, in different noise, and one of another sky."""
    found = {}
    for look, (name, seed) in enumerate({"first": 1, "second": 1, "new": 2}.items()):
        sky = make_sky(rows, SHARES, seed)
        if name == "new":
            sky = dataclasses.replace(sky, ra=sky.ra + 20)
        label = (sky.kind == 3).astype(np.int64)
        found[name] = output / name
        if not found[name].exists():
            write_tensors(
                found[name],
                sky,
                SHALLOW,
                label,
                {"0": "nonlens", "1": "lens"},
                size=40,
                look=look,
                noise=noise_level(SHALLOW),
            )
    return found


def judged(model: Path, tensors: Path, output: Path) -> str:
    """A line of the table: rows by split, and the AUROC of those that are evaluated."""
    score(ScoreConfig.make({
        "model": str(model), "tensors": [str(tensors)], "output": str(output), "evaluate": True, "draws": 200,
    }))  # fmt: skip
    table = pq.read_table(output / "scores.parquet")
    split = table["split"].to_pylist()
    which = "test" if "test" in split else "unknown"
    rows = np.array(split) == which
    found = auroc_estimate(table["label"].to_numpy()[rows], table["score"].to_numpy()[rows])
    counts = ", ".join(f"{n} {name}" for name, n in sorted(Counter(split).items()))
    words = "unseen" if which == "test" else "split unknown"
    return f"{counts} | {rows.sum()} {words} | {printed(found.as_dict(), 3)}"


def formerly(model: Path, tensors: Path, output: Path, seed: int) -> str:
    """The same for rows that lie in the test blocks of `seed`, whatever the base was trained on."""
    table = pq.read_table(output / "scores.parquet")
    ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
    rows = split_blocks(ra, dec, seed=seed, nside=NSIDE) == 2
    found = auroc_estimate(table["label"].to_numpy()[rows], table["score"].to_numpy()[rows])
    return f"– | {rows.sum()} called unseen | {printed(found.as_dict(), 3)}"


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=800)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    found = tensors_of(args.output, args.rows)
    base, tuned, foreign = (args.output / name for name in ("base", "tuned", "imported"))
    train(options(found["first"], base))
    try:
        train(options(found["second"], args.output / "refused", init=str(base), split_seed=1))
    except ConfigError as err:
        print(f"`--split-seed 1`: {err.message} ({err.hint})\n")
    train(options(found["second"], tuned, init=str(base), epochs=3, lr=0.0003))
    if not foreign.exists():  # the same weights as they would arrive from elsewhere
        model = load_model(tuned)
        nobody = model.contract.model_copy(update={"split": None, "ancestors": (), "uncertainty": None})
        save_model(foreign, nobody, [net.state_dict() for net in model.nets])
    assert load_contract(foreign).split != Split(by="sky")
    print("| model | scores | rows by split | judged | AUROC |\n|---|---|---|---|---|")
    for name, model, tensors in (
        ("base", base, "first"), ("fine-tuned", tuned, "first"), ("fine-tuned", tuned, "second"),
        ("fine-tuned", tuned, "new"), ("imported", foreign, "first"),
    ):  # fmt: skip
        where = args.output / f"{model.name}-{tensors}"
        print(f"| {name} | {tensors} | {judged(model, found[tensors], where)} |")
        if (name, tensors) == ("fine-tuned", "first"):
            print(f"| before, another seed | {tensors} | {formerly(model, found[tensors], where, 1)} |")


if __name__ == "__main__":
    main()
