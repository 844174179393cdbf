"""What a worker needs to read one unit of a plan.

A task is pickled once per unit, so it has only what concerns its own rows, never the whole plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.rubin.repository import Dataset
from ripple.sky.geometry import Box, Tan
from ripple.stages.plan.config import Selection
from ripple.stages.plan.plan import Plan, Unit
from ripple.stages.plan.tables import is_number


@dataclass(frozen=True, slots=True)
class UnitTask:
    """One unit of a plan, with its rows, datasets and projections.

    Parameters
    ----------
    number
        Shard number.
    bands
        Bands in order.
    size
        Pixels per side, margins included.
    margin
        Pixels on each side of it that `preprocess` trims.
    tract
        Tract of all rows.
    projection
        Projection of the tract.
    catalog
        Columns of the N rows, sorted by patch: `index`, `id`, `ra`, `dec`, `patch`, `x`, `y`, user columns.
    datasets
        Coadds of the patches that the boxes touch.
    boxes
        Outer box of each of these patches, as planned.
    repo
        Where to resolve datasets that have no local file.
    cross
        Row -> (tract, patch) pairs to complete it from by resampling.
    cross_datasets, cross_projections
        Coadds of these pairs, and the projections of their tracts.
    require_all_bands, edge
        Policies, as in `Selection`.
    """

    number: int
    bands: tuple[str, ...]
    size: int
    margin: int
    tract: int
    projection: Tan
    catalog: dict[str, NDArray[Any]]
    datasets: tuple[Dataset, ...]
    boxes: dict[int, Box]
    repo: str
    # Only with `cross_tract = resample`; empty otherwise.
    cross: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    cross_datasets: tuple[Dataset, ...] = ()
    cross_projections: dict[int, Tan] = field(default_factory=dict)
    require_all_bands: bool = False
    edge: Literal["pad", "reject"] = "pad"

    @property
    def rows(self) -> int:
        """Number of requested rows."""
        return len(self.catalog["index"])

    @property
    def patch(self) -> NDArray[np.int64]:
        """`(N,)` the patch of each row: the one whose inner box it lies in."""
        return self.catalog["patch"].astype(np.int64)

    def corners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixels of the boxes, `(N,)` x and y, PARENT frame."""
        x, y = (self.catalog[name].astype(np.float64) for name in ("x", "y"))
        half = self.size // 2
        # Pixel centres are at integers: the central pixel is the nearest one, N // 2 from the first.
        return np.floor(x + 0.5).astype(np.int64) - half, np.floor(y + 0.5).astype(np.int64) - half


def unit_task(selection: Selection, plan: Plan, unit: Unit) -> UnitTask:
    """The task of one unit of a plan."""
    rows, targets = unit.rows, plan.targets
    catalog: dict[str, NDArray[Any]] = {
        "index": rows.astype(np.int64),
        "id": targets.id[rows],
        "ra": targets.ra[rows],
        "dec": targets.dec[rows],
        "patch": plan.patch[rows],
        "x": plan.x[rows],
        "y": plan.y[rows],
    }
    # A column of the user never replaces one of ours.
    for name, values in user_columns(targets.extra.take(rows)).items():
        catalog.setdefault(name, values)
    datasets = plan.unit_datasets(unit)
    # From rows of the plan to rows of the unit.
    cross = {k: plan.cross[row] for k, row in enumerate(rows.tolist()) if row in plan.cross}
    pairs = {pair for patches in cross.values() for pair in patches}
    # Rows of a unit have one size and tract, so those of the first stand for all.
    return UnitTask(
        number=unit.number,
        bands=plan.bands,
        size=int(plan.reach[rows[0]]),
        margin=plan.margin,
        tract=unit.tract,
        projection=plan.projections[unit.tract],
        catalog=catalog,
        datasets=tuple(datasets),
        boxes={d.patch: plan.patch_boxes[d.tract, d.patch] for d in datasets},
        repo=plan.repo,
        cross=cross,
        cross_datasets=tuple(d for key, d in plan.datasets.items() if key[:2] in pairs),
        cross_projections={tract: plan.projections[tract] for tract, _ in pairs if tract in plan.projections},
        require_all_bands=selection.require_all_bands,
        edge=selection.edge,
    )


def user_columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns of an Arrow table without nulls (`plain_columns`) as numpy arrays: numbers, booleans, text."""
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name)
        if is_number(column.type):
            columns[name] = column.to_numpy()
        elif pa.types.is_boolean(column.type):
            # HDF5 has no booleans.
            columns[name] = column.to_numpy().astype(np.uint8)
        else:
            columns[name] = np.array(column.to_pylist(), dtype=np.str_)
    return columns
