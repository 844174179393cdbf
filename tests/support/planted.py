"""Faults to plant in cutouts, one kind at a time, and the flags that must name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage
from stampmaker import bit, moffat

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality.flags import LABELS, Flag, flag_names
from ripple.stages.preprocess.batch import DataConstants

Plant = Callable[[CutoutBatch, int, int, np.random.Generator], None]


def with_bad_psfs(batch: CutoutBatch) -> CutoutBatch:
    """The batch with four more PSFs at the end: zero, not finite, off centre, and 2.8 arcsec wide."""
    good = batch.psf[np.unique(batch.psf_index[batch.psf_index >= 0])[0]]
    wide = moffat(14.0, good.shape[0]).astype("f4")
    extra = np.stack([np.zeros_like(good), good * np.nan, np.roll(good, 1, 0), wide])
    return replace(batch, psf=np.concatenate([batch.psf, extra]))


def _band(batch: CutoutBatch, row: int, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(np.isfinite(batch.image[row]).any(axis=(1, 2)))))


def _sigma(batch: CutoutBatch, row: int, band: int) -> float:
    """Noise of the sky: of the pixels with least variance."""
    return float(np.sqrt(np.nanpercentile(batch.variance[row, band], 10)))


def _blob(batch: CutoutBatch, margin: int, rng: np.random.Generator, side: int) -> tuple[slice, slice]:
    """A square in the stamp proper, within its central half when `side` is small."""
    size = batch.image.shape[-1] - 2 * margin
    lo, hi = (size // 4, size - size // 4) if side <= 10 else (0, size)
    y, x = margin + rng.integers(lo, hi - side + 1, 2)
    return slice(y, y + side), slice(x, x + side)


def _mask(name: str, side: int) -> Plant:
    def plant(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
        y, x = _blob(batch, margin, rng, side)
        batch.mask[row, _band(batch, row, rng), y, x] |= bit(name)

    return plant


def nan_block(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    y, x = _blob(batch, margin, rng, 28)
    batch.image[row, _band(batch, row, rng), y, x] = rng.choice([np.nan, np.inf, -np.inf])


def bad_variance(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    y, x = _blob(batch, margin, rng, 28)
    batch.variance[row, _band(batch, row, rng), y, x] = rng.choice([0.0, -1.0, np.nan])


def missing_cell(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    band, cut = _band(batch, row, rng), slice(0, margin + int(rng.integers(8, 48)))
    batch.image[row, band, cut] = np.nan
    batch.variance[row, band, cut] = np.inf
    batch.mask[row, band, cut] |= bit("NO_DATA")


def unmasked_cosmic_ray(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    """One pixel, five times as bright as anything in a box around it and 100 sigma up."""
    y, x = rng.integers(margin + 2, batch.image.shape[-1] - margin - 2, 2)
    band = _band(batch, row, rng)
    around = np.abs(batch.image[row, band, y - 1 : y + 2, x - 1 : x + 2]).max()
    batch.image[row, band, y, x] += 100 * _sigma(batch, row, band) + 5 * around


def blank(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    for band in range(len(batch.bands)):
        sigma = _sigma(batch, row, band)
        batch.image[row, band] = sigma * rng.standard_normal(batch.image.shape[2:])
        batch.variance[row, band] = sigma**2
    batch.mask[row] = 0


def offset(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    band = _band(batch, row, rng)
    batch.image[row, band] += _sigma(batch, row, band) * rng.choice([-2.5, 2.5])


def dip(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    """Background over-subtracted in the sky beside an object: 5 sigma deep, 5 px wide (one sigma)."""
    band, size = _band(batch, row, rng), batch.image.shape[-1]
    angle, distance = rng.uniform(0, 2 * np.pi, 24), rng.uniform(16, 26, 24)
    places = size // 2 + distance * np.stack([np.sin(angle), np.cos(angle)])
    smooth = ndimage.uniform_filter(batch.image[row, band], 9)
    i, j = places.round().astype(int)
    where = places[:, smooth[i, j].argmin()]
    y, x = np.indices(batch.image.shape[2:]) - where[:, None, None]
    hole = 5 * _sigma(batch, row, band) * np.exp(-(x**2 + y**2) / (2 * 5**2))
    batch.image[row, band] -= hole.astype(np.float32)


def wrong_variance(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    batch.variance[row, _band(batch, row, rng)] *= rng.choice([0.2, 5.0])


def dead_psf(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    last = len(batch.psf)
    batch.psf_index[row, _band(batch, row, rng)] = rng.choice([-1, last - 4, last - 3, last - 2])


def wide_psf(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    batch.psf_index[row, _band(batch, row, rng)] = len(batch.psf) - 1


def shifted(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    """The brightest band moved by 4 px: the others can be compared with it."""
    band = int(np.nansum(batch.image[row] / np.sqrt(batch.variance[row]), axis=(1, 2)).argmax())
    angle = rng.uniform(0, 2 * np.pi)
    move = (4 * np.sin(angle), 4 * np.cos(angle))
    batch.image[row, band] = ndimage.shift(batch.image[row, band], move, mode="nearest")


def turned(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    batch.image[row, 1] = np.rot90(batch.image[row, 1])


def missing_band(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    band = _band(batch, row, rng)
    batch.image[row, band], batch.variance[row, band] = np.nan, np.nan
    batch.mask[row, band] = bit("NO_DATA")
    batch.psf_index[row, band] = -1


def duplicate(batch: CutoutBatch, row: int, margin: int, rng: np.random.Generator) -> None:
    batch.catalog["dec"][row] = batch.catalog["dec"][row - 1] + 0.3 / 3600
    batch.catalog["ra"][row] = batch.catalog["ra"][row - 1]


DEFECTS: dict[str, tuple[Plant, Flag]] = {
    "saturated centre": (_mask("SAT", 6), Flag.CENTRE_SATURATED),
    "saturated centre, DP2 name": (_mask("SATURATED", 6), Flag.CENTRE_SATURATED),
    "cosmic ray": (_mask("CR", 10), Flag.COSMIC_RAY),
    "cosmic ray, DP2 name": (_mask("COSMIC_RAY", 10), Flag.COSMIC_RAY),
    "interpolated": (_mask("INTRP", 40), Flag.INTERPOLATED),
    "interpolated, DP2 name": (_mask("INTERPOLATED", 40), Flag.INTERPOLATED),
    "edge": (_mask("EDGE", 40), Flag.EDGE),
    "detection edge": (_mask("DETECTION_EDGE", 40), Flag.EDGE),
    "bad pixels": (_mask("BAD", 28), Flag.BAD_PIXELS),
    "no data": (_mask("NO_DATA", 28), Flag.NO_DATA),
    "streak": (_mask("STREAK", 40), Flag.SUSPECT),
    "not finite": (nan_block, Flag.BAD_PIXELS),
    "variance not positive": (bad_variance, Flag.BAD_PIXELS),
    "missing cell": (missing_cell, Flag.MISSING_CELL),
    "unmasked cosmic ray": (unmasked_cosmic_ray, Flag.COSMIC_RAY),
    "nothing there": (blank, Flag.BLANK),
    "background offset": (offset, Flag.BACKGROUND),
    "over-subtracted": (dip, Flag.DIP),
    "wrong variance": (wrong_variance, Flag.VARIANCE),
    "no usable PSF": (dead_psf, Flag.PSF_INVALID),
    "wide PSF": (wide_psf, Flag.PSF_WIDTH),
    "shifted band": (shifted, Flag.REGISTRATION),
    "turned band": (turned, Flag.REGISTRATION),
    "missing band": (missing_band, Flag.MISSING_BAND),
    "duplicate": (duplicate, Flag.DUPLICATE),
}


MOVED_SNR, MOVED_SHARE, COVERED = 50.0, 0.03, 2.5


def visible(name: str, before: CutoutBatch, after: CutoutBatch, margin: int) -> np.ndarray[Any, Any]:
    """`(N,)` rows in which the defect can be seen at all, from the pixels before and after it was planted.

    Moved or turned: what changes has S/N of `MOVED_SNR` or more, and is `MOVED_SHARE` of the light or more,
    both as squares summed over the stamp, the noise taken off; less is what the colours of a galaxy do. Dips:
    the light in the half-depth contour is below `COVERED` sigma, half the depth: the hole goes below zero.
    """
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    change = (after.image - before.image)[inner].astype(float)
    if name not in ("shifted band", "turned band", "over-subtracted"):
        return np.ones(len(before), bool)
    rows, band = np.arange(len(before)), np.abs(change).sum(axis=(2, 3)).argmax(axis=1)
    change, light = change[rows, band], before.image[inner][rows, band].astype(float)
    variance = before.variance[inner][rows, band].astype(float)
    if name == "over-subtracted":
        hole = change < 0.5 * change.min(axis=(1, 2), keepdims=True)
        sigma = np.sqrt(np.percentile(variance, 10, axis=(1, 2)))
        return np.asarray((light * hole).sum(axis=(1, 2)) / hole.sum(axis=(1, 2)) < COVERED * sigma)
    pixels = light.shape[1] * light.shape[2]
    light = light - np.median(light, axis=(1, 2), keepdims=True)
    moved = (change**2 / variance).sum(axis=(1, 2)) - 2 * pixels  # both planes have noise
    whole = (light**2 / variance).sum(axis=(1, 2)) - pixels
    return np.asarray((moved > MOVED_SNR**2) & (moved > 2 * MOVED_SHARE * whole))


def confusion(
    batch: CutoutBatch, rows: np.ndarray[Any, Any], margin: int, config: Any, constants: DataConstants
) -> dict[str, dict[str, int]]:
    """Defect -> flag -> rows that carry it; each defect is planted alone, in copies of clean `rows`.

    Beside the flags: `rejected`; `visible`, see there, and `found`, those of them that carry the right flag.
    """
    from ripple.stages.preprocess.batch import preprocess_batch

    batch = with_bad_psfs(batch)
    table = {}
    for number, (name, (plant, flag)) in enumerate(DEFECTS.items()):
        near = np.unique(np.concatenate([rows, rows - 1]))
        piece = batch.take(near)
        rng = np.random.default_rng(number)
        mine = np.flatnonzero(np.isin(near, rows))
        before = piece.take(mine)
        for row in mine:
            plant(piece, int(row), margin, rng)
        tensors = preprocess_batch(piece, config, constants)
        if not np.isfinite(tensors.image).all():
            raise ValueError(f"{name}: a tensor is not finite")
        found = [flag_names(int(v)) for v in tensors.catalog["qc"][mine]]
        table[name] = {flag: sum(flag in f for f in found) for flag in LABELS}
        table[name]["rejected"] = int((tensors.catalog["accept"][mine] == 0).sum())
        seen = visible(name, before, piece.take(mine), margin)
        table[name]["visible"] = int(seen.sum())
        table[name]["found"] = sum(flag.label in f for f, s in zip(found, seen, strict=True) if s)
    return table
