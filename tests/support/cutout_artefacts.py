"""Cutout artefacts of made-up batches, written by the real writer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ripple.config import Config
from ripple.imaging.batch import CutoutBatch
from ripple.storage.shard_writer import pack_cutouts
from ripple.storage.writer import ArtefactWriter, create


def write(
    directory: Path, batch: CutoutBatch, margin: int, per_shard: int = 5, extra: tuple[str, ...] = ()
) -> Path:
    """A cutout artefact; the first target asked for was rejected by fetch. `extra` columns, NaN there."""
    n = len(batch)
    units = -(-n // per_shard)
    writer = create(directory, kind="cutouts", config=Config(), inputs={"repo": "none"}, units=units)
    assert isinstance(writer, ArtefactWriter)
    batch.catalog["index"][:] = np.arange(1, n + 1)
    with writer:
        for k in range(units):
            piece = batch.take(slice(k * per_shard, (k + 1) * per_shard))
            writer.commit(k, pack_cutouts(piece, {"margin": margin}), len(piece), {})
        catalog = batch.catalog
        columns: dict[str, Any] = {
            "index": np.arange(n + 1), "id": np.concatenate([[900], catalog["id"]]),
            "ra": np.concatenate([[0.0], catalog["ra"]]), "dec": np.concatenate([[0.0], catalog["dec"]]),
            "status": ["rejected"] + ["ok"] * n, "reason": ["no_tract"] + [""] * n,
            "shard": np.concatenate([[-1], np.arange(n) // per_shard]).astype(np.int32),
            "row": np.concatenate([[-1], np.arange(n) % per_shard]).astype(np.int32),
        }  # fmt: skip
        columns |= {name: np.concatenate([[np.nan], catalog[name]]) for name in extra}
        size = batch.image.shape[-1] - 2 * margin
        attributes = {"bands": list(batch.bands), "size": size, "margin": margin, "class_map": {"1": "lens"}}
        writer.finish(pa.table(columns), {}, attributes)
    return directory


def digest(directory: Path) -> str:
    files = sorted([*directory.glob("shard-*"), directory / "index.parquet"])
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
