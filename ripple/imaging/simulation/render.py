"""Paint a scene through the PSF of every cell."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ripple.imaging.simulation.observing import CELL, KERNEL, PIXEL_SCALE, Conditions, magnitude, noise_sigma
from ripple.imaging.simulation.population import UGRIZY, Painted
from ripple.imaging.simulation.profiles import Complex, Lensed, Point, extent, transform
from ripple.sky.geometry import Box

#: Light fainter than this share of the noise of a pixel may be cut off at the edge of a stamp.
FAINT = 0.1
# Products of 2 and 3: fast transforms, and few distinct sizes to cache.
SIZES = (64, 96, 128, 192, 256, 384)
#: A star brighter than this (nJy) is drawn with the wings of its PSF beyond the kernel that the file holds.
BRIGHT_STAR = 1.2e5


@dataclass(frozen=True, slots=True)
class Strip:
    """A horizontal slice of the block.

    Parameters
    ----------
    box
        Pixels covered, PARENT frame.
    image
        `(B, h, w)` float32 noiseless light, nJy.
    arcs
        Target row -> `(B, 3)` float64: flux, sum of squares, and sum of squares over noise variance of the
        lensed light in each band.
    """

    box: Box
    image: NDArray[np.float32]
    arcs: dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class StripTask:
    """Objects of a strip and the conditions they are seen under."""

    painted: tuple[Painted, ...]
    conditions: Conditions
    y0: int
    y1: int


def stamp_size(painted: Painted) -> int:
    """Pixels along a side of the stamp that holds what is painted."""
    radius = max(
        extent(shape, value, FAINT * noise_sigma(band))
        for shape, fluxes in painted.parts
        for band, value in zip(UGRIZY, fluxes, strict=True)
    )
    # 10 px: room for the PSF, which `extent` leaves out.
    return next((s for s in SIZES if s >= 2.0 * (radius + 10.0)), SIZES[-1])


def render_strip(task: StripTask) -> Strip:
    """Paint the objects of a strip; what hangs over its edges is included, clipped to the block."""
    c = task.conditions
    margin = max((_drawn_size(p) for p in task.painted), default=0) // 2 + 2
    box = c.box & Box(c.box.x0, task.y0 - margin, c.box.x1, task.y1 + margin)
    image = np.zeros((len(c.bands), *box.shape), np.float32)
    # Neighbours share cells, whose PSF transforms are kept while they are needed.
    psf = functools.lru_cache(maxsize=48)(c.transforms)
    arcs: dict[int, NDArray[np.float64]] = {}
    columns = [UGRIZY.index(band) for band in c.bands]
    # By cell, so that the cache above hits.
    for p in sorted(task.painted, key=lambda p: (c.cell_of(p.x, p.y), p.x)):
        tally = np.zeros((len(c.bands), 3)) if isinstance(p.parts[0][0], Lensed) else None
        _paint(image, box, p, columns, c, psf, tally)
        if tally is not None:
            arcs[p.row] = tally
    return Strip(box, image, arcs)


def _drawn_size(p: Painted) -> int:
    return 256 if _bright(p) else stamp_size(p)


def _bright(p: Painted) -> bool:
    return isinstance(p.parts[0][0], Point) and max(p.parts[0][1]) > BRIGHT_STAR


def _paint(
    image: NDArray[np.float32],
    box: Box,
    p: Painted,
    columns: list[int],
    c: Conditions,
    psf: Any,
    tally: NDArray[np.float64] | None,
) -> None:
    """Add one object; every pixel gets the PSF of its own cell, as in a cell coadd."""
    size = _drawn_size(p)
    light = object_transform(p, size, columns)
    x0, y0 = int(np.floor(p.x + 0.5)) - size // 2, int(np.floor(p.y + 0.5)) - size // 2
    stamp = Box(x0, y0, x0 + size, y0 + size)
    for i, j in _cells(stamp & box, c.box):
        cell = Box(
            c.box.x0 + j * CELL, c.box.y0 + i * CELL, c.box.x0 + (j + 1) * CELL, c.box.y0 + (i + 1) * CELL
        )
        kernel = size - 1 if _bright(p) else KERNEL  # odd
        # The whole object with this PSF, of which only the pixels in this cell are used.
        seen = scipy.fft.irfft2(light * psf(i, j, size, kernel), s=(size, size))
        part = stamp & box & cell
        values = seen[(slice(None), *stamp.slices(part))]
        image[(slice(None), *box.slices(part))] += values
        if tally is not None:
            _count_arcs(tally, values, c.sigma[:, i, j])


def _count_arcs(tally: NDArray[np.float64], values: NDArray[np.float32], sigma: NDArray[np.float64]) -> None:
    square = (values.astype(float) ** 2).sum(axis=(1, 2))
    tally += np.stack([values.sum(axis=(1, 2), dtype=float), square, square / sigma**2], axis=1)


def object_transform(p: Painted, size: int, columns: list[int]) -> Complex:
    """Transform of an object in each band before the PSF: `(B, S, S // 2 + 1)`."""
    # The whole pixels are in the position of the image, the rest is drawn.
    dx, dy = p.x - np.floor(p.x + 0.5), p.y - np.floor(p.y + 0.5)
    total = np.zeros((len(columns), size, size // 2 + 1), np.complex64)
    for shape, fluxes in p.parts:
        weight = np.array([fluxes[k] for k in columns], np.float32)
        total += weight[:, None, None] * transform(shape, size, float(dx), float(dy))
    return total


def _cells(part: Box, block: Box) -> list[tuple[int, int]]:
    """Cells `(i, j)` of the block that a box touches."""
    if part.empty:
        return []
    rows = range((part.y0 - block.y0) // CELL, (part.y1 - 1 - block.y0) // CELL + 1)
    columns = range((part.x0 - block.x0) // CELL, (part.x1 - 1 - block.x0) // CELL + 1)
    return [(i, j) for i in rows for j in columns]


def arc_measures(tally: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lensed light by band: `(B, 3)` magnitude, mean surface brightness (mag/arcsec²), S/N.

    The surface brightness is the flux-weighted mean `sum f² / sum f` after the PSF; the S/N is that of a
    matched filter against the noise of blank sky, `sqrt(sum f² / sigma²)`.
    """
    mean = tally[:, 1] / tally[:, 0] / PIXEL_SCALE**2
    return np.stack([magnitude(tally[:, 0]), magnitude(mean), np.sqrt(tally[:, 2])], axis=1)
