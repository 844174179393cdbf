"""The adaptation benchmark: every method against source-only, fine-tuning, and the ceiling.

    python scripts/bench/gap.py scripts/bench/configs/gap-instruments.yaml -o OUT [--set seeds=0,1,2 --set rows=1200]

Methods start from the source-only network of their seed. OUT/result.json has every number, OUT/result.md the
table. Running again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import yaml
from gap_sky import KINDS, Instrument, make_sky, noise_level, write_tensors
from numpy.typing import NDArray
from pydantic import Field

from ripple.config import Config
from ripple.learn.config import TrainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.training_set import TargetSet, common_facts
from ripple.learn.evaluation import metrics
from ripple.learn.model import uncertainty
from ripple.learn.model.network import Net
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.forward import mean_outputs, probabilities
from ripple.learn.training.adapt.adaptation import own_statistics
from ripple.learn.training.judge import member_features
from ripple.learn.training.train import train
from ripple.sky.splits import TEST, TRAIN, split_blocks
from ripple.storage.artefact import open_artefact

CPU = torch.device("cpu")
NSIDE = 512


class Gap(Config):
    """One benchmark."""

    verb: ClassVar[str] = "gap"

    name: str = Field(description="Of the benchmark.")
    task: Literal["lens", "classes"] = Field("lens", description="As in `ripple train`.")
    shares: tuple[float, ...] = Field(description="Of the kinds of galaxies.")
    target_shares: tuple[float, ...] = Field((), description="Of the kinds in the target, when others.")
    target_prevalence: float | None = Field(
        None, description="Share of lenses in the target; every method is also run with it given."
    )
    same_sky: bool = Field(True, description="Do both see the same objects.")
    source: Instrument = Field(description="Labelled.")
    target: Instrument = Field(description="Not labelled.")
    one_softening: bool = Field(
        False, description="Normalise both by the noise of the target, as a simulation made for a survey is."
    )
    methods: tuple[str, ...] = Field(
        ("adabn", "mmd", "coral", "dann", "adda", "wdgrl", "kmeans", "teacher", "universal"),
        description="Of --adapt.",
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), description="Of sky, weights and order.")
    rows: int = Field(2400, description="Galaxies in each data set.")
    fractions: tuple[float, float, float] = Field(
        (0.45, 0.25, 0.3), description="Training, validation and test: judging costs less than learning."
    )
    size: int = Field(40, description="Pixels.")
    labels: tuple[int, ...] = Field((50, 200, 1000), description="Target labels for fine-tuning.")
    weights: dict[str, float] = Field(
        {}, description="Of the adaptation loss (adapt_weight), by method; 1 for the others."
    )
    train: dict[str, Any] = Field({}, description="Options of `ripple train` for the first training.")
    adapt: dict[str, Any] = Field({}, description="Options for what starts from it.")
    conditions: dict[str, Any] = Field(
        {}, description="Those of one more run, without target rows and without `adapt`."
    )


#: Options of every training, here and in rehearsal.py.
COMMON: dict[str, Any] = {"nside": NSIDE, "draws": 20, "gate_rows": 100, "threads": 1}
FIRST = {"width": 3, "epochs": 16, "batch_size": 64, "lr": 0.01, "patience": 20}
AFTER = {"epochs": 8, "lr": 0.003, "adapt_start": 0.0, "warmup": 0.5, "patience": 10}


def run(gap: Gap, output: Path) -> dict[str, Any]:
    """All trainings; one JSON file each, so that a killed run goes on."""
    found: dict[str, Any] = {}
    for seed in gap.seeds:
        base = output / f"seed-{seed}"
        source, target = data(gap, base, seed)
        for name, options in plan(gap, base, source, target, seed):
            record = base / f"{name}.json"
            if not record.exists():
                began = time.perf_counter()
                train(TrainConfig.make(options))
                numbers = measure(gap, Path(options["output"]), base)
                numbers["seconds"] = round(time.perf_counter() - began, 1)
                record.write_text(json.dumps(numbers))
                print(seed, name, {k: v for k, v in numbers.items() if isinstance(v, float)}, flush=True)
            found.setdefault(name, []).append(json.loads(record.read_text()))
    return found


def data(gap: Gap, base: Path, seed: int) -> tuple[Path, Path]:
    """Two tensor artefacts; a third where the target has a class of its own: that class without the gap."""
    sky = make_sky(gap.rows, gap.shares, seed)
    other = sky if gap.same_sky else make_sky(gap.rows, gap.target_shares or gap.shares, seed + 1000)
    classes = {"0": "nonlens", "1": "lens"}
    if gap.task == "classes":
        classes = {str(k): KINDS[k] for k in range(3)}

    def labels(kind: NDArray[np.int64]) -> NDArray[np.int64]:
        return kind if gap.task == "classes" else (kind == KINDS.index("lens")).astype(np.int64)

    seen = [("source", sky, gap.source, 0), ("target", other, gap.target, 1)]
    if gap.target_shares and gap.task == "classes":
        seen.append(("unseen", make_sky(gap.rows, gap.target_shares, seed + 2000), gap.source, 2))
    noise = noise_level(gap.target) if gap.one_softening else None
    for name, what, instrument, look in seen:
        write_tensors(
            base / name, what, instrument, labels(what.kind), classes, size=gap.size, look=look, noise=noise
        )
    return base / "source", base / "target"


def plan(gap: Gap, base: Path, source: Path, target: Path, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of every training, in order."""
    common = COMMON | {"task": gap.task, "fractions": gap.fractions, "seed": seed}

    def options(name: str, tensors: Path, *more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        made: dict[str, Any] = {**common, **FIRST, **gap.train}
        for extra in more:
            made |= extra
        return name, made | {"tensors": [str(tensors)], "output": str(base / name)}

    first = {"init": str(base / "source-only")}
    after, tuned = AFTER | first | gap.adapt, AFTER | first
    jobs = [options("source-only", source)]
    if gap.adapt.keys() & {"noise", "blur", "sky"}:
        # What the methods owe to disturbed images alone.
        jobs.append(options("augmented", source, after))
    if gap.conditions:
        jobs.append(options("conditions", source, AFTER | first | gap.conditions))
    for method in gap.methods:
        weight = {"adapt_weight": gap.weights.get(method, 1.0)}
        how = {"adapt": method, "target": [str(target)]}
        jobs.append(options(method, source, after, weight, how))
        if gap.target_prevalence is not None:
            known = {"target_prevalence": gap.target_prevalence}
            jobs.append(options(f"{method}-given", source, after, weight, how, known))
    if gap.task == "lens" and gap.labels:
        for count in gap.labels:
            # Shortcuts are looked for in all rows: of a hundred, hardly any would be among the few.
            few = {
                "labelled_rows": count, "batch_size": min(64, max(8, count // 4)), "gate_rows": gap.rows,
            }  # fmt: skip
            jobs.append(options(f"fine-tune-{count}", target, tuned, few))
        few = {"adapt": "supervised", "target_labels": gap.labels[0], "target": [str(target)]}
        jobs.append(options(f"supervised-{gap.labels[0]}", source, tuned, few))
        # As long a training as the others had before and after.
        both = {"epochs": (FIRST | gap.train)["epochs"] + tuned["epochs"]}
        jobs.append(options("ceiling", target, both))
    return jobs


# --- what a network is worth --------------------------------------------------------------------------


def rows_of(gap: Gap, path: Path, model: Model) -> TargetSet:
    """All rows with the split that training uses, as the model takes them."""
    artefact = open_artefact(path, "tensors")
    dataset = TensorDataset([artefact], psf_input=model.contract.psf_input)
    split = split_blocks(
        dataset.column("ra"), dataset.column("dec"), fractions=gap.fractions, seed=0, nside=NSIDE
    )
    return TargetSet(dataset, common_facts([artefact]), split, (artefact.digest,))


def measure(gap: Gap, directory: Path, base: Path) -> dict[str, Any]:
    """Numbers on the test sky of every data set, scores kept for paired intervals."""
    model = load_model(directory)
    known = rows_of(gap, base / "source", model)
    adapted = "adaptation" in model.contract.training
    record = model.contract.training.get("adaptation", {})
    out: dict[str, Any] = {"warned": bool(record.get("warning"))}
    if "estimated_shares" in record:
        out["estimated"] = record["estimated_shares"][-1]
    for name in ("source", "target", "unseen"):
        if (base / name).exists():
            # An adapted network carries the batch statistics of its target: the source gets its own back.
            nets = list(model.nets)
            if adapted and name != "target":
                rows = np.flatnonzero(known.split == TRAIN)
                nets = [own_statistics(net, known.dataset, rows, CPU) for net in nets]
            found = judged(gap, model, nets, rows_of(gap, base / name, model))
            out |= {f"{name}_{key}": value for key, value in found.items()}
    return out


def judged(gap: Gap, model: Model, nets: list[Net], part: TargetSet) -> dict[str, Any]:
    """Numbers of one data set; rows of classes that the model does not have count as unknown."""
    rows = np.flatnonzero(part.split == TEST)
    label = part.labels[rows]
    outputs = mean_outputs(nets, part.dataset, rows, CPU)
    p = probabilities(model.contract, outputs)
    if gap.target_prevalence is not None:
        # At the share of lenses that these rows have, as `score --prevalence` gives them.
        lens = model.contract.calibration.probability(outputs[:, 0], prevalence=float(label.mean()))
        p = np.stack([1 - lens, lens], 1)
    known = label < p.shape[1]
    right = (p.argmax(1) == label)[known]
    out: dict[str, Any] = {"accuracy": float(right.mean()), "right": right.astype(int).tolist()}
    if gap.task == "lens":
        curve = metrics.curve(label, outputs[:, 0])
        out |= {"auroc": metrics.auroc(curve), "ece": metrics.ece(label, p[:, 1]),
                "score": outputs[:, 0].round(5).tolist(), "label": label.tolist()}  # fmt: skip
    if model.contract.uncertainty is not None:
        sets = uncertainty.conformal_sets(p[known], model.contract.uncertainty.quantiles)
        out["coverage"] = uncertainty.set_coverage(sets, label[known])["coverage"]
    if not known.all() and model.bank is not None:
        there = member_features(nets, part.dataset, rows, CPU)
        kinds = {
            "distance": uncertainty.neighbour_distance(model.bank.features.numpy(), there),
            "entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(1),
            "energy": uncertainty.energy(outputs),
        }
        strange = (~known).astype(int)
        out |= {f"unknown_{k}": metrics.auroc(metrics.curve(strange, v)) for k, v in kinds.items()}
    return out


def paired_gain(
    ours: list[dict[str, Any]], base: list[dict[str, Any]], key: str
) -> tuple[float, float, float]:
    """Mean gain over the seeds and its 95 % interval: rows drawn again within seeds, and seeds among them."""
    rng = np.random.default_rng(0)

    def gain(a: dict[str, Any], b: dict[str, Any], rows: NDArray[np.int64] | None) -> float:
        if key == "accuracy":
            x, y = np.array(a["target_right"]), np.array(b["target_right"])
            return float(np.mean(x - y) if rows is None else np.mean(x[rows] - y[rows]))
        label = np.array(a["target_label"])
        pick = np.arange(len(label)) if rows is None else rows
        each = [metrics.auroc(metrics.curve(label[pick], np.array(r["target_score"])[pick])) for r in (a, b)]
        return each[0] - each[1]

    centre = float(np.mean([gain(a, b, None) for a, b in zip(ours, base, strict=True)]))
    draws = []
    for _ in range(300):
        seeds = rng.integers(len(ours), size=len(ours))
        draws.append(np.mean([
            gain(ours[s], base[s], rng.integers(len(ours[s]["target_right"]), size=len(ours[s]["target_right"])))
            for s in seeds
        ]))  # fmt: skip
    low, high = np.quantile(draws, (0.025, 0.975))
    return centre, float(low), float(high)


def table(gap: Gap, found: dict[str, Any]) -> str:
    """The result in Markdown: what adaptation gains, and what the networks know of their doubts."""
    main = "auroc" if gap.task == "lens" else "accuracy"
    base = found["source-only"]
    if gap.target_prevalence is not None:
        return table_of_shares(found)
    room = None
    if "ceiling" in found:
        room = mean(found["ceiling"], f"target_{main}") - mean(base, f"target_{main}")
    gains = []
    for name, records in found.items():
        gain, low, high = paired_gain(records, base, main)
        closed = f"{100 * gain / room:.0f} %" if room and room > 0 else ""
        gains.append([name, f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]", closed])
    keys = ["source_accuracy", "target_accuracy"]
    keys += ["source_auroc", "target_auroc"] if gap.task == "lens" else []
    head = ["run", *keys, f"gain in {main} [95 %]", "gap closed"]
    rows = [[name, *cells(found[name], keys), gain, closed] for name, gain, closed in gains]
    doubts = [f"{d}_{k}" for k in ("ece", "coverage") for d in ("source", "target")]
    doubts += [f"{d}_unknown_{k}" for d in ("unseen", "target") for k in ("distance", "entropy", "energy")]
    doubts = [k for k in doubts if k in base[0]]
    return (
        markdown(head, rows)
        + "\n"
        + markdown(["run", *doubts], [[name, *cells(records, doubts)] for name, records in found.items()])
    )


def table_of_shares(found: dict[str, Any]) -> str:
    """What methods make of a target with another share of lenses, and whether they said so."""
    base, rows = found["source-only"], []
    for name, records in found.items():
        gain, low, high = paired_gain(records, base, "auroc")
        worst = min(r["target_auroc"] - b["target_auroc"] for r, b in zip(records, base, strict=True))
        estimated = [r["estimated"] for r in records if "estimated" in r]
        rows.append([
            name, *cells(records, ["source_auroc", "target_auroc", "target_accuracy", "target_ece"]), f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]", f"{worst:+.3f}",
            f"{min(estimated):.3f} to {max(estimated):.3f}" if estimated else "",
            f"{sum(r['warned'] for r in records)} of {len(records)}" if estimated else "",
        ])  # fmt: skip
    head = [
        "run",
        "source_auroc",
        "target_auroc",
        "target_accuracy",
        "target_ece",
        "gain in auroc [95 %]",
        "worst seed",
        "estimated share",
        "warned",
    ]
    return markdown(head, rows)


def cells(records: list[dict[str, Any]], keys: list[str]) -> list[str]:
    """Mean and scatter over the seeds."""
    return [f"{mean(records, k):.3f} ± {np.std([r[k] for r in records]):.3f}" for k in keys]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def mean(records: list[dict[str, Any]], key: str) -> float:
    """Over the seeds."""
    return float(np.mean([r[key] for r in records]))


def main() -> None:
    """Read the options, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="KEY=YAML, over the file")
    given = parser.parse_args()
    values = yaml.safe_load(given.config.read_text())
    values |= {k: yaml.safe_load(v) for k, _, v in (s.partition("=") for s in given.set)}
    gap = Gap.make(values)
    torch.set_num_threads(1)
    found = run(gap, given.output)
    text = table(gap, found)
    (given.output / "result.md").write_text(text)
    (given.output / "result.json").write_text(json.dumps({"config": gap.canonical(), "runs": found}))
    print(text)


if __name__ == "__main__":
    main()
