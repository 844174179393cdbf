"""Embeddings that no network made, in the layout of `ripple embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ripple.config import Config
from ripple.storage.embeddings import KIND, SUFFIX, directions, pack, quantise
from ripple.storage.writer import ArtefactWriter, create


class MadeConfig(Config):
    """Stands for the configuration of `embed`."""

    verb: ClassVar[str] = "embed"
    seed: int = 0


def made_columns(rows: int, rng: np.random.Generator) -> dict[str, Any]:
    """Columns of rows on a patch of 1 deg."""
    return {
        "id": [f"obj{k:05d}" for k in range(rows)],
        "ra": rng.uniform(53.0, 54.0, rows), "dec": rng.uniform(-28.0, -27.0, rows),
        "score": rng.random(rows), "accept": (rng.random(rows) < 0.8).astype(np.uint8),
        "split": rng.choice(["train", "test"], rows), "mag_i": rng.normal(20, 1, rows),
    }  # fmt: skip


def write_embeddings(
    directory: Path, features: np.ndarray, shards: Sequence[int], *, model: str = "0", **columns: Any
) -> Path:
    """Features `(N, F)` float32 as embeddings, in shards of so many rows."""
    table = pa.table(made_columns(len(features), np.random.default_rng(1)) | columns)
    config = MadeConfig()
    inputs = {"model": model * 64, "tensors": []}
    writer = create(directory, kind=KIND, config=config, inputs=inputs, units=len(shards), suffix=SUFFIX)
    assert isinstance(writer, ArtefactWriter)
    indexes, first = [], 0
    with writer:
        for k, rows in enumerate(shards):
            here = slice(first, first + rows)
            direction, _ = directions(features[None, here])
            writer.commit(k, *_swap(pack(table.slice(first, rows), quantise(direction)), rows))
            place = {"shard": np.full(rows, k, np.int32), "row": np.arange(rows, dtype=np.int32)}
            indexes.append(pa.table({"index": np.arange(first, first + rows), **place}))
            first += rows
        assert first == len(features)
        facts = {"digest": model * 64, "origin": "a test"}
        attributes = {"rows": first, "features": features.shape[1], "members": 1, "model": facts}
        index = pa.concat_tables(indexes).append_column("status", pa.array(["ok"] * first))
        index = index.append_column("reason", pa.array([""] * first))
        writer.finish(index, {}, attributes | {"bands": ["g"], "scale": 0.0})
    return directory


def _swap(packed: tuple[bytes, dict[str, Any]], rows: int) -> tuple[bytes, int, dict[str, Any]]:
    return packed[0], rows, packed[1]


def vectors_of(directory: Path) -> np.ndarray:
    """All vectors `(N, F)` int8, in order."""
    from ripple.storage.artefact import open_artefact
    from ripple.storage.embeddings import mapped

    artefact, parts = open_artefact(directory), []
    for k in range(len(artefact.shards)):
        with mapped(artefact, k) as rows:
            parts.append(rows.vector.copy())
    return np.concatenate(parts)
