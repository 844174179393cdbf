"""Which bands cover which cutout boxes: arithmetic on patches and boxes, for all targets at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.sky.skymap import Float, Int, SkyMap, whole

#: Rows whose coverage is worked out at a time.
SLICE = 50_000  # bounds the (row, patch) pairs in memory


@dataclass(frozen=True, slots=True)
class Coverage:
    """What exists for N boxes.

    Parameters
    ----------
    centre
        `(N,)` unsigned, bit b set when a dataset of band b has the pixel of the target.
    whole
        `(N,)` unsigned, bit b set when datasets of band b have every pixel of the box.
    """

    centre: NDArray[np.unsignedinteger]
    whole: NDArray[np.unsignedinteger]


def packed(tract: NDArray[np.integer], patch: NDArray[np.integer]) -> Int:
    """Tract and patch in one number, the patch in its last 32 bits: numbers are grouped faster than pairs."""
    return np.asarray((tract.astype(np.int64) << 32) + patch)


def unpacked(keys: list[int]) -> list[tuple[int, int]]:
    """(tract, patch) of numbers that `packed` made."""
    return [(key >> 32, key & 0xFFFFFFFF) for key in keys]


def boxes_around(x: Float, y: Float, size: NDArray[np.int32]) -> Int:
    """Boxes `(N, 4)` int64 `x0, y0, x1, y1` of cutouts, by the rule of `Box.around`."""
    x0, y0 = whole(x) - size // 2, whole(y) - size // 2
    return np.stack([x0, y0, x0 + size, y0 + size], axis=1).astype(np.int64)


def touched(skymap: SkyMap, tract: Int, boxes: Int) -> tuple[Int, Int]:
    """Pairs (row, patch) of the patches whose outer boxes overlap boxes, `(M,)` int64 each, row by row."""
    i0, j0, i1, j1 = skymap.patches_touching(tract, boxes)
    columns, rows = np.maximum(i1 - i0, 0), np.maximum(j1 - j0, 0)  # patches under each box
    count = columns * rows
    row = np.repeat(np.arange(len(boxes)), count)
    k = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)  # 0, 1, ... within each box
    nx = skymap.table.nx[skymap.table.rows(tract, skymap.name)] * np.ones(len(boxes), np.int64)
    wide = np.maximum(columns[row], 1)
    return row, (j0[row] + k // wide) * nx[row] + i0[row] + k % wide


def cover(
    skymap: SkyMap, tract: Int, boxes: Int, x: Float, y: Float, have: dict[tuple[int, int], int], full: int
) -> Coverage:
    """What of each box exists in which band.

    Parameters
    ----------
    skymap
        Geometry.
    tract
        `(N,)` tract of each box.
    boxes
        `(N, 4)` pixels.
    x, y
        `(N,)` pixels of the targets.
    have
        (tract, patch) -> bits of the bands that have a dataset.
    full
        Bits of all bands.
    """
    n = len(boxes)
    centre, complete = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
    for start in range(0, n, SLICE):
        part = slice(start, start + SLICE)
        centre[part], complete[part] = _cover(skymap, tract[part], boxes[part], x[part], y[part], have, full)
    return Coverage(centre, complete)


def _cover(
    skymap: SkyMap, tract: Int, boxes: Int, x: Float, y: Float, have: dict[tuple[int, int], int], full: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    row, patch = touched(skymap, tract, boxes)
    bits = _bits(tract[row], patch, have)
    points = np.stack([whole(x), whole(y)], axis=1)
    centre = np.zeros(len(boxes), np.uint64)
    outer = outer_boxes(skymap, tract[row], patch)
    np.bitwise_or.at(centre, row, np.where(_contains(outer, points[row]), bits, np.uint64(0)))
    # Bands that every touching patch has.
    everything = np.full(len(boxes), full, np.uint64)
    np.bitwise_and.at(everything, row, bits)
    # Cell patches reach beyond the tract by their border, clipped ones end with it.
    grown = 0 if skymap.patches.clip else skymap.patches.border
    area = _tract_areas(skymap, tract, grown)
    inside = (boxes[:, :2] >= area[:, :2]).all(axis=1) & (boxes[:, 2:] <= area[:, 2:]).all(axis=1)
    # Patches tile their tract: a box inside it that touches only complete patches is covered.
    easy = inside & (everything == full)
    complete = np.where(easy, np.uint64(full), np.uint64(0))
    hard = np.flatnonzero(~easy & (centre > 0))
    if len(hard):
        at = np.full(len(boxes), -1)
        at[hard] = np.arange(len(hard))
        mine = at[row] >= 0
        complete[hard] = _bands_covering(boxes[hard], at[row[mine]], outer[mine], bits[mine], full)
    return centre, complete


def _bits(tract: Int, patch: Int, have: dict[tuple[int, int], int]) -> NDArray[np.uint64]:
    """Bands of each (tract, patch)."""
    # One number per (tract, patch), so that each distinct pair is looked up once.
    keys, where = np.unique(packed(tract, patch), return_inverse=True)
    values = [have.get(pair, 0) for pair in unpacked(keys.tolist())]
    return np.array(values, np.uint64)[where.ravel()] if len(keys) else np.zeros(0, np.uint64)


def _tract_areas(skymap: SkyMap, tract: Int, grown: int) -> Int:
    """Boxes `(N, 4)` that the outer boxes of all patches of a tract cover together."""
    t, p = skymap.table, skymap.patches
    k = t.rows(tract, skymap.name) + np.zeros(np.shape(tract), np.int64)
    low = np.full(k.shape, -grown)
    return np.stack([low, low, t.nx[k] * p.width + grown, t.ny[k] * p.height + grown], axis=1)


def outer_boxes(skymap: SkyMap, tract: Int, patch: Int) -> Int:
    """Outer boxes `(M, 4)` of patches."""
    p = skymap.patches
    i, j = skymap.patch_xy(tract, patch)
    box = np.stack([i * p.width, j * p.height, (i + 1) * p.width, (j + 1) * p.height], axis=1)
    box = np.asarray(box + p.border * np.array([-1, -1, 1, 1]), np.int64)
    if not p.clip:
        return box
    area = _tract_areas(skymap, tract, 0)
    return np.concatenate([np.maximum(box[:, :2], area[:, :2]), np.minimum(box[:, 2:], area[:, 2:])], axis=1)


def _contains(box: Int, point: Int) -> NDArray[np.bool_]:
    return np.asarray((point >= box[:, :2]).all(axis=1) & (point < box[:, 2:]).all(axis=1))


def _bands_covering(
    boxes: Int, row: Int, outer: Int, bits: NDArray[np.uint64], full: int
) -> NDArray[np.uint64]:
    """Bands that cover boxes wholly, when patches are missing or end: exact, rectangle by rectangle.

    The edges of the touching patches divide a box into rectangles within which nothing changes; one pixel of
    each is looked at, the first one.
    """
    k = np.arange(len(row)) - np.searchsorted(row, row)  # rank of a patch among those of its row
    most = int(k.max()) + 1 if len(k) else 0
    n = len(boxes)
    edges = np.tile(boxes[:, None, :2], (1, 2 * most + 1, 1))  # (n, edges, xy); the box's own corner pads
    # Edges outside the box move to its rim, where they divide nothing.
    clipped = np.clip(outer, np.tile(boxes[row, :2], 2), np.tile(boxes[row, 2:] - 1, 2))
    edges[row, 2 * k + 1], edges[row, 2 * k + 2] = clipped[:, :2], clipped[:, 2:]
    result = np.full(n, full, np.uint64)
    for a in range(edges.shape[1]):
        for b in range(edges.shape[1]):
            point = np.stack([edges[:, a, 0], edges[:, b, 1]], axis=1)
            seen = np.zeros(n, np.uint64)
            np.bitwise_or.at(seen, row, np.where(_contains(outer, point[row]), bits, np.uint64(0)))
            result &= seen
    return result
