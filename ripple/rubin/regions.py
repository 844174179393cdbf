"""Regions of the sky as IVOA POS strings, and grids of windows over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.errors import RegionError
from ripple.sky.geometry import Box
from ripple.sky.skymap import Float, Int, SkyMap

if TYPE_CHECKING:
    import lsst.sphgeom

# Five columns of 8 bytes: 800 MB, beyond which a mistyped step would fill the memory.
MAX_WINDOWS = 20_000_000


@dataclass(frozen=True)
class Region:
    """A region of the sky.

    Parameters
    ----------
    text
        As the user wrote it.
    shape
        Its `lsst.sphgeom` region.
    """

    text: str
    shape: lsst.sphgeom.Region

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> NDArray[np.bool_]:
        """Which positions (deg) lie inside: `(N,)` bool."""
        r, d = np.radians(np.mod(np.asarray(ra, float), 360.0)), np.radians(np.asarray(dec, float))
        return np.asarray(self.shape.contains(np.ascontiguousarray(r), np.ascontiguousarray(d)), bool)

    def circle(self) -> tuple[float, float, float]:
        """A circle `(ra, dec, radius)` deg around the whole region."""
        from lsst.sphgeom import LonLat

        bound = self.shape.getBoundingCircle()
        centre = LonLat(bound.getCenter())
        radius = min(180.0, bound.getOpeningAngle().asDegrees())
        return centre.getLon().asDegrees() % 360.0, centre.getLat().asDegrees(), radius


def parse_region(text: str) -> Region:
    """A region from an IVOA POS string, degrees ICRS.

    Parameters
    ----------
    text
        `CIRCLE ra dec radius`, `RANGE ra0 ra1 dec0 dec1` (may cross RA 0; -Inf and +Inf leave a side open) or
        `POLYGON ra0 dec0 ra1 dec1 ra2 dec2 ...` (convex).

    Raises
    ------
    RegionError
        The string is not of this form, or the region is empty.
    """
    from lsst.sphgeom import Region as Shape

    words = text.split()
    kind = words[0].upper() if words else ""
    needed = {"CIRCLE": "ra dec radius", "RANGE": "ra0 ra1 dec0 dec1", "POLYGON": "ra dec ra dec ra dec ..."}
    if kind not in needed:
        raise RegionError(
            f"region {text!r} cannot be read",
            hint="write CIRCLE ra dec r, POLYGON ra dec ..., or RANGE ra0 ra1 dec0 dec1",
        )
    numbers = _parse_numbers(text, words[1:])
    count = len(numbers)
    if {"CIRCLE": count != 3, "RANGE": count != 4, "POLYGON": count < 6 or count % 2 != 0}[kind]:
        raise RegionError(f"region {text!r} has {count} numbers", hint=f"write {kind} {needed[kind]}")
    _check_numbers(text, kind, numbers)
    try:
        shape = Shape.from_ivoa_pos(" ".join([kind, *words[1:]]))
    except (ValueError, RuntimeError) as err:
        raise RegionError(f"region {text!r}: {' '.join(str(err).split())[:200]}") from None
    if kind == "POLYGON":
        _check_convex(text, shape, count // 2)
    return Region(text, shape)


def _parse_numbers(text: str, words: list[str]) -> list[float]:
    try:
        return [float(w) for w in words]
    except ValueError as err:
        raise RegionError(
            f"region {text!r}: {err}", hint="give numbers in degrees, separated by blanks"
        ) from None


def _check_numbers(text: str, kind: str, numbers: list[float]) -> None:
    """Refuse what sphgeom would accept in silence: NaN, positions off the sphere, empty shapes."""
    if any(np.isnan(v) or (np.isinf(v) and kind != "RANGE") for v in numbers):
        raise RegionError(f"region {text!r} has a value that is not a finite number")
    ras = {"CIRCLE": numbers[:1], "RANGE": numbers[:2], "POLYGON": numbers[::2]}[kind]
    decs = {"CIRCLE": numbers[1:2], "RANGE": numbers[2:], "POLYGON": numbers[1::2]}[kind]
    if any(np.isfinite(v) and not -360 <= v <= 360 for v in ras):
        raise RegionError(f"region {text!r}: right ascension outside -360 to 360 deg")
    if any(np.isfinite(v) and abs(v) > 90 for v in decs):
        raise RegionError(f"region {text!r}: declination outside -90 to 90 deg")
    if kind == "CIRCLE" and not 0 < numbers[2] <= 180:
        raise RegionError(f"region {text!r}: the radius must be between 0 and 180 deg")
    # Equal RAs would mean a meridian; ra0 > ra1 is allowed, it crosses RA 0.
    if kind == "RANGE" and (numbers[0] == numbers[1] or numbers[2] >= numbers[3]):
        raise RegionError(f"region {text!r} is empty", hint="write RANGE ra0 ra1 dec0 dec1 with dec0 < dec1")


def _check_convex(text: str, shape: lsst.sphgeom.Region, vertices: int) -> None:
    """Refuse polygons that are not convex: sphgeom takes the hull, which then has fewer vertices."""
    from lsst.sphgeom import ConvexPolygon

    if not isinstance(shape, ConvexPolygon) or len(shape.getVertices()) != vertices:
        raise RegionError(
            f"region {text!r}: the polygon is not convex, or has a vertex on one of its sides",
            hint="divide it into convex polygons",
        )


def tracts_near(skymap: SkyMap, region: Region) -> Int:
    """Ids of the tracts that may hold part of a region (a few more than needed), ascending."""
    ra, dec, radius = region.circle()
    table = skymap.table
    turn, tract_dec, region_dec = np.radians(table.ra - ra), np.radians(table.dec), np.radians(dec)
    cosine = np.sin(tract_dec) * np.sin(region_dec)
    cosine += np.cos(tract_dec) * np.cos(region_dec) * np.cos(turn)
    apart = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # (T,) deg
    sides = [table.nx * skymap.patches.width, table.ny * skymap.patches.height]
    scale = np.sqrt(np.abs(table.cd[:, 0] * table.cd[:, 3] - table.cd[:, 1] * table.cd[:, 2]))
    # Half the diagonal; 1 % more, as pixels of a TAN projection grow towards the corners.
    reach = 1.01 * np.hypot(*sides) / 2 * scale
    near: Int = table.ids[apart <= radius + reach]
    return near


def grid(
    skymap: SkyMap,
    step: float,
    *,
    region: Region | None = None,
    tracts: Int | None = None,
    patches: Int | None = None,
    boxes: Mapping[int, Box] | None = None,
) -> tuple[Int, Int, Int, Float, Float]:
    """Centres of the windows of a regular grid on the pixels of tracts.

    A window belongs to a tract by the inner region of its centre, so that each piece of sky is covered by the
    windows of one tract although tracts overlap; within a tract the grid runs through all patches.

    Parameters
    ----------
    skymap
        Tracts and their pixels.
    step
        Distance of centres, pixels. Square windows of this side tile the sky once.
    region
        Centres outside are left out.
    tracts
        Only these; with `region` alone, those near it.
    patches
        Only these inner patches.
    boxes
        Tract -> pixels beyond which there are no coadds: windows there are left out.

    Returns
    -------
    tract, column, row
        `(N,)` int64; the window is `(column, row)` on the tract's grid.
    ra, dec
        `(N,)` deg, of the centre: pixel `(floor((column + 0.5) step), floor((row + 0.5) step))`, whose middle
        no rounding can move into another pixel.

    Raises
    ------
    RegionError
        No window, or more than `MAX_WINDOWS`.
    """
    if tracts is None:
        if region is None:
            raise RegionError("a grid needs a region or tracts", hint="give --region or --tract")
        tracts = tracts_near(skymap, region)
    parts = []
    count = 0
    for tract in np.unique(tracts):
        box = (boxes or {}).get(int(tract), skymap.tract_box(int(tract)))
        part = _windows_of_tract(skymap, int(tract), step, region, patches, box)
        parts.append(part)
        count += len(part[0])
        if count > MAX_WINDOWS:
            raise RegionError(
                f"more than {MAX_WINDOWS} windows", hint="choose a larger --grid or a smaller region"
            )
    if not count:
        raise RegionError(
            "no window of the grid lies in the selection", hint="choose a larger region or a smaller --grid"
        )
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3], columns[4]


def _windows_of_tract(
    skymap: SkyMap, tract: int, step: float, region: Region | None, patches: Int | None, within: Box
) -> tuple[Int, Int, Int, Float, Float]:
    """The windows of one tract whose centres lie in a box."""
    tan, box = skymap.tan(tract), skymap.tract_box(tract) & within
    x_range, y_range = (float(box.x0), box.x1 - 1.0), (float(box.y0), box.y1 - 1.0)
    if region is not None:
        x_range, y_range = _pixel_bounds(skymap, tract, region, x_range, y_range)
    # One column more on each side: the exact test with `region.contains` follows.
    i, j = (np.arange(max(0.0, low // step - 1), high // step + 2) for low, high in (x_range, y_range))
    # Before the arrays are made: this is where the memory would go.
    if len(i) * len(j) > MAX_WINDOWS:
        raise RegionError(
            f"more than {MAX_WINDOWS} windows", hint="choose a larger --grid or a smaller region"
        )
    row, column = (v.ravel() for v in np.meshgrid(j, i, indexing="ij"))
    # Pixel centres, so that sky and back cannot fall into the neighbouring pixel.
    x, y = np.floor((column + 0.5) * step), np.floor((row + 0.5) * step)
    ra, dec = tan.pixel_to_sky(x, y)
    keep = (x >= box.x0) & (x < box.x1) & (y >= box.y0) & (y < box.y1) & (skymap.find_tract(ra, dec) == tract)
    if region is not None:
        keep &= region.contains(ra, dec)
    if patches is not None:
        keep &= np.isin(skymap.find_patch(tract, x, y), patches)
    cells = column[keep].astype(np.int64), row[keep].astype(np.int64)  # (N,) each
    return np.full(len(cells[0]), tract, np.int64), *cells, ra[keep], dec[keep]


def _pixel_bounds(
    skymap: SkyMap, tract: int, region: Region, x: tuple[float, float], y: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of a tract's pixel ranges that the region's bounding circle may reach.

    A circle of radius r around a point at angle t from the tangent point is an ellipse in the plane; its
    points lie within tan(t + r) - tan(t) of the centre's image, as long as t + r < 90 deg.
    """
    ra, dec, radius = region.circle()
    tan = skymap.tan(tract)
    cx, cy = (float(v) for v in tan.sky_to_pixel(ra, dec))
    # The centre is behind the tangent plane: no bound can be given.
    if not np.isfinite(cx):
        return x, y
    scale = np.radians(tan.pixel_scale / 3600.0)
    angle = np.arctan(np.hypot(cx - tan.x0, cy - tan.y0) * scale)
    # Near 90 deg the tangent runs away and the bound with it; 80 leaves it finite.
    if angle + np.radians(radius) > np.radians(80):
        return x, y
    reach = (np.tan(angle + np.radians(radius)) - np.tan(angle)) / scale + 2  # px; 2 for rounding
    return (max(x[0], cx - reach), min(x[1], cx + reach)), (max(y[0], cy - reach), min(y[1], cy + reach))
