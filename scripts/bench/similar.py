#!/usr/bin/env python3
"""What a search of embeddings costs, what int8 loses, and what it finds.

    .venv/bin/python scripts/bench/similar.py                  # 10^7 made-up embeddings of 64 features: 1.3 GB of disk
    .venv/bin/python scripts/bench/similar.py --part pairs     # 100,000 rows against 100,000
    .venv/bin/python scripts/bench/similar.py --part lenses    # planted lenses: simulates, trains, embeds; minutes

Made up: 1,000 kinds of objects, each row its kind and noise of half that length. A search is that of one example of
the 10^7, its CPU time without the start of the process (and with it: the whole command). Recall: of the 100 best by the
float32 vectors, how many are among the 100 best of `ripple similar`, mean over 20 examples. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from embeddings import read_embeddings

from ripple.config import Config
from ripple.stages.similar.config import SimilarConfig
from ripple.stages.similar.similar import similar
from ripple.storage.embeddings import KIND, SUFFIX, directions, pack, quantise
from ripple.storage.writer import ArtefactWriter, create

FEATURES, SHARD, KINDS, QUERIES, TOP = 64, 65_536, 1000, 20, 100
RIPPLE = [sys.executable, "-m", "ripple"]


class Made(Config):
    """Stands for the options of `embed`."""

    verb = "embed"


def features(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Features `(n, F)` float32, shard by shard; with an odd seed of no kinds, evenly in all directions."""
    kinds = np.random.default_rng([seed, 0]).normal(size=(KINDS, FEATURES)).astype(np.float32)
    for k, first in enumerate(range(0, rows, SHARD)):
        rng, n = np.random.default_rng([seed, 1, k]), min(SHARD, rows - first)
        noise = rng.standard_normal((n, FEATURES), dtype=np.float32)
        yield noise if seed % 2 else kinds[rng.integers(0, KINDS, n)] + 0.5 * noise


def make(directory: Path, rows: int, seed: int = 0) -> Path:
    """Embeddings in the layout of `ripple embed`, with the columns that every catalogue has."""
    units = -(-rows // SHARD)
    inputs = {"model": "0" * 64, "tensors": []}
    writer = create(directory, kind=KIND, config=Made(), inputs=inputs, units=units, suffix=SUFFIX)
    if not isinstance(writer, ArtefactWriter):
        return directory
    indexes, first = [], 0
    with writer:
        for k, part in enumerate(features(rows, seed)):
            n, rng = len(part), np.random.default_rng([seed, 2, k])
            number = np.arange(first, first + n)
            direction, length = directions(part[None])
            table = pa.table({
                "id": pa.array([f"obj{i:09d}" for i in number.tolist()]), "ra": rng.uniform(0, 360, n),
                "dec": rng.uniform(-60, 0, n), "score": rng.random(n), "qc": np.zeros(n, np.int64),
                "accept": np.ones(n, np.uint8), "split": ["unknown"] * n, "length": length,
            })  # fmt: skip
            data, facts = pack(table, quantise(direction))
            writer.commit(k, data, n, facts)
            words = {"status": ["ok"] * n, "reason": [""] * n}
            place = {"shard": np.full(n, k, np.int32), "row": np.arange(n, dtype=np.int32)}
            indexes.append(pa.table({"index": number, **words, **place}))
            first += n
        model = {"digest": "0" * 64, "origin": "made up"}
        attributes = {"bands": ["g"], "rows": rows, "features": FEATURES, "members": 1, "model": model}
        writer.finish(indexes, {}, {**attributes, "scale": 0.0})
    return directory


def found(directory: Path, like: list[str], **options: object) -> list[str]:
    made = {"embeddings": str(directory), "like": like, "top": TOP, "rejected": True, **options}
    return [str(i) for i in similar(SimilarConfig.make(made)).table["id"].to_pylist()]


def cpu(what: Callable[[], object], times: int = 5) -> float:
    """Median CPU seconds of a call that was made once before."""
    what()
    spent = []
    for _ in range(times):
        start = time.process_time()
        what()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def scan(root: Path, rows: int, seed: int) -> None:
    out = root / f"made-{rows}-{seed}"
    # In a process of its own: whoever starts the search would hand it the peak of its own memory.
    part = ["--part", "make", "--rows", str(rows), "--seed", str(seed), "--directory", str(root)]
    subprocess.run([sys.executable, __file__, *part], check=True)
    chosen = np.random.default_rng(5).choice(rows, QUERIES, replace=False)
    one = [f"obj{chosen[0]:09d}"]
    five = [f"obj{i:09d}" for i in chosen[:5]]
    figures = {
        "one example": cpu(lambda: found(out, one)),
        "five examples": cpu(lambda: found(out, five)),
        "--select 'score > 0.5'": cpu(lambda: found(out, one, select="score > 0.5")),
        "--region 'CIRCLE 100 -30 20'": cpu(lambda: found(out, one, region="CIRCLE 100 -30 20")),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*RIPPLE, "similar", str(out), "--like", one[0], "--json"], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["the whole command, one example"] = sum(after[:2]) - sum(before[:2])
    print(f"| search of {rows:,} rows of {FEATURES} features | CPU s |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} |")
    best = exact(rows, chosen, seed)
    hits = [len(set(found(out, [f"obj{i:09d}"])) & set(mine)) for i, mine in zip(chosen, best, strict=True)]
    peak = after.ru_maxrss * 1024 / 1e9  # of the only child, which searched and made nothing up
    print(f"\npeak memory {peak:.2f} GB; recall@{TOP} of int8 against float32 {np.mean(hits) / TOP:.4f}")


def exact(rows: int, chosen: np.ndarray, seed: int) -> list[list[str]]:
    """The best rows of each example by its float32 vector."""
    parts = np.concatenate(
        [part[chosen[chosen // SHARD == k] % SHARD] for k, part in enumerate(features(rows, seed))]
    )
    order = np.argsort(np.argsort(chosen // SHARD, kind="stable"), kind="stable")
    query = directions(parts[order][None])[0].T  # (F, Q)
    value = np.full((0, QUERIES), 0, np.float32)
    number = np.zeros((0, QUERIES), np.int64)
    for k, part in enumerate(features(rows, seed)):
        product = directions(part[None])[0] @ query
        mine = chosen // SHARD == k
        product[chosen[mine] % SHARD, np.flatnonzero(mine)] = -9  # not the example itself
        value = np.concatenate([value, product])
        number = np.concatenate([number, np.repeat(k * SHARD + np.arange(len(part))[:, None], QUERIES, 1)])
        top = np.argpartition(-value, TOP, axis=0)[:TOP]
        value, number = np.take_along_axis(value, top, 0), np.take_along_axis(number, top, 0)
    return [[f"obj{i:09d}" for i in column.tolist()] for column in number.T]


def pairs(root: Path, rows: int = 100_000) -> None:
    one, two = (make(root / f"pairs-{seed}", rows, seed) for seed in (2, 4))
    options = {"embeddings": str(one), "to": str(two), "above": 0.95}
    spent = cpu(lambda: similar(SimilarConfig.make(options)), 1)
    print(f"pairs of {rows:,} and {rows:,} rows: {spent:.1f} CPU s")


# Planted lenses -----------------------------------------------------


def run(*argv: str) -> None:
    subprocess.run([*RIPPLE, *argv, "-q"], check=True, stdout=subprocess.DEVNULL)


def survey(root: Path, name: str, patches: int, seed: int, share: float) -> Path:
    """Tensors of a simulated survey of which a share of the objects are lenses."""
    tensors, sky, cutouts = (root / f"{name}-{what}" for what in ("tensors", "sky", "cutouts"))
    if not (tensors / "manifest.json").exists():
        run("simulate", str(sky), "--patches", str(patches), "--bands", "gri", "--seed", str(seed),
            "--set", f"lens_fraction={share}")  # fmt: skip
        run("fetch", "--repo", f"{sky}/repo", "--collections", "mini", "--targets", f"{sky}/truth.parquet",
            "--bands", "gri", "--size", "48", "-o", str(cutouts))  # fmt: skip
        run("preprocess", str(cutouts), "--psf", "match", "-o", str(tensors))
    return tensors


def lenses(root: Path, patches: int, epochs: int) -> None:
    known = survey(root, f"known-{patches}", patches, 11, 0.5)
    survey(root, f"target-{patches}", patches, 12, 0.02)
    # The other sky has a PSF and a noise of its own: its tensors are made for the model.
    model, ready, out = (root / f"{what}-{patches}-{epochs}" for what in ("model", "ready", "embeddings"))
    run("train", str(known), "--epochs", str(epochs), "--width", "4", "--nside", "16384", "-o", str(model))
    run("preprocess", str(root / f"target-{patches}-cutouts"), "--model", str(model), "-o", str(ready))
    run("embed", str(model), str(ready), "-o", str(out))
    for visible in (False, True):
        print(json.dumps(compared(out, visible)))


def compared(out: Path, visible: bool) -> dict[str, object]:
    """Recall of the lenses, or of those with arcs brighter than 26 mag/arcsec^2, among the best 50 and 100:
    random, by rank, and by likeness to one and to five of them."""
    table, vector = read_embeddings(out, ("id", "score", "label", "accept", "arc_sb"))
    keep = table["accept"].to_numpy() != 0
    lens = table["label"].to_numpy() == 1
    if visible:
        lens &= table["arc_sb"].to_numpy() < 26
    lens, vector = lens[keep], vector[keep]
    score, ids = table["score"].to_numpy()[keep], np.array(table["id"].to_pylist(), str)[keep]
    wanted = set(ids[lens])
    rng = np.random.default_rng(0)
    figures: dict[str, object] = {"rows": len(lens), "lenses": int(lens.sum()), "visible": visible}
    five = [rng.choice(sorted(wanted), 5, replace=False).tolist() for _ in range(40)]
    for top in (50, 100):
        ranked = set(ids[np.argsort(-score)[:top]])
        figures[f"random@{top}"] = round(top / len(lens), 3)
        figures[f"rank@{top}"] = round(len(ranked & wanted) / len(wanted), 3)
        for count, draws in ((1, [[i] for i in sorted(wanted)]), (5, five)):
            hits = [len(set(found(out, like, top=top, rejected=False)) & wanted) for like in draws]
            figures[f"like {count}@{top}"] = round(float(np.mean(hits)) / (len(wanted) - count), 3)
        figures[f"like 5 by their mean@{top}"] = by_mean(vector, ids, lens, five, top)
    return figures


def by_mean(vector: np.ndarray, ids: np.ndarray, lens: np.ndarray, draws: list[list[str]], top: int) -> float:
    """The same by the mean of the cosines, instead of the cosine with the nearest example."""
    v = vector / np.linalg.norm(vector.astype(float), axis=1, keepdims=True)
    place, share = {name: k for k, name in enumerate(ids)}, []
    for like in draws:
        rows = [place[i] for i in like]
        value = (v @ v[rows].T).mean(axis=1)
        value[rows] = -9
        share.append(lens[np.argsort(-value)[:top]].sum() / (lens.sum() - len(rows)))
    return round(float(np.mean(share)), 3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("make", "scan", "pairs", "lenses"), default="scan")
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--directory", type=Path, help="Kept; a temporary one by default.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.directory or Path(temporary)
        if options.part == "make":
            make(root / f"made-{int(options.rows)}-{options.seed}", int(options.rows), options.seed)
        elif options.part == "scan":
            scan(root, int(options.rows), options.seed)
        elif options.part == "pairs":
            pairs(root)
        else:
            lenses(root, options.patches, options.epochs)


if __name__ == "__main__":
    main()
