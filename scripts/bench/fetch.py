#!/usr/bin/env python3
"""Fetch against its peers and against the floor, in one run, as ratios (median of paired rounds).

    .venv/bin/python scripts/bench/fetch.py [--patches 2] [--rounds 5] [--quick] [--directory DIR]

Makes its own repository of full-size patches (3300 x 3300 px, 150 px cells, 4 bands, lossless GZIP_2) once, and
cuts 64 px stamps with image, variance, mask and PSF:

- `butler loop`: `butler.get(bbox=...)` per band and target, on a sample, as the tutorials do;
- `floor`: `fitsio` reads each plane once, slices, `np.save` (image, variance, mask; no PSF, index or digests);
- `ripple`: `ripple.fetch.fetch`, worker start-up, plan, PSF, index, digests and fsync included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BANDS = ("g", "r", "i", "z")
SKYMAP, TRACT, SIZE = "lsst_cells_v2", 5063, 64
PLANES = (
    "NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED", "DETECTED",
    "INEXACT_PSF",
)  # fmt: skip
PATCHES = [44, 45, 54, 55, 46, 56, 64, 65, 66, 43]


def make_repository(root: Path, patches: list[int]) -> None:
    """Coadds of noise with sources, PSFs that differ by cell."""
    from ripple.rubin.mini_repo import CoaddPlanes, MiniRepo
    from ripple.skymap import known

    skymap = known(SKYMAP)
    repo = MiniRepo(root, skymap, TRACT, patches, BANDS)
    for patch in patches:
        box = skymap.patch_outer(TRACT, patch)
        for k, band in enumerate(BANDS):
            rng = np.random.default_rng([patch, k])
            image = rng.normal(0, 20, box.shape).astype(np.float32)
            for _ in range(400):
                y, x = rng.integers(20, 3280, 2)
                image[y - 4 : y + 5, x - 4 : x + 5] += rng.exponential(300) * _bump(9)
            variance = (400 + np.abs(image)).astype(np.float32)
            mask = (image > 100).astype(np.uint8) << 7
            fwhm = rng.uniform(5.0, 6.5, (22, 22))
            kernels = np.stack([[_moffat(41, f) for f in row] for row in fwhm])
            repo.put_coadd(CoaddPlanes(patch, band, image, variance, mask, PLANES, kernels))


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
    from ripple.skymap import known

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
        "import json, sys, time; from ripple.fetch import FetchConfig, fetch\n"
        "t = time.perf_counter(); s = fetch(FetchConfig.make(json.loads(sys.argv[1])))\n"
        "print(json.dumps({'seconds': time.perf_counter() - t, 'ok': s.facts['ok']}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(values)], capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout)
    metrics = json.loads((out / "metrics.json").read_text())
    return record["seconds"], {**metrics, **record}


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
    from ripple.skymap import known

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
    parser.add_argument("--patches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="dense and sparse cases only")
    parser.add_argument("--directory", type=Path)
    args = parser.parse_args()
    work = args.directory or Path(tempfile.mkdtemp(prefix="ripple-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    patches = PATCHES[: args.patches]
    root = work / f"repo-{args.patches}"
    if not (root / "butler.yaml").exists():
        shutil.rmtree(root, ignore_errors=True)
        start = time.perf_counter()
        make_repository(root, patches)
        print(f"made {len(patches)} patches x {len(BANDS)} bands in {time.perf_counter() - start:.0f} s")
    print(f"machine: {os.cpu_count()} cores, {os.uname().machine}; load {os.getloadavg()[0]:.1f}")
    dense(root, patches, work, args.rounds)
    sparse(root, patches, work, args.rounds)
    if not args.quick:
        two_workers(root, patches, work, args.rounds)
        memory(root, patches, work)
        growth(root, patches, work)
    estimate()
    if args.directory is None:
        shutil.rmtree(work)


RATES: dict[str, float] = {}


def dense(root: Path, patches: list[int], work: Path, rounds: int) -> None:
    for per_patch in (500, 5000):
        targets, n = work / f"t{per_patch}.csv", per_patch * len(patches)
        make_targets(targets, patches, per_patch)
        ours, base = paired(
            rounds,
            lambda: ripple_fetch(root, targets, work / "out")[0],  # noqa: B023 - called before the next turn
            lambda: floor(root, targets, work / "floor"),  # noqa: B023
        )
        loop = butler_loop(root, targets, 12)
        rate = n / statistics.median(ours)
        RATES[f"dense {per_patch}"] = rate
        print(f"dense {per_patch:5d}/patch: ripple {rate:7.0f} targets/s, fitsio floor {n / statistics.median(base):7.0f}, "
              f"butler loop {loop:5.1f}; vs loop {rate / loop:6.0f}x; time / floor {median_ratio(ours, base):.2f}")  # fmt: skip


def sparse(root: Path, patches: list[int], work: Path, rounds: int) -> None:
    targets = work / "t2.csv"
    make_targets(targets, patches, 2)
    total = sum(p.stat().st_size for p in root.rglob("*.fits"))
    seconds, metrics = [], {}
    for _ in range(rounds):
        took, metrics = ripple_fetch(root, targets, work / "out")
        seconds.append(took)
    unit = metrics["operations"]["unit"]["seconds"]
    loop = butler_loop(root, targets, 2 * len(patches))
    read = metrics["operations"]["digest"]["bytes"]
    n = 2 * len(patches)
    print(f"sparse 2/patch: ripple {n / unit:6.1f} targets/s reading ({n / statistics.median(seconds):.1f} with start-up and plan), "
          f"butler loop {loop:.1f}; vs loop {n / unit / loop:.1f}x; bytes read {read / total:.1%} of the files")  # fmt: skip


def two_workers(root: Path, patches: list[int], work: Path, rounds: int) -> None:
    targets = work / "t5000.csv"
    one, two = paired(
        rounds,
        lambda: ripple_fetch(root, targets, work / "out", workers=1)[0],
        lambda: ripple_fetch(root, targets, work / "out", workers=2)[0],
    )
    print(f"2 workers against 1: {median_ratio(one, two):.2f}x faster")


def memory(root: Path, patches: list[int], work: Path) -> None:
    targets = work / "t50000.csv"
    make_targets(targets, patches, 50_000 // len(patches))
    _, metrics = ripple_fetch(root, targets, work / "out", workers=2, memory="2GiB")
    print(
        f"50,000 targets with --memory 2GiB: peak RSS of all processes {metrics['peak_rss'] / 2**30:.2f} GiB"
    )


def growth(root: Path, patches: list[int], work: Path) -> None:
    few, many = work / "t500.csv", work / "t5000.csv"
    small, large = paired(
        3, lambda: ripple_fetch(root, few, work / "out")[0], lambda: ripple_fetch(root, many, work / "out")[0]
    )
    print(f"10x the targets in the same patches: {median_ratio(large, small):.2f}x the time")


def estimate() -> None:
    """All of DP2 on one 64-core node, from the dense rate of this machine."""
    area, bands, galaxies = 3000.0, 6, 80_000  # deg^2; galaxies with i < 23.5 per deg^2, about
    rows = area * galaxies
    rate = RATES["dense 5000"] * len(BANDS) / bands * 64
    print(f"DP2: {area:.0f} deg^2 x {galaxies:,} galaxies = {rows:.2e} rows x {bands} bands; {RATES['dense 5000']:.0f} rows/s "
          f"per core with {len(BANDS)} bands x {len(BANDS)}/{bands} x 64 cores = {rate:,.0f} rows/s: {rows / rate / 3600:.1f} h "
          f"(disk permitting: {rows * bands * SIZE**2 * 12 / 1e12:.0f} TB of stamps)")  # fmt: skip


if __name__ == "__main__":
    main()
