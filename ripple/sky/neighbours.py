"""Positions close to each other on the sky, for whole catalogues at once.

Distances are chords between unit vectors: the sphere has no edge at RA 0 or the poles, and the straight
distance grows with the angle, so that a k-d tree can compare it.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ripple.errors import CatalogueError

Float = NDArray[np.float64]

#: More pairs than this are no duplicates but a wrong unit or radius, and would fill the memory.
MAX_PAIRS = 20_000_000


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> Float:
    """`(N, 3)` unit vectors of positions in deg."""
    r, d = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)], axis=1)


def chord(arcsec: float) -> float:
    """Straight distance of unit vectors that are an angle apart."""
    return float(2 * np.sin(np.radians(arcsec / 3600.0) / 2))


def arcsec(chords: Float) -> Float:
    """The angles that straight distances of unit vectors span; the inverse of `chord`."""
    return np.asarray(np.degrees(2 * np.arcsin(np.minimum(chords / 2, 1.0))) * 3600.0)


def separation(ra: Float, dec: Float, other_ra: Float, other_dec: Float) -> Float:
    """`(N,)` arcsec between two lists of N positions in deg, row by row; NaN where one is unknown."""
    apart = unit_vectors(ra, dec) - unit_vectors(other_ra, other_dec)
    return arcsec(np.linalg.norm(apart, axis=1))


def close_pairs(points: Float, radius: float) -> NDArray[np.intp]:
    """`(P, 2)` rows of unit vectors `(N, 3)` closer than `radius` arcsec; none for a radius of 0."""
    if radius <= 0 or len(points) < 2:
        return np.zeros((0, 2), np.intp)
    return np.asarray(scipy.spatial.cKDTree(points).query_pairs(chord(radius), output_type="ndarray"))


def repeated(ra: ArrayLike, dec: ArrayLike, radius: float) -> NDArray[np.bool_]:
    """`(N,)` rows closer than `radius` arcsec to an earlier row; rows without a position never are."""
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    out = np.zeros(len(ra), bool)
    if radius <= 0:
        return out
    # A tree of the few that may have a neighbour; without one, its module need not be loaded.
    few = known[_crowded(ra[known], dec[known], chord(radius))]
    pairs = close_pairs(unit_vectors(ra[few], dec[few]), radius)
    # The later row of each pair: the first of a group stays.
    out[few[pairs.max(axis=1)]] = True
    return out


def earlier_neighbours(ra: Float, dec: Float, radius: float) -> list[tuple[int, int, float]]:
    """(row, earlier row, arcsec) for each row with an earlier one within `radius` arcsec; the first such.

    Raises
    ------
    CatalogueError
        More than `MAX_PAIRS` pairs.
    """
    reach = chord(radius)
    # Almost no target has a neighbour, so the tree is built of the few that may have one.
    rows = _crowded(ra, dec, reach)
    if not len(rows):
        return []
    points = unit_vectors(ra[rows], dec[rows])
    places, first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
    # Identical positions as one: a column of zeros would otherwise make N² pairs.
    tree = scipy.spatial.cKDTree(places)
    # count_neighbors counts each pair twice and each point with itself.
    if tree.count_neighbors(tree, reach) - len(places) > 2 * MAX_PAIRS:
        raise CatalogueError(
            f"more than {MAX_PAIRS} pairs of targets lie within {radius} arcsec",
            hint="--set duplicate_radius=0 compares ids only",
        )
    pairs = tree.query_pairs(reach, output_type="ndarray")
    pairs = np.sort(first[pairs], axis=1)  # (earlier, later) by first row of each place
    same = np.flatnonzero(first[place.ravel()] != np.arange(len(rows)))
    pairs = np.concatenate([pairs, np.stack([first[place.ravel()[same]], same], axis=1)])
    # By later row, then by earlier: the first pair of each later row has its earliest partner.
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    later, at = np.unique(pairs[:, 1], return_index=True)
    earlier = pairs[at, 0]
    apart = arcsec(np.linalg.norm(points[later] - points[earlier], axis=1))
    return list(zip(rows[later].tolist(), rows[earlier].tolist(), apart.tolist(), strict=True))


def _crowded(ra: Float, dec: Float, reach: float) -> NDArray[np.intp]:
    """Rows that may have another within `reach`, ascending: those that share a cell with one.

    Two points as close as `reach` share a cell of twice that side in at least one of eight grids, each
    shifted by half a cell along some of the axes. Cells are compared by a hash, so a few rows come in vain.
    """
    n = len(ra)
    # int32 holds the numbers of half cells down to 1e-8 rad (2 mas), at half the memory.
    halves = np.empty((n, 3), np.int32 if reach > 1e-8 else np.int64)
    for at in range(0, n, 1 << 19):
        part = slice(at, at + (1 << 19))
        # Half a per cent larger, so that rounding cannot part two points.
        halves[part] = np.floor(unit_vectors(ra[part], dec[part]) / (1.005 * reach))
    crowded = np.zeros(n, bool)
    # Odd 64-bit factors that spread the bits: those of golden-ratio hashing and of xxHash64.
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    for shift in itertools.product((0, 1), repeat=3):
        key = np.zeros(n, np.uint64)
        for at in range(0, n, 1 << 19):
            part = slice(at, at + (1 << 19))
            cell = ((halves[part].astype(np.int64) + shift) >> 1).view(np.uint64)
            key[part] = (cell * factors).sum(axis=1, dtype=np.uint64)
        order = np.argsort(key)
        again = np.flatnonzero(np.diff(key[order]) == 0)
        crowded[order[again]] = crowded[order[again + 1]] = True
    return np.flatnonzero(crowded)
