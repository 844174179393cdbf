"""What a fetch will cost: the dry run, as JSON values and as a table on the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from ripple.runtime.summary import plain, screen, size
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.units import PIXEL_BYTES
from ripple.storage.outcomes import Status

#: Bytes of a PSF kernel as it is stored (41 x 41 float32), the usual size in coadds, and the pixels along a
#: cell, within which rows share it.
PSF_BYTES, CELL = 41 * 41 * 4, 150
#: Bytes of a catalogue row, and of a worker with its libraries.
ROW_BYTES, BASE_BYTES = 200, 200_000_000
#: Compressed bytes that one worker reads, decodes and checks per second, bytes of cutouts that it cuts, packs
#: and writes, and seconds until it does: rough, of one busy core of 2024.
READ_RATE, WRITE_RATE, START_SECONDS = 30e6, 150e6, 3.0
#: Rows, tracts and patches that the table lists; with --json all of them.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of carrying out a plan.

    Parameters
    ----------
    read_bytes
        Compressed bytes of coadds; one that several units need is read, and counted, once for each.
    unknown_sizes
        Datasets whose size the Butler does not know.
    write_bytes
        Bytes of the shards.
    memory_bytes
        Largest memory of one worker.
    seconds
        Wall time with the given number of workers.
    """

    read_bytes: int
    unknown_sizes: int
    write_bytes: int
    memory_bytes: int
    seconds: float


def estimate(plan: Plan, workers: int = 1) -> Estimate:
    """Bytes, memory and time of a plan, for a number of worker processes."""
    read = write = memory = 0
    for unit in plan.units:
        datasets = plan.unit_datasets(unit)
        cost = sum(max(0, d.size) for d in datasets)
        bands = len(plan.bands)
        # All rows of a unit have one size, so the first one tells.
        side = int(plan.reach[unit.rows[0]])
        # A shard stores each kernel once: one per band and per cell that holds a target.
        cells = np.stack([plan.x[unit.rows] // CELL, plan.y[unit.rows] // CELL], axis=1)
        kernels = bands * len(np.unique(cells, axis=0))
        rows = len(unit.rows) * (bands * PIXEL_BYTES * side * side + ROW_BYTES) + kernels * PSF_BYTES
        areas = [plan.patch_boxes[d.tract, d.patch] for d in datasets]
        planes = bands * max((b.width * b.height * PIXEL_BYTES for b in areas), default=0)
        read, write = read + cost, write + rows
        # The worst case of a worker: the files, all bands of the largest patch decoded, and the cutouts
        # twice, as arrays and packed for the shard.
        memory = max(memory, BASE_BYTES + 2 * rows + planes + cost)
    unknown = sum(d.size < 0 for d in plan.datasets.values())
    # More workers than units have nothing to do.
    seconds = START_SECONDS + (read / READ_RATE + write / WRITE_RATE) / max(1, min(workers, len(plan.units)))
    return Estimate(read, unknown, write, memory, seconds)


class PlannedRow(TypedDict):
    """A target that will be partial or rejected, by its row in the table."""

    row: int
    id: int | str
    status: Status
    reason: str | None
    detail: str


class Gap(TypedDict):
    """Bands without a coadd of a patch."""

    tract: int
    patch: int
    bands: list[str]


class Survey(TypedDict):
    """The same search over all objects of a survey: `share` of them that is planned, cutouts that are not
    written (`stamp_bytes`, float32), bytes read and written, CPU time, and days with as many workers.
    """

    objects: int
    share: float
    stamp_bytes: int
    read_bytes: int
    write_bytes: int
    cpu_hours: float
    days: float


class SearchCost(TypedDict):
    """What a search costs beside what it reads and writes.

    `model` is a digest; `row_seconds` of CPU time for a row include the `network_seconds`, measured here on
    one thread of PyTorch. `cpu_seconds` are those of all processes, `seconds` the wall time.
    """

    model: str
    engine: str
    rows: int
    row_seconds: float
    network_seconds: float
    cpu_seconds: float
    seconds: float
    dp2: Survey


class DryRun(TypedDict):
    """The dry run of a fetch: counts, `size` and `margin` in pixels, bytes, and seconds with `workers`.

    `runs` and `datasets` count coadds by run and band, `reasons` rows by status and reason. With `search` the
    bytes and seconds are those of the search.
    """

    verb: str
    repo: str
    collections: list[str]
    dataset_type: str
    runs: dict[str, int]
    skymap: str
    skymap_source: str
    bands: list[str]
    size: list[int]
    margin: int
    targets: int
    ok: int
    partial: int
    rejected: int
    reasons: dict[str, dict[str, int]]
    tracts: list[int]
    patches: int
    units: int
    datasets: dict[str, int]
    missing: list[Gap]
    rows: list[PlannedRow]
    read_bytes: int
    unknown_sizes: int
    write_bytes: int
    memory_bytes: int
    workers: int
    seconds: float
    notes: list[str]
    search: NotRequired[SearchCost]


def facts(plan: Plan, workers: int = 1, rows: int | None = None) -> DryRun:
    """The dry run as JSON values.

    Parameters
    ----------
    plan
        The plan to describe.
    workers
        Worker processes, for the memory and the time.
    rows
        At most so many of the partial and rejected rows; all of them when None.
    """
    cost = estimate(plan, workers)
    datasets = list(plan.datasets.values())
    sizes = sorted({int(s) for s in np.unique(plan.size)})
    return {
        "verb": "plan",
        "repo": plan.repo,
        "collections": list(plan.collections),
        "dataset_type": plan.dataset_type,
        "runs": dict(sorted(Counter(d.run for d in datasets).items())),
        "skymap": plan.skymap,
        "skymap_source": plan.skymap_source,
        "bands": list(plan.bands),
        "size": sizes,
        "margin": plan.margin,
        "targets": len(plan.targets),
        "ok": plan.outcomes.count("ok"),
        "partial": plan.outcomes.count("partial"),
        "rejected": plan.outcomes.count("rejected"),
        "reasons": {status: plan.outcomes.reasons(status) for status in ("rejected", "partial")},
        "tracts": sorted({u.tract for u in plan.units}),
        "patches": len({(u.tract, p) for u in plan.units for p in u.patches}),
        "units": len(plan.units),
        "datasets": {band: sum(d.band == band for d in datasets) for band in plan.bands},
        "missing": [
            {"tract": t, "patch": p, "bands": list(bands)} for (t, p), bands in sorted(plan.gaps.items())
        ],
        "rows": _rows(plan, rows),
        "read_bytes": cost.read_bytes,
        "unknown_sizes": cost.unknown_sizes,
        "write_bytes": cost.write_bytes,
        "memory_bytes": cost.memory_bytes,
        "workers": workers,
        "seconds": round(cost.seconds, 1),
        "notes": list(plan.notes),
    }


def _rows(plan: Plan, count: int | None) -> list[PlannedRow]:
    """The first `count` rows that are rejected or partial, with their reasons; rejected ones first."""
    rejected, partial = (np.flatnonzero(plan.outcomes.has(status)) for status in ("rejected", "partial"))
    return [
        {
            "row": k,
            "id": plan.targets.id[k].item(),
            "status": it.status,
            "reason": it.reason,
            "detail": it.detail,
        }
        for k in np.concatenate([rejected, partial])[:count].tolist()
        if (it := plan.outcomes[k])
    ]


def show(found: DryRun) -> None:
    """Print the dry run (from `facts`) as a table on stdout."""
    # Only people at a terminal need it: with --json it is never loaded.
    from rich.table import Table
    from rich.text import Text

    table = Table(title="ripple plan", show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in _lines(found):
        # As Text: square brackets in names and messages are not markup.
        table.add_row(key, Text(plain(value)))
    screen(answer=True).print(table)


def _lines(found: DryRun) -> list[tuple[str, str]]:
    n = found["targets"]
    lines = [
        ("repository", f"{found['repo']}  {', '.join(found['collections'])}"),
        ("coadds", f"{found['dataset_type']} of {found['skymap']} ({found['skymap_source']})"),
        ("runs", ", ".join(f"{run} ({count})" for run, count in found["runs"].items()) or "none"),
        (
            "targets",
            f"{n:,}: {found['ok']:,} whole, {found['partial']:,} partial, {found['rejected']:,} rejected",
        ),
    ]
    for status, reasons in found["reasons"].items():
        lines += [(f"  {status}", f"{reason}: {count:,}") for reason, count in reasons.items()]
    lines += [
        ("  row " + str(r["row"]), f"id {r['id']}: {r['status']}, {r['detail']}")
        for r in found["rows"][:SHOWN]
    ]
    if (more := found["partial"] + found["rejected"] - SHOWN) > 0:
        lines.append(("  ...", f"{more:,} more rows; --json lists all"))
    lines.append(("tracts", f"{len(found['tracts']):,}: {', '.join(map(str, found['tracts'][:SHOWN]))}"))
    lines.append(("patches", f"{found['patches']:,} in {found['units']:,} units (shards)"))
    lines.append(("datasets", ", ".join(f"{band} {count:,}" for band, count in found["datasets"].items())))
    for gap in found["missing"][:SHOWN]:
        lines.append(("  missing", f"tract {gap['tract']} patch {gap['patch']}: {', '.join(gap['bands'])}"))
    if len(found["missing"]) > SHOWN:
        lines.append(("  missing", f"{len(found['missing']) - SHOWN:,} more patches; --json lists all"))
    lines += [
        ("read", _read(found["read_bytes"], found["unknown_sizes"])),
        ("write", f"{size(found['write_bytes'])}{'' if 'search' in found else ' at most'}"),
        ("memory", f"{size(found['memory_bytes'])} per worker, {found['workers']} workers"),
        ("time", f"about {found['seconds']:,.0f} s"),
    ]
    if "search" in found:
        lines += _search_lines(found["search"], found["workers"])
    return lines + [("note", note) for note in found["notes"]]


def _search_lines(cost: SearchCost, workers: int) -> list[tuple[str, str]]:
    """What a search costs, and the arithmetic for DP2."""
    dp2, row, network = cost["dp2"], 1e3 * cost["row_seconds"], 1e3 * cost["network_seconds"]
    seconds = cost["cpu_seconds"]
    time = f"{seconds / 3600:,.1f} h" if seconds > 3600 else f"{seconds:,.0f} s"
    part = f" (1 in {1 / dp2['share']:,.0f} is planned here)" if dp2["share"] else ""
    return [
        ("CPU", f"about {time}: {row:.1f} ms a row, {network:.1f} of them for the network with PyTorch"),
        ("engine", cost["engine"]),
        ("DP2", f"all {dp2['objects'] / 1e6:,.0f} million objects with this model{part}"),
        ("  cutouts", f"{size(dp2['stamp_bytes'])}, which are not written"),
        ("  read", f"{size(dp2['read_bytes'])}, if its coadds are compressed as these are"),
        ("  write", str(size(dp2["write_bytes"]))),
        ("  CPU", f"{dp2['cpu_hours']:,.0f} h, or {dp2['days']:,.1f} days with {workers} workers"),
    ]


def _read(known: int, unknown: int) -> str:
    """How much is read; a remote repository does not say the size of its files."""
    if not unknown:
        return str(size(known))
    files = f"the repository does not say the size of {unknown:,} files"
    return f"at least {size(known)}: {files}" if known else f"unknown: {files}"
