"""`ripple plan --search`: what a search will cost, and what the same would cost for all of DP2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ripple.errors import ConfigError
from ripple.imaging.stitch import inside, touches
from ripple.learn.scoring.in_memory import engine_of, network_seconds
from ripple.stages.fetch.task import UnitTask, unit_task, user_columns
from ripple.stages.plan.config import PlanConfig
from ripple.stages.plan.estimate import READ_RATE, DryRun, SearchCost, Survey, facts
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import make_plan
from ripple.stages.search.config import DECIDED, SearchConfig
from ripple.stages.search.search import NETWORK, Stages, check_survey, memory_of, stages_of

#: CPU-seconds until the first unit is read: of the main process, and of each worker; both load PyTorch.
START_MAIN, START_WORKER = 4.0, 5.0
#: CPU-seconds for a pixel and band of a cutout with its margins: filled, matched, normalised and judged.
#: Between 0.7e-7 (patches of 600 px) and 3e-7 (full patches, with PSFs of many cells) were measured.
PIXEL_SECONDS = 1.5e-7
#: Columns of a table of scores that every search has, and for each band; bytes of a row in each of both, as
#: compressed; bytes of the description of a column at the end of a file.
COLUMNS, BAND_COLUMNS = 30, 33
ROW_BYTES, BAND_BYTES, COLUMN_BYTES = 63, 42, 431
#: Bytes of the index and of the manifest: of each, and for a target.
INDEX_BYTES, INDEX_ROW_BYTES, MANIFEST_BYTES, MANIFEST_ROW_BYTES = 4_300, 30, 7_000, 50
#: Bytes of a row of top.csv.
TOP_ROW_BYTES = 90
#: Data Preview 2: rows of its object table, patches in its 3,000 deg^2, pixels along the outer box of one.
DP2_OBJECTS, DP2_PATCHES, DP2_PATCH_SIDE = 783_000_000, 108_000, 3_300


def search_facts(config: PlanConfig, rows: int | None = None) -> DryRun:
    """The dry run of a search as JSON values: that of a fetch, with the costs of the search.

    Parameters
    ----------
    config
        The selection, `search` and `workers`.
    rows
        At most so many of the partial and rejected rows; all of them when None.

    Raises
    ------
    ConfigError
        An option that the model decides was given.
    RippleError
        As for `make_plan`, and for a model that cannot be used or does not fit the survey.
    """
    given = [name for name in DECIDED if name in config.model_fields_set]
    if given:
        raise ConfigError(f"plan: {given[0]} is that of the model with --search: leave it out")
    shared = {k: v for k, v in config.model_dump().items() if k in SearchConfig.model_fields}
    values = {k: v for k, v in shared.items() if k not in DECIDED and v is not None}
    searching = SearchConfig.make({**values, "model": config.search, "output": "-"})
    stages = stages_of(searching)
    plan = make_plan(stages.fetch)
    check_survey(plan, stages.contract)
    workers = max(1, config.workers)
    tasks = [unit_task(stages.fetch, plan, unit) for unit in plan.units]
    cost = _cost(stages, plan, tasks, workers)
    found = facts(plan, workers, rows)
    return {
        **found,
        "read_bytes": sum(read_bytes(task) for task in tasks),
        "write_bytes": written_bytes(plan, stages.score.top),
        "memory_bytes": NETWORK + memory_of(tasks),
        "seconds": cost["seconds"],
        "search": cost,
    }


def _cost(stages: Stages, plan: Plan, tasks: Sequence[UnitTask], workers: int) -> SearchCost:
    rows = sum(task.rows for task in tasks)
    network = network_seconds(stages.score)
    row = len(plan.bands) * (stages.contract.size + 2 * plan.margin) ** 2 * PIXEL_SECONDS + network
    busy = max(1, min(workers, len(tasks)))
    work = sum(read_bytes(task) for task in tasks) / READ_RATE + rows * row
    return {
        "model": stages.contract.digest(),
        "engine": engine_of(stages.score, rows),
        "rows": rows,
        "row_seconds": row,
        "network_seconds": network,
        "cpu_seconds": round(START_MAIN + busy * START_WORKER + work, 1),
        "seconds": round(START_MAIN + START_WORKER + work / busy, 1),
        "dp2": _dp2(stages, plan, row, workers),
    }


def _dp2(stages: Stages, plan: Plan, row: float, workers: int) -> Survey:
    """The same for all objects of DP2; the compression of its coadds is taken from those of the plan."""
    bands, size = len(plan.bands), stages.contract.size
    known = [d for d in plan.datasets.values() if d.size >= 0]
    pixels = sum(box.width * box.height for d in known for box in (plan.patch_boxes[d.tract, d.patch],))
    dense = sum(d.size for d in known) / pixels if pixels else 0.0  # bytes per pixel of a band
    read = int(dense * DP2_PATCHES * bands * DP2_PATCH_SIDE**2)
    seconds = read / READ_RATE + DP2_OBJECTS * row
    return {
        "objects": DP2_OBJECTS,
        "share": sum(len(unit.rows) for unit in plan.units) / DP2_OBJECTS,
        "stamp_bytes": DP2_OBJECTS * bands * size * size * 4,
        "read_bytes": read,
        "write_bytes": DP2_OBJECTS * (2 * (ROW_BYTES + bands * BAND_BYTES) + INDEX_ROW_BYTES),
        "cpu_hours": round(seconds / 3600, 1),
        "days": round(seconds / workers / 86400, 2),
    }


def read_bytes(task: UnitTask) -> int:
    """Bytes of the files that a unit opens, whole; of few targets in a patch only some tiles are read.

    A patch without rows in the unit is opened only for boxes that leave their own patch, or lack it.
    """
    x0, y0 = task.corners()
    own, total = task.patch, 0
    for band in task.bands:
        here = {d.patch: d for d in task.datasets if d.band == band}
        whole = np.zeros(task.rows, bool)
        # As `fetch.open_unit` opens them: own patches first.
        for patch in sorted(here, key=lambda p: (p not in own, p)):
            box = task.boxes[patch]
            if patch not in own and not touches(box, x0[~whole], y0[~whole], task.size).any():
                continue
            total += max(0, here[patch].size)
            whole |= (own == patch) & inside(box, x0, y0, task.size)
    return total


def written_bytes(plan: Plan, top: int) -> int:
    """Bytes of the scores: a table per unit, the sorted table, the index, the manifest and the best rows."""
    bands, rows, targets = len(plan.bands), sum(len(unit.rows) for unit in plan.units), len(plan.targets)
    user = user_columns(plan.targets.extra.slice(0, 1))
    # Measurements hardly compress.
    width = ROW_BYTES + bands * BAND_BYTES + _width(plan.targets.extra)
    columns = COLUMNS + bands * BAND_COLUMNS + len(user)
    tables = (len(plan.units) + 1) * columns * COLUMN_BYTES + 2 * rows * width
    lists = INDEX_BYTES + MANIFEST_BYTES + targets * (INDEX_ROW_BYTES + MANIFEST_ROW_BYTES)
    return int(tables + lists + min(top, rows) * TOP_ROW_BYTES)


def _width(table: pa.Table) -> float:
    """Bytes of a row of a table in memory."""
    return table.nbytes / table.num_rows if table.num_rows and table.num_columns else 0.0
