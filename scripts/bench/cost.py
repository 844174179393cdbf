#!/usr/bin/env python3
"""What a survey pays, and what a person waits for: CPU-milliseconds per row, and seconds for three objects.

    .venv/bin/python scripts/bench/cost.py [--directory DIR] [--rounds 5] [PART ...]

CPU-seconds are those of all processes (`getrusage`), medians of `--rounds` runs in turns; the machine should be
quiet. Parts, all by default:

- `chain`: fetch, preprocess and score of the 20,160 targets of `scripts/bench/configs/benchmark.yaml` (3 bands);
- `full`: the same verbs on full patches (3300 px, 4 bands) with `--targets` in each of `--patches`;
- `matching`: the steps of preprocess on one shard in memory, beside the bare float32 FFTs of the same transforms, with
  the PSFs of cells and with a PSF for every plane;
- `patch`: fetch of 500 targets in one full patch, whole process, over the floor (fitsio reads each plane once,
  slices, saves);
- `memory`: the largest process of preprocess and of a training of three seeds, what is its own and what are mapped files;
- `three`: three targets through fetch, preprocess, score and report, wall seconds, and as one `ripple run`.

The survey is simulated once (some minutes) and kept in `--directory`. Prints Markdown and writes cost.json.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from fetch import BANDS, PATCHES, SIZE, floor, make_targets, repository
from search import make_model

RIPPLE = [sys.executable, "-m", "ripple"]
CONFIG = Path(__file__).parent / "configs" / "benchmark.yaml"


@dataclass(frozen=True)
class Cost:
    """Seconds of a command: by the clock, and of the CPUs by all its processes; MiB of the largest of them."""

    wall: float
    cpu: float
    peak: float = 0.0


def run(*argv: str) -> Cost:
    """Cost of a command line."""
    before, began = _children(), time.perf_counter()
    subprocess.run([*RIPPLE, *argv, "-q"], check=True, stdout=subprocess.DEVNULL)
    return Cost(time.perf_counter() - began, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak(directory: Path) -> float:
    """MiB that the verb which wrote a directory noted as its peak."""
    return float(json.loads((directory / "metrics.json").read_text()).get("peak_rss", 0)) / 2**20


def median(costs: list[Cost]) -> Cost:
    """Median of each number."""
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("wall", "cpu", "peak")))


@dataclass(frozen=True)
class Bench:
    """Where things are, and how often they run."""

    work: Path
    rounds: int
    patches: int
    targets: int

    def fresh(self, name: str) -> Path:
        """A directory that does not exist."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def sky(self) -> Path:
        """The simulated survey of the benchmark, made once."""
        done = self.work / "sky-done"
        if not done.exists():
            options = yaml.safe_load(CONFIG.read_text())["simulate"]
            file = self.work / "simulate.yaml"
            file.write_text(yaml.safe_dump({"simulate": options}))
            run("simulate", "-c", str(file), "-o", str(self.fresh("sky")))
            done.touch()
        return self.work / "sky"


def repository_of(sky: Path) -> tuple[str, ...]:
    """Options that name the repository of a simulated survey."""
    return ("--repo", str(sky / "repo"), "--collections", "mini")


def three_verbs(bench: Bench, where: tuple[str, ...], bands: str, rows: int) -> dict[str, Any]:
    """Fetch, preprocess and score in turns, with a d4cnn of width 4."""
    cutouts, tensors, scores = (bench.work / name for name in ("cutouts", "tensors", "scores"))
    model = bench.work / f"model-{bands}"
    times: dict[str, list[Cost]] = {"fetch": [], "preprocess": [], "score": []}
    for _ in range(bench.rounds):
        for path in (cutouts, tensors, scores):
            shutil.rmtree(path, ignore_errors=True)
        shape = ("--bands", bands, "--size", str(SIZE))
        found = run("fetch", *where, *shape, "-o", str(cutouts))
        times["fetch"].append(replace(found, peak=_peak(cutouts)))
        found = run("preprocess", str(cutouts), "-o", str(tensors))
        times["preprocess"].append(replace(found, peak=_peak(tensors)))
        if not model.exists():
            make_model(model, tensors)
        found = run("score", str(model), str(tensors), "-o", str(scores))
        times["score"].append(replace(found, peak=_peak(scores)))
    print("| verb | wall s | CPU s | CPU-ms per row | peak MiB |\n|---|---|---|---|---|")
    result: dict[str, Any] = {"rows": rows}
    total = 0.0
    for verb, costs in times.items():
        one = median(costs)
        total += one.cpu
        result[verb] = 1e3 * one.cpu / rows
        print(f"| {verb} | {one.wall:.1f} | {one.cpu:.1f} | {result[verb]:.2f} | {one.peak:.0f} |")
    result["chain"] = 1e3 * total / rows
    print(f"| the three | | {total:.1f} | {result['chain']:.2f} | |\n", flush=True)
    operations = json.loads((tensors / "metrics.json").read_text())["operations"]
    result["preprocess_seconds"] = {name: found["seconds"] for name, found in operations.items()}
    return result


def chain(bench: Bench) -> dict[str, Any]:
    """The three verbs on the survey of the benchmark."""
    import pyarrow.parquet as pq

    truth = bench.sky() / "truth.parquet"
    where = (*repository_of(bench.sky()), "--targets", str(truth), "--label-column", "label")
    return three_verbs(bench, where, "gri", pq.read_metadata(truth).num_rows)


def full(bench: Bench) -> dict[str, Any]:
    """The three verbs on full patches in four bands."""
    root, targets = repository(bench.work), bench.work / "targets.csv"
    make_targets(targets, PATCHES[: bench.patches], bench.targets)
    where = ("--repo", str(root), "--collections", "mini", "--targets", str(targets))
    duplicates = ("--set", "duplicate_radius=0")
    return three_verbs(bench, (*where, *duplicates), "".join(BANDS), bench.patches * bench.targets)


def matching(bench: Bench) -> dict[str, Any]:
    """One shard in memory: CPU-ms per row of `preprocess_batch`, and of the bare FFTs of its planes."""
    from ripple.stages.preprocess.batch import preprocess_batch
    from ripple.stages.preprocess.config import PreprocessConfig
    from ripple.stages.preprocess.preprocess import data_constants
    from ripple.storage.artefact import open_artefact
    from ripple.storage.shards import cutouts_of

    cutouts = bench.work / "matching"
    if not cutouts.exists():
        sky = bench.sky()
        where = (*repository_of(sky), "--targets", str(sky / "truth.parquet"))
        run("fetch", *where, "--bands", "gri", "--size", str(SIZE), "-o", str(cutouts))
    artefact = open_artefact(cutouts, "cutouts")
    config = PreprocessConfig(cutouts=str(cutouts), output="unused")
    constants = data_constants(artefact, config)
    batch = cutouts_of(artefact, 0)
    own = with_own_psfs(batch.take(np.arange(min(len(batch), 480))))
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "PSFs of cells": (len(batch), lambda: preprocess_batch(batch, config, constants)),
        "a PSF for every plane": (len(own), lambda: preprocess_batch(own, config, constants)),
        "bare FFTs of the planes, there and back": (len(batch), lambda: transforms(batch.image)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(bench.rounds + 1):
        for name, (_, work) in cases.items():
            began = time.process_time()
            work()
            if k:  # compiled loops are loaded in the first round
                seconds[name].append(time.process_time() - began)
    result = {name: 1e3 * statistics.median(seconds[name]) / rows for name, (rows, _) in cases.items()}
    print("| preprocess in memory, one thread | CPU-ms per row |\n|---|---|")
    for name, value in result.items():
        print(f"| {name} | {value:.2f} |")
    print(flush=True)
    return result


def transforms(image: Any, rows: int = 16) -> None:
    """Real FFTs of all planes and back, in float32, some rows at a time."""
    for start in range(0, len(image), rows):
        piece = image[start : start + rows]
        scipy.fft.irfft2(scipy.fft.rfft2(piece), s=piece.shape[-2:])


def with_own_psfs(batch: Any) -> Any:
    """The batch with a Moffat PSF of its own for every plane, and no cells."""
    n, b = batch.psf_index.shape
    rng, size = np.random.default_rng(0), batch.psf.shape[-1]
    y, x = np.indices((size, size)) - size // 2
    width, stretch = rng.uniform(3.2, 4.8, n * b), rng.uniform(0.9, 1.1, n * b)
    psf = np.empty((n * b, size, size), np.float32)
    for k in range(n * b):
        alpha = width[k] / 2 / np.sqrt(2 ** (1 / 3) - 1)
        psf[k] = (1 + ((x * stretch[k]) ** 2 + (y / stretch[k]) ** 2) / alpha**2) ** -3
    psf /= psf.sum(axis=(1, 2), keepdims=True)
    index = np.arange(n * b, dtype=batch.psf_index.dtype).reshape(n, b)
    return replace(batch, psf=psf, psf_index=index, psf_cells=batch.psf_cells[:0])


def patch(bench: Bench) -> dict[str, Any]:
    """Fetch of 500 targets in one full patch, whole process, beside the floor."""
    root, targets = repository(bench.work), bench.work / "patch.csv"
    make_targets(targets, PATCHES[:1], 500)
    where = ("--repo", str(root), "--collections", "mini", "--targets", str(targets))
    ours, theirs = [], []
    for _ in range(bench.rounds):
        out = bench.fresh("patch")
        ours.append(
            run(
                "fetch", *where, "--bands", "".join(BANDS), "--size", str(SIZE), "--workers", "1", "--margin", "0",
                "-o", str(out), "--set", "duplicate_radius=0",
            )
        )  # fmt: skip
        theirs.append(floor(root, targets, bench.fresh("floor")))
    ratio = statistics.median(a.wall / b for a, b in zip(ours, theirs, strict=True))
    one = median(ours)
    print(
        f"fetch of 500 targets in one patch: {one.wall:.2f} s, {one.cpu:.2f} CPU-s, {ratio:.2f} of the floor\n",
        flush=True,
    )
    return {"wall": one.wall, "cpu": one.cpu, "over_floor": ratio}


def three(bench: Bench) -> dict[str, Any]:
    """Three targets through four verbs, and as one run: seconds by the clock."""
    import pyarrow.parquet as pq

    sky = bench.sky()
    rows = pq.read_table(sky / "truth.parquet", columns=["ra", "dec"]).slice(0, 3).to_pylist()
    targets = bench.work / "three.csv"
    lines = ["id,ra,dec", *(f"{k},{row['ra']!r},{row['dec']!r}" for k, row in enumerate(rows))]
    targets.write_text("\n".join(lines) + "\n")
    names = ("cutouts3", "tensors3", "scores3", "report3", "run3")
    cutouts, tensors, scores, report, whole = (bench.work / name for name in names)
    model = bench.work / "model-three"
    fetch = {
        "repo": str(sky / "repo"),
        "collections": ["mini"],
        "targets": str(targets),
        "bands": ["g", "r", "i"],
        "size": SIZE,
    }
    file = bench.work / "three.yaml"
    file.write_text(
        yaml.safe_dump({"fetch": fetch, "preprocess": {}, "score": {"model": str(model)}, "report": {}})
    )
    waits: dict[str, list[float]] = {name: [] for name in ("fetch", "preprocess", "score", "report", "run")}
    where = (*repository_of(sky), "--targets", str(targets), "--bands", "gri", "--size", str(SIZE))
    for _ in range(bench.rounds):
        for path in (cutouts, tensors, scores, report, whole):
            shutil.rmtree(path, ignore_errors=True)
        waits["fetch"].append(run("fetch", *where, "-o", str(cutouts)).wall)
        waits["preprocess"].append(run("preprocess", str(cutouts), "-o", str(tensors)).wall)
        if not model.exists():
            make_model(model, tensors)
        waits["score"].append(run("score", str(model), str(tensors), "-o", str(scores)).wall)
        waits["report"].append(run("report", str(scores), "-o", str(report)).wall)
        waits["run"].append(run("run", "-c", str(file), "-o", str(whole)).wall)
    result = {name: statistics.median(values) for name, values in waits.items()}
    print("| three targets | " + " | ".join(result) + " |\n" + "|---" * (len(result) + 1) + "|")
    print("| wall s | " + " | ".join(f"{value:.1f}" for value in result.values()) + " |\n", flush=True)
    return result


@dataclass(frozen=True)
class Resident:
    """MiB of a process at its peaks: what is its own, and what are files that it maps."""

    own: float
    mapped: float


def sampled(*argv: str) -> list[Resident]:
    """Peaks of a command and of its child processes, largest first, sampled ten times a second."""
    peaks: dict[int, Resident] = {}
    child = subprocess.Popen([*RIPPLE, *argv, "-q"], stdout=subprocess.DEVNULL)
    parent = psutil.Process(child.pid)
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in (parent, *parent.children(recursive=True)):
                now, was = process.memory_info(), peaks.get(process.pid, Resident(0, 0))
                own = max(was.own, (now.rss - now.shared) / 2**20)
                peaks[process.pid] = Resident(own, max(was.mapped, now.shared / 2**20))
        time.sleep(0.1)
    if child.returncode:
        raise SystemExit(f"ripple {' '.join(argv)} ended with {child.returncode}")
    return sorted(peaks.values(), key=lambda p: -p.own - p.mapped)


def memory(bench: Bench) -> dict[str, Any]:
    """Peaks of preprocess with one worker, and of a training of three seeds on the benchmark's survey."""
    cutouts, tensors = bench.work / "cutouts-memory", bench.work / "tensors-memory"
    if not cutouts.exists():
        truth = bench.sky() / "truth.parquet"
        where = (*repository_of(bench.sky()), "--targets", str(truth), "--label-column", "label")
        run("fetch", *where, "--bands", "gri", "--size", str(SIZE), "-o", str(cutouts))
    shutil.rmtree(tensors, ignore_errors=True)
    # The main process does what comes before and after the shards; the other one is the worker.
    found = {"preprocess": sampled("preprocess", str(cutouts), "--workers", "1", "-o", str(tensors))[:2]}
    model = bench.fresh("model-memory")
    options = ("--network", "d4cnn", "--width", "4", "--seeds", "3", "--epochs", "2")
    found["train, three seeds"] = sampled("train", str(tensors), *options, "-o", str(model))[:1]
    print("| process | own MiB | mapped files MiB |\n|---|---|---|")
    for name, processes in found.items():
        for process in processes:
            print(f"| {name} | {process.own:.0f} | {process.mapped:.0f} |")
    print(flush=True)
    return {name: [(p.own, p.mapped) for p in processes] for name, processes in found.items()}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "chain": chain,
    "full": full,
    "matching": matching,
    "patch": patch,
    "memory": memory,
    "three": three,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="survey, repository and results; kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=5)
    parser.add_argument("--targets", type=int, default=5000, help="in each full patch")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    work = args.directory or Path(tempfile.mkdtemp(prefix="ripple-cost-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["OMP_NUM_THREADS"] = "1"
    bench = Bench(work, args.rounds, args.patches, args.targets)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    record = {name: PARTS[name](bench) for name in args.parts or PARTS}
    (work / "cost.json").write_text(json.dumps(record, indent=1))
    if args.directory is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
