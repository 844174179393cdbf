"""Boxes cut out of planes: one copy for boxes inside a patch, stitching for boxes that leave it.

All patches of a tract share one pixel grid, so completing a box from a neighbour is an exact copy. A pixel
that several patches hold comes from the target's own patch, else from the patch with the lowest id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.sky.geometry import Box

Ints = NDArray[np.int64]

#: Up to so many boxes numpy is done before numba is loaded.
_FEW_BOXES = 32


def inside(box: Box, x0: Ints, y0: Ints, size: int) -> NDArray[np.bool_]:
    """Which boxes of `size` pixels starting at `(x0, y0)` lie wholly in `box`: `(N,)` bool."""
    return (x0 >= box.x0) & (y0 >= box.y0) & (x0 + size <= box.x1) & (y0 + size <= box.y1)


def touches(box: Box, x0: Ints, y0: Ints, size: int) -> NDArray[np.bool_]:
    """Which boxes of `size` pixels starting at `(x0, y0)` share a pixel with `box`: `(N,)` bool."""
    return (x0 < box.x1) & (y0 < box.y1) & (x0 + size > box.x0) & (y0 + size > box.y0)


def is_sparse(rows: int, size: int, box: Box, tile: int = 150) -> bool:
    """Whether reading the tiles under `rows` boxes costs less than decoding the plane once.

    A box of `size` pixels touches about `(1 + size / tile)**2` tiles. Reading by tile costs a seek and a call
    per box, which the factor 4 covers.
    """
    # Boxes that share a tile are counted twice, which only errs towards reading whole.
    touched = rows * (1 + size / tile) ** 2
    return 4 * touched < (box.width / tile) * (box.height / tile)


def cut(plane: NDArray[Any], x: Ints, y: Ints, out: NDArray[Any], band: int) -> None:
    """Copy boxes of a plane into one band of `out`.

    Parameters
    ----------
    plane
        `(h, w)` array of 4-byte pixels.
    x, y
        `(N,)` first pixels as array indices; the boxes must lie inside the plane.
    out
        `(N, B, S, S)` C-contiguous array of the same type, written in place.
    band
        Which of the B.
    """
    size = out.shape[-1]
    if len(x) <= _FEW_BOXES:
        for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
            out[i, band] = plane[b : b + size, a : a + size]
        return
    from ripple.imaging.loops import copy_boxes

    # The compiled loop checks no bounds.
    if not inside(Box(0, 0, plane.shape[1], plane.shape[0]), x, y, size).all():
        raise ValueError(f"boxes of {size} pixels lie outside a plane of shape {plane.shape}")
    # As uint32, whatever the type: one compiled loop for image, variance and mask.
    copy_boxes(np.ascontiguousarray(plane).view(np.uint32), x, y, out.view(np.uint32), band)


@dataclass(slots=True)
class Seams:
    """Which pixels of boxes that leave their patch are filled, in one band.

    Parameters
    ----------
    filled
        `(E, S, S)` bool, for the E boxes that leave their patch.
    source
        `(E, S, S)` int32 patch that each pixel came from; -1 for none.
    disagreement
        `(E,)` float32 largest difference where two patches hold the same pixel, in units of its noise.
    """

    filled: NDArray[np.bool_]
    source: NDArray[np.int32]
    disagreement: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int, size: int) -> Seams:
        """Nothing filled yet."""
        return cls(
            np.zeros((count, size, size), bool),
            np.full((count, size, size), -1, np.int32),
            np.zeros(count, np.float32),
        )


def stitch_row(
    seams: Seams,
    row: int,
    cutout: Box,
    planes: dict[str, NDArray[Any]],
    plane_box: Box,
    out: dict[str, NDArray[Any]],
    *,
    patch: int,
    own: bool,
) -> None:
    """Copy what one patch holds of one box into the box.

    Parameters
    ----------
    seams
        Updated in place at `row`.
    row
        Number of the box among those of `seams`.
    cutout
        Pixels of the box.
    planes
        `(h, w)` arrays by name (`image` among them).
    plane_box
        Pixels that they cover.
    out
        `(S, S)` arrays of this box, by name, written in place.
    patch
        Id of the patch the planes are from.
    own
        Whether it is the target's own patch: then its pixels win.
    """
    common = cutout & plane_box
    if common.empty:
        return
    here, there = cutout.slices(common), plane_box.slices(common)
    before = seams.filled[row][here]  # pixels that another patch has given
    if before.any():
        gap = _disagreement(
            {n: out[n][here][before] for n in out}, {n: planes[n][there][before] for n in out}
        )
        seams.disagreement[row] = max(float(seams.disagreement[row]), gap)
    # Neighbours come in the order of their ids, so the lowest id wins among them.
    take = np.ones_like(before) if own else ~before
    for name, plane in planes.items():
        out[name][here][take] = plane[there][take]
    seams.source[row][here][take] = patch
    seams.filled[row][here] = True


def _disagreement(old: dict[str, NDArray[Any]], new: dict[str, NDArray[Any]]) -> float:
    """Largest difference of the same pixels in two patches over their noise; 0 where nothing can be said."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # That of the noisier patch, so that a shallow neighbour raises no alarm.
        noise = np.sqrt(np.maximum(old["variance"], new["variance"]).astype(np.float64))
        gap = np.abs(old["image"].astype(np.float64) - new["image"]) / noise
    gap = gap[np.isfinite(gap)]
    return float(gap.max()) if gap.size else 0.0


def seam_map(cutout: Box, own: int, boxes: dict[int, Box]) -> NDArray[np.int32]:
    """Patch that each pixel of a cutout came from.

    Parameters
    ----------
    cutout
        Pixels of the cutout, PARENT frame.
    own
        Patch of the target.
    boxes
        Outer box of each patch of the tract that had data: `patch_boxes` in the manifest of cutouts.

    Returns
    -------
    seams
        `(H, W)` int32 patch ids, -1 where no patch holds the pixel.
    """
    out = np.full(cutout.shape, -1, np.int32)
    # From the highest id down and the own patch last: whoever wins writes last.
    for patch in [*sorted((p for p in boxes if p != own), reverse=True), own]:
        common = cutout & boxes[patch] if patch in boxes else Box(0, 0, 0, 0)
        if not common.empty:
            out[cutout.slices(common)] = patch
    return out
