"""A plan: the targets, the coadds that they need, and the units of work that `fetch` carries out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ripple.rubin.repository import Dataset
from ripple.sky.coverage import boxes_around
from ripple.sky.geometry import Box, Tan
from ripple.stages.plan.targets import Targets
from ripple.storage.outcomes import Outcomes


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work, which becomes one shard.

    Parameters
    ----------
    number
        Position among the units; shard number.
    tract
        The tract of all its rows, which also have the same size.
    patches
        Inner patches of its rows, ascending. Two units share a patch only when it has more rows than one unit
        may hold.
    rows
        `(n,)` int64 positions in the targets, sorted by (patch, row).
    """

    number: int
    tract: int
    patches: tuple[int, ...]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Targets, the datasets they need, and the units of work.

    Parameters
    ----------
    bands
        In the order of the output.
    skymap, repo, collections, dataset_type
        What was searched; `collections` in search order, chains as given.
    targets
        All requested targets, N rows.
    tract, patch
        `(N,)` int32; inner patch of each target, -1 where there is none.
    x, y
        `(N,)` float64 PARENT pixels; NaN where there is no tract.
    size
        `(N,)` int32 pixels, without margins.
    projections
        Tract -> projection, for the tracts of the units (and of neighbours to resample from).
    patch_boxes
        (tract, patch) -> outer box, for every dataset.
    datasets
        (tract, patch, band) -> dataset, including those of neighbouring patches that a box reaches into.
    units
        In the order of shards.
    outcomes
        Of the N targets, as far as the repository tells: rejected rows are in no unit, partial ones are in a
        unit and lack something.
    margin
        Pixels that are read beyond each side of a cutout.
    cross
        Row -> (tract, patch) in other tracts that its box reaches into, when those are to be resampled.
    skymap_source
        `known`, `hash` or `repository`: where the geometry came from (`ripple.rubin.skymap`).
    gaps
        (tract, inner patch of a target) -> bands without dataset there; of tracts that have datasets.
    notes
        What the user should know about how targets and coadds were found.
    """

    bands: tuple[str, ...]
    skymap: str
    repo: str
    collections: tuple[str, ...]
    dataset_type: str
    targets: Targets
    tract: NDArray[np.int32]
    patch: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.int32]
    projections: dict[int, Tan]
    patch_boxes: dict[tuple[int, int], Box]
    datasets: dict[tuple[int, int, str], Dataset]
    units: tuple[Unit, ...]
    outcomes: Outcomes
    margin: int = 0
    cross: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    skymap_source: str = "known"
    gaps: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    # Cached: `unit_datasets` runs once per unit, and a plan may have thousands of both.
    @cached_property
    def _patches(self) -> dict[int, list[tuple[int, Box]]]:
        """Tract -> (patch, outer box) of the patches that have datasets."""
        out: dict[int, list[tuple[int, Box]]] = {}
        for (tract, patch), box in sorted(self.patch_boxes.items()):
            out.setdefault(tract, []).append((patch, box))
        return out

    def unit_datasets(self, unit: Unit) -> list[Dataset]:
        """Datasets whose pixels the boxes of a unit may need, by patch and then band."""
        found = []
        # (n, 4) x0, y0, x1, y1 in pixels of the tract (PARENT).
        boxes = boxes_around(self.x[unit.rows], self.y[unit.rows], self.reach[unit.rows])
        # Outer boxes of patches overlap, so a box near an edge may be read from up to four of them.
        for patch, box in self._patches.get(unit.tract, []):
            edge = np.array([box.x0, box.y0, box.x1, box.y1])
            # Half-open boxes overlap when each begins before the other ends, along both axes.
            if ((boxes[:, :2] < edge[2:]) & (boxes[:, 2:] > edge[:2])).all(axis=1).any():
                # Bands without a dataset in this patch are simply missing from the row.
                keys = ((unit.tract, patch, band) for band in self.bands)
                found += [self.datasets[key] for key in keys if key in self.datasets]
        return found

    @property
    def reach(self) -> NDArray[np.int32]:
        """`(N,)` int32 sides of the boxes that are read: cutouts with their margins."""
        return self.size + np.int32(2 * self.margin)
