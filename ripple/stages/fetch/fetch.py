"""`ripple fetch`: a plan to cutout shards, unit k to shard k."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError, Reason
from ripple.runtime.profile import Profile, Timeline, peak_rss
from ripple.runtime.summary import Summary, progress, tally
from ripple.stages.plan.config import Selection
from ripple.stages.plan.plan import Plan, Unit
from ripple.stages.plan.planner import make_plan

if TYPE_CHECKING:
    import pyarrow as pa

from ripple.config import canonical_json
from ripple.imaging.batch import MASK_PLANES
from ripple.rubin.coadd import Coadd
from ripple.rubin.open import open_dataset
from ripple.rubin.repository import Dataset
from ripple.runtime.dask import dask_executor
from ripple.runtime.memory import IDLE_WORKER, MemoryWatch, parse_bytes
from ripple.runtime.pool import Started, WorkerFailure, ordered_map, starting
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.digests import merge_digests, trusted_digests
from ripple.stages.fetch.read_unit import read_attempts
from ripple.stages.fetch.unit import CHUNK_BYTES, PLANES, UnitReader, UnitTask
from ripple.storage.files import AHEAD, Staged, stage_chunks
from ripple.storage.manifest import MANIFEST
from ripple.storage.map_shards import refuse_lost
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Workers that start before it is known how many units there are.
_EARLY = 4


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


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker sends back: where the packed shard lies, and the verdict on each row asked for.

    Parameters
    ----------
    staged
        The shard, written beside its place by the worker.
    rows
        Rows in it.
    record
        JSON facts for the journal: `verdicts` (row asked for -> status, reason, bands; rows that are `ok`
        are left out), `digests`, `notes` and `profile`.
    """

    staged: Staged
    rows: int
    record: dict[str, Any]


def fetch(config: FetchConfig) -> Summary:
    """Cut what the selection asks for and write it as cutout shards.

    Raises
    ------
    RippleError
        As listed in `ripple.errors`; faults of single targets and files are in the index instead.
    """
    if not config.output:
        raise ConfigError("fetch: no output directory", hint="give one with -o DIR")
    start = time.perf_counter()
    profile = Profile()
    with _started(config) as started:
        with profile.time("query"):
            plan, inputs = _trusted(config, make_plan(config))
        opened = create(
            Path(config.output), kind="cutouts", config=config, inputs=inputs, units=len(plan.units)
        )
        if isinstance(opened, Finished):
            done = opened.artefact
            return _summary(config, done.index(), done.manifest["attributes"], 0.0)
        with opened as writer:
            timeline = Timeline(start)
            peak = _read_units(config, plan, writer, started, profile, timeline)
            with profile.time("index"):
                index = _index(config, plan, writer)
                attributes = _attributes(config, plan, writer)
            seconds = time.perf_counter() - start
            metrics = {
                "operations": profile.operations, "seconds": seconds, "peak_rss": peak,
                "timeline": timeline.points(),
            }  # fmt: skip
            writer.finish(index, metrics, attributes)
    return _summary(config, index, attributes, seconds)


def _started(config: FetchConfig) -> AbstractContextManager[Started | None]:
    """The first workers, started beside the making of the plan; none where a finished output needs none."""
    if config.dask is not None or config.workers == 0 or (Path(config.output) / MANIFEST).exists():
        return nullcontext()
    return starting(make_shard, min(config.workers, _EARLY), prepare=prepare_worker)


def prepare_worker() -> None:
    """Load the readers and the compiled loops, which a worker would otherwise do at its first unit."""
    from ripple.imaging.loops import copy_boxes
    from ripple.rubin.formats.decode_loops import load

    load()
    none = np.zeros(0, np.int64)
    copy_boxes(np.zeros((1, 1), np.uint32), none, none, np.zeros((0, 1, 1, 1), np.uint32), 0)


def plan_inputs(plan: Plan) -> dict[str, Any]:
    """What the output depends on beside the configuration: targets and datasets, by identity."""
    datasets = sorted(plan.datasets.values(), key=lambda d: (d.tract, d.patch, d.band))
    return {
        "repo": plan.repo,
        "collections": list(plan.collections),
        "skymap": plan.skymap,
        "bands": list(plan.bands),
        "targets": plan.targets.source,
        "datasets": {d.uuid: f"{d.run} {d.dataset_type} {d.tract}/{d.patch}/{d.band}" for d in datasets},
    }


def _trusted(config: FetchConfig, plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """The plan with the digests its files must have, and the inputs, which name the list by its content."""
    inputs = plan_inputs(plan)
    if config.digests is None:
        return plan, inputs

    known = trusted_digests(config.digests)
    datasets = {k: replace(d, sha256=known.get(d.uuid.lower(), "")) for k, d in plan.datasets.items()}
    used = {d.uuid: d.sha256 for d in datasets.values() if d.sha256}
    inputs["digests"] = hashlib.sha256(canonical_json(used)).hexdigest()
    if missing := len(datasets) - len(used):
        plan = replace(
            plan, notes=(*plan.notes, f"{config.digests}: no digest of {missing} of {len(datasets)} files")
        )
    return replace(plan, datasets=datasets), inputs


def make_shard(task: ShardTask) -> UnitResult:
    """Read one unit and write its shard beside its place: what a worker does."""

    def consume(reader: UnitReader) -> Staged:
        draft = reader.draft()
        chunks = draft.chunks({name: reader.chunks(name) for name in PLANES})
        return stage_chunks(Path(task.directory), task.name, chunks, draft.size)

    start = time.perf_counter()
    with ThreadPoolExecutor(1) as beside:
        profile = Profile()
        opener = partial(_open_hashed, repo=task.unit.repo, beside=beside, profile=profile)
        reader, staged = read_attempts(task.unit, opener, consume)
        digests = reader.digests()
    reader.profile.add(profile.operations)
    reader.profile.count("write", calls=1, seconds=staged.write_seconds, bytes=staged.bytes)
    reader.profile.count("sync", calls=1, seconds=staged.sync_seconds, bytes=staged.bytes)
    reader.profile.count("unit", calls=1, seconds=time.perf_counter() - start, bytes=staged.bytes)
    record = {
        "verdicts": _exceptions(reader),
        "digests": digests,
        "notes": list(reader.notes),
        "profile": {"operations": reader.profile.operations, "peak_rss": peak_rss()},
    }
    return UnitResult(staged, len(reader.kept), record)


def _open_hashed(
    dataset: Dataset, sparse: bool, *, repo: str, beside: ThreadPoolExecutor, profile: Profile
) -> Coadd:
    """Open a dataset; one that is read whole is hashed by another thread meanwhile."""
    coadd = open_dataset(dataset, sparse, repo=repo)

    def digest() -> str:
        with profile.time("digest"):
            found = coadd.digest
        profile.count("digest", bytes=coadd.bytes_read())
        return found

    return replace(coadd, read_digest=digest if sparse else beside.submit(digest).result)


def _exceptions(reader: UnitReader) -> dict[str, list[str]]:
    """Status, reason and bands of the rows that are not `ok`, by their number in the unit."""
    has = reader.coverage > 0
    return {
        str(k): [
            str(reader.status[k]),
            str(reader.reason[k]),
            "".join(b for bit, b in enumerate(reader.task.bands) if has[k, bit]),
        ]
        for k in np.flatnonzero(reader.status != "ok").tolist()
    }


def _worker_bytes(tasks: list[ShardTask]) -> int:
    """Memory that a worker needs: files, a plane per band, what decoding takes, what waits to be written."""
    most = 0
    for task in tasks:
        unit = task.unit
        own = set(unit.catalog["patch"].tolist())
        files = sum(max(0, d.size) for d in unit.datasets if d.patch in own)
        plane = max((b.width * b.height * 4 for b in unit.boxes.values()), default=0)
        rows = unit.rows * len(unit.bands) * unit.size**2 * 12
        waiting = min(rows, AHEAD * CHUNK_BYTES)
        most = max(most, files + (len(unit.bands) + 3) * plane + waiting)
    return IDLE_WORKER + most


def _read_units(
    config: FetchConfig, plan: Plan, writer: ArtefactWriter, started: Started | None, profile: Profile,
    timeline: Timeline,
) -> int:  # fmt: skip
    """Map the units that are not committed yet over the workers, committing each as it comes; peak memory."""
    with profile.time("verify"):
        todo = [unit for unit in plan.units if writer.done(unit.number) is None]
    tasks = [
        ShardTask(unit_task(config, plan, unit), str(writer.directory), writer.name(unit.number))
        for unit in todo
    ]
    lost: list[str] = []
    total = sum(len(u.rows) for u in plan.units)
    watch = MemoryWatch(parse_bytes(config.memory), _worker_bytes(tasks))
    if started is not None:
        started.keep(min(len(tasks), watch.allowed()))

    def results(executor: Executor | None) -> Generator[tuple[int, UnitResult | WorkerFailure]]:
        return ordered_map(
            make_shard,
            tasks,
            workers=config.workers,
            executor=executor,
            deadline=config.deadline,
            allowed=watch.allowed,
            memory_bytes=watch.most(),
            started=started,
        )

    with (
        watch,
        progress(total, "fetch") as advance,
        _executor(config) as executor,
        closing(results(executor)) as found,
    ):
        advance(total - sum(len(u.rows) for u in todo))
        for k, result in found:
            if isinstance(result, WorkerFailure):
                lost.append(f"shard {todo[k].number} (tract {todo[k].tract}): {result.message}")
                if config.lost == "stop":
                    continue
                result = _lost(tasks[k], result.message)
            with profile.time("commit"):
                writer.commit(todo[k].number, result.staged, result.rows, result.record)
            profile.add(result.record["profile"]["operations"])
            watch.learn(result.record["profile"]["peak_rss"])
            advance(len(todo[k].rows))
            timeline.add(len(todo[k].rows), result.staged.bytes)
    if config.lost == "stop":
        refuse_lost(lost, len(plan.units), "run again to retry, or reject them with --lost reject")
    return watch.peak


@contextmanager
def _executor(config: FetchConfig) -> Iterator[Executor | None]:
    """A Dask executor when one is asked for, else None: the pool makes its own processes."""
    if config.dask is None:
        yield None
        return

    with dask_executor(config.dask, config.dask_settings) as executor:
        yield executor


def _lost(task: ShardTask, message: str) -> UnitResult:
    """The result of a unit whose worker died twice: every row rejected, nothing hidden."""
    # Without datasets nothing is read: an empty batch with the right columns.
    result = make_shard(replace(task, unit=replace(task.unit, datasets=())))
    n = len(task.unit.catalog["index"])
    record = {
        **result.record,
        "verdicts": {str(k): ["rejected", Reason.WORKER_LOST.value, ""] for k in range(n)},
        "notes": [message],
    }
    return replace(result, record=record)


def unit_task(selection: Selection, plan: Plan, unit: Unit) -> UnitTask:
    """What a worker needs to make the shard of one unit."""
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
    for name, values in user_columns(targets.extra.take(rows)).items():
        catalog.setdefault(name, values)
    datasets = plan.unit_datasets(unit)
    cross = {k: plan.cross[row] for k, row in enumerate(rows.tolist()) if row in plan.cross}
    pairs = {pair for patches in cross.values() for pair in patches}
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
        missing_band=selection.missing_band,
        edge=selection.edge,
    )


def user_columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns of an Arrow table as numpy arrays: numbers (null: NaN or -1), booleans, the rest as text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_floating(column.type):
            columns[name] = pc.fill_null(column, float("nan")).to_numpy()
        elif pa.types.is_integer(column.type):
            columns[name] = pc.fill_null(column, -1).to_numpy()
        elif pa.types.is_boolean(column.type):
            columns[name] = pc.fill_null(column, False).to_numpy().astype(np.uint8)
        else:
            text = ["" if v is None else str(v) for v in column.to_pylist()]
            columns[name] = np.array(text, dtype=np.str_)
    return columns


def _index(config: FetchConfig, plan: Plan, writer: ArtefactWriter) -> pa.Table:
    """One row per target asked for, in input order."""
    import pyarrow as pa

    n = len(plan.targets)
    facts = _verdicts(plan, writer)
    columns: dict[str, Any] = {
        "index": np.arange(n, dtype=np.int64),
        "id": plan.targets.id,
        "ra": plan.targets.ra,
        "dec": plan.targets.dec,
        "tract": plan.tract,
        "patch": plan.patch,
        "x": plan.x,
        "y": plan.y,
        **facts,
    }
    for name, values in user_columns(plan.targets.extra).items():
        columns.setdefault(name, values)
    return pa.table({k: pa.array(v) for k, v in columns.items()})


def _verdicts(plan: Plan, writer: ArtefactWriter) -> dict[str, NDArray[Any]]:
    """Status, reason, detail, bands, shard and row of each target, from the plan and the units' records."""
    n = len(plan.targets)
    status, reason = np.full(n, "rejected", "U8"), np.full(n, "", "U24")
    bands, detail = np.full(n, "", f"U{max(1, len(''.join(plan.bands)))}"), np.full(n, "", object)
    shard, row = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    for rows, (why, text) in plan.rejected.groups():
        reason[rows], detail[rows] = why.value, text
    for unit in plan.units:
        status[unit.rows], bands[unit.rows] = "ok", "".join(plan.bands)
        for k, (verdict, why, has) in writer.record(unit.number).extra["verdicts"].items():
            target = unit.rows[int(k)]
            status[target], reason[target], bands[target] = verdict, why, has
        kept = unit.rows[status[unit.rows] != "rejected"]
        shard[kept], row[kept] = unit.number, np.arange(len(kept))
    for rows, (_, text) in plan.partial.groups():
        detail[rows] = text
    return {
        "status": status,
        "reason": reason,
        "detail": detail.astype(np.str_),
        "bands": bands,
        "shard": shard,
        "row": row,
    }


def _attributes(config: FetchConfig, plan: Plan, writer: ArtefactWriter) -> dict[str, Any]:
    """Facts of the whole artefact for the manifest: enough to use the shards without the repository."""
    records = [writer.record(unit.number).extra for unit in plan.units]
    notes: dict[str, None] = dict.fromkeys(plan.notes)
    for record in records:
        notes |= dict.fromkeys(record["notes"])
    return {
        "bands": list(plan.bands),
        "size": int(plan.size[0]) if len(set(plan.size.tolist())) == 1 else None,
        "margin": config.margin,
        "unit": "nJy",
        "mask_planes": list(MASK_PLANES),
        "wcs": {str(t): tan.cards() for t, tan in sorted(plan.projections.items())},
        "patch_boxes": {
            f"{t}/{p}": [box.x0, box.y0, box.x1, box.y1] for (t, p), box in sorted(plan.patch_boxes.items())
        },
        "source_sha256": merge_digests(record["digests"] for record in records),
        "notes": list(notes),
    }


def _summary(config: FetchConfig, index: pa.Table, attributes: dict[str, Any], seconds: float) -> Summary:
    """The closing screen; raises `TooManyRejected` when the user's limit is passed."""
    facts, reasons = tally(index, config.output, config.max_rejected)
    facts["bands"] = ", ".join(attributes["bands"])
    if seconds:
        facts["rate"] = f"{(facts['ok'] + facts['partial']) / seconds:,.0f} rows/s"
    return Summary(
        "fetch", config.output, facts, reasons, seconds, seconds == 0, tuple(attributes.get("notes", ())[:5])
    )
