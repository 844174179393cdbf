"""`ripple score`: rank the rows of tensors with a model.

Shard k of the tensors becomes `shard-k.parquet`; a run that was killed resumes after the last complete shard.
The sorted table is written in pieces, so that memory grows by only a few numbers per row. Every row says
whether the model was trained on its piece of sky; only sky the model has not seen is evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import ConfigError, DataError, IntegrityError
from ripple.imaging.batch import TensorBatch
from ripple.learn.config import Precision, ScoreConfig
from ripple.learn.data.psf_input import beyond_seen, psf_widths, widths_told, with_widths
from ripple.learn.evaluation.evaluate import ClassMetrics, Judgeable, JudgedRecord, Residuals, judged_words
from ripple.learn.evaluation.intervals import Measured, printed
from ripple.learn.evaluation.robustness import stress
from ripple.learn.model.calibrate import one_in, shares_at, sigmoid, softmax
from ripple.learn.model.contract import Contract, Conversion, Facts, Output, check, unsaid
from ripple.learn.model.device import choose_device
from ripple.learn.model.distance import to_neighbour
from ripple.learn.model.provenance import VERDICTS
from ripple.learn.model.uncertainty import doubts
from ripple.learn.model.weights import Model, convert, load_model
from ripple.learn.scoring.engine import (
    check_precision,
    chosen,
    graph_paths,
    with_graphs,
    with_onnx,
    with_precision,
)
from ripple.learn.scoring.evaluation import Visible, evaluation_report
from ripple.learn.scoring.forward import average, orientations, probabilities, sliced_outputs, varies
from ripple.learn.scoring.ranking import SCORE_COLUMNS, SORTED, joined_index, top_csv, write_sorted
from ripple.runtime.profile import Profile, peak_rss
from ripple.runtime.signals import stoppable
from ripple.runtime.summary import Summary, progress, rate
from ripple.storage import shard_reader
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.checksums import listed
from ripple.storage.files import stage, write_atomic
from ripple.storage.labels import lens_label, renumbered
from ripple.storage.map_shards import ShardResult, Workers, map_shards
from ripple.storage.parquet import parquet_bytes
from ripple.storage.writer import ArtefactWriter, create

#: The probability at the prevalence of the rows that the model was calibrated on.
TRAINING_PROBABILITY = "probability_at_training_prevalence"
#: Columns that have no value where it would mean nothing.
EMPTY = ("probability", "spread")
Float = NDArray[np.float64]
#: Optional files beside the shards; the manifest lists the checksums of those that were written.
EXTRA_FILES = ("top.csv", "evaluation.json", "curves.png", "stress.json", "stress.csv", "stress.png")


class SortedTable(TypedDict):
    """The table of all rows, best first: its file and SHA-256."""

    name: str
    sha256: str


class ModelName(TypedDict):
    """The digest of a model, and where it comes from."""

    digest: str
    origin: str


class Worst(TypedDict):
    """The disturbance that flips most decisions, and the fraction of them."""

    worst: str
    flip_rate: float


class ScoreAttributes(TypedDict):
    """Attributes of scores in the manifest.

    `lens_labels` are those of what is searched for. `prevalence` is that of the column `probability`, None
    where the model states none; `training_prevalence` that of `probability_at_training_prevalence`.
    """

    rows: int
    sorted: SortedTable
    model: ModelName
    members: int
    output: Output
    lens_labels: list[int]
    threshold: float
    bands: list[str]
    prevalence: float | None
    training_prevalence: float | None
    judged: NotRequired[JudgedRecord]
    evaluation: NotRequired[dict[str, Measured] | ClassMetrics | dict[str, Residuals]]
    visible: NotRequired[Visible]
    stress: NotRequired[Worst]


@dataclass(frozen=True, slots=True)
class Unit:
    """One shard to score."""

    number: int  # counts over all artefacts: shard 0 of the second one is not unit 0
    artefact: Artefact
    shard: int


def units_of(artefacts: Sequence[Artefact]) -> list[Unit]:
    """Every shard of every artefact, in order."""
    shards = ((artefact, k) for artefact in artefacts for k in range(len(artefact.shards)))
    return [Unit(number, *shard) for number, shard in enumerate(shards)]


def score(config: ScoreConfig) -> Summary:
    """Score the tensors, resume an interrupted run, or report a finished one.

    Raises
    ------
    ContractError
        The tensors do not fit the contract of the model; nothing is written.
    IntegrityError
        A model or shard is damaged; no score is written for it.
    DataError
        `evaluate` without labelled rows of both classes on sky the model has not seen.
    """
    began = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    model = load_model(config.model).to(device)
    digest = model.contract.digest()  # of the model as it is, whatever it is ranked by
    check_precision(model.contract, str(config.model), config.precision)
    model = with_precision(ranked_by(model, config), config.precision)
    if config.mc_dropout and not model.contract.architecture.dropout:
        raise ConfigError(
            "--mc-dropout needs a model trained with dropout; this one was trained without",
            hint="ripple train --dropout 0.1",
        )
    artefacts = [open_artefact(path, "tensors") for path in config.tensors]
    units = units_of(artefacts)
    prevalence = stated_prevalence(model.contract, config)  # refused before anything is read
    notes = [fallback(model.contract, prevalence), *(unsaid(model.contract, a) for a in artefacts)]
    if not config.tta and max(orientations(model.nets)) > 1:
        notes.append("without --tta: threshold and calibration of the model are those of eight orientations")
    # Before the output directory is created: tensors that do not fit must leave nothing behind.
    judged = check_every_shard(model.contract, units, config)
    engine = chosen(
        config.engine, sum(a.manifest["counts"]["asked"] for a in artefacts), device, config.precision
    )
    # Digests, not paths: a model that was moved is the same model, one that was retrained is not.
    inputs = {"model": digest, "tensors": [a.digest for a in artefacts], "engine": engine}
    writer = create(
        config.output, kind="scores", config=config, inputs=inputs, units=len(units), suffix=".parquet"
    )
    # A finished artefact with the same inputs and options: nothing is left to do.
    if not isinstance(writer, ArtefactWriter):
        # Their layout was checked when the artefact was opened.
        return _summary(config, cast(ScoreAttributes, writer.artefact.attributes), notes, 0.0, done=True)
    profile = Profile()
    with writer, stoppable() as stop:
        with profile.time("engine"):
            fast = model if engine == "torch" else with_onnx(model, writer.directory)
        todo = [unit for unit in units if writer.done(unit.number) is None]
        if config.dask is not None:
            graphs = () if engine == "torch" else graph_paths(model, writer.directory)
            _map_shards(writer, units, todo, config, digest, graphs, profile)
        else:
            rows = sum(u.artefact.shards[u.shard].rows for u in units)
            read = read_shards(todo, model.contract, config, device)
            with progress(rows, "scoring") as advance, closing(read_ahead(read)) as shards:
                # Another thread reads ahead: what is timed is how long it is waited for.
                for unit, batch, images in profile.each("read", shards):
                    stop.check()  # between shards, where everything so far is committed
                    how = (config, device, advance)
                    table = score_shard(
                        fast,
                        batch,
                        images,
                        *how,
                        number=unit.number,
                        digest=unit.artefact.digest,
                        profile=profile,
                    )
                    with profile.time("pack"):
                        data = parquet_bytes(table)
                    with profile.time("write", bytes=len(data)):
                        writer.commit(unit.number, data, len(batch), {})
        attributes = _finish(writer, model, digest, units, config, device, judged, profile)
    return _summary(config, attributes, notes, time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard that a worker of a cluster scores, and where the table goes.

    Parameters
    ----------
    number, shard
        Of the shard of scores, and of the shard of the tensors behind it.
    tensors, tensor_digest
        Directory and digest of the tensors.
    config
        How to score.
    model
        Digest of the model in `config.model`, which must not change while it is used.
    directory, name
        Where the table goes.
    graphs
        Backbones for ONNX Runtime; none for PyTorch.
    """

    number: int
    shard: int
    tensors: str
    tensor_digest: str
    config: ScoreConfig
    model: str
    directory: str
    name: str
    graphs: tuple[Path, ...] = ()


def make_shard(task: ShardTask) -> ShardResult:
    """Score a shard and write its table under a temporary name.

    Raises
    ------
    IntegrityError
        Tensors or model are damaged, or others took their place.
    """
    profile, config = Profile(), task.config
    if config.threads:
        torch.set_num_threads(config.threads)
    how = (config.rank_by, config.device, config.precision)
    model = model_of_worker(config.model, task.model, *how, task.graphs)
    artefact = open_artefact(Path(task.tensors), "tensors")
    if artefact.digest != task.tensor_digest:
        raise IntegrityError(f"{task.tensors} was changed while it was used", hint="run again")
    device = choose_device(config.device)
    unit = Unit(task.number, artefact, task.shard)
    [(_, batch, images)] = profile.each("read", read_shards([unit], model.contract, config, device))
    table = score_shard(
        model,
        batch,
        images,
        config,
        device,
        lambda rows: None,
        number=task.number,
        digest=artefact.digest,
        profile=profile,
    )
    with profile.time("pack"):
        data = parquet_bytes(table)
    with profile.time("write", bytes=len(data)):
        staged = stage(Path(task.directory), task.name, data)
    return ShardResult(staged, len(batch), profile.operations, peak_rss())


@lru_cache(maxsize=1)
def model_of_worker(
    directory: Path, digest: str, rank_by: str, device: str, precision: Precision, graphs: tuple[Path, ...]
) -> Model:
    """The model, read once by each worker, in its precision, with the class in place by which it ranks.

    Raises
    ------
    IntegrityError
        It is damaged, or another one took its place.
    """
    model = load_model(directory)
    if model.contract.digest() != digest:
        raise IntegrityError(f"{directory} was changed while it was used", hint="run again")
    if graphs:
        model = with_graphs(model, graphs)
    how = {"model": directory, "tensors": ["-"], "output": "-", "rank_by": rank_by}
    model = with_precision(model.to(choose_device(device)), precision)
    return ranked_by(model, ScoreConfig.make(how))


def _map_shards(
    writer: ArtefactWriter,
    units: list[Unit],
    todo: list[Unit],
    config: ScoreConfig,
    digest: str,
    graphs: tuple[Path, ...],
    profile: Profile,
) -> None:
    """Score the missing shards on a Dask cluster; errors as for `map_shards`."""
    tasks = {
        unit.number: ShardTask(
            unit.number,
            unit.shard,
            str(unit.artefact.directory),
            unit.artefact.digest,
            config,
            digest,
            str(writer.directory),
            writer.name(unit.number),
            graphs,
        )
        for unit in todo
    }
    rows = [unit.artefact.shards[unit.shard].rows for unit in units]
    # Memory is that of the workers of the cluster: there are none here.
    workers = Workers(0, config.deadline, "1GiB", 1, config.dask, config.dask_settings)
    map_shards(make_shard, tasks, writer, rows, workers, profile, "scoring")


def ranked_by(model: Model, config: ScoreConfig) -> Model:
    """The model with the class of `--rank-by` in the place of the lens class.

    Raises
    ------
    ConfigError
        It has no such class, or none at all.
    """
    if not config.rank_by:
        return model
    contract = model.contract.model_copy(update={"lens_class": config.rank_by})
    if contract.output != "classes":
        raise ConfigError(
            f"--rank-by needs a model with classes, but {config.model} has the task {contract.output}",
            hint="leave it out",
        )
    lens_label(contract.class_map, config.rank_by, name=str(config.model), option="--rank-by")
    return replace(model, contract=contract)


def _finish(
    writer: ArtefactWriter,
    model: Model,
    identity: str,
    units: list[Unit],
    config: ScoreConfig,
    device: torch.device,
    judged: Judgeable,
    profile: Profile,
) -> ScoreAttributes:
    """Write the sorted table, the best rows, evaluation and robustness, and last the manifest."""
    paths = [writer.directory / writer.name(unit.number) for unit in units]
    # Each artefact once, in the order given: the units of one artefact share the object.
    artefacts = list({id(unit.artefact): unit.artefact for unit in units}.values())
    with profile.time("rank"):
        attributes = write_ranked(writer, paths, model.contract, identity, config)
    if config.evaluate:
        stated = attributes["prevalence"]
        found = evaluation_report(paths, artefacts, model.contract, config, writer.directory, judged, stated)
        attributes["evaluation"] = found["evaluation"]["metrics"]
        attributes["judged"] = found["judged"]
        if "visible" in found:
            attributes["visible"] = found["visible"]
    if config.stress:
        parts = _labelled_unseen_rows(model.contract, units, config, judged)
        card = stress(
            model,
            parts,
            writer.directory,
            split=judged,
            seed=config.seed,
            attacked=config.attacked_rows,
            device=device,
        )
        worst = max(card["card"], key=lambda r: r["flip_rate"]["value"])
        attributes["stress"] = {"worst": worst["disturbance"], "flip_rate": worst["flip_rate"]["value"]}
    files = listed(writer.directory, (SORTED, *EXTRA_FILES))
    named = named_prevalence(attributes["prevalence"], attributes["training_prevalence"])
    metrics = {"operations": profile.operations, "peak_rss": peak_rss()}
    writer.finish(joined_index(artefacts, named), metrics, attributes, files=files)
    return attributes


def write_ranked(
    writer: ArtefactWriter, paths: list[Path], contract: Contract, identity: str, config: ScoreConfig
) -> ScoreAttributes:
    """Write the sorted table and the best rows, and return the attributes that say what they are.

    Parameters
    ----------
    writer
        Of the scores.
    paths
        Tables of the shards.
    contract
        Of the model, the class in place by which it ranks.
    identity
        Digest of the model.
    config
        How it scores.
    """
    digest, rows = write_sorted(paths, writer.directory / SORTED)
    if config.top:
        write_atomic(writer.directory / "top.csv", top_csv(writer.directory / SORTED, config.top))
    return {
        "rows": rows,
        "sorted": {"name": SORTED, "sha256": digest},
        "model": {"digest": identity, "origin": contract.origin},
        "members": len(contract.members),
        "output": contract.output,
        "lens_labels": list(contract.lens_labels()),
        "threshold": contract.threshold,
        "bands": list(contract.bands),
        "prevalence": stated_prevalence(contract, config),
        "training_prevalence": training_prevalence(contract),
    }


def _labelled_unseen_rows(
    contract: Contract, units: list[Unit], config: ScoreConfig, judged: Judgeable
) -> list[tuple[TensorBatch, NDArray[np.int64]]]:
    """At most `stress_rows` labelled rows of the split that is judged, drawn evenly from the shards."""
    found: list[tuple[TensorBatch, NDArray[np.int64]]] = []
    share = -(-config.stress_rows // max(len(units), 1))  # rows per shard, rounded up
    for unit in units:
        batch = _mapped(unit, contract)
        unseen = split_names(contract, unit.artefact.digest, batch) == judged
        label = np.asarray(batch.catalog.get("label", np.full(len(batch), -1)))
        # Labels beyond the classes of the model (a class it never learnt) have no right answer.
        rows = np.flatnonzero(unseen & (label >= 0) & (label < max(len(class_names(contract)), 1)))
        found.append((batch, np.sort(np.random.default_rng(config.seed).permutation(rows)[:share])))
    return found


def _conversion(config: ScoreConfig) -> Conversion:
    return Conversion(crop=config.crop, reorder_bands=config.reorder_bands, resample=config.resample)


def check_every_shard(contract: Contract, units: list[Unit], config: ScoreConfig) -> Judgeable:
    """Check every shard against the contract before the first score is written; `ContractError` if not.

    Returns
    -------
    The split whose rows can be evaluated.
    """
    counts = np.zeros((2, 2), np.int64)  # rows of unseen and of unknown sky: not lenses, and lenses
    for unit in units:
        batch = _mapped(unit, contract)
        path = unit.artefact.shard_path(unit.shard)
        check(contract, Facts.of(batch, unit.artefact), _conversion(config), str(path))
        if config.evaluate or config.stress:
            names = split_names(contract, unit.artefact.digest, batch)
            lens = _is_lens(contract, batch)
            for k, name in enumerate(("test", "unknown")):
                counts[k] += [((names == name) & (lens == kind)).sum() for kind in (0, 1)]
    # A ranking needs both classes, everything else just rows.
    enough = counts.all(1) if contract.output == "lens" else counts.any(1)
    # Better refused here than after hours of scoring.
    if config.evaluate and not enough.any():
        raise DataError(
            f"--evaluate needs labelled rows of both classes on sky the model has not seen, "
            f"but found {counts[:, 1].sum()} lenses and {counts[:, 0].sum()} non-lenses",
            hint="score labelled tensors, or leave out --evaluate",
        )
    # Rows that may be training rows are judged only where there are no others, and the page says so.
    return "test" if enough[0] or not enough[1] else "unknown"


def _is_lens(contract: Contract, batch: TensorBatch) -> NDArray[np.int8]:
    """`(N,)` 1 for lenses, 0 for other rows that can be judged, -1 for the rest."""
    if contract.output == "regression":  # judged by its own targets, not by a label
        return np.zeros(len(batch), np.int8)
    label = np.asarray(batch.catalog.get("label", np.full(len(batch), -1)))
    accepted = np.asarray(batch.catalog.get("accept", np.ones(len(batch)))) != 0
    kind = np.where(np.isin(label, contract.lens_labels()), 1, 0)
    return np.where((label >= 0) & accepted, kind, -1).astype(np.int8)


# --- one shard -------------------------------------------------------------------------------------


def read_shards(
    units: list[Unit], contract: Contract, config: ScoreConfig, device: torch.device
) -> Iterator[tuple[Unit, TensorBatch, list[Tensor]]]:
    """Read shards one by one: their images in batches, in host memory, converted for the network."""
    for unit in units:
        batch = _mapped(unit, contract)
        facts = Facts.of(batch, unit.artefact)
        check(contract, facts, _conversion(config), str(unit.artefact.shard_path(unit.shard)))
        # All of them here, where another thread may read ahead.
        yield unit, batch, list(network_input(batch, contract, facts, config.batch_size, device))


def network_input(
    batch: TensorBatch, contract: Contract, facts: Facts, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """The planes of a shard in batches `(n, P, size, size)` float32, in host memory, for the network."""
    width = widths_told(batch.catalog, contract.bands, contract.psf_input)
    for at in range(0, len(batch), batch_size):
        part = torch.from_numpy(batch.image[at : at + batch_size].astype(np.float32))
        known = None if width is None else width[at : at + batch_size]
        image = with_widths(convert(part, contract, facts).contiguous(), known)
        # Only copies from pinned memory run while the GPU computes.
        yield image.pin_memory() if device.type == "cuda" else image


def unseen_psf(batch: TensorBatch, contract: Contract) -> NDArray[np.float64] | None:
    """`(N,)` above 1 for rows with a PSF that a network which is told of it has not seen; None for others."""
    if not contract.psf_seen:
        return None
    return beyond_seen(psf_widths(batch.catalog, contract.bands), contract.psf_seen)


def _mapped(unit: Unit, contract: Contract) -> TensorBatch:
    """A verified shard, its labels in the numbers of the model."""
    return relabelled(shard_reader.map_tensors(unit.artefact.verified_path(unit.shard)), contract)


def relabelled(batch: TensorBatch, contract: Contract) -> TensorBatch:
    """The batch with its labels in the numbers of the model."""
    if "label" not in batch.catalog:
        return batch
    label = renumbered(batch.catalog["label"], batch.class_map, contract.class_map)
    return replace(batch, catalog={**batch.catalog, "label": label})


def read_ahead[T](items: Iterator[T]) -> Generator[T]:
    """The items, each made by another thread while the one before it is worked on.

    The thread ends with the iterator: if Python exits while HDF5 reads, the process crashes.
    """
    end = object()
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Any] = reader.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = reader.submit(next, items, end)
            yield item


def score_shard(
    model: Model,
    batch: TensorBatch,
    images: Iterable[Tensor],
    config: ScoreConfig,
    device: torch.device,
    advance: Callable[[int], None],
    *,
    number: int,
    digest: str,
    profile: Profile | None = None,
) -> pa.Table:
    """The table of one shard, in the order of its rows.

    Parameters
    ----------
    model
        On `device`.
    batch
        The N rows; labels in the numbers of the model.
    images
        Their images as `network_input` gives them.
    config
        How to score.
    device
        Where to compute.
    advance
        Told how many rows were scored.
    number
        Of the shard, for the column `shard`.
    digest
        Of the tensors; empty when they are no artefact.
    profile
        Gets the seconds of the network, of the distances and of the table.

    Returns
    -------
    Columns: id, ra, dec, score, probability, spread, qc, split, shard, row, then the answers of other tasks
    (`p_<class>`, `predicted`, or `<target>_predicted`), then the other catalogue columns.
    """
    costs, pairs = Profile() if profile is None else profile, []
    for found, latent in costs.each("network", passes(model, images, config, device, advance)):
        with costs.time("distances"):
            pairs.append((found, distances(model, latent).cpu().numpy()))
    with costs.time("table"):
        return score_table(model, batch, pairs, config, number=number, digest=digest)


def passes(
    model: Model,
    images: Iterable[Tensor],
    config: ScoreConfig,
    device: torch.device,
    advance: Callable[[int], None],
) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
    """`outputs` of each batch of images `(n, B, size, size)`; parameters as for `score_shard`.

    The values come as an array; the features, of which there are many more, stay on the device.
    """
    for image in images:
        there = image.to(device, non_blocking=True)
        values, latent = outputs(model, there, tta=config.tta, dropout=config.mc_dropout)
        yield values.cpu().numpy(), latent
        advance(len(image))


def score_table(
    model: Model,
    batch: TensorBatch,
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    config: ScoreConfig,
    *,
    number: int,
    digest: str,
) -> pa.Table:
    """The table of one shard from what the network said of each batch of its rows.

    Parameters
    ----------
    model, batch, config, number, digest
        As for `score_shard`.
    pairs
        Outputs `(n, V, outputs)` and distance `(n,)` to the training rows, batch after batch.

    Returns
    -------
    As `score_shard`.
    """
    # A shard without rows still gives a table with all columns.
    values, near = np.zeros((0, 1, model.contract.architecture.outputs)), np.zeros(0)
    if pairs:
        values, near = (np.concatenate(part) for part in zip(*pairs, strict=True))
    n, catalog = len(batch), dict(batch.catalog)
    columns: dict[str, Any] = {name: catalog.pop(name, np.full(n, np.nan)) for name in ("id", "ra", "dec")}
    prevalence = stated_prevalence(model.contract, config)
    spread = varies(model.nets, tta=config.tta, dropout=config.mc_dropout)
    columns |= answers(model.contract, values, prevalence, spread=spread)
    if model.contract.uncertainty is not None:
        # Not at `--prevalence`: the limits of the sets were fitted at that of the validation rows.
        p = probabilities(model.contract, average(values))
        beyond = unseen_psf(batch, model.contract)
        columns |= doubts(model.contract.uncertainty, p, near, class_names(model.contract), beyond)
    columns["qc"] = catalog.pop("qc", np.zeros(n, np.uint64))  # a bit mask; 0: no flag raised
    columns["split"] = split_names(model.contract, digest, batch)
    columns["shard"] = np.full(n, number, np.int32)
    columns["row"] = np.arange(n, dtype=np.int32)
    for name, column in catalog.items():
        # The rest of the catalogue travels along; normalisation constants matter only to preprocess.
        own = name in columns or name in SCORE_COLUMNS
        if not own and column.ndim == 1 and not name.startswith("norm_"):
            columns[name] = column
    table = pa.table({name: _arrow(column, null=name in EMPTY) for name, column in columns.items()})
    return table.replace_schema_metadata(named_prevalence(prevalence, training_prevalence(model.contract)))


def named_prevalence(scores: float | None, training: float | None) -> dict[str, str]:
    """Metadata of the tables: the fraction of lenses at which each column of probabilities holds."""
    named = {"probability": scores, TRAINING_PROBABILITY: training}
    return {f"prevalence of {name}": f"{value:.6g}" for name, value in named.items() if value is not None}


@torch.inference_mode()
def outputs(model: Model, image: Tensor, *, tta: bool = True, dropout: int = 0) -> tuple[Tensor, Tensor]:
    """`forward.sliced_outputs`, `(n, V, outputs)` and `(E, n, F)`, on the device of the model."""
    return sliced_outputs(model.nets, image, tta=tta, dropout=dropout)


@torch.inference_mode()
def distances(model: Model, latent: Tensor) -> Tensor:
    """Distance `(n,)` of features `(E, n, F)` to the training rows, on the device of the model.

    NaN for a model that carries none.
    """
    if model.bank is None or model.contract.uncertainty is None:
        return latent.new_full((latent.shape[1],), torch.nan)
    return to_neighbour(model.bank.places, latent, model.contract.uncertainty.neighbour)


def class_names(contract: Contract) -> tuple[str, ...]:
    """Names of the classes in the order of their labels; empty for regression."""
    if contract.output == "regression":
        return ()
    kinds = 2 if contract.output == "lens" else len(contract.class_map)  # a lens finder has one logit
    return tuple(contract.class_map.get(str(k), str(k)) for k in range(kinds))


def survey_prevalence(config: ScoreConfig) -> float:
    """The fraction of lenses that `probability` holds at: as given, or that of the survey."""
    if config.prevalence is not None:
        return config.prevalence
    return config.lenses_per_deg2 / (config.lenses_per_deg2 + config.sources_per_deg2)


def stated_prevalence(contract: Contract, config: ScoreConfig) -> float | None:
    """The prevalence of the column `probability`; None for a model that does not say at which its own holds.

    Raises
    ------
    ConfigError
        A prevalence was given for such a model.
    """
    known = {
        "lens": contract.calibration.prevalence is not None,
        "classes": bool(contract.class_calibration.shares),
        "regression": False,
    }[contract.output]
    if not known and config.prevalence is not None:
        what = (
            "regresses quantities" if contract.output == "regression" else "states no prevalence of its own"
        )
        raise ConfigError(
            f"--prevalence cannot be used: {config.model} {what}",
            hint="leave it out; a model from elsewhere needs calibration.prevalence in its sidecar",
        )
    # The density of lenses says nothing about another class.
    return survey_prevalence(config) if known and not (config.rank_by and config.prevalence is None) else None


def training_prevalence(contract: Contract) -> float | None:
    """Fraction of lenses at which the model's own probabilities hold; None when it does not say."""
    if contract.output == "lens":
        return contract.calibration.prevalence
    shares = contract.class_calibration.shares
    if contract.output == "regression" or not shares:
        return None
    return float(sum(shares[k] for k in contract.lens_labels()))


def fallback(contract: Contract, prevalence: float | None) -> str:
    """What to say when the isotonic map cannot be moved to a prevalence; empty when it can."""
    known = contract.calibration
    if prevalence is None or known.resolves(prevalence):
        return ""
    others, needed = known.rows * (1 - (known.prevalence or 0.0)), 3 * (1 - prevalence) / prevalence
    return (
        f"{others:,.0f} non-lenses of the isotonic calibration do not resolve a prevalence of "
        f"{prevalence:.2g}, which needs {needed:,.0f}: `probability` is that of the temperature"
    )


def answers(
    contract: Contract, values: NDArray[np.floating], prevalence: float | None, *, spread: bool = True
) -> dict[str, NDArray[Any]]:
    """Score, probability, spread, and the further columns of the task.

    Parameters
    ----------
    contract
        Of the model.
    values
        `(n, V, outputs)` from `forward.member_outputs`.
    prevalence
        Of lenses, for `probability` and the `p_<class>`; None: there is no `probability`, and the others are
        as the model states them.
    spread
        Whether the V outputs can differ; without, the column is NaN.
    """
    mean, none = average(values), np.full(len(values), np.nan)
    match contract.output:
        case "lens":
            logit = values[:, :, 0].astype(np.float64)
            known = contract.calibration
            # The score is not calibrated, so that ranks never depend on prevalence or calibration.
            found = {
                "score": sigmoid(mean[:, 0]),
                "probability": none if prevalence is None
                else known.probability(mean[:, 0], prevalence=prevalence),
                "spread": sigmoid(logit).std(1),
                TRAINING_PROBABILITY: known.probability(mean[:, 0]),
            }  # fmt: skip
        case "classes":
            found = _class_answers(contract, values, mean, prevalence)
        case "regression":
            # Networks regress standardised quantities; the table has their units.
            scale, offset = np.array(contract.target_std), np.array(contract.target_mean)
            real = mean * scale + offset
            found = {"score": real[:, 0], "probability": none, "spread": values[:, :, 0].std(1) * scale[0]}
            found |= {f"{name}_predicted": real[:, k] for k, name in enumerate(contract.targets)}
    if not np.isfinite(found["score"]).all():
        raise IntegrityError(
            "the network gave scores that are not finite", hint="check the tensors and the weights for damage"
        )
    found["spread"] = found["spread"] if spread else none
    # The score keeps its digits: near 1 float32 would tie the best candidates.
    rest = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in found.items()}
    return rest | {"score": found["score"].astype(np.float64)}


def _class_answers(
    contract: Contract, values: NDArray[np.floating], mean: Float, prevalence: float | None
) -> dict[str, NDArray[Any]]:
    at, lens = contract.ranked()
    known = contract.class_calibration

    def ranked(p: Float) -> Float:
        return p[:, at] if lens else 1 - p[:, at]

    own = known.probability(mean)  # (n, K)
    each = own
    if prevalence is not None:
        each = known.probability(mean, shares=shares_at(known.shares, contract.lens_labels(), prevalence))
    found = {
        "score": ranked(softmax(mean)),
        "probability": ranked(each) if prevalence is not None else np.full(len(mean), np.nan),
        "spread": np.stack([softmax(v)[:, at] for v in np.moveaxis(values, 1, 0)], 1).std(1),
        TRAINING_PROBABILITY: ranked(own),
        # At the survey's shares nearly every row is no lens: a decision is one among the validation rows.
        "predicted": own.argmax(1).astype(np.int32),
    }
    return found | {f"p_{contract.class_map[str(k)]}": each[:, k] for k in range(each.shape[1])}


def split_names(contract: Contract, digest: str, batch: TensorBatch) -> NDArray[np.str_]:
    """`(N,)` `train`, `validation`, `test` or `unknown`: what the model and its ancestors used a row for.

    `digest` is that of the tensors, empty for rows that are no artefact.
    """
    return np.array(VERDICTS)[contract.verdicts(digest, batch.catalog, len(batch))]


def _arrow(column: NDArray[Any], *, null: bool = False) -> pa.Array:
    """A column as Arrow has it; with `null`, NaN means that there is no value."""
    # HDF5 gives text as bytes; one that is not UTF-8 stays readable and does not stop the table.
    if column.dtype.kind == "S":
        return pa.array([value.decode("utf-8", "replace") for value in column.tolist()])
    if null:
        return pa.array(column, from_pandas=True)
    return pa.array(column)


def _abstained(path: Path) -> str:
    """How many rows the model has no verdict on, and why; empty when it has one on all, or cannot abstain."""
    names = pq.read_schema(path).names
    if not {"abstain", "ood"} <= set(names):
        return ""
    table = pq.read_table(path, columns=["abstain", "ood"])
    abstain, unlike = table["abstain"].to_numpy() == 1, table["ood"].to_numpy() > 1
    if not abstain.any():
        return ""
    return (
        f"{int(abstain.sum()):,} rows: {int((abstain & unlike).sum()):,} unlike the training data, "
        f"{int((abstain & ~unlike).sum()):,} of no class or more than one"
    )


def _summary(
    config: ScoreConfig, attributes: ScoreAttributes, notes: list[str], seconds: float, *, done: bool = False
) -> Summary:
    facts: dict[str, Any] = {"rows": attributes["rows"]}
    if (prevalence := attributes.get("prevalence")) is not None:
        facts["probability"] = f"where {one_in(prevalence)} is a lens"
    if seconds:
        facts["rate"] = rate(attributes["rows"], seconds)
    if abstained := _abstained(Path(config.output) / attributes["sorted"]["name"]):
        facts["abstained"] = abstained
    judged = attributes.get("judged")
    if judged:
        facts["evaluated on"] = judged_words(judged)
    # Only lens finding has these with intervals; other tasks print none of them.
    for name in ("auroc", "pr_auc", "tpr_at_fpr_1e-2", "ece"):
        entry = attributes.get("evaluation", {}).get(name)
        if isinstance(entry, dict) and "value" in entry:
            facts[name] = printed(cast(Measured, entry))
    if stress := attributes.get("stress"):
        facts["least robust to"] = "{worst}: {flip_rate:.1%} of decisions flip".format(**stress)
    if seen := attributes.get("visible"):
        name = f"arcs < {seen['arc_sb_below']:g} mag/arcsec^2 ({seen['lenses']})"
        if isinstance(seen.get("auroc"), dict) and "value" in seen["auroc"]:
            facts[name] = "AUROC " + printed(seen["auroc"], 3)
    return Summary(
        "score",
        str(config.output),
        facts,
        seconds=seconds,
        done_before=done,
        notes=tuple(n for n in notes if n),
    )
