#!/usr/bin/env python3
"""Search against fetch, preprocess and score of the same targets: wall time, CPU time, disk, memory, equality.

    .venv/bin/python scripts/bench/search.py [--patches 2] [--targets 2000] [--rounds 3] [--directory DIR]

Uses the repository of `scripts/bench/fetch.py` (full-size patches, 4 bands; made once in --directory) and a d4cnn of
width 4 with random weights, whose contract is that of `preprocess` with its default options. Prints Markdown.
`--part engines` compares PyTorch and ONNX Runtime on networks alone instead: rows per CPU-second of one thread.
"""

from __future__ import annotations

import argparse
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


def engines(rounds: int, rows: int = 256) -> None:
    """Rows per CPU-second of features, one thread, 64 px and 3 bands, in turns."""
    import torch

    from ripple.learn.model.architecture import Architecture
    from ripple.learn.model.network import build
    from ripple.learn.model.program import OnnxProgram
    from ripple.learn.scoring.engine import graph_of

    torch.set_num_threads(1)
    image = torch.randn(rows, 3, 64, 64)
    print(
        "| network | PyTorch rows/CPU-s | ONNX Runtime | ratio | largest difference of features |\n|---|---|---|---|---|"
    )
    for name, width in (("d4cnn", 4), ("d4cnn", 8), ("resnet18", 8)):
        net = build(Architecture(name, 3, 64, 1, "small", width, 0.0)).eval()
        pair = (net.backbone, OnnxProgram(graph_of(net.backbone, (3, 64))))
        rates: list[list[float]] = [[], []]
        with torch.inference_mode():
            for round_ in range(rounds + 1):
                for k, backbone in enumerate(pair):
                    start = time.process_time()
                    found = [backbone(part) for part in image.split(rows)]
                    if round_:  # the first is a warm-up
                        rates[k].append(rows / (time.process_time() - start))
            ours, theirs = (backbone(image) for backbone in pair)
        torch_, onnx = (statistics.median(r) for r in rates)
        print(
            f"| {name}, width {width} | {torch_:.0f} | {onnx:.0f} | {onnx / torch_:.1f} | {float((ours - theirs).abs().max()):.1e} |",
            flush=True,
        )
        del found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("search", "engines"), default="search")
    parser.add_argument("--patches", type=int, default=2)
    parser.add_argument("--targets", type=int, default=2000, help="in each patch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--engines", default="torch,onnx")
    args = parser.parse_args()
    if args.part == "engines":
        engines(args.rounds)
        return
    work = args.directory or Path(tempfile.mkdtemp(prefix="ripple-bench-"))
    work.mkdir(parents=True, exist_ok=True)
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
