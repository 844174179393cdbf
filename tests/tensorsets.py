"""Tensor artefacts for tests, written by the real writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ripple import artefact, shard
from ripple.config import Config
from ripple.cutouts import TensorBatch


class MakeConfig(Config):
    """What the test asked for."""

    verb = "make"


def catalog(first: int, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    index = np.arange(first, first + n)
    return {
        "index": index,
        "id": np.array([f"obj{k:06d}" for k in index]),
        "ra": 53.0 + 0.05 * rng.random(n),
        "dec": -28.0 + 0.05 * rng.random(n),
        "label": (index % 5 == 0).astype(np.int64),
        "accept": (index % 7 != 3).astype(np.uint8),
        "theta_E": rng.uniform(0.5, 2.0, n).astype(np.float32),
    }


def make_tensors(
    directory: Path,
    rows: tuple[int, ...] = (40, 25, 60),
    *,
    bands: tuple[str, ...] = ("g", "r", "i"),
    size: int = 16,
    dtype: type = np.float16,
    seed: int = 0,
    index_columns: tuple[str, ...] = ("id", "ra", "dec", "label"),
) -> Path:
    """Rows whose first pixel of band 0 is their global row number modulo 1024 (exact in float16)."""
    rng = np.random.default_rng(seed)
    writer = artefact.create(directory, kind="tensors", config=MakeConfig(), inputs={}, units=len(rows))
    assert isinstance(writer, artefact.ArtefactWriter)
    columns: dict[str, list[np.ndarray]] = {}
    first = 0
    with writer:
        for unit, n in enumerate(rows):
            image = rng.normal(size=(n, len(bands), size, size)).astype(dtype)
            image[:, 0, 0, 0] = np.arange(first, first + n) % 1024
            table = catalog(first, n, rng)
            batch = TensorBatch(
                bands=bands,
                image=image,
                valid=np.ones(image.shape, np.uint8),
                catalog=table,
                pixel_scale=0.2,
                psf_fwhm=1.2,
                normalization={"method": "none"},
                class_map={"0": "nonlens", "1": "lens"},
            )
            writer.commit(unit, shard.pack_tensors(batch, {}), n, {})
            place = {"shard": np.full(n, unit, np.int32), "row": np.arange(n, dtype=np.int32)}
            for name, values in {**table, **place}.items():
                columns.setdefault(name, []).append(values)
            first += n
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        accept = whole["accept"] != 0
        kept = {k: whole[k] for k in ("index", *index_columns, "shard", "row")}
        kept["status"] = np.where(accept, "ok", "rejected")
        kept["reason"] = np.where(accept, "", "quality")
        # The index has targets in input order, which need not be the order of the rows.
        order = rng.permutation(first)
        writer.finish(pa.table({k: v[order] for k, v in kept.items()}), {}, {"bands": list(bands)})
    return directory
