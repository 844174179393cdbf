"""Cutouts of the best rows of a quantum as one table, which the Butler can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from astropy.table import Table
from numpy.typing import NDArray

from ripple.rubin.open import RepositoryFiles
from ripple.runtime.profile import Profile
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.planes import read_batch
from ripple.stages.fetch.task import unit_task
from ripple.stages.plan.planner import Planner
from ripple.stages.plan.targets import Targets


def cutout_table(planner: Planner, config: FetchConfig, best: pa.Table) -> Table:
    """The cutouts of some rows, read again from the coadds of the planner.

    Parameters
    ----------
    planner
        Of the patch.
    config
        As for the search.
    best
        `id`, `ra` and `dec` (deg) of N rows.

    Returns
    -------
    Table in the order of `best`, without margins: `id`, `ra`, `dec`, and for each band `image_BAND`
    `(N, S, S)` float32 nJy, `variance_BAND` float32 nJy², `mask_BAND` uint32, bit k for `MASK_PLANES[k]`.
    """
    ra, dec = (best[name].to_numpy() for name in ("ra", "dec"))
    ids = best["id"].to_numpy(zero_copy_only=False)
    ids = ids.astype(str) if ids.dtype.kind == "O" else ids
    plan = planner.plan(Targets(ids, ra, dec, best.select([])))
    margin, side = plan.margin, int(config.size)
    shape = (best.num_rows, len(plan.bands), side, side)
    planes: dict[str, NDArray[Any]] = {
        "image": np.full(shape, np.nan, np.float32),
        "variance": np.full(shape, np.nan, np.float32),
        "mask": np.zeros(shape, np.uint32),
    }
    inner = slice(margin, margin + side)
    for unit in plan.units:
        read = read_batch(unit_task(config, plan, unit), RepositoryFiles(plan.repo), Profile())
        rows = unit.rows[read.reading.kept]
        for name, values in planes.items():
            values[rows] = getattr(read.batch, name)[:, :, inner, inner]
    columns: dict[str, NDArray[Any]] = {"id": ids, "ra": ra, "dec": dec}
    for k, band in enumerate(plan.bands):
        columns |= {f"{name}_{band}": values[:, k] for name, values in planes.items()}
    return Table(columns)
