"""`ripple search`: a selection of the sky to scores, unit by unit in memory.

The scores are those of `fetch`, `preprocess --model` and `score`, bit for bit: the same functions on the same
units. What one row has to know of the others, namely which of them it repeats, is known only when all units
were read; units in which that turned out otherwise are read again at the end.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ripple.errors import ConfigError, ContractError
from ripple.learn.config import ScoreConfig
from ripple.learn.model.contract import Contract, load_contract, require_weights
from ripple.learn.scoring.engine import check_precision
from ripple.learn.scoring.in_memory import engine_of, prepare_engine
from ripple.learn.scoring.ranking import INDEX_COLUMNS, SORTED
from ripple.learn.scoring.score import (
    EXTRA_FILES,
    ScoreAttributes,
    named_prevalence,
    stated_prevalence,
    write_ranked,
)
from ripple.rubin.repository import open_repository
from ripple.runtime.pool import Started, starting
from ripple.runtime.profile import Profile, Timeline
from ripple.runtime.summary import Summary, rate, tally
from ripple.sky.neighbours import repeated
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import (
    FetchInputs,
    identity_columns,
    notes_of,
    places_of,
    prepare_worker,
    trusted_plan,
    worker_bytes,
)
from ripple.stages.fetch.task import UnitTask, unit_task
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import Planner, make_plan
from ripple.stages.plan.targets import Targets
from ripple.stages.preprocess.batch import DataConstants
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.for_model import for_model, model_constants
from ripple.stages.search.config import SearchConfig, only
from ripple.stages.search.detections import DETECTIONS, best_windows, once, write_detections
from ripple.stages.search.embeddings import EMBEDDINGS, embeddings_writer, finish_embeddings, refuse_without
from ripple.stages.search.keep import KEPT, keep_best
from ripple.stages.search.refine import Scored, Search, refined, worth_a_look
from ripple.stages.search.unit import AHEAD, SearchTask, make_shard
from ripple.storage.checksums import listed
from ripple.storage.manifest import MANIFEST
from ripple.storage.map_shards import Workers, map_shards
from ripple.storage.outcomes import Outcomes
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Bytes of PyTorch and a network in a worker, beside what fetch and preprocess take.
NETWORK = 400 << 20
#: Bytes for a pixel and band of a row, without its margin: the matched image and its mask, and the tensors.
ROW_BYTES = 8


#: Plan other targets of the same repository.
Replan = Callable[[Targets], tuple[Plan, FetchInputs]]


@dataclass(frozen=True, slots=True)
class Stages:
    """The options of the three verbs that a search stands for, and what they need of the model."""

    fetch: FetchConfig
    preprocess: PreprocessConfig
    score: ScoreConfig
    contract: Contract


@dataclass(frozen=True, slots=True)
class Searched:
    """A search: the attributes of its scores, one row per target, and whether it was finished before."""

    attributes: ScoreAttributes
    index: pa.Table
    done_before: bool


@dataclass(frozen=True, slots=True)
class Writers:
    """Where the shards of the units go: scores, and embeddings where they are wanted."""

    scores: ArtefactWriter
    embeddings: ArtefactWriter | None

    def todo(self) -> list[int]:
        """Units that either of them lacks."""
        lacking = set(self.scores.todo())
        return sorted(lacking if self.embeddings is None else lacking.union(self.embeddings.todo()))


def search(config: SearchConfig) -> Summary:
    """Score a selection of the sky; neither cutouts nor tensors are written, except those of `keep`.

    Raises
    ------
    RippleError
        As listed in `ripple.errors`; problems with single targets and files are in the index instead.
    """
    if not config.output:
        raise ConfigError("search: no output directory", hint="give one with -o DIR")
    start, profile = time.perf_counter(), Profile()
    stages = stages_of(config)

    def plan_of(targets: Targets) -> tuple[Plan, FetchInputs]:
        with open_repository(config.repo, config.collections) as repository:
            return trusted_plan(stages.fetch, Planner(stages.fetch, repository).plan(targets))

    with _started(config) as started:
        with profile.time("query"):
            plan, inputs = trusted_plan(stages.fetch, make_plan(stages.fetch))
        found = search_plan(config, stages, plan, inputs, profile, start, plan_of, started)
    kept = 0
    if config.keep:
        preparing = stages.preprocess.model_copy(update={"model": config.model})
        kept = keep_best(Path(config.output), config.keep, stages.fetch, preparing, stages.score)
    seconds = 0.0 if found.done_before else time.perf_counter() - start
    return _summary(config, found, kept, seconds)


def _started(config: SearchConfig) -> AbstractContextManager[Started | None]:
    """The first worker, which loads PyTorch while the plan is made; none where there is nothing to do."""
    if config.dask is not None or config.workers == 0 or (Path(config.output) / MANIFEST).exists():
        return nullcontext()
    return starting(make_shard, 1, prepare=prepare_worker)


def search_plan(
    config: SearchConfig,
    stages: Stages,
    plan: Plan,
    inputs: FetchInputs,
    profile: Profile,
    start: float,
    plan_of: Replan,
    started: Started | None = None,
) -> Searched:
    """Score the targets of a plan, whoever made it, or finish what was begun.

    Parameters
    ----------
    config, stages
        The options, and what they mean for the three verbs.
    plan, inputs
        As `trusted_plan` gives them.
    profile
        Gets what each operation costs.
    start
        When the search began, `time.perf_counter`.
    plan_of
        Plans other targets of the same repository, for the finer windows of a blind search.
    started
        Workers that are there already.

    Raises
    ------
    ContractError
        The model takes other pixels than the survey has.
    RippleError
        As for `search`.
    """
    check_survey(plan, stages.contract)
    digest = stages.contract.digest()
    engine = engine_of(stages.score, sum(len(unit.rows) for unit in plan.units))
    known = {"model": digest, "engine": engine, **inputs}
    opened = create(
        Path(config.output),
        kind="scores",
        config=config,
        inputs=known,
        units=len(plan.units),
        suffix=".parquet",
    )
    if isinstance(opened, Finished):
        refuse_without(config)
        attributes = cast(ScoreAttributes, opened.artefact.attributes)
        return Searched(attributes, opened.artefact.index(), True)
    with ExitStack() as stack:
        writer, timeline = stack.enter_context(opened), Timeline(start)
        beside = embeddings_writer(config, known, len(plan.units))
        if beside is not None:
            stack.enter_context(beside)
        graphs = prepare_engine(stages.score, writer.directory) if engine == "onnx" else ()
        writers = Writers(writer, beside)
        how = (graphs, profile, timeline, started)
        peak, (outcomes, places) = _search_units(config, stages, plan, writers, *how)
        paths = [writer.directory / writer.name(k) for k in range(writer.units)]
        attributes = write_ranked(writer, paths, stages.contract, digest, stages.score)
        if config.grid is not None:
            search_finer = _finer(config, stages, engine, plan_of, profile, start)
            write_detections(writer.directory, _detections(config, stages.contract, plan, search_finer))
        index = _index(plan, writer, outcomes, places, attributes)
        metrics = {
            "operations": profile.operations,
            "seconds": time.perf_counter() - start,
            "peak_rss": peak,
            "timeline": timeline.points(),
        }
        facts: dict[str, Any] = {**attributes, "notes": notes_of(plan, writer)}
        files = listed(writer.directory, (SORTED, DETECTIONS, *EXTRA_FILES))
        if beside is not None:  # before the scores: where those are finished, so are the embeddings
            finish_embeddings(beside, index, metrics, stages.contract, stages.score)
        writer.finish(index, metrics, facts, files=files)
    return Searched(attributes, index, False)


def stages_of(config: SearchConfig) -> Stages:
    """The options of fetch, preprocess and score that together do what a search does.

    Raises
    ------
    ConfigError
        The model does not say how its tensors were made, or has no class of the name in `rank_by`.
    """
    contract = load_contract(config.model)
    if config.embeddings:
        require_weights(contract, str(config.model), "which gives no features: leave out --embeddings")
    pixels = contract.pixels
    fetch = only(
        FetchConfig,
        config,
        bands=contract.bands,
        size=contract.size,
        size_column=None,
        margin=int(pixels.get("margin", 0)),
    )
    given = {"workers": config.workers, "memory": config.memory, "deadline": config.deadline}
    quality = {
        name: getattr(config, name) for name in ("missing_band", "quality", "zero_point", "registration")
    }
    if config.grid is not None:
        # Windows of a grid overlap as they should: they are no duplicates of each other.
        quality["quality"] = config.quality.model_copy(update={"min_separation": 0.0})
    preprocess = for_model(PreprocessConfig.make({**quality, **given}), contract, contract.bands)
    score = only(ScoreConfig, config, tensors=("-",), output=config.output)
    # Refused before anything is read.
    stated_prevalence(contract, score)
    check_precision(contract, str(config.model), score.precision)
    return Stages(fetch, preprocess, score, contract)


def check_survey(plan: Plan, contract: Contract) -> None:
    """Refuse a survey whose pixels the model does not take.

    Raises
    ------
    ContractError
        Names both pixel scales.
    """
    scales = [tan.pixel_scale for tan in plan.projections.values()]
    scale = scales[0] if scales else contract.pixel_scale
    if abs(scale / contract.pixel_scale - 1) > 1e-3:
        raise ContractError(
            f"the survey has pixels of {scale:g} arcsec, the model takes {contract.pixel_scale:g}",
            hint=f"fetch, preprocess --pixel-scale {contract.pixel_scale:g} --size {contract.size}, score",
        )


def _detections(config: SearchConfig, contract: Contract, plan: Plan, search_finer: Search) -> pa.Table:
    """The best windows of a finished grid, each place once."""
    output, threshold, step = Path(config.output), contract.threshold, config.grid or 1.0
    if not config.refine:
        return best_windows(output, config.separation, threshold)
    seeds = best_windows(output, config.separation, worth_a_look(threshold, contract.output))
    found = refined(seeds, step, plan.projections, threshold, search_finer, output)
    return once(found.filter(pc.greater_equal(found["score"], threshold)), config.separation)


def _finer(
    config: SearchConfig, stages: Stages, engine: str, plan_of: Replan, profile: Profile, start: float
) -> Search:
    """How the finer windows of a blind search are scored: as its own, into directories beside them."""

    def search_finer(targets: Targets, output: Path) -> Scored:
        own: dict[str, Any] = {"output": str(output), "engine": engine, "top": 0}
        others: dict[str, Any] = {"grid": None, "keep": "", "embeddings": False}
        plan, inputs = plan_of(targets)
        score = stages.score.model_copy(update={**own, "output": output})
        found = replace(stages, score=score)
        search_plan(config.model_copy(update=own | others), found, plan, inputs, profile, start, plan_of)
        return Scored(pq.read_table(output / SORTED), plan.patch)

    return search_finer


def _search_units(
    config: SearchConfig,
    stages: Stages,
    plan: Plan,
    writers: Writers,
    graphs: tuple[Path, ...],
    profile: Profile,
    timeline: Timeline,
    started: Started | None,
) -> tuple[int, tuple[Outcomes, dict[str, np.ndarray]]]:
    """Make the shards that are missing, and those again whose duplicates turned out otherwise.

    Returns
    -------
    Peak memory, and what became of the targets, as `places_of` says it.
    """
    peak, writer, beside = 0, writers.scores, writers.embeddings
    # Rows that the plan rejected are in no unit; those that reading rejects are not known yet.
    placed = np.zeros(len(plan.targets), bool)
    for unit in plan.units:
        placed[unit.rows] = True
    todo: Sequence[int] = writers.todo()
    rows = [len(unit.rows) for unit in plan.units]
    for _ in range(2):  # no more: which rows have pixels does not depend on which are duplicates
        twins = _twins(plan, placed, stages.preprocess)
        tasks = _tasks(stages, plan, writers, todo, twins, graphs)
        workers = Workers.of(config, NETWORK + memory_of([task.unit for task in tasks.values()]))
        more: dict[str, Any] = {"timeline": timeline, "beside": beside, "started": started}
        peak = max(peak, map_shards(make_shard, tasks, writer, rows, workers, profile, "search", **more))
        found = places_of(plan, writer)
        placed = found[1]["shard"] >= 0
        todo = _changed(plan, writer, _twins(plan, placed, stages.preprocess))
        if not todo:
            break
    return peak, found


def memory_of(units: Sequence[UnitTask]) -> int:
    """Bytes of a worker without its network: files and planes of a unit, some cutouts, and all tensors."""
    most = 0
    for unit in units:
        plane = max((b.width * b.height * 4 for b in unit.boxes.values()), default=0)
        pixels = len(unit.bands) * unit.size**2
        # Besides one plane per band, as `fetch` has them: variances and masks wait for the rows, too.
        planes = 2 * len(unit.bands) * plane + min(unit.rows, AHEAD) * pixels * 12
        inner = len(unit.bands) * (unit.size - 2 * unit.margin) ** 2
        most = max(most, worker_bytes([unit]) + planes + unit.rows * inner * ROW_BYTES)
    return most


def _tasks(
    stages: Stages,
    plan: Plan,
    writers: Writers,
    units: Sequence[int],
    twins: np.ndarray,
    graphs: tuple[Path, ...],
) -> dict[int, SearchTask]:
    digest, beside = stages.contract.digest(), writers.embeddings
    found = {}
    for k in units:
        rows = plan.units[k].rows
        constants = DataConstants(
            margin=plan.margin, duplicates=tuple(rows[twins[rows]].tolist()), class_map=plan.targets.class_map
        )
        found[k] = SearchTask(
            unit_task(stages.fetch, plan, plan.units[k]),
            stages.preprocess,
            model_constants(stages.contract, constants),
            stages.score,
            digest,
            str(writers.scores.directory),
            writers.scores.name(k),
            graphs,
            None if beside is None else (str(beside.directory), beside.name(k)),
        )
    return found


def _twins(plan: Plan, placed: np.ndarray, preprocess: PreprocessConfig) -> np.ndarray:
    """`(N,)` targets that repeat an earlier one among those that have pixels."""
    # As in `preprocess`: rows without pixels count as rows without a position.
    ra = np.where(placed, plan.targets.ra, np.nan)
    return repeated(ra, plan.targets.dec, preprocess.quality.min_separation)


def _changed(plan: Plan, writer: ArtefactWriter, twins: np.ndarray) -> list[int]:
    """Units in which other rows are duplicates than was assumed when they were made."""
    return [
        unit.number
        for unit in plan.units
        if writer.record(unit.number).extra["duplicates"] != unit.rows[twins[unit.rows]].tolist()
    ]


def _index(
    plan: Plan,
    writer: ArtefactWriter,
    outcomes: Outcomes,
    places: dict[str, np.ndarray],
    attributes: ScoreAttributes,
) -> pa.Table:
    """One row per target, as `score` writes it for tensors of the same targets."""
    for unit in plan.units:
        facts = writer.record(unit.number).extra
        kept = unit.rows[places["shard"][unit.rows] >= 0]
        for rows, outcome in Outcomes.read_record(len(kept), facts["quality"]).groups():
            outcomes.add(kept[rows], outcome)
    columns: dict[str, Any] = {**identity_columns(plan), **outcomes.columns(), **places}
    table = pa.table({name: pa.array(columns[name]) for name in INDEX_COLUMNS})
    named = named_prevalence(attributes["prevalence"], attributes["training_prevalence"])
    return table.replace_schema_metadata(named)


def _summary(config: SearchConfig, found: Searched, kept: int, seconds: float) -> Summary:
    """The closing screen; raises `TooManyRejected` when more rows are rejected than the user allows."""
    counts, reasons = tally(found.index, config.output, config.max_rejected)
    rows = found.attributes["rows"]
    facts: dict[str, Any] = {**counts, "scored": rows}
    detections = Path(config.output) / DETECTIONS
    if detections.is_file():
        facts["detections"] = f"{pq.read_metadata(detections).num_rows:,}, in {detections}"
    notes: tuple[str, ...] = ()
    if config.embeddings:
        where = Path(config.output) / EMBEDDINGS
        facts["embeddings"] = str(where)
        notes = (f"what looks alike: ripple similar {shlex.quote(str(where))} --like ID",)
    if kept:
        facts["kept"] = f"{kept:,} of the best, in {Path(config.output) / KEPT}"
    if seconds:
        facts["rate"] = rate(rows, seconds)
    return Summary("search", config.output, facts, reasons, seconds, seconds == 0, notes)
