"""Synthetic cutouts with known truth: galaxies seen through a PSF per band, on white or coadd-like noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import fft

from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.convolve import kernel_spectra
from ripple.imaging.psf.shape import target_stamp
from ripple.sky.geometry import Tan

FWHM = {"u": 6.2, "g": 5.4, "r": 4.6, "i": 4.0, "z": 3.9, "y": 4.3}
SIGMA = 20.0  # nJy per pixel
DETECTED = 1 << MASK_PLANES.index("DETECTED")


def moffat(width: float, size: int = 41, ellipticity: float = 0.0, beta: float = 3.0) -> np.ndarray[Any, Any]:
    """A PSF stamp, stretched along x by `1 + ellipticity`."""
    fine = 5
    t = (np.arange(size * fine) + 0.5) / fine - size / 2
    a = width / 2 / np.sqrt(2 ** (1 / beta) - 1)
    r2 = t[:, None] ** 2 * (1 + ellipticity) + t[None, :] ** 2 / (1 + ellipticity)
    stamp = ((1 + r2 / a**2) ** -beta).reshape(size, fine, size, fine).sum(axis=(1, 3))
    return stamp / stamp.sum()


def coadd_noise(rng: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Unit-variance noise with the correlation of images resampled by Lanczos-3 kernels at random offsets."""
    h, w = shape[-2:]
    total = np.zeros((*shape[:-2], h, w))
    visits = 4
    for _ in range(visits):
        raw = rng.standard_normal((*shape[:-2], h + 8, w + 8))
        for axis in (-2, -1):
            x = np.arange(-3, 5) - rng.uniform(0, 1)
            taps = np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)
            taps /= taps.sum()
            n = raw.shape[axis] - 8
            raw = sum(c * np.take(raw, np.arange(k, k + n), axis=axis) for k, c in enumerate(taps))
        total += raw / raw.std()
    return total / np.sqrt(visits)


def scene(rng: Any, n: int, side: int) -> np.ndarray[Any, Any]:
    """`(n, side, side)` unit-flux galaxies: one in the centre, some fainter ones around."""
    y, x = np.indices((side, side)) - side // 2
    out = np.zeros((n, side, side))
    for row in range(n):
        for k in range(4):
            cy, cx = (0, 0) if k == 0 else rng.uniform(-side / 2, side / 2, 2)
            size, q, angle = rng.uniform(1.0, 3.0), rng.uniform(0.5, 1), rng.uniform(0, np.pi)
            u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            g = np.exp(-np.hypot(u, v / q) / size)
            out[row] += g / g.sum() * (1 if k == 0 else rng.uniform(0.02, 0.1))
    return out


def make_batch(
    n: int = 8,
    bands: str = "gri",
    size: int = 64,
    margin: int = 0,
    seed: int = 0,
    *,
    correlated: bool = False,
    flux: float = 2e5,
    fwhm: dict[str, float] | None = None,
    noiseless: bool = False,
) -> CutoutBatch:
    """N clean rows; colours differ from row to row."""
    rng = np.random.default_rng(seed)
    b, side = len(bands), size + 2 * margin
    widths = fwhm or FWHM
    stamps = np.stack([moffat(widths[band], ellipticity=0.04 * k) for k, band in enumerate(bands)]).astype(
        "f4"
    )
    frame = (2 * side, 2 * side)
    light = fft.rfft2(scene(rng, n, side), s=frame)
    colour = rng.uniform(0.3, 1.0, (n, b)) * flux
    planes = np.empty((n, b, side, side))
    for k, spectrum in enumerate(kernel_spectra(stamps, frame)):
        planes[:, k] = fft.irfft2(light * spectrum, s=frame)[:, :side, :side] * colour[:, k, None, None]
    unit = coadd_noise(rng, planes.shape) if correlated else rng.standard_normal(planes.shape)
    mask = np.where(planes > 1.5 * SIGMA, np.uint32(DETECTED), np.uint32(0)).astype(np.uint32)
    image = planes + (0 if noiseless else SIGMA * unit)
    tan = Tan(150.0, 2.0, 0.0, 0.0, (-0.2 / 3600, 0.0, 0.0, 0.2 / 3600))
    x, y = 100.0 + 100 * np.arange(n), np.full(n, 500.0)
    ra, dec = tan.pixel_to_sky(x, y)
    catalog: dict[str, Any] = {
        "index": np.arange(n, dtype=np.int64), "id": np.arange(n, dtype=np.int64), "ra": ra, "dec": dec,
        "tract": np.zeros(n, np.int32), "patch": np.zeros(n, np.int32),
        "x0": (x - side // 2).astype(np.int32), "y0": (y - side // 2).astype(np.int32),
        "dx": np.zeros(n, np.float32), "dy": np.zeros(n, np.float32),
        "band_mask": np.full(n, 2**b - 1, np.uint32), "label": (np.arange(n) % 2).astype(np.int64),
    }  # fmt: skip
    return CutoutBatch(
        bands=tuple(bands), image=image.astype(np.float32),
        variance=np.full(image.shape, SIGMA**2, np.float32), mask=mask, mask_planes=MASK_PLANES,
        psf=stamps, psf_index=np.broadcast_to(np.arange(b, dtype=np.int32), (n, b)).copy(),
        catalog=catalog, wcs={0: tan},
    )  # fmt: skip


def bit(name: str) -> np.uint32:
    """The mask value of one plane."""
    return np.uint32(1 << MASK_PLANES.index(name))


def star(width: float, size: int, flux: float) -> np.ndarray[Any, Any]:
    """A star in the centre of a square stamp."""
    return target_stamp(width, size) * flux
