#!/usr/bin/env python3
"""Completeness from painted arcs against that of the simulated lenses, bin by bin.

    ripple run -c scripts/bench/configs/benchmark.yaml -o benchmark
    ripple run -c scripts/bench/configs/benchmark-test.yaml -o benchmark-test
    python scripts/bench/selection.py benchmark benchmark-test --directory work

Arcs are painted into the cutouts of the second sky twice: with Einstein radii drawn at random, and with those of the hosts' velocity
dispersions. Found is what scores at least the threshold of the model. Lenses are those of both skies that no training has seen. Prints
Markdown; five minutes of two cores.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.learn.evaluation.intervals import clopper_pearson
from ripple.learn.model.contract import load_contract

THETA, SNR = (0.6, 1.2, 1.8, 2.5), (5.0, 20.0, 60.0, 150.0, 400.0)
#: Fewer true lenses say nothing.
FEW = 30


@dataclass(frozen=True)
class Arcs:
    """Rows with an arc: Einstein radius in arcsec, S/N, and whether they are found, `(N,)` each."""

    theta: NDArray[np.float64]
    snr: NDArray[np.float64]
    found: NDArray[np.bool_]

    def in_bin(self, theta: tuple[float, float], snr: tuple[float, float]) -> tuple[int, int]:
        """Found and all rows of a bin."""
        here = (self.theta >= theta[0]) & (self.theta < theta[1]) & (self.snr >= snr[0]) & (self.snr < snr[1])
        return int(self.found[here].sum()), int(here.sum())


def ripple(*argv: str) -> None:
    subprocess.run([sys.executable, "-m", "ripple", *argv, "-q"], check=True, stdout=subprocess.DEVNULL)


def painted(work: Path, sky: Path, model: Path, name: str, *options: str) -> pa.Table:
    """Scores of the cutouts of a sky with arcs painted into them; what is there is not made again."""
    arcs, tensors, scores = (work / f"{name}-{what}" for what in ("arcs", "tensors", "scores"))
    ripple("inject", str(sky / "cutouts"), "-o", str(arcs), "--fraction", "1", "--workers", "2", *options)
    ripple("preprocess", str(arcs), "--model", str(model), "-o", str(tensors), "--workers", "2")
    ripple("score", str(model), str(tensors), "-o", str(scores))
    return pq.read_table(scores / "scores.parquet")


def arcs_of(table: pa.Table, rows: NDArray[np.bool_], threshold: float) -> Arcs:
    theta, snr, score = (
        np.asarray(table[n].to_numpy(), np.float64)[rows] for n in ("theta_E", "arc_snr", "score")
    )
    return Arcs(theta, snr, score >= threshold)


def bare(table: pa.Table) -> NDArray[np.bool_]:
    """Painted rows whose host is a bare elliptical, as those of the lenses are."""
    kind = np.array(table["class"].to_pylist())
    return np.asarray((table["injected"].to_numpy() == 1) & (kind == "elliptical"))


def cell(found: int, rows: int) -> str:
    """Completeness with its interval."""
    if not rows:
        return "–"
    of = clopper_pearson(found, rows).as_dict()
    return f"{of['value']:.2f} [{of['low']:.2f}, {of['high']:.2f}] of {rows}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", type=Path)
    parser.add_argument("sky", type=Path)
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    model = args.training / "model"
    threshold = load_contract(model).threshold
    random = painted(args.directory, args.sky, model, "random")
    mass = painted(args.directory, args.sky, model, "mass", "--theta-from", "sigma_v")
    true = []
    for sky in (args.training, args.sky):
        table = pq.read_table(sky / "scores" / "scores.parquet")
        unseen = np.array(table["split"].to_pylist()) == "test"
        true.append(arcs_of(table, (table["label"].to_numpy() == 1) & unseen, threshold))
    lenses = Arcs(*(np.concatenate([getattr(t, n) for t in true]) for n in ("theta", "snr", "found")))
    ways = {
        "any host, any radius": arcs_of(random, random["injected"].to_numpy() == 1, threshold),
        "bare ellipticals, any radius": arcs_of(random, bare(random), threshold),
        "bare ellipticals, radius of the host's mass": arcs_of(mass, bare(mass), threshold),
        "simulated lenses": lenses,
    }
    print(f"| Einstein radius | arc S/N | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}")
    for theta in itertools.pairwise(THETA):
        for snr in itertools.pairwise(SNR):
            if lenses.in_bin(theta, snr)[1] < FEW:
                continue
            cells = " | ".join(cell(*way.in_bin(theta, snr)) for way in ways.values())
            print(f"| {theta[0]:g} to {theta[1]:g} | {snr[0]:g} to {snr[1]:g} | {cells} |")


if __name__ == "__main__":
    main()
