"""Cutouts with other pixels or of another size, about the target; the way to a model of another survey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.regrid import REACH, Regrid, regrid_psf, scale_about_centre

#: Pixel scales that differ by less are the same.
SAME_SCALE = 1e-6
#: Planes interpolated at once, which bounds the memory.
CHUNK = 256


def covered(size: int, ratio: float) -> int:
    """Pixels across that a cutout of `size` pixels fills when they are larger by `ratio`.

    Interpolated pixels lie as far inside the old cutout as the kernel reaches; the central one keeps its
    place.
    """
    reach = 0 if abs(ratio - 1) < SAME_SCALE else int(np.ceil(REACH * max(1.0, ratio)))
    left, right = size // 2 - max(reach - 1, 0), size - 1 - size // 2 - reach
    new_left, new_right = (max(int(v / ratio + 1e-9), 0) for v in (left, right))
    # To the left of the central pixel lie size // 2 pixels: as many as to the right, or one more.
    return 2 * new_right + (2 if new_left > new_right else 1)


def rescaled(batch: CutoutBatch, pixel_scale: float, size: tuple[int, int]) -> CutoutBatch:
    """The same sky in pixels of `pixel_scale` arcsec, `size` `(H, W)` about the target's pixel `(H // 2, W
    // 2)`.

    Fluxes per pixel, variances, masks, and PSFs are interpolated (`regrid`); a mere crop is exact. Pixels
    beyond the old cutouts are NaN with NO_DATA. Positions stay; `x0`, `y0` and the projection of the tract
    hold for its own pixels and go when these are left.
    """
    ratio = pixel_scale / batch.pixel_scale
    same = abs(ratio - 1) < SAME_SCALE
    ratio = 1.0 if same else ratio
    old = batch.image.shape[-2:]
    move = scale_about_centre(old, ratio, size)
    image, variance, mask = _planes(batch, move, size)
    mask[np.isnan(image)] |= batch.bits("NO_DATA")
    catalog = dict(batch.catalog)
    for name, n, m in (("x0", old[1], size[1]), ("y0", old[0], size[0])):
        if same and name in catalog:
            catalog[name] = (catalog[name] + (n // 2 - m // 2)).astype(np.int32)
        elif name in catalog:
            del catalog[name]
    for name in ("dx", "dy"):
        if name in catalog:
            catalog[name] = (np.asarray(catalog[name], np.float64) / ratio).astype(np.float32)
    psf = batch.psf if same or not len(batch.psf) else regrid_psf(batch.psf, ratio * np.eye(2))
    return replace(
        batch,
        image=image,
        variance=variance,
        mask=mask,
        psf=psf,
        psf_cells=_cells(batch.psf_cells, old, size, ratio),
        catalog=catalog,
        wcs=batch.wcs if same else {},
        pixel_scale=batch.pixel_scale if same else pixel_scale,
    )


def _planes(
    batch: CutoutBatch, move: Regrid, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]:
    shape = (*batch.image.shape[:2], *size)
    image, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    mask = np.empty(shape, np.uint32)
    for start in range(0, len(batch), CHUNK):
        rows = slice(start, start + CHUNK)
        image[rows] = move.image(batch.image[rows])
        variance[rows] = move.variance(batch.variance[rows])
        mask[rows] = move.mask(batch.mask[rows])
    return image, variance, mask


def _cells(
    cells: NDArray[np.int32], old: tuple[int, ...], size: tuple[int, int], ratio: float
) -> NDArray[np.int32]:
    """`psf_cells` in the new pixels; parts that fall outside are left out."""
    out = cells.copy()
    for columns, n, m in (((2, 3), old[0], size[0]), ((4, 5), old[1], size[1])):
        for k in columns:  # edges of pixels, half a pixel before their centres
            edge = (cells[:, k] - 0.5 - n // 2) / ratio + m // 2 + 0.5
            out[:, k] = np.clip(np.rint(edge), 0, m)
    return out[(out[:, 2] < out[:, 3]) & (out[:, 4] < out[:, 5])]
