"""Rows to units of work: whole patches of one tract and size, up to the limits of one shard."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.stitch import is_sparse
from ripple.sky.skymap import Int, SkyMap
from ripple.stages.plan.places import Place
from ripple.stages.plan.plan import Unit

#: Patches share a unit (one shard) up to this many rows and bytes of image, variance and mask.
UNIT_ROWS, UNIT_BYTES = 2000, 400_000_000
#: Patches share a unit up to this many bytes of files that are read whole, for a worker holds them all.
FILE_BYTES = 600_000_000
#: A patch with more bytes than this is divided, and decoded once for each of its units.
PATCH_BYTES = 1_000_000_000
#: Bytes per pixel and band of a cutout: image, variance, mask; and of a decoded coadd.
PIXEL_BYTES = 12


def divide(
    skymap: SkyMap,
    place: Place,
    size: NDArray[np.int32],
    reach: NDArray[np.int32],
    rows: Int,
    files: Mapping[tuple[int, int], int],
    bands: int,
) -> tuple[Unit, ...]:
    """Units of whole patches, of one tract and size, up to the limits; a patch too large is divided.

    Parameters
    ----------
    skymap
        Has the outer boxes of the patches.
    place, size, reach
        Of all N targets; sides of cutouts, and of the boxes that are read, in pixels.
    rows
        Those that are to be cut.
    files
        (tract, patch) -> bytes of its files in all bands.
    bands
        How many.
    """
    if not len(rows):
        return ()
    rows = rows[np.lexsort((rows, place.patch[rows], size[rows], place.tract[rows]))]
    tract, patch, side = place.tract[rows], place.patch[rows], reach[rows]
    # Sorted, so each (tract, size, patch) is one run of rows.
    change = np.flatnonzero((np.diff(tract) != 0) | (np.diff(patch) != 0) | (np.diff(side) != 0)) + 1
    units: list[Unit] = []
    held: list[Int] = []  # groups of the unit that is being filled
    weight = 0  # bytes of its files
    for group in np.split(rows, change):
        first = group[0]
        key, box_side = (int(place.tract[first]), int(place.patch[first])), int(reach[first])
        # Of patches with few targets only some tiles are read, so their files do not weigh.
        few = is_sparse(len(group), box_side, skymap.patch_outer(*key))
        load = 0 if few else files.get(key, 0)
        limit = _limit(box_side, bands, UNIT_BYTES, UNIT_ROWS)
        whole = _limit(box_side, bands, PATCH_BYTES, len(group))
        same = held and place.tract[held[0][0]] == place.tract[first] and size[held[0][0]] == size[first]
        rows_now = sum(map(len, held)) + len(group)
        if held and (not same or rows_now > limit or weight + load > FILE_BYTES):
            units.append(_unit(len(units), held, place))
            held, weight = [], 0
        held.append(group)
        weight += load
        # Only a patch that is alone in its unit can be that large.
        while len(held) == 1 and len(held[0]) > whole:
            units.append(_unit(len(units), [held[0][:whole]], place))
            held = [held[0][whole:]]
    if held:
        units.append(_unit(len(units), held, place))
    return tuple(units)


def _limit(side: int, bands: int, size: int, rows: int) -> int:
    """How many cutouts of `side` pixels make `size` bytes, at most `rows` and at least 1."""
    return max(1, min(rows, size // (PIXEL_BYTES * bands * side * side)))


def _unit(number: int, groups: list[Int], place: Place) -> Unit:
    rows = np.concatenate(groups)
    patches = tuple(sorted({int(p) for p in place.patch[rows]}))
    return Unit(number, int(place.tract[rows[0]]), patches, rows)
