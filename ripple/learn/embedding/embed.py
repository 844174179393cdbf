"""`ripple embed`: the features of each row of tensors, beside its scores, as vectors to search by.

Shards of the tensors are put together, so that a search opens few files; a run that was killed resumes after
the last complete one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import IntegrityError
from ripple.imaging.batch import TensorBatch
from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.config import EmbedConfig
from ripple.learn.model.contract import Contract, require_weights, unsaid
from ripple.learn.model.device import choose_device
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.engine import chosen, with_onnx
from ripple.learn.scoring.ranking import joined_index
from ripple.learn.scoring.score import (
    ModelName,
    Unit,
    check_every_shard,
    distances,
    named_prevalence,
    passes,
    read_ahead,
    read_shards,
    score_table,
    stated_prevalence,
    training_prevalence,
    units_of,
)
from ripple.runtime.profile import peak_rss
from ripple.runtime.signals import stoppable
from ripple.runtime.summary import Summary, progress, rate
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.embeddings import KIND, LENGTH, SUFFIX, VECTOR, directions, pack, quantise
from ripple.storage.writer import ArtefactWriter, create


class EmbeddingAttributes(TypedDict):
    """Attributes of embeddings in the manifest: `features` is the length F of the vectors, `scale` the
    largest of the shards.
    """

    rows: int
    features: int
    members: int
    model: ModelName
    bands: list[str]
    scale: float


@dataclass(frozen=True, slots=True)
class Group:
    """Shards of one artefact of tensors that become one shard of embeddings."""

    number: int
    units: tuple[Unit, ...]

    @property
    def rows(self) -> int:
        """Rows of all of them."""
        return sum(unit.artefact.shards[unit.shard].rows for unit in self.units)


def embed(config: EmbedConfig) -> Summary:
    """Embed the tensors, resume an interrupted run, or report a finished one.

    Raises
    ------
    ContractError
        The tensors do not fit the contract of the model; nothing is written.
    IntegrityError
        A model or shard is damaged; nothing is written for it.
    """
    began = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    scoring, device = config.scoring(), choose_device(config.device)
    model = load_model(config.model).to(device)
    require_weights(model.contract, str(config.model), "which gives no features")
    artefacts = [open_artefact(path, "tensors") for path in config.tensors]
    units = units_of(artefacts)
    # Before the output directory is created: tensors that do not fit must leave nothing behind.
    check_every_shard(model.contract, units, scoring)
    groups = grouped(units, config.rows_per_shard)
    engine = chosen(config.engine, sum(a.manifest["counts"]["asked"] for a in artefacts), device)
    # Digests, not paths: a model that was moved is the same model, one that was retrained is not.
    inputs = {"model": model.contract.digest(), "tensors": [a.digest for a in artefacts], "engine": engine}
    writer = create(config.output, kind=KIND, config=config, inputs=inputs, units=len(groups), suffix=SUFFIX)
    notes = tuple(note for a in artefacts if (note := unsaid(model.contract, a)))
    if not isinstance(writer, ArtefactWriter):
        return _summary(config, writer.artefact.attributes, notes, 0.0, done=True)
    with writer, stoppable() as stop:
        fast = model if engine == "torch" else with_onnx(model, writer.directory)
        todo = [group for group in groups if writer.done(group.number) is None]
        read = read_shards([unit for group in todo for unit in group.units], model.contract, scoring, device)
        with progress(sum(g.rows for g in todo), "embedding") as advance, closing(read_ahead(read)) as shards:
            for group in todo:
                parts = []
                for _ in group.units:
                    stop.check()
                    unit, batch, images = next(shards)
                    place: dict[str, Any] = {"number": unit.number, "digest": unit.artefact.digest}
                    parts.append(embedded(fast, batch, images, scoring, device, advance, **place))
                _, tables, vectors = zip(*parts, strict=True)
                # A column that only some shards have is null for the rows of the others.
                table = _placed(pa.concat_tables(tables, promote_options="default"), group.number)
                data, facts = pack(table, quantise(np.concatenate(vectors)))
                writer.commit(group.number, data, group.rows, facts)
        attributes = attributes_of(writer, model.contract, feature_count(model))
        prevalence = stated_prevalence(model.contract, scoring), training_prevalence(model.contract)
        index = _index(artefacts, groups, named_prevalence(*prevalence))
        writer.finish(index, {"peak_rss": peak_rss()}, attributes)
    return _summary(config, attributes, notes, time.perf_counter() - began)


def grouped(units: list[Unit], most: int) -> list[Group]:
    """Neighbouring shards of one artefact together, up to `most` rows; a larger shard stays alone."""
    groups: list[list[Unit]] = []
    rows = 0
    for unit in units:
        more = unit.artefact.shards[unit.shard].rows
        if groups and groups[-1][0].artefact is unit.artefact and rows + more <= most:
            groups[-1].append(unit)
            rows += more
        else:
            groups.append([unit])
            rows = more
    return [Group(number, tuple(group)) for number, group in enumerate(groups)]


def embedded(
    model: Model,
    batch: TensorBatch,
    images: Iterable[Tensor],
    config: ScoreConfig,
    device: torch.device,
    advance: Callable[[int], None],
    *,
    number: int,
    digest: str,
) -> tuple[pa.Table, pa.Table, NDArray[np.float32]]:
    """The scores of one shard of tensors, the columns of its embeddings, and its directions `(N, F)`.

    Parameters
    ----------
    model, batch, images, config, device, advance, number, digest
        As for `score_shard`.

    Returns
    -------
    The table of `score_shard`; the same with the lengths of the features; float32 directions.

    Raises
    ------
    IntegrityError
        The features are not finite.
    """
    found = [
        (values, latent.cpu().numpy(), distances(model, latent).cpu().numpy())
        for values, latent in passes(model, images, config, device, advance)
    ]
    pairs = [(values, near) for values, _, near in found]
    table = score_table(model, batch, pairs, config, number=number, digest=digest)
    empty = np.zeros((len(model.nets), 0, feature_count(model) // len(model.nets)), np.float32)
    latent = np.concatenate([empty, *(features for _, features, _ in found)], axis=1)
    if not np.isfinite(latent).all():
        raise IntegrityError(
            "the network gave features that are not finite",
            hint="check the tensors and the weights for damage",
        )
    direction, length = directions(latent)
    # As for the columns of the scores: ours win over those of the user with the same name.
    own = [name for name in table.column_names if name in (VECTOR, LENGTH)]
    return table, table.drop_columns(own).append_column(LENGTH, pa.array(length)), direction


def feature_count(model: Model) -> int:
    """Length of the vectors: the features of all members."""
    return sum(net.head.in_features for net in model.nets)


def _placed(table: pa.Table, number: int) -> pa.Table:
    """The table of a group with the numbers of its own shard and rows."""
    rows = table.num_rows
    own = {"shard": np.full(rows, number, np.int32), "row": np.arange(rows, dtype=np.int32)}
    for name, values in own.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def _index(artefacts: list[Artefact], groups: list[Group], metadata: dict[str, str]) -> Iterator[pa.Table]:
    """The indexes of the tensors one after the other, with the places in the shards of the embeddings."""
    rows = [[u.artefact.shards[u.shard].rows for u in group.units] for group in groups]
    number = np.repeat([group.number for group in groups], [len(part) for part in rows])
    first = np.array([start for part in rows for start in np.cumsum([0, *part[:-1]])], np.int64)
    for table in joined_index(artefacts, metadata):
        shard, row = (table[name].to_numpy() for name in ("shard", "row"))
        there = shard >= 0
        place = np.where(there, shard, 0)
        new = {
            "shard": np.where(there, number[place] if len(number) else -1, -1),
            "row": np.where(there, row + (first[place] if len(first) else 0), row),
        }
        for name, values in new.items():
            field = table.schema.field(name)
            at = table.column_names.index(name)
            table = table.set_column(at, field, pa.array(values).cast(field.type))
        yield table


def attributes_of(writer: ArtefactWriter, contract: Contract, features: int) -> EmbeddingAttributes:
    """What the manifest says of embeddings whose shards are all committed.

    Parameters
    ----------
    writer
        Of the embeddings.
    contract
        Of the model.
    features
        Length of the vectors.
    """
    records = [writer.record(k) for k in range(writer.units)]
    return {
        "rows": sum(record.rows for record in records),
        "features": features,
        "members": len(contract.members),
        "model": {"digest": contract.digest(), "origin": contract.origin},
        "bands": list(contract.bands),
        "scale": max((record.extra["scale"] for record in records), default=0.0),
    }


def _summary(
    config: EmbedConfig, attributes: Any, notes: tuple[str, ...], seconds: float, *, done: bool = False
) -> Summary:
    facts: dict[str, Any] = {"rows": attributes["rows"], "features": attributes["features"]}
    if seconds:
        facts["rate"] = rate(attributes["rows"], seconds)
    # docs/howto/find-similar.md: two components that are off by up to half a scale, evenly.
    facts["similarities are within"] = f"{0.41 * attributes['scale']:.2g} (rms)"
    return Summary("embed", str(config.output), facts, seconds=seconds, done_before=done, notes=notes)
