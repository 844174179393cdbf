"""Embeddings of tensors that are in memory, for a search: the shard that `embed` would write for theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ripple.config import Json
from ripple.imaging.batch import TensorBatch
from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.embed import embedded, feature_count
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.in_memory import ready
from ripple.storage.embeddings import pack, quantise


@dataclass(frozen=True, slots=True)
class Embedded:
    """Scores of one unit, and its shard of embeddings: the bytes, and the facts for its record."""

    scores: pa.Table
    data: bytes
    facts: Json


def embed_tensors(
    tensors: TensorBatch, config: ScoreConfig, digest: str, number: int, graphs: tuple[Path, ...] = ()
) -> Embedded:
    """One pass of the network for both: the table of `score_tensors`, and the embeddings of the same rows.

    Parameters
    ----------
    tensors, config, digest, number, graphs
        As for `score_tensors`.

    Raises
    ------
    ContractError
        The tensors do not fit the contract of the model.
    IntegrityError
        The model is damaged, another one took its place, or its features are not finite.
    """
    at = ready(tensors, config, digest, number, graphs)
    scores, columns, direction = embedded(
        at.model, at.batch, at.images, config, at.device, lambda rows: None, number=number, digest=""
    )
    return Embedded(scores, *pack(columns, quantise(direction)))


def feature_count_of(config: ScoreConfig) -> int:
    """Length of the vectors of the model that scores."""
    return feature_count(load_model(config.model))
