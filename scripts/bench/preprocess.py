"""Rows per second per core of `preprocess_batch`, against loops of other tools and against the FFTs alone.

    python scripts/bench/preprocess.py [--rows 400]

4 bands of 64 px with a margin of 12, PSFs of 41 px, a target of 1.25 arcsec. `dense`: rows share 8 cells, as
objects of a patch do. `sparse`: every row has PSFs of its own. The loops make one kernel per row and band, as
users of those tools do, and convolve with scipy. Of each there are two: the image alone; and image, variance (with
the squared kernel) and mask (grown by the kernel), which `preprocess --variance` is the counterpart of. They
neither judge nor normalise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402 - after the threads are pinned
from scipy import fft, signal  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
import matched  # noqa: E402
from stampmaker import make_batch, moffat  # noqa: E402

from ripple.imaging import convolve, noise, normalize  # noqa: E402
from ripple.imaging.batch import CutoutBatch  # noqa: E402
from ripple.imaging.psf import match  # noqa: E402
from ripple.imaging.psf import shape as psf  # noqa: E402
from ripple.imaging.quality import measure  # noqa: E402
from ripple.imaging.quality.sky import sky_pixels  # noqa: E402
from ripple.imaging.registration.check import check_registration  # noqa: E402
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch  # noqa: E402
from ripple.stages.preprocess.config import PreprocessConfig  # noqa: E402

BANDS, SIZE, MARGIN, TARGET, CELL = "griz", 64, 12, 1.25, 150
UNUSABLE = np.uint32(0x5)


def batch_with_cells(rows: int, cells: int) -> CutoutBatch:
    """Rows in so many cells of 150 px, each band of a cell with PSFs that differ by 3 % in the cells around it."""
    batch = make_batch(rows, BANDS, SIZE, MARGIN)
    rng = np.random.default_rng(0)
    widths = rng.uniform(3.3, 5.0, (cells, len(BANDS), 1)) * np.append(1, rng.uniform(0.97, 1.03, 3))
    stamps = np.stack([moffat(w, 41, rng.uniform(0, 0.1)) for w in widths.ravel()]).astype(np.float32)
    index = 4 * ((np.arange(rows) % cells)[:, None] * len(BANDS) + np.arange(len(BANDS)))
    parts = [
        (row, band, *spans[0][i], *spans[1][j], index[row, band] + 2 * i + j)
        for row in range(rows)
        for spans in [[_across(rng.integers(CELL)), _across(rng.integers(CELL))]]
        for band in range(len(BANDS))
        for i in range(len(spans[0]))
        for j in range(len(spans[1]))
        if i or j
    ]
    cells_of = np.array(parts, np.int32).reshape(-1, 7)
    return replace(batch, psf=stamps, psf_index=index.astype(np.int32), psf_cells=cells_of)


def _across(centre: int) -> list[tuple[int, int]]:
    """Pixels of a stamp in the cell of its centre, which is the pixel `centre` of it, and in the next cell."""
    side = SIZE + 2 * MARGIN
    before, after = side // 2 - centre, side // 2 - centre + CELL
    if before > 0:
        return [(before, side), (0, before)]
    return [(0, after), (after, side)] if after < side else [(0, side)]


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """Least seconds of processor time of a few runs: other users of the machine only ever add."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def loop(batch: CutoutBatch, make: Callable[[Any, Any], Any], rows: int, *, everything: bool = False) -> None:
    target = psf.target_stamp(TARGET / 0.2, 41)
    for row in range(rows):
        for band in range(len(BANDS)):
            kernel = make(batch.psf[batch.psf_index[row, band]].astype(float), target)
            signal.fftconvolve(batch.image[row, band].astype(float), kernel, mode="same")
            if everything:
                signal.fftconvolve(batch.variance[row, band].astype(float), kernel**2, mode="same")
                bad = (batch.mask[row, band] & UNUSABLE) != 0
                signal.fftconvolve(bad.astype(float), np.abs(kernel), mode="same")


def pypher(source: Any, target: Any) -> Any:
    from pypher.pypher import homogenization_kernel

    return homogenization_kernel(target, source, reg_fact=1e-4)[0]


def wiener(source: Any, target: Any) -> Any:
    from photutils.psf_matching import make_wiener_kernel

    return make_wiener_kernel(source, target, regularization=1e-5)


def floor(batch: CutoutBatch, shape: tuple[int, int]) -> None:
    for start in range(0, len(batch), convolve.CHUNK):
        spectrum = fft.rfft2(batch.image[start : start + convolve.CHUNK], s=shape)
        fft.irfft2(spectrum, s=shape)


def match_only(batch: CutoutBatch, plan: match.Matching) -> None:
    """Fill, convolve, trim and normalise: what the FFTs are the floor of."""
    frame = match.make_frame(plan.kernels, batch.image.shape[-2:], MARGIN, variance=False)
    scale = np.full((convolve.CHUNK, len(BANDS)), 60, np.float32)
    for start in range(0, len(batch), convolve.CHUNK):
        rows = slice(start, start + convolve.CHUNK)
        good = np.ones(batch.image[rows].shape, bool)
        image, _, _ = match.apply(batch.image[rows], good, plan.number[rows], plan.parts.of(rows), frame)
        normalize.transform(image, 0 * scale[: len(image)], scale[: len(image)], "asinh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400)
    args = parser.parse_args()
    constants = DataConstants(MARGIN, noise_correlation=dict.fromkeys(BANDS, noise.WHITE.tolist()))
    config = PreprocessConfig.make({"psf": str(TARGET), "registration": False})
    for label, cells in (("dense", 8), ("sparse", args.rows)):
        batch = batch_with_cells(args.rows, cells)
        plan = match.plan_matching(batch, TARGET)
        frame = match.make_frame(plan.kernels, batch.image.shape[-2:], MARGIN, variance=False).shape
        n, few = args.rows, min(args.rows, 20)
        times = {
            "ripple, all of it": best(lambda b=batch: preprocess_batch(b, config, constants)) / n,
            "  of it kernels and PSF checks": best(lambda b=batch: match.plan_matching(b, TARGET)) / n,
            "  of it quality measures": best(lambda b=batch: judge_all(b)) / n,
            "  registration, on top": best(lambda b=batch: registration(b), 3) / n,
            "  of it match and normalise": best(lambda b=batch, p=plan: match_only(b, p)) / n,
            "image, variance and mask": best(lambda b=batch: homogenise(b), 3) / n,
            "FFTs alone": best(lambda b=batch, f=frame: floor(b, f)) / n,
            "pypher + scipy, image": best(lambda b=batch, f=few: loop(b, pypher, f), 2) / few,
            "photutils + scipy, image": best(lambda b=batch, f=few: loop(b, wiener, f), 2) / few,
            "pypher, image, variance, mask": best(
                lambda b=batch, f=few: loop(b, pypher, f, everything=True), 2
            ) / few,
            "photutils, image, variance, mask": best(
                lambda b=batch, f=few: loop(b, wiener, f, everything=True), 2
            ) / few,
        }  # fmt: skip
        ours, base = times["ripple, all of it"], times["FFTs alone"]
        print(f"{label}: {args.rows} rows, {len(batch.psf)} PSFs, transforms of {frame[0]} x {frame[1]}")
        for name, seconds in times.items():
            print(f"  {name:34s} {1e3 * seconds:8.3f} ms/row {1 / seconds:9.0f} rows/s"
                  f"  {seconds / ours:7.2f} x ripple {seconds / base:8.2f} x FFTs")  # fmt: skip


def homogenise(batch: CutoutBatch) -> None:
    """Kernels, and image, variance and mask with them: what the second kind of loop does."""
    matched.homogenise(batch, match.plan_matching(batch, TARGET), measure.usable(batch), MARGIN)


def registration(batch: CutoutBatch) -> None:
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    check_registration(batch.image[inner], batch.variance[inner])


def judge_all(batch: CutoutBatch) -> None:
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    for start in range(0, len(batch), convolve.CHUNK):
        rows = slice(start, start + convolve.CHUNK)
        piece = replace(batch, catalog={}).take(rows)
        good = measure.usable(piece)
        cut = replace(piece, image=piece.image[inner], variance=piece.variance[inner], mask=piece.mask[inner])
        measure.measure(cut, good[inner], sky_pixels(cut, good[inner]))


if __name__ == "__main__":
    main()
