#!/usr/bin/env python3
"""Lenses found against objects looked at: by rank alone, and with what was learnt from the grades so far.

    .venv/bin/python scripts/bench/active.py --model benchmark/model --tensors benchmark-test/tensors \\
        --training benchmark/tensors [--repeats 10] [--picture curve.png]
    pip install scikit-activeml     # for the comparison; left out when it is not there

A model that has not seen rings, spirals and mergers, and the same other sky for it:

    ripple fetch --repo benchmark/sky/repo --collections mini --targets benchmark/sky/truth.parquet --label-column label \\
        --select "class in ('lens', 'elliptical', 'chance')" --bands gri --size 64 --margin 10 -o naive/cutouts
    ripple preprocess naive/cutouts -o naive/tensors
    ripple train naive/tensors --network d4cnn --width 4 --epochs 8 -o naive/model
    ripple preprocess benchmark-test/cutouts --model naive/model -o naive-test/tensors

The tensors are those of another sky than the model's (`scripts/bench/configs/benchmark-test.yaml`). Each repeat takes nine
tenths of the lenses whose arcs can be seen, or of the other rows, and as many of the others as make 1 % or 0.1 % lenses. A
grader who is always right looks at 200 objects at a time:

- `random`, `rank` (by the score of the model), `oracle` (all lenses first);
- `active`: after each 200, a new last layer (logistic regression on the embeddings and the score of the model) is
  trained on the rows of the training set and on all grades, and the next 200 are `best` (its highest probabilities),
  `uncertain` (nearest to 1/2), `similar` (most like the lenses found so far) or `mixed` (half, a quarter, a quarter);
- `scikit-activeml`: its uncertainty sampling, by the same embeddings and classifier.

Prints Markdown; medians and the range of 80 % of the repeats.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from embeddings import read_embeddings
from sklearn.linear_model import LogisticRegression

ROUND, LOOKED = 200, (200, 400, 1000, 2000)
#: Strength of the ridge on the weights of the embeddings: chosen on the training sky, by its held-out loss.
RIDGE = 1.0
#: The score counts so many times as much as one feature: what the model knows is only corrected.
TRUST = 3.0
ORDERS = ("best", "uncertain", "similar", "mixed")


@dataclass(frozen=True)
class Sky:
    """Rows that quality control accepted: `(N, F)` directions, logits, lenses and whether their arcs can be seen."""

    vector: np.ndarray
    logit: np.ndarray
    lens: np.ndarray

    def of(self, rows: np.ndarray) -> Sky:
        return Sky(self.vector[rows], self.logit[rows], self.lens[rows])

    @property
    def features(self) -> np.ndarray:
        return np.column_stack([self.vector, TRUST * self.logit / 4.0])


def embedded(model: Path, tensors: Path, work: Path, visible: float) -> Sky:
    """A sky as the model sees it. Lenses fainter than `visible` mag/arcsec² are left out: nobody would grade them so."""
    out = work / f"{tensors.resolve().parent.name}-embeddings"
    if not (out / "manifest.json").exists():
        subprocess.run(
            [sys.executable, "-m", "ripple", "embed", str(model), str(tensors), "-o", str(out), "-q"],
            check=True,
        )
    columns = ("score", "label", "accept", "arc_sb")
    table, vector = read_embeddings(out, columns)
    score, label, accept, sb = (np.asarray(table[n].to_numpy(), float) for n in columns)
    keep = (accept != 0) & ((label == 0) | ((label == 1) & (sb < visible)))
    p = np.clip(score[keep], 1e-7, 1 - 1e-7)
    vector = vector[keep].astype(np.float32)
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    return Sky(vector, np.log(p / (1 - p)), label[keep] == 1)


def head(sky: Sky, rows: np.ndarray, training: Sky, share: float) -> np.ndarray:
    """`(N,)` probabilities of a sky of which about this share are lenses, by a new last layer."""
    # Each grade counts as ten rows of the training sky: they are few, and of the right sky.
    x = np.concatenate([training.features, sky.features[rows]])
    y = np.concatenate([training.lens, sky.lens[rows]])
    weight = np.concatenate([np.full(len(training.lens), 0.1), np.ones(len(rows))])
    fitted = LogisticRegression(C=1 / RIDGE, max_iter=500).fit(x, y, sample_weight=weight)
    there = training.lens.mean()
    shift = np.log(share / (1 - share)) - np.log(there / (1 - there))
    return np.asarray(1 / (1 + np.exp(-fitted.decision_function(sky.features) - shift)))


def chosen(order: str, p: np.ndarray, sky: Sky, seen: np.ndarray, count: int) -> np.ndarray:
    """The next rows to look at, of those that were not."""
    left = np.flatnonzero(~seen)
    lenses = sky.vector[seen & sky.lens]
    alike = (sky.vector[left] @ lenses.T).max(axis=1) if len(lenses) else p[left]
    keys = {"best": -p[left], "uncertain": np.abs(p[left] - 0.5), "similar": -alike}
    if order != "mixed":
        return left[np.argsort(keys[order], kind="stable")[:count]]
    picked: list[int] = []
    for part, share in (
        ("best", count // 2),
        ("uncertain", count // 4),
        ("similar", count - count // 2 - count // 4),
    ):
        by = [k for k in np.argsort(keys[part], kind="stable") if k not in set(picked)]
        picked += by[:share]
    return left[picked]


def active(order: str, sky: Sky, training: Sky, share: float, looked: int) -> np.ndarray:
    """`(looked,)` whether the 1st, 2nd, ... object that was looked at is a lens."""
    seen, found = np.zeros(len(sky.lens), bool), []
    p = sky.logit
    while sum(map(len, found)) < looked:
        # The first ones by rank, whatever comes later: nothing has been graded yet.
        rows = chosen("best" if not found else order, p, sky, seen, ROUND)
        seen[rows] = True
        found.append(rows)
        p = head(sky, np.flatnonzero(seen), training, share)
    return sky.lens[np.concatenate(found)][:looked]


def skactiveml(sky: Sky, training: Sky, looked: int) -> np.ndarray:
    """As `active`, by the uncertainty sampling of scikit-activeml."""
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.pool import UncertaintySampling

    x = np.concatenate([training.features, sky.features])
    n, y = len(training.lens), np.full(len(training.lens) + len(sky.lens), np.nan)
    y[:n] = training.lens
    found = [n + np.argsort(-sky.logit, kind="stable")[:ROUND]]
    weight = np.concatenate([np.full(n, 0.1), np.ones(len(sky.lens))])
    query = UncertaintySampling(method="least_confident", random_state=0)
    while True:
        y[found[-1]] = sky.lens[found[-1] - n]
        if sum(map(len, found)) >= looked:
            return sky.lens[np.concatenate(found) - n][:looked]
        classifier = SklearnClassifier(
            LogisticRegression(C=1 / RIDGE, max_iter=500), classes=[0, 1], random_state=0
        )
        found.append(query.query(X=x, y=y, clf=classifier, sample_weight=weight, batch_size=ROUND))


def curves(sky: Sky, training: Sky, share: float, seed: int, looked: int) -> dict[str, np.ndarray]:
    """Strategy -> lenses found after 1, 2, ... objects, as a share of all lenses of one repeat."""
    rng = np.random.default_rng([seed, int(1e6 * share)])
    others, lenses = (rng.permutation(np.flatnonzero(which)) for which in (~sky.lens, sky.lens))
    # Nine tenths of one kind, as many as make the share of the other.
    count = min(0.9 * len(others), 0.9 * len(lenses) * (1 - share) / share)
    others, lenses = others[: int(count)], lenses[: max(1, round(count * share / (1 - share)))]
    part = sky.of(rng.permutation(np.concatenate([others, lenses])))
    n = part.lens.sum()
    found: dict[str, np.ndarray] = {
        "random": part.lens[:looked],
        "rank": part.lens[np.argsort(-part.logit, kind="stable")[:looked]],
        "oracle": np.arange(looked) < n,
    }
    found |= {f"active, {order}": active(order, part, training, share, looked) for order in ORDERS}
    if importlib.util.find_spec("skactiveml"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["scikit-activeml, uncertain"] = skactiveml(part, training, looked)
    return {name: np.cumsum(hits) / n for name, hits in found.items()}


def table(all_of: list[dict[str, np.ndarray]], share: float, lenses: str) -> None:
    print(f"\n{share:.1%} lenses ({lenses}), share of them found:\n")
    print(f"| looked at | {' | '.join(str(n) for n in LOOKED)} |\n|---|{'---|' * len(LOOKED)}")
    for name in all_of[0]:
        values = np.array([[repeat[name][n - 1] for n in LOOKED] for repeat in all_of])
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
        cells = (f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(middle, low, high, strict=True))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    gain = [r["active, best"][999] / max(r["rank"][999], 1e-9) for r in all_of]
    print(f"\nactive, best over rank at 1,000: {np.median(gain):.2f}")


def picture(found: dict[float, list[dict[str, np.ndarray]]], path: Path) -> None:
    """The curves with the range of 80 % of the repeats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (share, repeats) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for name in repeats[0]:
            low, middle, high = np.quantile([r[name] for r in repeats], (0.1, 0.5, 0.9), axis=0)
            (line,) = axes.plot(np.arange(1, len(middle) + 1), middle, label=name, lw=1.3)
            axes.fill_between(
                np.arange(1, len(middle) + 1), low, high, color=line.get_color(), alpha=0.12, lw=0
            )
        axes.set(
            xlabel="objects looked at",
            ylabel="share of lenses found",
            title=f"{share:.1%} lenses",
            xscale="log",
        )
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "tensors", "training"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--visible", type=float, default=26.0, help="Faintest arcs, mag/arcsec^2.")
    parser.add_argument("--directory", type=Path, help="Kept; a temporary one by default.")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.directory or Path(temporary)
        sky, training = (
            embedded(options.model, t, work, options.visible) for t in (options.tensors, options.training)
        )
    print(f"{len(sky.lens):,} rows, {sky.lens.sum()} lenses; {len(training.lens):,} rows of the training sky")
    found = {}
    for share in (0.01, 0.001):
        found[share] = [curves(sky, training, share, seed, max(LOOKED)) for seed in range(options.repeats)]
        count = min(0.9 * (~sky.lens).sum(), 0.9 * sky.lens.sum() * (1 - share) / share)
        table(
            found[share],
            share,
            f"{round(count * share / (1 - share))} among {count / (1 - share):,.0f} objects",
        )
    if options.picture:
        picture(found, options.picture)


if __name__ == "__main__":
    main()
