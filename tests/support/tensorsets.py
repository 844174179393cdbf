"""Tensor artefacts for tests, written by the real writer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ripple.config import Config
from ripple.imaging.batch import TensorBatch
from ripple.storage import artefact, files, shard_reader, shard_writer
from ripple.storage.checksums import listed
from ripple.storage.writer import ArtefactWriter, create


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
    ids: Sequence[str] = (),
) -> Path:
    """Rows whose first pixel of band 0 is their global row number modulo 1024 (exact in float16)."""
    rng = np.random.default_rng(seed)
    writer = create(directory, kind="tensors", config=MakeConfig(), inputs={}, units=len(rows))
    assert isinstance(writer, ArtefactWriter)
    columns: dict[str, list[np.ndarray]] = {}
    first = 0
    with writer:
        for unit, n in enumerate(rows):
            image = rng.normal(size=(n, len(bands), size, size)).astype(dtype)
            image[:, 0, 0, 0] = np.arange(first, first + n) % 1024
            table = catalog(first, n, rng)
            if ids:
                names = table["id"].tolist()
                names[: len(ids[first:])] = ids[first : first + n]
                table["id"] = np.array(names)
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
            writer.commit(unit, shard_writer.pack_tensors(batch, {}), n, {})
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


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


class ScoresConfig(Config):
    """The part of the scoring options that a report reads."""

    verb = "score"

    tensors: tuple[Path, ...]


def make_scores(
    directory: Path, tensors: Path, *, seed: int = 0, evaluate: bool = True, model: str = "model"
) -> Path:
    """Scores of a pretend network in the layout of `ripple score`: lenses get higher ones."""
    from ripple.learn.evaluation.evaluate import evaluate as judge

    rng = np.random.default_rng(seed)
    source = artefact.open_artefact(tensors, "tensors")
    config = ScoresConfig(tensors=(tensors,))
    inputs = {"model": "0" * 64, "tensors": [source.digest]}
    writer = create(
        directory, kind="scores", config=config, inputs=inputs, units=len(source.shards), suffix=".parquet"
    )
    assert isinstance(writer, ArtefactWriter)
    labels, scores, tables = [], [], []
    with writer:
        for k in range(len(source.shards)):
            batch = shard_reader.unpack_tensors(source.read(k))
            n = len(batch)
            label = np.asarray(batch.catalog["label"], int)
            logit = rng.normal(2.5 * (label == 1) - 2.0, 1.5)
            value = 1 / (1 + np.exp(-logit))
            columns = {
                "id": batch.catalog["id"], "ra": batch.catalog["ra"], "dec": batch.catalog["dec"],
                "score": value, "probability": value**1.5, "spread": rng.uniform(0, 0.1, n),
                "qc": batch.catalog.get("qc", np.zeros(n, np.uint64)),
                "split": np.where(rng.random(n) < 0.5, "test", "train"),
                "shard": np.full(n, k, np.int32), "row": np.arange(n, dtype=np.int32), "label": label,
            }  # fmt: skip
            for name in ("theta_E", "arc_sb", "class"):
                if name in batch.catalog:
                    columns[name] = batch.catalog[name]
            tables.append(pa.table({name: pa.array(np.asarray(c)) for name, c in columns.items()}))
            writer.commit(k, parquet(tables[-1]), n, {})
            keep = (columns["split"] == "test") & (label >= 0)
            labels.append(label[keep])
            scores.append(value[keep])
        ranked = pa.concat_tables(tables).sort_by([("score", "descending")])
        ranked = ranked.append_column("rank", pa.array(np.arange(1, len(ranked) + 1)))
        data = parquet(ranked)
        files.write_atomic(directory / "scores.parquet", data)
        digest = hashlib.sha256(data).hexdigest()
        attributes = {
            "rows": len(ranked), "sorted": {"name": "scores.parquet", "sha256": digest}, "output": "lens",
            "threshold": 0.5, "bands": ["g", "r", "i"],
            "model": {"directory": model, "origin": "ripple train", "members": 1},
        }  # fmt: skip
        if evaluate:
            y, s = np.concatenate(labels), np.concatenate(scores)
            found = judge(y, s, s, threshold=0.5, draws=50)
            files.write_atomic(directory / "evaluation.json", json.dumps({"evaluation": found}).encode())
            attributes["evaluation"] = found["metrics"]
        names = ["index", "id", "ra", "dec", "status", "reason", "shard", "row"]
        beside = listed(directory, ("scores.parquet", "evaluation.json"))
        writer.finish(source.index().select(names), {}, attributes, files=beside)
    return directory
