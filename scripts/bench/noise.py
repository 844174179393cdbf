"""Noise measured on stamps of galaxies of known noise, with and without a detection mask.

    python scripts/bench/noise.py [--rows 40] [--size 64] [--correlated 0.8]

White noise of sigma 10 nJy, or smoothed by a Gaussian of that many pixels and scaled to the same sigma, under
galaxies of exponential profile and rising peak. For each peak: what `ripple preprocess` measures of noise and
correlation, and how many rows it accepts. With a mask: DETECTED out to the isophote of half the noise.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.stages.preprocess.batch import DataConstants, correlation_of, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig

SIGMA = 10.0  # nJy
PEAKS = (0, 10, 30, 100, 300, 1000, 3000, 10_000)  # of the galaxy, in units of the noise
BANDS = ("g", "r", "i")
COLOURS = np.array([0.5, 1.0, 1.6])


def stamps(
    rows: int, size: int, peak: float, correlated: float, seed: int, *, mask: bool, variance: bool
) -> CutoutBatch:
    """Cutouts of one galaxy each, `(rows, 3, size, size)`; `peak` in units of the noise."""
    rng = np.random.default_rng(seed)
    shape = (rows, 3, size, size)
    noise = rng.normal(size=shape)
    if correlated:
        noise = gaussian_filter(noise, (0, 0, correlated, correlated), mode="wrap")
        noise /= noise.std()
    y, x = np.mgrid[:size, :size] - size / 2
    light = np.empty(shape)
    for k in range(rows):
        scale, ratio = rng.uniform(2, 6), rng.uniform(0.4, 1)
        angle = rng.uniform(0, np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        galaxy = gaussian_filter(np.exp(-np.hypot(u, v / ratio) / scale), 1.7)
        light[k] = COLOURS[:, None, None] * galaxy / galaxy.max() * peak * SIGMA
    image = (light + SIGMA * noise).astype(np.float32)
    detected = np.uint32(1 << MASK_PLANES.index("DETECTED"))
    planes = np.where((light > SIGMA / 2).any(axis=1, keepdims=True), detected, np.uint32(0))
    return CutoutBatch(
        BANDS,
        image,
        np.full(shape, SIGMA**2 if variance else np.nan, np.float32),
        np.broadcast_to(planes if mask else np.uint32(0), shape).copy(),
        MASK_PLANES,
        np.zeros((0, 1, 1), np.float32),
        np.full((rows, 3), -1, np.int32),
        {"index": np.arange(rows), "ra": np.arange(rows) * 1.0, "dec": np.zeros(rows)},
    )


def measured(batch: CutoutBatch) -> tuple[NDArray[np.float32], float, float]:
    """Noise `(rows, 3)` nJy, correlation of next neighbours, share of rows that are accepted."""
    config = PreprocessConfig.make({"psf": "none"})
    tensors = preprocess_batch(batch, config, DataConstants())
    noise = np.stack([tensors.catalog[f"noise_{b}"] for b in batch.bands], axis=1)
    rho = correlation_of(batch).rho()
    middle = rho.shape[-1] // 2
    return noise, float(rho[:, middle, middle + 1].mean()), float(tensors.catalog["accept"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--correlated", type=float, default=0.0)
    parser.add_argument("--no-variance", action="store_true")
    options = parser.parse_args()
    out = sys.stdout
    out.write("| peak / sigma | mask | noise / planted (median, worst row) | correlation | accepted |\n")
    out.write("|---|---|---|---|---|\n")
    for peak in PEAKS:
        for mask in (True, False):
            batch = stamps(
                options.rows, options.size, peak, options.correlated, peak, mask=mask,
                variance=not options.no_variance,
            )  # fmt: skip
            noise, rho, accepted = measured(batch)
            off = np.abs(noise / SIGMA - 1).max()
            out.write(
                f"| {peak:,} | {'yes' if mask else 'no'} | {np.median(noise) / SIGMA:.3f}, {off:.3f} | "
                f"{rho:.3f} | {accepted:.0%} |\n"
            )


if __name__ == "__main__":
    main()
