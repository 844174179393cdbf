#!/usr/bin/env python3
"""Fetch against its peers and against the floor, in one run, as ratios (median of paired rounds).

    .venv/bin/python scripts/bench/fetch.py [--patches 2] [--rounds 5] [--directory DIR] [--output DIR] [CASE ...]

Makes its own repository of full-size patches (3300 x 3300 px, 150 px cells, 4 bands, lossless GZIP_2) once, and
cuts 64 px stamps with image, variance, mask and PSF:

- `butler loop`: `butler.get(bbox=...)` per band and target, on a sample, as the tutorials do;
- `floor`: `fitsio` reads each plane once, slices, `np.save` (image, variance, mask; no PSF, index or digests);
- `ripple`: `ripple.stages.fetch.fetch.fetch`, worker start-up, plan, PSF, index, digests and fsync included. A worker hashes
  and writes beside its decoding, so CPU seconds are printed next to wall time: the floor has one thread.

`--output` is where results go: on a slow disk fetch waits for it (fsync) and the floor does not; the rate of the
disk is printed. The peers astrocut and Cutana are in `scripts/bench/peers.py`.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BANDS = ("g", "r", "i", "z")
SKYMAP, TRACT, SIZE = "lsst_cells_v2", 5063, 64
PLANES = (
    "NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED", "DETECTED",
    "INEXACT_PSF",
)  # fmt: skip
#: Galaxies per square degree with i < 23.5: 46 * 10**(0.31 * (i - 25)) per square arcminute (LSST Science
#: Collaboration 2009, arXiv:0912.0201, section 3.7.2, from the CFHTLS Deep counts; holds for 20.5 < i < 25.5).
GALAXIES = round(3600 * 46 * 10 ** (0.31 * (23.5 - 25)))
PATCHES = [44, 45, 54, 55, 46, 56, 64, 65, 66, 43]


def make_repository(root: Path, patches: list[int]) -> None:
    """Coadds of noise with sources, PSFs that differ by cell."""
    from ripple.rubin.write_repository import CoaddPlanes, MiniRepo
    from ripple.sky.skymap import known

    skymap = known(SKYMAP)
    repo = MiniRepo(root, skymap, TRACT, patches, BANDS)

    def planes(patch: int, band: str) -> CoaddPlanes:
        rng = np.random.default_rng([patch, BANDS.index(band)])
        image = rng.normal(0, 20, skymap.patch_outer(TRACT, patch).shape).astype(np.float32)
        for _ in range(400):
            y, x = rng.integers(20, 3280, 2)
            image[y - 4 : y + 5, x - 4 : x + 5] += rng.exponential(300) * _bump(9)
        variance = (400 + np.abs(image)).astype(np.float32)
        mask = (image > 100).astype(np.uint8) << 7
        fwhm = rng.uniform(5.0, 6.5, (22, 22))
        kernels = np.stack([[_moffat(41, f) for f in row] for row in fwhm])
        return CoaddPlanes(patch, band, image, variance, mask, PLANES, kernels)

    repo.put_coadds([(patch, band) for patch in patches for band in BANDS], planes, workers=2)


def _bump(n: int) -> np.ndarray:
    r = np.arange(n) - n // 2
    return np.exp(-(r[:, None] ** 2 + r**2) / 8.0).astype(np.float32)


def _moffat(n: int, fwhm: float, beta: float = 3.0) -> np.ndarray:
    r = np.arange(n) - n // 2
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    kernel = (1 + (r[:, None] ** 2 + r**2) / alpha**2) ** -beta
    return kernel / kernel.sum()


def make_targets(path: Path, patches: list[int], per_patch: int) -> None:
    """Uniform positions in the inner patches."""
    from ripple.sky.skymap import known

    skymap = known(SKYMAP)
    tan = skymap.tan(TRACT)
    lines = ["id,ra,dec"]
    for patch in patches:
        inner = skymap.patch_inner(TRACT, patch)
        rng = np.random.default_rng([patch, per_patch])
        x, y = rng.uniform(inner.x0, inner.x1 - 1, per_patch), rng.uniform(inner.y0, inner.y1 - 1, per_patch)
        ra, dec = tan.pixel_to_sky(x, y)
        lines += [
            f"{patch * 100_000 + k},{a!r},{d!r}"
            for k, (a, d) in enumerate(zip(ra.tolist(), dec.tolist(), strict=True))
        ]
    path.write_text("\n".join(lines) + "\n")


def ripple_fetch(root: Path, targets: Path, out: Path, **options: object) -> tuple[float, dict[str, object]]:
    """Seconds and metrics of one fetch in a fresh process."""
    shutil.rmtree(out, ignore_errors=True)
    values = {
        "repo": str(root), "collections": ["mini"], "targets": str(targets), "bands": list(BANDS), "size": SIZE,
        "output": str(out), "workers": 1, "duplicate_radius": 0, **options,
    }  # fmt: skip
    code = (
        "import json, sys, time; from ripple.stages.fetch.fetch import FetchConfig, fetch\n"
        "t = time.perf_counter(); s = fetch(FetchConfig.make(json.loads(sys.argv[1])))\n"
        "print(json.dumps({'seconds': time.perf_counter() - t, 'ok': s.facts['ok']}))"
    )
    before = _children_cpu()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(values)], capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout) | {"cpu": _children_cpu() - before}
    metrics = json.loads((out / "metrics.json").read_text())
    return record["seconds"], {**metrics, **record}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def disk_rate(directory: Path, size: int = 1 << 30) -> float:
    """Bytes per second that the disk takes, fsync included."""
    path, block = directory / "disk-rate", os.urandom(1 << 24)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    rate = size / (time.perf_counter() - start)
    path.unlink()
    return rate


FLOOR = """
import json, sys, time
import fitsio, numpy as np
files, targets, out = json.load(sys.stdin)
t = time.perf_counter()
for patch, (x0, y0, boxes) in targets.items():
    stamps = {n: np.empty((len(boxes), len(files[patch]), 64, 64), d) for n, d in (("image", "f4"), ("variance", "f4"), ("mask", "u4"))}
    for b, path in enumerate(files[patch]):
        with fitsio.FITS(path) as f:
            for name in stamps:
                plane = f[name.upper()].read()
                plane = plane.reshape(plane.shape[-2:])
                for k, (x, y) in enumerate(boxes):
                    stamps[name][k, b] = plane[y - y0 : y - y0 + 64, x - x0 : x - x0 + 64]
    for name, array in stamps.items():
        np.save(f"{out}/{patch}-{name}.npy", array)
print(time.perf_counter() - t)
"""


def floor(root: Path, targets: Path, out: Path) -> float:
    """Seconds of the fitsio loop: positions are given in pixels already."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    spec = json.dumps([_files(root), _pixels(targets), str(out)])
    done = subprocess.run(
        [sys.executable, "-c", FLOOR], input=spec, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _files(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.fits")):
        patch = path.parts[-3]
        found.setdefault(patch, []).append(str(path))
    return found


def _pixels(targets: Path) -> dict[str, tuple[int, int, list[tuple[int, int]]]]:
    from ripple.sky.skymap import known

    skymap = known(SKYMAP)
    table = np.genfromtxt(targets, delimiter=",", names=True)
    x, y = skymap.tan(TRACT).sky_to_pixel(table["ra"], table["dec"])
    patch = skymap.find_patch(np.full(len(x), TRACT), x, y)
    out = {}
    for p in np.unique(patch).tolist():
        box = skymap.patch_outer(TRACT, p)
        rows = patch == p
        corner = np.floor(np.stack([x[rows], y[rows]], axis=1) + 0.5).astype(int) - SIZE // 2
        out[str(p)] = (box.x0, box.y0, [tuple(c) for c in corner.tolist()])
    return out


def butler_loop(root: Path, targets: Path, sample: int) -> float:
    """Targets per second of `butler.get(bbox)` per band and target."""
    from lsst.daf.butler import Butler
    from lsst.images import Box, Interval

    pixels = _pixels(targets)
    with Butler.from_config(str(root), collections="mini") as butler:
        start, done = time.perf_counter(), 0
        for patch, (_, _, boxes) in pixels.items():
            for x, y in boxes[: max(1, sample // len(pixels))]:
                box = Box(x=Interval(start=x, stop=x + SIZE), y=Interval(start=y, stop=y + SIZE))
                for band in BANDS:
                    butler.get(
                        "deep_coadd",
                        skymap=SKYMAP,
                        tract=TRACT,
                        patch=int(patch),
                        band=band,
                        parameters={"bbox": box},
                    )
                done += 1
        return done / (time.perf_counter() - start)


def paired(rounds: int, *calls: Callable[[], float]) -> list[list[float]]:
    """Run the calls in turn, `rounds` times after one warm-up."""
    for call in calls:
        call()
    results: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for k, call in enumerate(calls):
            results[k].append(call())
    return results


def median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--patches", type=int, default=2, help="how many of the ten are used (start-up is shared)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="repository and targets; kept")
    parser.add_argument("--output", type=Path, help="where results are written, by default in --directory")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    work = args.directory or Path(tempfile.mkdtemp(prefix="ripple-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    output = args.output or work
    output.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    bench = Bench(repository(work), PATCHES[: args.patches], work, output, args.rounds)
    print(
        f"machine: {os.cpu_count()} cores, {os.uname().machine}; load {os.getloadavg()[0]:.1f}; "
        f"output takes {disk_rate(output) / 1e6:.0f} MB/s with fsync"
    )
    for name, case in CASES.items():
        if not args.cases or name in args.cases:
            case(bench)
    if args.directory is None:
        shutil.rmtree(work)


def repository(work: Path) -> Path:
    """The repository of all patches, made once."""
    root, done = work / "repo", work / "repo-done"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        start = time.perf_counter()
        make_repository(root, PATCHES)
        done.touch()
        print(f"made {len(PATCHES)} patches x {len(BANDS)} bands in {time.perf_counter() - start:.0f} s")
    return root


@dataclass
class Bench:
    """Where things are, and rates measured so far."""

    root: Path
    patches: list[int]
    work: Path
    output: Path
    rounds: int
    rates: dict[str, float] = field(default_factory=dict)

    def targets(self, per_patch: int) -> Path:
        """Catalogue with so many targets in each patch."""
        path = self.work / f"t{per_patch}-{len(self.patches)}.csv"
        make_targets(path, self.patches, per_patch)
        return path

    def fetch(self, targets: Path, **options: object) -> tuple[float, dict[str, Any]]:
        """Seconds and metrics."""
        return ripple_fetch(self.root, targets, self.output / "out", **options)


def dense(bench: Bench, per_patch: int) -> None:
    targets, n = bench.targets(per_patch), per_patch * len(bench.patches)
    cpu: list[float] = []

    def ours() -> float:
        seconds, metrics = bench.fetch(targets)
        cpu.append(metrics["cpu"])
        return seconds

    took, base = paired(bench.rounds, ours, lambda: floor(bench.root, targets, bench.output / "floor"))
    loop = butler_loop(bench.root, targets, 12)
    rate = n / statistics.median(took)
    bench.rates[f"dense {per_patch}"] = rate
    print(f"dense {per_patch:5d}/patch: ripple {rate:7.0f} targets/s ({statistics.median(took):.2f} s, "
              f"{statistics.median(cpu[1:]):.2f} CPU s), fitsio floor {n / statistics.median(base):7.0f}, "
              f"butler loop {loop:5.1f}; vs loop {rate / loop:6.0f}x; time / floor {median_ratio(took, base):.2f}")  # fmt: skip


def sparse(bench: Bench) -> None:
    targets, patches = bench.targets(2), bench.patches
    total = sum(Path(p).stat().st_size for patch in patches for p in _files(bench.root)[str(patch)])
    bench.fetch(targets)
    runs = [bench.fetch(targets) for _ in range(bench.rounds)]
    seconds, metrics = [took for took, _ in runs], runs[-1][1]
    unit = statistics.median(m["operations"]["unit"]["seconds"] for _, m in runs)
    loop = butler_loop(bench.root, targets, 2 * len(patches))
    read = metrics["operations"]["digest"]["bytes"]
    n = 2 * len(patches)
    print(f"sparse 2/patch: ripple {n / unit:6.1f} targets/s reading ({n / statistics.median(seconds):.1f} with start-up and plan), "
          f"butler loop {loop:.1f}; vs loop {n / unit / loop:.1f}x; bytes read {read / total:.1%} of the files")  # fmt: skip


def two_workers(bench: Bench) -> None:
    """As they come, and with one core and two: a worker alone already keeps a second core half busy."""
    targets = bench.targets(5000)
    one, two = paired(
        bench.rounds, lambda: bench.fetch(targets, workers=1)[0], lambda: bench.fetch(targets, workers=2)[0]
    )
    print(f"2 workers against 1: {median_ratio(one, two):.2f}x faster")
    with _cores(1):
        alone, _ = paired(bench.rounds, lambda: bench.fetch(targets, workers=1)[0], lambda: 0.0)
    print(f"2 workers on all cores against 1 worker on one core: {median_ratio(alone, two):.2f}x faster")


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """This process and its children on the first `count` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def memory(bench: Bench) -> None:
    targets = bench.targets(50_000 // len(bench.patches))
    _, metrics = bench.fetch(targets, workers=2, memory="2GiB")
    print(
        f"50,000 targets with --memory 2GiB: peak RSS of all processes {metrics['peak_rss'] / 2**30:.2f} GiB"
    )


def growth(bench: Bench) -> None:
    few, many = bench.targets(500), bench.targets(5000)
    small, large = paired(3, lambda: bench.fetch(few)[0], lambda: bench.fetch(many)[0])
    print(f"10x the targets in the same patches: {median_ratio(large, small):.2f}x the time")


def patches(bench: Bench) -> None:
    """One patch against ten, as many targets in each."""
    one, large = (replace(bench, patches=PATCHES[:n]) for n in (1, 10))
    few, many = one.targets(500), large.targets(500)
    small, big = paired(3, lambda: one.fetch(few)[0], lambda: large.fetch(many)[0])
    print(f"10x the patches: {median_ratio(big, small):.2f}x the time")


def cache(bench: Bench) -> None:
    """Random questions to a `Survey` whose planes fit into its cache, then to one that holds a single plane."""
    import ripple

    rng = np.random.default_rng(1)
    table = np.genfromtxt(bench.targets(500), delimiter=",", names=True)
    plane = 3300 * 3300 * 4
    for budget, questions in ((24 * plane, 200), (plane, 3)):
        with ripple.open_survey(str(bench.root), collections="mini", cache_bytes=budget) as survey:
            rows = rng.integers(0, len(table), questions)
            for row in table[rows]:
                survey.cutout(ra=row["ra"], dec=row["dec"], size=SIZE, bands="griz")
            counts = survey.cache.counts()
        touched = min(counts.misses, 3 * len(BANDS) * len(bench.patches))
        share = counts.hits / (counts.hits + counts.misses - touched)
        print(f"cache of {budget // plane} planes, {questions} random questions: {counts.hits} hits, {counts.misses} misses, "
              f"{counts.evictions} evictions; {share:.1%} hits after the first touch of {touched} planes")  # fmt: skip


def estimate(bench: Bench) -> None:
    """All of DP2 on one 64-core node, from the dense rate of this machine."""
    if "dense 5000" not in bench.rates:
        return
    area, bands, rate = 3000.0, 6, bench.rates["dense 5000"]
    rows = area * GALAXIES
    node = rate * len(BANDS) / bands * 64
    print(f"DP2: {area:.0f} deg^2 x {GALAXIES:,} galaxies = {rows:.2e} rows x {bands} bands; {rate:.0f} rows/s per worker "
          f"with {len(BANDS)} bands x {len(BANDS)}/{bands} x 64 workers = {node:,.0f} rows/s: {rows / node / 3600:.1f} h, "
          f"if the file system takes {node * bands * SIZE**2 * 12 / 1e9:.0f} GB/s "
          f"({rows * bands * SIZE**2 * 12 / 1e12:.0f} TB of stamps)")  # fmt: skip


CASES: dict[str, Callable[[Bench], None]] = {
    "dense-500": partial(dense, per_patch=500), "dense-5000": partial(dense, per_patch=5000), "sparse": sparse, "workers": two_workers, "memory": memory, "growth": growth,
    "patches": patches, "cache": cache, "estimate": estimate,
}  # fmt: skip

if __name__ == "__main__":
    main()
