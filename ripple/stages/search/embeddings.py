"""`search --embeddings`: what the network sees in each row, beside its scores, for `ripple similar`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ripple.errors import ConfigError
from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.embed import attributes_of
from ripple.learn.embedding.in_memory import feature_count_of
from ripple.learn.model.contract import Contract
from ripple.stages.search.config import SearchConfig
from ripple.storage.embeddings import KIND, SUFFIX
from ripple.storage.manifest import MANIFEST
from ripple.storage.writer import ArtefactWriter, create

#: Where they are, in the output of the search.
EMBEDDINGS = "embeddings"


def embeddings_writer(config: SearchConfig, inputs: Mapping[str, Any], units: int) -> ArtefactWriter | None:
    """The writer of the embeddings; None where none are asked for, or an earlier run finished them.

    Raises
    ------
    RippleError
        As for `create`.
    """
    if not config.embeddings:
        return None
    where = Path(config.output) / EMBEDDINGS
    made = create(where, kind=KIND, config=config, inputs=inputs, units=units, suffix=SUFFIX)
    return made if isinstance(made, ArtefactWriter) else None


def finish_embeddings(
    writer: ArtefactWriter,
    index: pa.Table,
    metrics: Mapping[str, Any],
    contract: Contract,
    score: ScoreConfig,
) -> None:
    """Write index, metrics and manifest of embeddings, the units of the search being their shards.

    Parameters
    ----------
    writer
        All its shards committed.
    index, metrics
        Those of the scores.
    contract
        Of the model.
    score
        How rows are scored.
    """
    writer.finish(index, metrics, attributes_of(writer, contract, feature_count_of(score)))


def refuse_without(config: SearchConfig) -> None:
    """Refuse to add embeddings to a search that is finished: every row would have to be read again.

    Raises
    ------
    ConfigError
        It has none.
    """
    where = Path(config.output) / EMBEDDINGS
    if config.embeddings and not (where / MANIFEST).is_file():
        raise ConfigError(
            f"{config.output} was searched without --embeddings, for which every row is read again",
            hint="search into another directory, or embed those that --keep wrote: "
            f"ripple embed {config.model} {Path(config.output) / 'kept' / 'tensors'}",
        )
