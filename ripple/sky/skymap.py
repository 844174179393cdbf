"""Sky maps: sky <-> tract, patch and tract pixel, for whole columns of positions at once.

Follows the rules of `lsst.skymap` (github.com/lsst/skymap, version 1 of RingsSkyMap) without its code: tracts
are counted from the south cap ring by ring northwards; patches are counted along x first; legacy patches clip
their outer box to the tract, cell patches do not. Pixels are PARENT (tract) pixels, zero-based, centres at
integers; boxes are half open; angles are degrees ICRS.
"""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.config import suggest
from ripple.errors import SkyMapError
from ripple.sky.geometry import Box, Tan

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: Positions worked on at a time: the temporaries stay in the cache.
SLICE = 32768


@dataclass(frozen=True, slots=True)
class LegacyPatches:
    """Square-grid patches whose outer box is clipped to the tract.

    Parameters
    ----------
    width, height
        Inner size, pixels.
    border
        Pixels added on each side for the outer box.
    """

    width: int = 4000
    height: int = 4000
    border: int = 100

    @property
    def clip(self) -> bool:
        """Whether outer boxes end at the tract's edge."""
        return True

    def packed(self, overlap: float, scale: float, rotation: float) -> bytes:
        """The bytes that `lsst.skymap` hashes."""
        # As `getPackedConfig` of the legacy tract builder.
        return struct.pack(
            "<iiidd3sd", self.width, self.height, self.border, overlap, scale, b"TAN", rotation
        )


@dataclass(frozen=True, slots=True)
class CellPatches:
    """Patches made of square cells; the outer box may leave the tract.

    Parameters
    ----------
    cell
        Inner size of a cell, pixels.
    cell_border
        Overlap of cells, pixels.
    inner, extra
        Cells along a side of the inner patch, and cells added on each side.
    """

    cell: int = 150
    cell_border: int = 50
    inner: int = 20
    extra: int = 1

    @property
    def width(self) -> int:
        """Inner size of a patch, pixels."""
        return self.cell * self.inner

    @property
    def height(self) -> int:
        """Inner size of a patch, pixels."""
        return self.cell * self.inner

    @property
    def border(self) -> int:
        """Pixels added on each side for the outer box."""
        return self.cell * self.extra + self.cell_border

    @property
    def clip(self) -> bool:
        """Whether outer boxes end at the tract's edge."""
        return False

    def packed(self, overlap: float, scale: float, rotation: float) -> bytes:
        """The bytes that `lsst.skymap` hashes."""
        # As `getPackedConfig` of the cell tract builder; width and height of a cell are equal here.
        return struct.pack(
            "<iiiiidd3sd",
            self.cell,
            self.cell,
            self.cell_border,
            self.inner,
            self.extra,
            overlap,
            scale,
            b"TAN",
            rotation,
        )


@dataclass(frozen=True, slots=True)
class PlainPatches:
    """Patches known only by their boxes (inferred from a repository).

    Parameters
    ----------
    width, height
        Inner size, pixels.
    border
        Pixels added on each side for the outer box.
    clip
        Whether outer boxes end at the tract's edge.
    """

    width: int
    height: int
    border: int
    clip: bool


@dataclass(frozen=True, slots=True, eq=False)
class TractTable:
    """Geometry of T tracts, one array element per tract.

    Parameters
    ----------
    ids
        `(T,)` int64, ascending.
    ra, dec
        `(T,)` deg, tangent points.
    x0, y0
        `(T,)` pixel of the tangent point.
    cd
        `(T, 4)` deg per pixel, as in `Tan`.
    nx, ny
        `(T,)` int64 patches per row and column.
    """

    ids: Int
    ra: Float
    dec: Float
    x0: Float
    y0: Float
    cd: Float
    nx: Int
    ny: Int

    def rows(self, tract: ArrayLike, name: str) -> Int:
        """Positions of tract ids in the table.

        Raises
        ------
        SkyMapError
            An id that the sky map does not have.
        """
        wanted = np.asarray(tract, np.int64)
        # Ring maps: ids are positions, which saves a search for each of millions of rows.
        if self.ids[0] == 0 and self.ids[-1] == len(self.ids) - 1 and self._all_there(wanted):
            return wanted
        # searchsorted may point behind the last id.
        at = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        wrong = np.atleast_1d(self.ids[at] != wanted)
        if wrong.any():
            bad = np.atleast_1d(wanted)[wrong][0]
            raise SkyMapError(
                f"sky map {name} has no tract {bad}",
                hint=f"its {len(self.ids)} tracts are numbered {self.ids[0]} to {self.ids[-1]}",
            )
        return at

    def _all_there(self, wanted: Int) -> bool:
        return not wanted.size or bool(wanted.min() >= 0 and wanted.max() < len(self.ids))


@dataclass(frozen=True)
class SkyMap(ABC):
    """Tracts on the sphere, patches in tracts.

    Parameters
    ----------
    name
        Name of the sky map.
    patches
        How a tract is divided.
    """

    name: str
    patches: LegacyPatches | CellPatches | PlainPatches

    @property
    @abstractmethod
    def table(self) -> TractTable:
        """Geometry of all tracts."""

    @abstractmethod
    def find_tract(self, ra: ArrayLike, dec: ArrayLike) -> Int:
        """The one tract whose inner region holds each position: `(N,)` int64."""

    @abstractmethod
    def _candidate_tracts(self, ra: Float, dec: Float) -> Int:
        """Tract ids `(N, K)` that include all those that hold each position; -1 pads."""

    def tan(self, tract: int) -> Tan:
        """Projection of a tract."""
        t, k = self.table, int(self.table.rows(tract, self.name))
        a, b, c, d = (float(v) for v in t.cd[k])
        return Tan(float(t.ra[k]), float(t.dec[k]), float(t.x0[k]), float(t.y0[k]), (a, b, c, d))

    def tract_box(self, tract: int) -> Box:
        """All pixels of a tract."""
        t, k = self.table, int(self.table.rows(tract, self.name))
        return Box(0, 0, int(t.nx[k]) * self.patches.width, int(t.ny[k]) * self.patches.height)

    def sky_to_pixel(self, tract: ArrayLike, ra: ArrayLike, dec: ArrayLike) -> tuple[Float, Float]:
        """Pixels of positions, each in its own tract: `(N,)` float64, NaN behind the tangent plane.

        Same formulas as `Tan.sky_to_pixel`, with a tangent point per row.
        """
        t, k = self.table, self.table.rows(tract, self.name)
        d, d0 = np.radians(np.asarray(dec, float)), np.radians(t.dec)
        # Angles per tract are computed once per table and gathered, not per row.
        da = np.radians(np.asarray(ra, float)) - np.radians(t.ra)[k]
        cos_d, sin_d, c0, s0 = np.cos(d), np.sin(d), np.cos(d0)[k], np.sin(d0)[k]
        near = cos_d * np.cos(da)
        w = s0 * sin_d + c0 * near
        turn = np.where(t.dec >= 90.0, -1.0, 1.0)[k]  # LONPOLE, as in Tan
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(w > 0, turn / w, np.nan) * (180.0 / np.pi)
            xi, eta = cos_d * np.sin(da) * scale, (c0 * sin_d - s0 * near) * scale
        x0, y0, m = self._pixels_per_degree(k)
        return x0 + (m[0] * xi + m[1] * eta), y0 + (m[2] * xi + m[3] * eta)

    def _pixels_per_degree(self, k: Int) -> tuple[Any, Any, Any]:
        """Pixel of the tangent point, and pixels per deg (2 x 2 by rows), of table rows `k`."""
        t = self.table
        # Ring maps have one CD matrix for all tracts: its inverse is then a single 2 x 2.
        a, b, c, d = t.cd[:1].T if (t.cd == t.cd[0]).all() else t.cd.T
        inverse = np.stack([d, -b, -c, a]) / (a * d - b * c)
        if inverse.shape[1] == 1:
            return t.x0[k], t.y0[k], inverse[:, 0]
        return t.x0[k], t.y0[k], inverse[:, k]

    def find_patch(self, tract: ArrayLike, x: ArrayLike, y: ArrayLike) -> Int:
        """Sequential id of the patch whose inner box holds each pixel: `(N,)` int64, -1 outside the tract."""
        t, k = self.table, self.table.rows(tract, self.name)
        px, py = whole(x), whole(y)
        i, j = px // self.patches.width, py // self.patches.height
        inside = (i >= 0) & (j >= 0) & (i < t.nx[k]) & (j < t.ny[k])
        return np.where(inside, j * t.nx[k] + i, -1)

    def locate(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Int, Int, Float, Float]:
        """Inner tract, inner patch and pixel of each position.

        Parameters
        ----------
        ra, dec
            `(N,)` deg ICRS.

        Returns
        -------
        tract, patch
            `(N,)` int64; patch is -1 where the tract does not hold the position, both where it is not finite.
        x, y
            `(N,)` float64 PARENT pixels; NaN where the position is not finite.
        """
        r, d = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
        tract, patch = np.empty(len(r), np.int64), np.empty(len(r), np.int64)
        x, y = np.empty(len(r)), np.empty(len(r))
        lost = ~(np.isfinite(r) & np.isfinite(d))
        if lost.any():
            r, d = np.where(lost, 0.0, r), np.where(lost, 0.0, d)
        for start in range(0, len(r), SLICE):
            part = slice(start, start + SLICE)
            tract[part] = self.find_tract(r[part], d[part])
            x[part], y[part] = self.sky_to_pixel(tract[part], r[part], d[part])
            patch[part] = self.find_patch(tract[part], x[part], y[part])
        tract[lost], patch[lost], x[lost], y[lost] = -1, -1, np.nan, np.nan
        return tract, patch, x, y

    def patch_xy(self, tract: ArrayLike, patch: ArrayLike) -> tuple[Int, Int]:
        """Column and row of sequential patch ids, `(N,)` int64 each.

        Raises
        ------
        SkyMapError
            An id that the tract does not have.
        """
        t, k = self.table, self.table.rows(tract, self.name)
        p = np.asarray(patch, np.int64)
        wrong = np.atleast_1d((p < 0) | (p >= t.nx[k] * t.ny[k]))
        if wrong.any():
            n = int(np.broadcast_to(np.atleast_1d(t.nx[k] * t.ny[k]), wrong.shape)[wrong][0])
            bad = int(np.broadcast_to(np.atleast_1d(p), wrong.shape)[wrong][0])
            raise SkyMapError(f"sky map {self.name}: no patch {bad}", hint=f"patches are 0 to {n - 1}")
        return p % t.nx[k], p // t.nx[k]

    def patch_inner(self, tract: int, patch: int) -> Box:
        """Inner box of a patch: inner boxes tile the tract."""
        i, j = (int(v) for v in self.patch_xy(tract, patch))
        w, h = self.patches.width, self.patches.height
        return Box(i * w, j * h, (i + 1) * w, (j + 1) * h)

    def patch_outer(self, tract: int, patch: int) -> Box:
        """Outer box of a patch: all the pixels that its coadds have."""
        box = self.patch_inner(tract, patch).grown(self.patches.border)
        return box & self.tract_box(tract) if self.patches.clip else box

    def patches_touching(self, tract: ArrayLike, boxes: Int) -> tuple[Int, Int, Int, Int]:
        """Patches whose outer boxes overlap boxes of pixels.

        Parameters
        ----------
        tract
            `(N,)` tract ids.
        boxes
            `(N, 4)` int64 `x0, y0, x1, y1`, half open.

        Returns
        -------
        i0, j0, i1, j1
            `(N,)` ranges of patch columns and rows, half open; empty where nothing overlaps.
        """
        t, k, p = self.table, self.table.rows(tract, self.name), self.patches
        nx, ny = t.nx[k], t.ny[k]
        x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes, np.int64), -1, 0)
        # Clipped patches end with the tract, so only what lies in the tract counts.
        if p.clip:
            x0, y0 = np.maximum(x0, 0), np.maximum(y0, 0)
            x1, y1 = np.minimum(x1, nx * p.width), np.minimum(y1, ny * p.height)
        i0, i1 = _overlapping_range(x0, x1, p.width, p.border, nx)
        j0, j1 = _overlapping_range(y0, y1, p.height, p.border, ny)
        return i0, j0, i1, j1

    def all_tracts(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Int, Int]:
        """Every tract whose pixels hold each position.

        Returns
        -------
        row, tract
            Pairs, int64, sorted by row and then tract.
        """
        r, d = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
        near = self._candidate_tracts(r, d)
        row = np.repeat(np.arange(len(r)), near.shape[1])[near.ravel() >= 0]
        tract = near.ravel()[near.ravel() >= 0]
        x, y = self.sky_to_pixel(tract, r[row], d[row])
        holds = self.find_patch(tract, x, y) >= 0
        pairs = np.unique(np.stack([row[holds], tract[holds]], axis=1), axis=0)
        return pairs[:, 0], pairs[:, 1]


def _overlapping_range(start: Int, stop: Int, size: int, border: int, count: Int) -> tuple[Int, Int]:
    """Indices of intervals `[i * size - border, (i + 1) * size + border)` that overlap `[start, stop)`."""
    first = np.maximum((start - border) // size, 0)
    last = np.minimum((stop - 1 + border) // size, count - 1)
    return first, np.where(stop > start, np.maximum(last + 1, first), first)


def whole(x: ArrayLike) -> Int:
    """The pixel that holds a coordinate, `floor(x + 0.5)`; far outside any tract for NaN."""
    # Centres are at integers; 1e9 px is farther than any tract and safe in int64 sums.
    pixel = np.floor(np.asarray(x, float) + 0.5)
    return np.clip(np.nan_to_num(pixel, nan=-1e9), -1e9, 1e9).astype(np.int64)


def _square_tracts(
    ra: Float,
    dec: Float,
    radius: Float,
    overlap: float,
    scale: float,
    rotation: float,
    patches: LegacyPatches | CellPatches,
) -> TractTable:
    """Tracts of half-size `radius` deg, as `lsst.skymap.ExplicitTractInfo` lays them out.

    The four points at `radius + overlap` along the compass directions are boxed in pixels around the tangent
    point, and the box is grown to whole patches, half of the excess on the lower side.
    """
    turn = np.radians(rotation)
    # Half-size in pixels on the tangent plane, where an angle t is at tan(t).
    half = np.degrees(np.tan(np.radians(radius + overlap))) / (scale / 3600.0)
    # The box around the four compass points, turned.
    half = half * max(abs(np.cos(turn)), abs(np.sin(turn)))
    low, high = np.floor(-half + 0.5).astype(np.int64), np.ceil(half - 0.5).astype(np.int64)
    counts, origins = [], []
    for size in (patches.width, patches.height):
        pixels = high - low + 1
        # Rounded up to whole patches.
        count = -(-pixels // size)
        counts.append(count)
        origins.append(-(low - (count * size - pixels) // 2).astype(float))
    s = scale / 3600.0
    # cd11 < 0: RA grows to the left.
    cd = np.tile([-np.cos(turn) * s, np.sin(turn) * s, np.sin(turn) * s, np.cos(turn) * s], (len(ra), 1))
    return TractTable(np.arange(len(ra)), ra, dec, origins[0], origins[1], cd, counts[0], counts[1])


@dataclass(frozen=True)
class RingsSkyMap(SkyMap):
    """Rings of declination, each divided evenly in right ascension, and two polar caps.

    Parameters
    ----------
    rings
        Number of rings; the two caps together are as high as one more.
    pixel_scale
        Arcsec per pixel.
    tract_overlap
        Deg.
    ra_start
        Deg, centre of the first tract of each ring.
    rotation
        Deg, position angle of +y.
    """

    patches: LegacyPatches | CellPatches
    rings: int = 120
    pixel_scale: float = 0.2
    tract_overlap: float = 1.0 / 60.0
    ra_start: float = 0.0
    rotation: float = 0.0

    @cached_property
    def _height(self) -> float:
        """Height of a ring, rad."""
        return float(np.pi / (self.rings + 1))

    @cached_property
    def _counts(self) -> Int:
        """Tracts in each ring: as many of the ring's height as its longest parallel needs."""
        start = self._height * (np.arange(self.rings) + 0.5) - 0.5 * np.pi
        widest = np.minimum(np.abs(start), np.abs(start + self._height))
        return (2 * np.pi * np.cos(widest) / self._height).astype(np.int64) + 1

    @property
    def tract_count(self) -> int:
        """Number of tracts, with the two caps."""
        return int(self._counts.sum()) + 2

    @cached_property
    def _first(self) -> Int:
        """Id of the first tract of each ring."""
        return 1 + np.concatenate([[0], np.cumsum(self._counts)[:-1]])

    @cached_property
    def table(self) -> TractTable:
        """Geometry of all tracts."""
        ring = np.repeat(np.arange(self.rings), self._counts)
        turn = (np.arange(len(ring)) + 1 - self._first[ring]) / self._counts[ring]
        # Tract 0 and the last one are the caps, centred on the poles.
        ra = np.concatenate([[0.0], np.mod(360.0 * turn + self.ra_start, 360.0), [0.0]])
        dec = np.concatenate([[-90.0], np.degrees(self._height * (ring + 1)) - 90.0, [90.0]])
        radius = np.full(len(ra), np.degrees(0.5 * self._height))
        return _square_tracts(
            ra, dec, radius, self.tract_overlap, self.pixel_scale, self.rotation, self.patches
        )

    def sha1(self) -> bytes:
        """The hash that `lsst.skymap` gives this configuration; registries keep it beside the name."""
        packed = self.patches.packed(self.tract_overlap, self.pixel_scale, self.rotation)
        rings = struct.pack("<id", self.rings, self.ra_start)
        return hashlib.sha1(b"RingsSkyMap" + packed + rings, usedforsecurity=False).digest()

    def _ring(self, dec: Float) -> Int:
        """Ring of declinations in rad; -1 and `rings` are the caps."""
        edge = self._height * 0.5 - 0.5 * np.pi
        # edge: half a ring above the south pole, where the southern cap ends.
        ring = np.floor((dec - edge) / self._height).astype(np.int64)
        ring = np.clip(ring, 0, self.rings)
        return np.where(dec < edge, -1, np.where(dec > -edge, self.rings, ring))

    def _slot(self, ra: Float, ring: Int) -> Int:
        """Tract number within (real) rings for right ascensions in rad."""
        count = self._counts[ring]
        turn = np.mod(ra - np.radians(self.ra_start), 2 * np.pi)
        # + 0.5: tract 0 of a ring is centred on ra_start, not starting there.
        slot = (turn / (2 * np.pi / count) + 0.5).astype(np.int64)
        return np.where(slot >= count, 0, slot)

    def find_tract(self, ra: ArrayLike, dec: ArrayLike) -> Int:
        """The one tract whose inner region holds each position: `(N,)` int64.

        Parameters
        ----------
        ra, dec
            `(N,)` finite deg ICRS.
        """
        r, d = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
        ring = self._ring(d)
        real = np.clip(ring, 0, self.rings - 1)
        inside = self._first[real] + self._slot(r, real)
        last = len(self.table.ids) - 1
        return np.where(ring < 0, 0, np.where(ring >= self.rings, last, inside))

    def _candidate_tracts(self, ra: Float, dec: Float) -> Int:
        ring = self._ring(np.radians(dec))
        found = []
        # Tracts overlap by less than their size: only neighbours in both directions can hold a position.
        for shift in (-1, 0, 1):
            r = ring + shift
            real = np.clip(r, 0, self.rings - 1)
            slot = self._slot(np.radians(ra), real)
            for step in (-1, 0, 1):
                near = self._first[real] + np.mod(slot + step, self._counts[real])
                found.append(np.where(r == real, near, -1))
        # The caps always: near a pole they touch every slot.
        caps = [np.zeros_like(ring), np.full_like(ring, len(self.table.ids) - 1)]
        return np.stack(found + caps, axis=1)


@dataclass(frozen=True)
class ObservedSkyMap(SkyMap):
    """A sky map inferred from a repository: projections of its coadds and boxes of its patches.

    Its tracts may lie anywhere: a position belongs to the tract with the nearest tangent point.

    Parameters
    ----------
    tracts
        Geometry of the observed tracts.
    """

    tracts: TractTable

    @property
    def table(self) -> TractTable:
        """Geometry of the observed tracts."""
        return self.tracts

    def _cosines(self, ra: ArrayLike, dec: ArrayLike) -> Float:
        """Cosines `(N, T)` of the angles to all tangent points."""
        here = _unit(np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float)))
        there: Float = _unit(self.table.ra, self.table.dec)
        return here @ there.T

    def find_tract(self, ra: ArrayLike, dec: ArrayLike) -> Int:
        """The tract with the nearest centre, `(N,)` int64; it need not hold the position."""
        found = self.table.ids[np.argmax(self._cosines(ra, dec), axis=1)]
        return found.reshape(np.shape(ra))

    def _candidate_tracts(self, ra: Float, dec: Float) -> Int:
        # Only tracts within 90 deg have the position in front of their tangent plane.
        return np.where(self._cosines(ra, dec) > 0, self.table.ids[None, :], -1)


def _unit(ra: Float, dec: Float) -> Float:
    """Unit vectors `(N, 3)`."""
    r, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)], axis=1)


def _rings(name: str, patches: LegacyPatches | CellPatches, scale: float = 0.2) -> RingsSkyMap:
    return RingsSkyMap(name, patches, pixel_scale=scale)


#: Sky maps with public configurations (lsst/obs_lsst, lsst-dm/gen3_shared_repo_admin, LSSTDESC), and the
#: small one of `ripple simulate`.
KNOWN: tuple[RingsSkyMap, ...] = (
    _rings("lsst_cells_v1", CellPatches()),
    _rings("lsst_cells_v2", CellPatches(cell_border=0)),
    _rings("hsc_rings_v1", LegacyPatches(), 0.168),
    _rings("DC2", LegacyPatches()),
    _rings("DC2_cells_v1", CellPatches()),
    _rings("ripple_mini_v1", CellPatches(cell_border=0, inner=4)),
)


@cache
def known(name: str) -> RingsSkyMap:
    """A sky map by its public name.

    Raises
    ------
    SkyMapError
        Not one of `KNOWN`; names the nearest.
    """
    for skymap in KNOWN:
        if skymap.name == name:
            return skymap
    names = [s.name for s in KNOWN]
    raise SkyMapError(
        f"unknown sky map {name!r}{suggest(name, names)}", hint=f"known sky maps are {', '.join(names)}"
    )
