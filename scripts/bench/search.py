#!/usr/bin/env python3
"""Search against fetch, preprocess and score of the same targets: wall time, CPU time, disk, memory, equality.

    .venv/bin/python scripts/bench/search.py [--patches 2] [--targets 2000] [--rounds 3] [--directory DIR]

Uses the repository of `scripts/bench/fetch.py` (full-size patches, 4 bands; made once in --directory) and a d4cnn of
width 4 with random weights, whose contract is that of `preprocess` with its default options. Prints Markdown.
`--part memory` searches --total targets (50,000) of small simulated patches in gri, or with --full of the full-size
ones above, by two workers with --memory, and prints the largest sum over all processes of their proportional memory
(PSS: shared pages count once), taken five times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

sys.path.insert(0, str(Path(__file__).parent))
from fetch import BANDS, PATCHES, SIZE, make_targets, repository

RIPPLE = [sys.executable, "-m", "ripple"]


def run(*argv: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command line and its workers."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*RIPPLE, *argv, "-q"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def bytes_in(*directories: Path) -> int:
    return sum(path.stat().st_size for d in directories for path in d.rglob("*") if path.is_file())


def make_model(directory: Path, tensors: Path) -> None:
    """Random weights and the contract of these tensors."""
    import torch

    from ripple.learn.model.contract import ArchitectureRecord, Contract, Member, pixels_of
    from ripple.learn.model.network import build
    from ripple.learn.model.weights import save_model
    from ripple.storage.artefact import open_artefact

    made = open_artefact(tensors, "tensors")
    bands = tuple(made.attributes["bands"])
    record = ArchitectureRecord(name="d4cnn", bands=len(bands), size=SIZE, outputs=1, width=4)
    contract = Contract(
        architecture=record, bands=bands, size=SIZE, pixel_scale=0.2, unit="nJy", psf_fwhm=None, output="lens",
        normalization=made.attributes["normalization"], pixels=pixels_of(made),
        noise_correlation=made.attributes["noise_correlation"], class_map={"0": "nonlens", "1": "lens"},
        members=(Member(file="model.safetensors", bytes=0, sha256=""),),
    )  # fmt: skip
    torch.manual_seed(0)
    net = build(record.architecture())
    torch.nn.init.normal_(net.head.weight)
    save_model(directory, contract, [net.state_dict()])


def watched(*argv: str) -> tuple[int, int, float]:
    """Largest sums of PSS and RSS of a command and its workers, bytes, and its wall seconds."""
    start, most = time.perf_counter(), [0, 0]
    process = psutil.Popen([*RIPPLE, *argv, "-q"], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        sums = [0, 0]
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found = one.memory_full_info()
                sums = [sums[0] + found.pss, sums[1] + found.rss]
        most = [max(pair) for pair in zip(most, sums, strict=True)]
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"exit {process.returncode}")
    return most[0], most[1], time.perf_counter() - start


def memory(work: Path, total: int, limit: str, *, full: bool) -> None:
    """Peak memory of a search of many targets in few patches."""
    if full:
        root, bands = repository(work), BANDS
        make_targets(work / "many.csv", PATCHES[:2], total // 2)
    else:
        sky, bands = work / "sky", ("g", "r", "i")
        if not sky.exists():
            run("simulate", str(sky), "--patches", "3", "--bands", "gri")
        root, truth = sky / "repo", pq.read_table(sky / "truth.parquet")
        rng, n = np.random.default_rng(1), -(-total // truth.num_rows)
        # Around each object of the truth, a few pixels apart: as crowded as no sky is.
        ra, dec = (np.repeat(truth[name].to_numpy(), n)[:total] for name in ("ra", "dec"))
        off = rng.uniform(-3e-3, 3e-3, (2, total))
        pq.write_table(
            pa.table({"id": np.arange(total), "ra": ra + off[0], "dec": dec + off[1]}), work / "many.parquet"
        )
    targets = work / ("many.csv" if full else "many.parquet")
    where = ["--repo", str(root), "--collections", "mini", "--set", "duplicate_radius=0"]
    few = ["--targets", str(targets), "--bands", "".join(bands), "--size", str(SIZE), "--region"]
    model = work / f"model-{''.join(bands)}"
    if not model.exists():
        for path in (work / "few", work / "first"):
            shutil.rmtree(path, ignore_errors=True)
        place = first_position(targets)
        run("fetch", *where, *few, f"CIRCLE {place[0]} {place[1]} 0.004", "-o", str(work / "few"))
        run("preprocess", str(work / "few"), "-o", str(work / "first"))
        make_model(model, work / "first")
    shutil.rmtree(work / "found", ignore_errors=True)
    argv = (
        "search",
        str(model),
        *where,
        "--targets",
        str(targets),
        "-o",
        str(work / "found"),
        "--workers",
        "2",
    )
    pss, rss, seconds = watched(*argv, "--memory", limit)
    rows = pq.read_metadata(work / "found" / "index.parquet").num_rows
    units = len(list((work / "found").glob("shard-*")))
    print(f"{rows:,} targets in {units} units, {len(bands)} bands, --memory {limit}: {seconds:.0f} s,")
    print(f"peak of all processes {pss / 2**30:.2f} GiB (PSS), {rss / 2**30:.2f} GiB (RSS)")


def first_position(targets: Path) -> tuple[float, float]:
    """Position of the first target, deg."""
    if targets.suffix == ".parquet":
        table = pq.read_table(targets)
        return table["ra"][0].as_py(), table["dec"][0].as_py()
    table = csv.read_csv(targets)
    return table["ra"][0].as_py(), table["dec"][0].as_py()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("search", "memory"), default="search")
    parser.add_argument("--total", type=int, default=50_000, help="of --part memory")
    parser.add_argument("--memory", default="2GiB", help="of --part memory")
    parser.add_argument("--full", action="store_true", help="--part memory in full-size patches")
    parser.add_argument("--patches", type=int, default=2)
    parser.add_argument("--targets", type=int, default=2000, help="in each patch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--engines", default="torch,onnx")
    args = parser.parse_args()
    work = args.directory or Path(tempfile.mkdtemp(prefix="ripple-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    if args.part == "memory":
        memory(work, args.total, args.memory, full=args.full)
        return
    root, targets = repository(work), work / "targets.csv"
    make_targets(targets, PATCHES[: args.patches], args.targets)
    where = (
        "--repo",
        str(root),
        "--collections",
        "mini",
        "--targets",
        str(targets),
        "--set",
        "duplicate_radius=0",
    )
    names = ("cutouts", "tensors", "scores", "found", "first", "model")
    cutouts, tensors, scores, found, first, model = (work / name for name in names)
    shape = ("--bands", "".join(BANDS), "--size", str(SIZE))
    for path in (cutouts, first, model):
        shutil.rmtree(path, ignore_errors=True)
    run("fetch", *where, *shape, "-o", str(cutouts))
    run("preprocess", str(cutouts), "-o", str(first))
    make_model(model, first)
    n = args.patches * args.targets
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {n:,} targets in {args.patches} patches, {len(BANDS)} bands\n"
    )
    print("| engine | | wall s | CPU s | CPU-ms per row | MB written |\n|---|---|---|---|---|---|")
    record = {}
    for engine in args.engines.split(","):
        times: dict[str, list[tuple[float, float]]] = {
            "fetch": [],
            "preprocess": [],
            "score": [],
            "search": [],
        }
        for _ in range(args.rounds):
            for path in (cutouts, tensors, scores, found):
                shutil.rmtree(path, ignore_errors=True)
            times["fetch"].append(run("fetch", *where, *shape, "-o", str(cutouts)))
            times["preprocess"].append(
                run("preprocess", str(cutouts), "--model", str(model), "-o", str(tensors))
            )
            times["score"].append(
                run(
                    "score", str(model), str(tensors), "-o", str(scores), "--engine", engine, "--threads", "1"
                )
            )
            times["search"].append(run("search", str(model), *where, "-o", str(found), "--engine", engine))
        same = all(
            (scores / f).read_bytes() == (found / f).read_bytes() for f in ("scores.parquet", "index.parquet")
        )
        median = {
            verb: [statistics.median(t[k] for t in runs) for k in (0, 1)] for verb, runs in times.items()
        }
        three = [sum(median[verb][k] for verb in ("fetch", "preprocess", "score")) for k in (0, 1)]
        disk = {"three": bytes_in(cutouts, tensors, scores), "search": bytes_in(found)}
        for verb in ("fetch", "preprocess", "score"):
            print(
                f"| {engine} | {verb} | {median[verb][0]:.1f} | {median[verb][1]:.1f} | {1e3 * median[verb][1] / n:.2f} | |"
            )
        print(
            f"| {engine} | the three | {three[0]:.1f} | {three[1]:.1f} | {1e3 * three[1] / n:.2f} | {disk['three'] / 1e6:.0f} |"
        )
        print(
            f"| {engine} | search | {median['search'][0]:.1f} | {median['search'][1]:.1f} | {1e3 * median['search'][1] / n:.2f} | {disk['search'] / 1e6:.1f} |"
        )
        print(
            f"| {engine} | search / three | {median['search'][0] / three[0]:.2f} | {median['search'][1] / three[1]:.2f} | | {disk['search'] / disk['three']:.4f} |"
        )
        metrics = json.loads((found / "metrics.json").read_text())
        record[engine] = {
            "times": times,
            "same": same,
            "peak": metrics["peak_rss"],
            "operations": metrics["operations"],
            "disk": disk,
        }
        print(
            f"\n{engine}: scores {'identical' if same else 'DIFFER'}; peak memory of search {metrics['peak_rss'] / 2**30:.2f} GiB\n"
        )
    (work / "search.json").write_text(json.dumps(record, indent=1))
    if args.directory is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
