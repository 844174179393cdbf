"""Where targets lie on a sky map: tract, patch and pixel of each, and what their boxes reach into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.sky.coverage import Coverage, boxes_around, cover, packed, touched, unpacked
from ripple.sky.geometry import Box
from ripple.sky.skymap import Float, Int, SkyMap

#: Rows handled together, so that temporary arrays stay small with millions of targets.
PIECE = 1 << 19


@dataclass(frozen=True)
class Place:
    """Where N targets lie.

    Parameters
    ----------
    tract, patch
        `(N,)` int32; -1 where there is none.
    x, y
        `(N,)` PARENT pixels; NaN where there is no tract.
    """

    tract: NDArray[np.int32]
    patch: NDArray[np.int32]
    x: Float
    y: Float


def locate(skymap: SkyMap, ra: Float, dec: Float) -> Place:
    """The place of N positions, each in its inner tract and patch."""
    tract, patch, x, y = skymap.locate(ra, dec)
    # Inside the nearest tract's circle, but on none of its patches.
    nowhere = patch < 0
    tract[nowhere], x[nowhere], y[nowhere] = -1, np.nan, np.nan
    return Place(tract.astype(np.int32), patch.astype(np.int32), x, y)


def leaving(skymap: SkyMap, place: Place, reach: NDArray[np.int32]) -> Int:
    """Rows whose box, `reach` pixels on a side, leaves their tract."""
    left = [np.zeros(0, np.intp)]
    for rows in pieces(np.flatnonzero(place.tract >= 0)):
        boxes = boxes_around(place.x[rows], place.y[rows], reach[rows])
        left.append(rows[~_within(skymap, place.tract[rows].astype(np.int64), boxes)])
    return np.concatenate(left)


def elsewhere(
    skymap: SkyMap, rows: Int, ra: Float, dec: Float, place: Place, reach: NDArray[np.int32]
) -> tuple[Int, Place]:
    """Those of some rows whose box another tract holds as a whole, and their place in the first that does."""
    row, tract = skymap.all_tracts(ra[rows], dec[rows])
    row = rows[row]  # several times where several tracts overlap
    x, y = skymap.sky_to_pixel(tract, ra[row], dec[row])
    fits = (tract != place.tract[row]) & _within(skymap, tract, boxes_around(x, y, reach[row]))
    row, tract, x, y = row[fits], tract[fits], x[fits], y[fits]
    # By row and tract: of several tracts that hold a box, the one with the lowest id.
    order = np.lexsort((tract, row))
    order = order[np.unique(row[order], return_index=True)[1]]
    row, tract, x, y = row[order], tract[order], x[order], y[order]
    patch = skymap.find_patch(tract, x, y)
    return row, Place(tract.astype(np.int32), patch.astype(np.int32), x, y)


def covered_bands(
    skymap: SkyMap, place: Place, reach: NDArray[np.int32], have: dict[tuple[int, int], int], bands: int
) -> Coverage:
    """Which bands cover the centre of each box, and which the whole box; rows without tract have none.

    `have`: (tract, patch) -> bands that have a coadd, one bit per band.
    """
    n, every = len(place.tract), (1 << bands) - 1
    # As few bytes as the bands need: there may be tens of millions of rows.
    kind = np.min_scalar_type(every)
    covered = Coverage(np.zeros(n, kind), np.zeros(n, kind))
    for rows in pieces(np.flatnonzero(place.tract >= 0)):
        x, y = place.x[rows], place.y[rows]
        boxes = boxes_around(x, y, reach[rows])
        part = cover(skymap, place.tract[rows].astype(np.int64), boxes, x, y, have, every)
        covered.centre[rows], covered.whole[rows] = part.centre, part.whole
    return covered


def patches_under(skymap: SkyMap, place: Place, reach: NDArray[np.int32], rows: Int) -> set[tuple[int, int]]:
    """(tract, patch) that at least one box of these rows reaches into, in the tract of its row."""
    found: set[tuple[int, int]] = set()
    for some in pieces(rows):
        tract = place.tract[some].astype(np.int64)
        boxes = boxes_around(place.x[some], place.y[some], reach[some])
        row, patch = touched(skymap, tract, boxes)
        found |= set(unpacked(np.unique(packed(tract[row], patch)).tolist()))
    return found


def patches_across(skymap: SkyMap, place: Place, reach: int, row: int) -> tuple[tuple[int, int], ...]:
    """(tract, patch) of other tracts under the box of one row."""
    own = int(place.tract[row])
    box = Box.around(place.x[row], place.y[row], reach)
    # A 9 x 9 lattice stands for all pixels of the box: patches are much larger than its step.
    px, py = np.meshgrid(np.linspace(box.x0, box.x1 - 1, 9), np.linspace(box.y0, box.y1 - 1, 9))
    ra, dec = skymap.tan(own).pixel_to_sky(px.ravel(), py.ravel())
    point, tract = skymap.all_tracts(ra, dec)
    x, y = skymap.sky_to_pixel(tract, ra[point], dec[point])
    pixels = boxes_around(x, y, np.full(len(x), 3, np.int32))  # a pixel around for the kernel
    at, patch = touched(skymap, tract, pixels)
    pairs = set(zip(tract[at].tolist(), patch.tolist(), strict=True))
    return tuple(sorted(pair for pair in pairs if pair[0] != own))


def pieces(rows: Int) -> Iterator[Int]:
    """Rows in pieces of `PIECE`, which bounds the memory of what is computed from them."""
    yield from (rows[at : at + PIECE] for at in range(0, len(rows), PIECE))


def _within(skymap: SkyMap, tract: Int, boxes: Int) -> NDArray[np.bool_]:
    """Whether boxes lie within the pixels of a tract."""
    t, p = skymap.table, skymap.patches
    # Outer patches reach over the edge of the grid by their border, unless the sky map clips them.
    k, grown = t.rows(tract, skymap.name), 0 if p.clip else p.border
    top = np.stack([t.nx[k] * p.width, t.ny[k] * p.height], axis=1) + grown
    return np.asarray((boxes[:, :2] >= -grown).all(axis=1) & (boxes[:, 2:] <= top).all(axis=1))
