"""Embeddings of `ripple embed` in memory: the rows of all shards, for active.py and similar.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ripple.storage.artefact import open_artefact
from ripple.storage.embeddings import mapped


def read_embeddings(directory: Path, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """These columns, and the vectors `(N, F)` int8, in the order of shard and row."""
    artefact, tables, vectors = open_artefact(directory), [], []
    for k in range(len(artefact.shards)):
        with mapped(artefact, k, tuple(columns)) as rows:
            # Copies: both lie in the map of the file, which ends here.
            tables.append(rows.table.take(np.arange(rows.table.num_rows)))
            vectors.append(rows.vector.copy())
    return pa.concat_tables(tables), np.concatenate(vectors)
