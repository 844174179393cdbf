"""Robustness before and after adaptation: the stress card of networks that `gap.py` has trained.

    python scripts/bench/gap_stress.py OUT source-only coral ... [--rows 300 --attacked 100]

OUT is that of `gap.py`. Every network gets the card of `ripple score --stress` on the test sky of the target.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gap import markdown

from ripple.learn.evaluation.metrics import wilson
from ripple.learn.evaluation.robustness import stress
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.score import split_names
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors

Card = dict[str, Any]


def card(base: Path, name: str, rows: int, attacked: int) -> Card:
    """The stress card of one network on the test sky of the target, made once."""
    output = base / f"stress-{name}"
    if not (output / "stress.json").exists():
        output.mkdir(exist_ok=True)
        model, target = load_model(base / name), open_artefact(base / "target", "tensors")
        batch = map_tensors(target.verified_path(0))
        # `ripple score` would resample for the network of the source; here all see the same pixels.
        contract = model.contract.model_copy(update={"pixel_scale": batch.pixel_scale})
        unseen = np.flatnonzero(split_names(model.contract, target.digest, batch) == "test")[:rows]
        stress(
            replace(model, contract=contract), [(batch, unseen)], output, seed=0, attacked=attacked,
            device=torch.device("cpu"),
        )  # fmt: skip
    found: Card = json.loads((output / "stress.json").read_text())
    return found


def summary(cards: list[Card]) -> dict[str, Any]:
    """Of the seeds together: what the rows are like before, and what the attack and the worst others do."""
    lines = {d["disturbance"]: [c["card"][k] for c in cards] for k, d in enumerate(cards[0]["card"])}
    flips = {name: pooled(part) for name, part in lines.items()}
    before = [c["undisturbed"] for c in cards]
    attack = lines.pop("one-pixel attack")
    return {
        "accuracy": mean(before, "accuracy"), "auroc": mean(before, "auroc"),
        "distance": mean(before, "wrong_class_distance"), "attack": flips.pop("one-pixel attack"),
        "attacked_distance": mean(attack, "wrong_class_distance"), "flips": flips,
    }  # fmt: skip


def mean(parts: list[dict[str, Any]], key: str) -> float:
    """Over the seeds."""
    return float(np.mean([p[key] for p in parts]))


def pooled(parts: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Flip rate over the rows of all seeds and its 95 % interval."""
    rows = sum(p["rows"] for p in parts)
    flips = sum(round(p["flip_rate"]["value"] * p["rows"]) for p in parts)
    found = wilson(flips, rows)
    return found.value, found.low, found.high


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line per network, then one per disturbance."""
    head = [
        "network",
        "accuracy",
        "AUROC",
        "one-pixel flips [95 %]",
        "distance to the wrong class",
        "attacked",
    ]
    rows = [
        [name, f"{s['accuracy']:.3f}", f"{s['auroc']:.3f}", rate(s["attack"]), f"{s['distance']:.2f}",
         f"{s['attacked_distance']:.2f}"]
        for name, s in found.items()
    ]  # fmt: skip
    kinds = list(next(iter(found.values()))["flips"])
    flips = [[kind, *(f"{100 * s['flips'][kind][0]:.1f}" for s in found.values())] for kind in kinds]
    return markdown(head, rows) + "\n" + markdown(["flips, %", *found], flips)


def rate(value: tuple[float, float, float]) -> str:
    """Per cent with its interval."""
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * v for v in value))


def main() -> None:
    """Read the options, stress, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--attacked", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [
        base
        for base in sorted(given.output.glob("seed-*"))
        if all((base / name / "model.json").exists() for name in given.networks)
    ]
    found = {
        name: summary([card(base, name, given.rows, given.attacked) for base in seeds])
        for name in given.networks
    }
    text = table(found)
    (given.output / "stress.md").write_text(text)
    print(f"{len(seeds)} seeds\n\n{text}")


if __name__ == "__main__":
    main()
