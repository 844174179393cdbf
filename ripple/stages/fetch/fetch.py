"""`ripple fetch`: a plan to cutout shards, unit k to shard k."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json, canonical_json
from ripple.errors import ConfigError, Reason
from ripple.imaging.batch import MASK_PLANES
from ripple.rubin.open import RepositoryFiles
from ripple.runtime.log import say
from ripple.runtime.memory import IDLE_WORKER
from ripple.runtime.pool import Started, starting
from ripple.runtime.profile import Profile, Timeline, peak_rss
from ripple.runtime.summary import Summary, rate, size, tally
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.digests import merge_digests, trusted_digests
from ripple.stages.fetch.judge import mark_no_data
from ripple.stages.fetch.open_unit import read_unit
from ripple.stages.fetch.planes import CHUNK_BYTES, PlaneStream
from ripple.stages.fetch.reading import UnitReading
from ripple.stages.fetch.task import UnitTask, unit_task, user_columns
from ripple.stages.plan.estimate import estimate
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import make_plan
from ripple.storage.files import AHEAD, Staged, stage_chunks
from ripple.storage.manifest import MANIFEST
from ripple.storage.map_shards import ShardResult, Workers, map_shards
from ripple.storage.outcomes import Outcome, Outcomes
from ripple.storage.writer import ArtefactWriter, Finished, create

# Workers that start before the number of units is known: there may not be enough units for more.
_EARLY = 4
#: Bytes of cutouts above which their amount is said before they are written.
LARGE = 5e9


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A unit to read, and where to write its shard.

    Parameters
    ----------
    unit
        What to read.
    directory, name
        The shard's directory and file name.
    """

    unit: UnitTask
    directory: str
    name: str


class FetchInputs(TypedDict):
    """What cutouts depend on apart from the options: `datasets` by UUID, `digests` of their checksums."""

    repo: str
    collections: list[str]
    skymap: str
    bands: list[str]
    targets: Json
    datasets: dict[str, str]
    digests: NotRequired[str]


class CutoutAttributes(TypedDict):
    """Facts about all cutouts: `size` (None: by target) and `margin` in pixels, projections by tract, boxes
    `[x0, y0, x1, y1]` by `tract/patch`, SHA-256 of coadds by UUID.
    """

    bands: list[str]
    size: int | None
    margin: int
    unit: str
    mask_planes: list[str]
    class_map: dict[str, str]
    wcs: dict[str, dict[str, float | str]]
    patch_boxes: dict[str, list[int]]
    source_sha256: dict[str, str]
    notes: list[str]


def fetch(config: FetchConfig) -> Summary:
    """Cut out the selected targets and write them as cutout shards.

    Raises
    ------
    RippleError
        As listed in `ripple.errors`; problems with single targets and files are in the index instead.
    """
    if not config.output:
        raise ConfigError("fetch: no output directory", hint="give one with -o DIR")
    start = time.perf_counter()
    profile = Profile()
    with _started(config) as started:
        with profile.time("query"):
            plan, inputs = trusted_plan(config, make_plan(config))
        opened = create(
            Path(config.output), kind="cutouts", config=config, inputs=inputs, units=len(plan.units)
        )
        if isinstance(opened, Finished):
            done = opened.artefact
            return _summary(config, done.index(), done.bands, done.attributes.get("notes", ()), 0.0)
        with opened as writer:
            if (most := estimate(plan).write_bytes) > LARGE:
                say(f"up to {size(most)} of cutouts will be written to {config.output}")
            timeline = Timeline(start)
            # Shards of an interrupted run are verified here; only the missing ones are made.
            with profile.time("verify"):
                units = [plan.units[k] for k in writer.todo()]
            tasks = {
                unit.number: ShardTask(
                    unit_task(config, plan, unit), str(writer.directory), writer.name(unit.number)
                )
                for unit in units
            }
            workers = Workers.of(config, worker_bytes(task.unit for task in tasks.values()))
            peak = map_shards(
                make_shard,
                tasks,
                writer,
                [len(unit.rows) for unit in plan.units],
                workers,
                profile,
                "fetch",
                timeline=timeline,
                started=started,
                instead=_lost if config.lost == "reject" else None,
            )
            with profile.time("index"):
                index = _index(plan, writer)
                attributes = _attributes(config, plan, writer)
            seconds = time.perf_counter() - start
            metrics = {
                "operations": profile.operations,
                "seconds": seconds,
                "peak_rss": peak,
                "timeline": timeline.points(),
            }
            writer.finish(index, metrics, attributes)
    return _summary(config, index, attributes["bands"], attributes["notes"], seconds)


def _started(config: FetchConfig) -> AbstractContextManager[Started | None]:
    """The first workers, which start while the plan is made; none when the output is already complete."""
    # Dask has workers of its own, and with 0 workers this process does the work.
    if config.dask is not None or config.workers == 0 or (Path(config.output) / MANIFEST).exists():
        return nullcontext()
    return starting(make_shard, min(config.workers, _EARLY), prepare=prepare_worker)


def prepare_worker() -> None:
    """Load the readers and the compiled loops, which a worker would otherwise do with its first unit."""
    from ripple.imaging.loops import copy_boxes
    from ripple.rubin.formats.decode_loops import load

    load()
    # numba loads a compiled loop at its first call with these types; no pixel is copied.
    none = np.zeros(0, np.int64)
    copy_boxes(np.zeros((1, 1), np.uint32), none, none, np.zeros((0, 1, 1, 1), np.uint32), 0)


def plan_inputs(plan: Plan) -> FetchInputs:
    """What the output depends on apart from the configuration: targets and datasets, by identity."""
    # UUIDs identify datasets; run and data ID are for people who read the manifest.
    datasets = sorted(plan.datasets.values(), key=lambda d: (d.tract, d.patch, d.band))
    return {
        "repo": plan.repo,
        "collections": list(plan.collections),
        "skymap": plan.skymap,
        "bands": list(plan.bands),
        "targets": plan.targets.source,
        "datasets": {d.uuid: f"{d.run} {d.dataset_type} {d.tract}/{d.patch}/{d.band}" for d in datasets},
    }


def trusted_plan(config: FetchConfig, plan: Plan) -> tuple[Plan, FetchInputs]:
    """The plan with the checksums that its files must have, and the inputs, which identify their list."""
    inputs = plan_inputs(plan)
    if config.digests is None:
        return plan, inputs

    known = trusted_digests(config.digests)
    datasets = {k: replace(d, sha256=known.get(d.uuid.lower(), "")) for k, d in plan.datasets.items()}
    # Only what this plan uses: with a longer list that says the same about these files, a run can be resumed.
    used = {d.uuid: d.sha256 for d in datasets.values() if d.sha256}
    inputs["digests"] = hashlib.sha256(canonical_json(used)).hexdigest()
    if missing := len(datasets) - len(used):
        plan = replace(
            plan, notes=(*plan.notes, f"{config.digests}: no checksum for {missing} of {len(datasets)} files")
        )
    return replace(plan, datasets=datasets), inputs


def make_shard(task: ShardTask) -> ShardResult:
    """Read one unit and write its shard under a temporary name: what a worker does."""
    start, profile = time.perf_counter(), Profile()

    def written(reading: UnitReading) -> tuple[Staged, PlaneStream]:
        stream = PlaneStream(reading, profile)
        staged = stage_chunks(Path(task.directory), task.name, stream.chunks(), stream.size)
        mark_no_data(reading.outcomes, reading.task.bands, stream.no_data)
        return staged, stream

    # One more thread, which hashes the files while this one decodes them.
    with ThreadPoolExecutor(1) as beside:
        files = RepositoryFiles(task.unit.repo, beside, profile)
        reading, (staged, stream) = read_unit(task.unit, files, profile, written)
        digests = reading.digests()  # waits for the hashing, so before its thread ends
    profile.count("write", calls=1, seconds=staged.write_seconds, bytes=staged.bytes)
    profile.count("sync", calls=1, seconds=staged.sync_seconds, bytes=staged.bytes)
    profile.count("unit", calls=1, seconds=time.perf_counter() - start, bytes=staged.bytes)
    facts = unit_facts(reading, stream.no_data, digests)
    return ShardResult(staged, len(reading.kept), profile.operations, peak_rss(), facts)


def unit_facts(reading: UnitReading, no_data: NDArray[np.float32], digests: dict[str, str]) -> Json:
    """The record of a unit in the manifest, from which `index_columns` and the attributes follow.

    Parameters
    ----------
    reading
        The unit.
    no_data
        `(N, B)` share of pixels without data.
    digests
        Of the files that were read.
    """
    return {
        "outcomes": reading.outcomes.record(),
        "bands": _band_lists(reading),
        "no_data": _shares(no_data),
        "digests": digests,
        "notes": reading.notes(),
    }


def _band_lists(reading: UnitReading) -> dict[str, list[int]]:
    """Bands joined, as in `gri` -> rows that have exactly these, for the rows that lack some."""
    rows: dict[str, list[int]] = defaultdict(list)
    has = np.stack([band.has for band in reading.bands], axis=1)
    for row in np.flatnonzero(~has.all(axis=1)).tolist():
        rows["".join(b for b, there in zip(reading.task.bands, has[row], strict=True) if there)].append(row)
    return dict(rows)


def _shares(no_data: NDArray[np.float32]) -> dict[str, float]:
    """Row of the unit -> share of pixels without data in its worst band, for rows that lack any."""
    worst = no_data.max(axis=1, initial=0.0)
    return {str(row): round(float(worst[row]), 4) for row in np.flatnonzero(worst > 0).tolist()}


def worker_bytes(units: Iterable[UnitTask], *, whole: bool = False) -> int:
    """Memory of a worker: files, a plane per band, what decoding takes, and what waits to be written.

    Parameters
    ----------
    units
        What workers will read.
    whole
        All cutouts of a unit are in memory, rather than a few that wait to be written.
    """
    most = 0
    for unit in units:
        own = set(unit.catalog["patch"].tolist())
        # Neighbours are only read in parts, for the boxes that reach into them.
        files = sum(max(0, d.size) for d in unit.datasets if d.patch in own)
        plane = max((b.width * b.height * 4 for b in unit.boxes.values()), default=0)
        rows = unit.rows * len(unit.bands) * unit.size**2 * 12  # image, variance, mask
        waiting = rows if whole else min(rows, AHEAD * CHUNK_BYTES)
        # One decoded plane per band, and three more for what decoding takes.
        most = max(most, files + (len(unit.bands) + 3) * plane + waiting)
    return IDLE_WORKER + most


def _lost(task: ShardTask, message: str) -> ShardResult:
    """The result of a unit whose worker died twice: an empty shard, and every row rejected because of it."""
    # Without datasets nothing is read, so this is safe where the worker died; all columns are there.
    result = make_shard(replace(task, unit=replace(task.unit, datasets=())))
    outcomes = Outcomes(task.unit.rows)
    outcomes.add(np.arange(task.unit.rows), Outcome("rejected", Reason.WORKER_LOST, message))
    return replace(result, facts={**result.facts, "outcomes": outcomes.record(), "notes": [message]})


def _index(plan: Plan, writer: ArtefactWriter) -> pa.Table:
    """One row per requested target, in input order."""
    outcomes, places = places_of(plan, writer)
    columns: dict[str, Any] = {**identity_columns(plan), **outcomes.columns(), **places}
    for name, values in user_columns(plan.targets.extra).items():
        columns.setdefault(name, values)  # never instead of one of ours
    return pa.table({k: pa.array(v) for k, v in columns.items()})


def identity_columns(plan: Plan) -> dict[str, NDArray[Any]]:
    """The columns of an index that say which targets were requested, and where they lie."""
    targets = plan.targets
    return {
        "index": np.arange(len(targets), dtype=np.int64),
        "id": targets.id,
        "ra": targets.ra,
        "dec": targets.dec,
        "tract": plan.tract,
        "patch": plan.patch,
        "x": plan.x,
        "y": plan.y,
    }


def places_of(plan: Plan, writer: ArtefactWriter) -> tuple[Outcomes, dict[str, NDArray[Any]]]:
    """Outcome of each target, and the columns `bands`, `no_data`, `shard`, `row`, from records of units.

    `no_data` is the share of pixels without data in the worst band.
    """
    n = len(plan.targets)
    outcomes = Outcomes(n)
    # Rejected rows of the plan are in no unit; partial ones are judged anew, by what was really read.
    for rows, outcome in plan.outcomes.groups("rejected"):
        outcomes.add(rows, outcome)
    # numpy text has a fixed width: that of all bands.
    bands = np.full(n, "", f"U{max(1, len(''.join(plan.bands)))}")
    shard, row = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    no_data = np.full(n, np.nan, np.float32)
    for unit in plan.units:
        facts = writer.record(unit.number).extra
        found = Outcomes.read_record(len(unit.rows), facts["outcomes"])
        outcomes.put(unit.rows, found)
        bands[unit.rows] = "".join(plan.bands)
        for names, lacking in facts["bands"].items():
            bands[unit.rows[lacking]] = names
        kept = unit.rows[~found.has("rejected")]
        # The delivered rows of a shard are in the order of its unit.
        shard[kept], row[kept] = unit.number, np.arange(len(kept))
        no_data[kept] = 0
        for at, share in facts["no_data"].items():
            no_data[unit.rows[int(at)]] = share
    no_data[shard < 0] = np.nan
    return outcomes, {"bands": bands, "no_data": no_data, "shard": shard, "row": row}


def _attributes(config: FetchConfig, plan: Plan, writer: ArtefactWriter) -> CutoutAttributes:
    """Facts for the manifest: enough to use the shards without the repository."""
    records = [writer.record(unit.number).extra for unit in plan.units]
    return {
        "bands": list(plan.bands),
        "size": int(plan.size[0]) if len(set(plan.size.tolist())) == 1 else None,  # None: by target
        "margin": config.margin,
        "unit": "nJy",
        "mask_planes": list(MASK_PLANES),
        "class_map": plan.targets.class_map,
        "wcs": {str(t): tan.cards() for t, tan in sorted(plan.projections.items())},
        "patch_boxes": {
            f"{t}/{p}": [box.x0, box.y0, box.x1, box.y1] for (t, p), box in sorted(plan.patch_boxes.items())
        },
        "source_sha256": merge_digests(record["digests"] for record in records),
        "notes": notes_of(plan, writer),
    }


def notes_of(plan: Plan, writer: ArtefactWriter) -> list[str]:
    """Each remark of the plan and of its units once, in order: one damaged file may concern many units."""
    found: dict[str, None] = dict.fromkeys(plan.notes)
    for unit in plan.units:
        found |= dict.fromkeys(writer.record(unit.number).extra["notes"])
    return list(found)


def _summary(
    config: FetchConfig, index: pa.Table, bands: Sequence[str], notes: Sequence[str], seconds: float
) -> Summary:
    """The closing summary; raises `TooManyRejected` when more rows are rejected than the user allows."""
    counts, reasons = tally(index, config.output, config.max_rejected)
    facts: dict[str, Any] = {**counts, "bands": ", ".join(bands)}
    if seconds:
        facts["rate"] = rate(counts["ok"] + counts["partial"], seconds)
    return Summary("fetch", config.output, facts, reasons, seconds, seconds == 0, tuple(notes[:5]))
