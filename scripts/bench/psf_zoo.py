"""Matching kernels on real PSFs: ours, pypher and photutils on the same pairs, as a table.

    python scripts/bench/psf_zoo.py psf_zoo.npz

The zoo is a `.npz` of stamps and a `.json` beside it with `fwhm_px` and `pixel_scale_arcsec` per name. All
ordered pairs on the same pixel scale with FWHM_target >= 1.1 FWHM_source are matched. Every method gets the
same stamps: recentred on their first moments, normalised, on one odd grid per pair.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, signal

from ripple.imaging.psf import match
from ripple.imaging.psf.kernels import match_kernels, spectra
from ripple.stages.preprocess.config import PreprocessConfig

TOLERANCE = PreprocessConfig.model_fields["psf_tolerance"].default

Stamp = np.ndarray[Any, np.dtype[np.float64]]


def pairs(table: dict[str, Any]) -> list[tuple[str, str]]:
    names = sorted(table)
    return [
        (a, b)
        for a in names
        for b in names
        if a != b
        and table[a]["pixel_scale_arcsec"] == table[b]["pixel_scale_arcsec"]
        and table[b]["fwhm_px"] >= 1.1 * table[a]["fwhm_px"]
    ]


def centred(stamp: Stamp, half: int) -> Stamp:
    """The stamp with its first moments at the centre of a `2 half + 1` square."""
    size = fft.next_fast_len(4 * half + 1)
    plane = fft.irfft2(spectra(stamp[None], size), s=(size, size))[0]
    plane = np.roll(plane, (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]
    return plane / plane.sum()


def judge(kernel: Stamp, source: Stamp, target: Stamp) -> tuple[float, ...]:
    """Residual in the stamp, residual anywhere, noise gain, centroid shift, |sum - 1|."""
    full = signal.fftconvolve(source, kernel, mode="full")
    aim = np.zeros_like(full)
    c, h = (np.array(full.shape) - 1) // 2, target.shape[0] // 2
    window = (slice(c[0] - h, c[0] + h + 1), slice(c[1] - h, c[1] + h + 1))
    aim[window] = target
    miss = np.abs(full - aim)
    y, x = np.indices(kernel.shape) - (kernel.shape[0] - 1) / 2
    shift = np.hypot((kernel * y).sum(), (kernel * x).sum()) / kernel.sum()
    return miss[window].sum(), miss.sum(), np.sqrt((kernel**2).sum()), shift, abs(kernel.sum() - 1)


def ours(source: Stamp, target: Stamp) -> Stamp:
    return match_kernels(source[None], target[None]).kernel[0].astype(np.float64)


def production(source: Stamp, target: Stamp) -> Stamp:
    """As `ripple preprocess` does by default: smooth kernels where they are good enough."""
    half = match.half_width(source.shape[0])
    made = match_kernels(source[None], target[None], half=half, tolerance=TOLERANCE)
    return made.kernel[0].astype(np.float64)


def pypher(regularisation: float) -> Any:
    from pypher.pypher import homogenization_kernel

    return lambda source, target: homogenization_kernel(target, source, reg_fact=regularisation)[0]


def photutils(window: str, *arguments: float) -> Any:
    import photutils.psf_matching as photutils_matching

    taper = getattr(photutils_matching, window)(*arguments)
    return lambda source, target: photutils_matching.make_kernel(source, target, window=taper)


def photutils_wiener(regularisation: float) -> Any:
    from photutils.psf_matching import make_wiener_kernel

    return lambda source, target: make_wiener_kernel(source, target, regularization=regularisation)


def methods() -> dict[str, Any]:
    out: dict[str, Any] = {"ripple, best fit": ours, f"ripple, tolerance {TOLERANCE} (default)": production}
    for reg in (1e-3, 1e-4, 1e-5, 1e-6):
        out[f"pypher {reg:g}"] = pypher(reg)
    for name, arguments in (
        ("SplitCosineBellWindow", (0.4, 0.3)), ("SplitCosineBellWindow", (0.7, 0.3)), ("HanningWindow", ()),
        ("TukeyWindow", (0.5,)), ("CosineBellWindow", (0.35,)), ("CosineBellWindow", (0.7,)),
        ("TopHatWindow", (0.35,)),
    ):  # fmt: skip
        out[f"photutils {name}{arguments}"] = photutils(name, *arguments)
    import photutils.psf_matching as photutils_matching

    if hasattr(photutils_matching, "make_wiener_kernel"):
        for reg in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            out[f"photutils wiener {reg:g}"] = photutils_wiener(reg)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair only")
    args = parser.parse_args()
    stamps = np.load(args.zoo)
    todo = pairs(json.loads(args.zoo.with_suffix(".json").read_text()))[:: args.every]
    print(f"{len(todo)} pairs; per cent of the target's light; gain = white noise after / before")
    print(f"{'method':44s} {'median':>7s} {'p90':>7s} {'worst':>7s} | any: {'median':>6s} {'p90':>6s}"
          f" {'worst':>6s} | gain median    p90  worst | max shift px  max |sum-1|  ms")  # fmt: skip
    cases = []
    for a, b in todo:
        half = max(*stamps[a].shape, *stamps[b].shape) // 2
        cases.append((centred(stamps[a], half), centred(stamps[b], half)))
    for name, method in methods().items():
        start = time.perf_counter()
        kernels = [method(source, target) for source, target in cases]
        ms = 1e3 * (time.perf_counter() - start) / len(cases)
        r = np.array([judge(k, s, t) for k, (s, t) in zip(kernels, cases, strict=True)])
        q = [100 * f(r[:, i]) for i in (0, 1) for f in (np.median, lambda v: np.quantile(v, 0.9), np.max)]
        print(f"{name:44s} {q[0]:7.3f} {q[1]:7.3f} {q[2]:7.2f} |      {q[3]:6.2f} {q[4]:6.2f} {q[5]:6.2f} |"
              f" {np.median(r[:, 2]):11.3f} {np.quantile(r[:, 2], 0.9):6.3f} {r[:, 2].max():6.3f} |"
              f" {r[:, 3].max():12.4f}  {r[:, 4].max():11.1e}  {ms:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
