"""`ripple score --stress`: how small, realistic disturbances change the answers of a model.

For each disturbance of `perturb`, the robustness card says how many decisions flip, how the ranking changes,
and how far rows lie from training rows of the wrong class.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import DataError
from ripple.imaging.batch import TensorBatch
from ripple.learn.evaluation import metrics
from ripple.learn.evaluation.evaluate import Judgeable, judged_words
from ripple.learn.evaluation.intervals import Measure, clopper_pearson
from ripple.learn.evaluation.perturb import FluxCutouts, disturbances, flux_cutouts, joined, one_pixel
from ripple.learn.model.distance import nearest
from ripple.learn.model.weights import Bank, Model
from ripple.learn.scoring.forward import average, member_outputs, probabilities
from ripple.report.plots import figure_png
from ripple.storage.files import write_atomic


@dataclass(frozen=True)
class Answers:
    """Answers of a model about n rows."""

    probability: NDArray[np.float64]  # (n, K)
    decision: NDArray[np.int64]  # (n,) class
    score: NDArray[np.float64]  # (n,) mean logit of the members, which ranks the rows
    wrong: NDArray[np.float64]  # (n,) latent distance to the nearest training row of another class


class Standing(TypedDict):
    """How well a model does on some rows; the distance is in latent space, to the wrong class."""

    accuracy: float
    auroc: NotRequired[float]
    wrong_class_distance: NotRequired[float]


class CardRow(Standing):
    """One disturbance: the fraction of decisions that flip, and every measure after it with its change."""

    disturbance: str
    rows: int
    flip_rate: Measure
    mean_change: float
    accuracy_change: float
    auroc_change: NotRequired[float]
    wrong_class_distance_change: NotRequired[float]


class Card(TypedDict):
    """The robustness card."""

    rows: int
    split: Judgeable
    undisturbed: Standing
    card: list[CardRow]


@torch.inference_mode()
def answer(model: Model, image: Tensor, label: NDArray[np.int64]) -> Answers:
    """Answers about tensors `(n, B, size, size)`, as `score` gives them."""
    values, features = [], []
    for part in image.split(256):
        outs, latent = member_outputs(model.nets, part)
        values.append(outs.cpu().numpy())
        features.append(latent[0])  # of the first member
    mean = average(np.concatenate(values))  # (n, outputs)
    p = probabilities(model.contract, mean)
    if model.contract.output == "lens":
        # The operating point is stated on the score, the sigmoid of the logit.
        limit = math.log(model.contract.threshold / (1 - model.contract.threshold))
        decision = (mean[:, 0] >= limit).astype(np.int64)
    else:
        decision = p.argmax(1)
    wrong = np.full(len(mean), np.nan)
    if model.bank is not None:
        wrong = wrong_class_distance(model.bank, torch.cat(features), label)
    return Answers(p, decision, mean[:, 0], wrong)


def wrong_class_distance(bank: Bank, features: Tensor, label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance `(n,)` of features `(n, F)` to the nearest training row of another class, as the first member
    sees it.
    """
    # One member is enough: the card compares distances before and after, not between models.
    places, theirs = bank.places[0], bank.label.numpy()
    out = np.full(len(features), np.nan)
    for value in np.unique(label):
        mine, others = np.flatnonzero(label == value), np.flatnonzero(theirs != value)
        if len(others):
            out[mine] = nearest(places[others], features[mine], 1)[0][:, 0].cpu().numpy()
    return out


def card(
    model: Model,
    s: FluxCutouts,
    label: NDArray[np.int64],
    *,
    split: Judgeable = "test",
    seed: int,
    attacked: int,
    device: torch.device,
) -> Card:
    """The robustness card as JSON values.

    Parameters
    ----------
    model
        On the device.
    s
        The rows to disturb.
    label
        `(n,)` true labels.
    split
        Whether the rows are unseen, or nobody can say.
    seed
        Of the disturbances.
    attacked
        Rows of the one-pixel attack, the slowest part.
    device
        Where the model is.
    """
    before = answer(model, s.tensor(s.flux), label)
    rows = []
    for k, (name, disturb) in enumerate(disturbances(model.contract.bands).items()):
        # A generator for each: a disturbance added at the end does not change those before it.
        g = torch.Generator().manual_seed(seed * 1000 + k)
        after = answer(model, disturb.tensor(s, g), label)
        rows.append(_card_row(name, before, after, label, model))
    some = torch.arange(min(attacked, len(label)), device=device)
    few, part = s.take(some), label[: len(some)]
    first = answer(model, few.tensor(few.flux), part)

    # (rows * candidates, B, H, W) -> probability of the class decided for the undisturbed row
    def probability(image: Tensor) -> Tensor:
        p = answer(model, image, np.repeat(part, len(image) // len(part))).probability
        decided = np.repeat(first.decision, len(image) // len(part))
        return torch.from_numpy(p[np.arange(len(p)), decided])

    hit = one_pixel(probability, few, torch.Generator().manual_seed(seed))
    rows.append(_card_row("one-pixel attack", first, answer(model, few.tensor(hit), part), part, model))
    return {"rows": len(label), "split": split, "undisturbed": _measures(before, label, model), "card": rows}


def _measures(a: Answers, label: NDArray[np.int64], model: Model) -> Standing:
    """Accuracy and, where they are defined, AUROC and mean distance to the wrong class."""
    found: Standing = {"accuracy": float((a.decision == label).mean())}
    if model.contract.output == "lens" and len(np.unique(label)) == 2:
        found["auroc"] = metrics.auroc(metrics.curve(label, a.score))
    if np.isfinite(a.wrong).any():
        found["wrong_class_distance"] = float(np.nanmean(a.wrong))
    return found


def _card_row(name: str, before: Answers, after: Answers, label: NDArray[np.int64], model: Model) -> CardRow:
    """One row of the card: flips, and every measure with its change."""
    flips = before.decision != after.decision
    old, new = _measures(before, label, model), _measures(after, label, model)
    line: CardRow = {
        "disturbance": name,
        "rows": len(label),
        "flip_rate": clopper_pearson(flips.sum(), len(flips)).as_dict(),
        # Of the class whose probability changes most.
        "mean_change": float(np.abs(after.probability - before.probability).max(1).mean()),
        "accuracy": new["accuracy"],
        "accuracy_change": new["accuracy"] - old["accuracy"],
    }
    if "auroc" in new:
        line["auroc"], line["auroc_change"] = new["auroc"], new["auroc"] - old["auroc"]
    if "wrong_class_distance" in new:
        far = new["wrong_class_distance"]
        line["wrong_class_distance"] = far
        line["wrong_class_distance_change"] = far - old["wrong_class_distance"]
    return line


def stress(
    model: Model,
    parts: list[tuple[TensorBatch, NDArray[np.int64]]],
    directory: Path,
    *,
    split: Judgeable = "test",
    seed: int,
    attacked: int,
    device: torch.device,
) -> Card:
    """The card for chosen rows of shards; writes `stress.json`, `stress.csv` and `stress.png`.

    Parameters
    ----------
    model
        On `device`, with classes.
    parts
        Shards, each with its rows to disturb; all rows have labels.
    directory
        Where to write.
    split
        Whether the rows are unseen, or nobody can say.
    seed, attacked, device
        As in `card`.

    Raises
    ------
    DataError
        There are no rows, or the model has no classes.
    """
    if model.contract.output == "regression":
        raise DataError(
            "--stress counts decisions that flip, and a regression decides nothing",
            hint="give a model of the task lens or classes",
        )
    chosen = [(b, rows) for b, rows in parts if len(rows)]
    if not chosen:
        raise DataError(
            "--stress found no labelled rows on sky the model has not seen", hint="score labelled tensors"
        )
    pieces = [flux_cutouts(b, rows, model.contract, device) for b, rows in chosen]
    s = joined(pieces)
    label = np.concatenate([np.asarray(b.catalog["label"], np.int64)[rows] for b, rows in chosen])
    found = card(model, s, label, split=split, seed=seed, attacked=attacked, device=device)
    write_atomic(directory / "stress.json", json.dumps(found, indent=1, sort_keys=True).encode())
    write_atomic(directory / "stress.csv", table(found))
    write_atomic(directory / "stress.png", picture(found))
    return found


def table(found: Card) -> bytes:
    """The card as CSV: one line for the undisturbed rows, then one per disturbance."""
    lines: list[dict[str, object]] = [{"disturbance": "none", "rows": found["rows"], **found["undisturbed"]}]
    for row in found["card"]:
        rate = row["flip_rate"]
        flat = {"flip_rate": rate["value"], "flip_low": rate["low"], "flip_high": rate["high"]}
        lines.append({k: v for k, v in row.items() if k != "flip_rate"} | flat)
    names = ["disturbance", "rows", "flip_rate", "flip_low", "flip_high"]
    # "none" has no flip rate, and the few rows of the attack may be of one class, which has no AUROC.
    names += dict.fromkeys(k for line in reversed(lines) for k in line if k not in names)
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()})
    return out.getvalue().encode()


def picture(found: Card) -> bytes:
    """Flip rates with intervals, changes of the ranking, and distances to the wrong class, as PNG."""
    # The object interface: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["card"][::-1]  # bars are drawn from the bottom up
    figure = Figure(figsize=(12, 0.3 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    place = np.arange(len(rows))
    rates = [r["flip_rate"] for r in rows]
    value, low, high = 100 * np.array([(r["value"], r["low"], r["high"]) for r in rates]).T
    errors = [value - low, high - value]
    left.barh(place, value, xerr=errors, color="C0", ecolor="0.5", capsize=2)
    left.set_yticks(place, [r["disturbance"] for r in rows])
    left.set_xlim(left=0)
    left.set_xlabel("decisions that flip, %, with 95 % interval")
    before = found["undisturbed"]
    if "auroc" in rows[0]:
        name, first = "AUROC", before.get("auroc", math.nan)
        change = [r.get("auroc_change", 0.0) for r in rows]
    else:
        name, first = "accuracy", before["accuracy"]
        change = [r["accuracy_change"] for r in rows]
    middle.barh(place, change, color="C3")
    middle.axvline(0, color="0.3", linewidth=0.8)
    middle.set_xlabel(f"change of {name}, {first:.3f} before")
    # Each relative to the same rows before it: the attack is on fewer of them than the others.
    ratio = [_ratio(r) for r in rows]
    right.plot(ratio, place, "o", color="C2")
    right.axvline(1, color="0.3", linewidth=0.8)
    right.set_xlabel("latent distance to the wrong class, 1: as before")
    for axes in (left, middle, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"{judged_words({'rows': found['rows'], 'split': found['split']})}; the attack on "
        f"{rows[0]['rows']} of them",
        fontsize=10,
    )
    return figure_png(figure)


def _ratio(line: CardRow) -> float:
    """The distance to the wrong class after the disturbance, divided by that before; NaN without one."""
    if "wrong_class_distance" not in line:
        return math.nan
    far = line["wrong_class_distance"]
    return float(far / (far - line["wrong_class_distance_change"]))
