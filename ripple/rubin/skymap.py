"""The geometry of a sky map that is not known by name, from what a repository says about it.

Registered tract and patch regions are polygons on the sky; one coadd header per tract gives the projection
that turns them into pixels. Parameters that reproduce the registered hash are thereby proven.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from ripple.errors import SkyMapError, UnreadableError
from ripple.rubin.formats.containers import container_of
from ripple.rubin.formats.fits import Hdu, Memory, read_hdu
from ripple.rubin.open import open_coadd
from ripple.rubin.repository import Dataset, Inventory, corners, label
from ripple.sky.geometry import Box, Tan
from ripple.sky.skymap import (
    KNOWN,
    CellPatches,
    LegacyPatches,
    ObservedSkyMap,
    PlainPatches,
    RingsSkyMap,
    SkyMap,
    TractTable,
)

#: Bytes at the start of a coadd file in which the header with the projection lies.
HEAD_BYTES = 256 * 1024


def resolve_skymap(
    repository: Inventory, name: str, dataset_type: str, tracts: Iterable[int] | None = None
) -> tuple[SkyMap, str]:
    """The geometry of a registered sky map.

    Parameters
    ----------
    repository
        Open repository.
    name
        Registered name of the sky map.
    dataset_type
        Coadds whose headers may be read.
    tracts
        Tracts of interest; all that have coadds by default. Only used when headers must be read.

    Returns
    -------
    skymap, source
        `known` (the registered hash is that of a public configuration), `hash` (parameters inferred from the
        repository reproduce the hash), or `repository` (inferred, for the tracts of interest only).

    Raises
    ------
    SkyMapError
        Its geometry cannot be found: not registered, no coadds, or irregular patches.
    """
    registered = repository.skymaps()
    digest, count = registered.get(name, (b"", 0))
    # The hash and not the name: anybody may register another map under a public name.
    for known in KNOWN:
        if known.sha1() == digest:
            return replace(known, name=name), "known"
    there = repository.tracts(dataset_type, name)
    wanted = sorted(set(there if tracts is None else tracts) & set(there))
    if not wanted:
        raise SkyMapError(f"sky map {name!r}: no {dataset_type} in the tracts of this selection")
    # One tract is enough to guess the parameters; the others are read only when that fails.
    first = _observe(repository, name, dataset_type, wanted[:1])
    proven = _matching_hash(first, digest, count)
    if proven is not None:
        return proven, "hash"
    return (first if len(wanted) == 1 else _observe(repository, name, dataset_type, wanted)), "repository"


def read_projection(repository: Inventory, dataset: Dataset) -> Tan:
    """The projection of a coadd's tract, PARENT frame, from the header cards of its file.

    Containers other than FITS have no such cards; they are read whole.

    Raises
    ------
    UnreadableError
        No plain TAN projection in the first headers of the file.
    """
    name = label(dataset)
    head = repository.head(dataset, HEAD_BYTES)
    if container_of(head):
        return open_coadd(repository.head(dataset, -1), name=name).projection
    for hdu in _headers(head, name):
        if hdu.text("CTYPE1") == "RA---TAN" and hdu.text("CTYPE2") == "DEC--TAN":
            return _tan(hdu)
    raise UnreadableError(f"{name}: no TAN projection in its FITS headers", hint="is it a coadd?")


def _headers(data: bytes, name: str) -> Iterator[Hdu]:
    """The first two headers of a FITS file."""
    read, offset = Memory(data, name), 0
    # Primary header and that of the image: with plain or compressed coadds it is one of these.
    for _ in range(2):
        hdu = read_hdu(read, offset, name=name)
        yield hdu
        offset = hdu.end


def _tan(hdu: Hdu) -> Tan:
    """Projection of the parent grid: CRPIX is that of the file's pixels, `CRVALnA` its first pixel."""
    x0 = hdu.number("CRPIX1") - hdu.number("CRPIX1A", 1.0) + hdu.number("CRVAL1A", 0.0)
    y0 = hdu.number("CRPIX2") - hdu.number("CRPIX2A", 1.0) + hdu.number("CRVAL2A", 0.0)
    cd = []
    for i, j in itertools.product((1, 2), (1, 2)):
        # Greisen & Calabretta 2002: CD, or PC scaled by CDELT; absent elements of CD are 0.
        turned = hdu.number(f"PC{i}_{j}", float(i == j)) * hdu.number(f"CDELT{i}", 1.0)
        cd.append(hdu.number(f"CD{i}_{j}", 0.0 if "CD1_1" in hdu.header else turned))
    return Tan(hdu.number("CRVAL1"), hdu.number("CRVAL2"), x0, y0, (cd[0], cd[1], cd[2], cd[3]))


def _observe(repository: Inventory, name: str, dataset_type: str, tracts: list[int]) -> ObservedSkyMap:
    """The sky map as far as these tracts show it."""
    regions = repository.tract_regions(name)
    tans, boxes, patches = {}, {}, None
    for tract in tracts:
        tan = tans[tract] = _projection(repository, name, dataset_type, tract)
        if regions.get(tract) is None:
            raise SkyMapError(f"sky map {name!r}: tract {tract} is registered without a region")
        boxes[tract] = pixel_box(tan, corners(regions[tract]))
        patches = patches or _patches(repository, name, tract, tan, boxes[tract])
    if patches is None:
        raise SkyMapError(
            f"sky map {name!r}: no patch of the tracts {tracts[:5]} is registered with a region"
        )
    for tract, box in boxes.items():
        if box.x0 or box.y0 or box.width % patches.width or box.height % patches.height:
            raise SkyMapError(
                f"sky map {name!r}: tract {tract} covers {box}, not a whole number of patches of"
                f" {patches.width} x {patches.height}"
            )
    return ObservedSkyMap(name, patches, _tract_table(tans, boxes, patches))


def _projection(repository: Inventory, name: str, dataset_type: str, tract: int) -> Tan:
    bands = repository.bands(dataset_type, name)
    found = repository.datasets(dataset_type, name, [tract], bands, None)
    if not found:
        raise SkyMapError(f"sky map {name!r}: no {dataset_type} in tract {tract}")
    return read_projection(repository, found[0])


def pixel_box(tan: Tan, vertices: tuple[tuple[float, float], ...]) -> Box:
    """The box whose corners (outer pixel edges) are these sky positions (deg).

    Raises
    ------
    SkyMapError
        The positions are not pixel corners of this projection.
    """
    x, y = tan.sky_to_pixel([v[0] for v in vertices], [v[1] for v in vertices])
    edges = np.array([x.min(), y.min(), x.max(), y.max()]) + 0.5
    whole = np.round(edges)
    # Vertices are rounded when they are stored; a corner that is off by more belongs to another grid.
    if not np.abs(edges - whole).max() < 0.02:
        raise SkyMapError(
            f"a registered region has its corners at pixels {edges - 0.5}, not at the corners of pixels"
        )
    return Box(*(int(v) for v in whole))


def _patches(repository: Inventory, name: str, tract: int, tan: Tan, area: Box) -> PlainPatches | None:
    """The patch grid, from the boxes of registered patches.

    The inner box of column c is `[c w, (c + 1) w)`, so that an outer box that is not clipped has
    `x0 + x1 = (2 c + 1) w` and `x1 - x0 = w + 2 border`.
    """
    records = repository.patch_records(name, tract)
    boxes = [(r, pixel_box(tan, r.corners)) for r in records]
    if not boxes:
        return None
    # Each unclipped patch votes for the true size; clipped ones vote for others or for none.
    widths = Counter(
        w for r, b in boxes for w in _whole_quotient(b.x0 + b.x1, 2 * r.column + 1) if not area.width % w
    )
    heights = Counter(
        h for r, b in boxes for h in _whole_quotient(b.y0 + b.y1, 2 * r.row + 1) if not area.height % h
    )
    if not widths or not heights:
        raise SkyMapError(f"sky map {name!r}: the patches of tract {tract} do not form a regular grid")
    width, height = _most_common(widths), _most_common(heights)
    border = _most_common(
        Counter(b // 2 for r, box in boxes for b in (box.width - width, box.height - height))
    )
    # The votes must explain every registered patch, not only most of them.
    for clip in (True, False):
        grid = PlainPatches(width, height, border, clip)
        if all(_outer_box(grid, r.column, r.row, area) == box for r, box in boxes):
            return grid
    raise SkyMapError(f"sky map {name!r}: the patches of tract {tract} do not form a regular grid")


def _most_common(counts: Counter[int]) -> int:
    return max(counts, key=lambda value: (counts[value], value))


def _whole_quotient(total: int, parts: int) -> list[int]:
    return [total // parts] if total > 0 and total % parts == 0 else []


def _outer_box(grid: PlainPatches, column: int, row: int, area: Box) -> Box:
    w, h = grid.width, grid.height
    box = Box(column * w, row * h, (column + 1) * w, (row + 1) * h).grown(grid.border)
    return box & area if grid.clip else box


def _tract_table(tans: dict[int, Tan], boxes: dict[int, Box], patches: PlainPatches) -> TractTable:
    ids = sorted(tans)
    t, b = [tans[i] for i in ids], [boxes[i] for i in ids]
    return TractTable(
        np.array(ids),
        np.array([v.ra0 for v in t]),
        np.array([v.dec0 for v in t]),
        np.array([v.x0 for v in t]),
        np.array([v.y0 for v in t]),
        np.array([v.cd for v in t]),
        np.array([v.width // patches.width for v in b]),
        np.array([v.height // patches.height for v in b]),
    )


def _matching_hash(observed: ObservedSkyMap, digest: bytes, count: int) -> RingsSkyMap | None:
    """The ring map whose configuration has the registered hash, if one near the observed numbers has."""
    grid, tract = observed.patches, int(observed.table.ids[0])
    scale = round(observed.tan(tract).pixel_scale, 6)  # arcsec; configurations state few digits
    # The registry records the number of tracts, which grows with the number of rings.
    rings = next((n for n in range(1, 2000) if RingsSkyMap("", LegacyPatches(), n).tract_count >= count), 0)
    layouts: list[LegacyPatches | CellPatches] = [LegacyPatches(grid.width, grid.height, grid.border)]
    # A cell patch shows only its total size: every division into cells with the same total is tried.
    for cell in range(10, grid.width + 1):
        if grid.width % cell == 0 and grid.width == grid.height:
            for extra in range(grid.border // cell + 1):
                layouts.append(CellPatches(cell, grid.border - extra * cell, grid.width // cell, extra))
    # Degrees: that of all public maps, then what people choose, then 1, the default of lsst.skymap.
    for overlap in (1 / 60, 0.0, 1 / 3600, 1 / 30, 0.1, 0.5, 1.0):
        for layout in layouts:
            ring_map = RingsSkyMap(observed.name, layout, rings, scale, overlap)
            if ring_map.sha1() == digest:
                return ring_map
    return None
