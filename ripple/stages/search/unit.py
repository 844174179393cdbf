"""One unit of a search in one worker: coadds to cutouts, tensors and scores, all in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.in_memory import embed_tensors
from ripple.learn.scoring.in_memory import score_tensors
from ripple.rubin.open import RepositoryFiles
from ripple.runtime.profile import Profile, peak_rss
from ripple.stages.fetch.fetch import unit_facts
from ripple.stages.fetch.planes import UnitBatch, read_batch
from ripple.stages.fetch.task import UnitTask
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import rejections
from ripple.storage.files import stage
from ripple.storage.map_shards import ShardResult
from ripple.storage.parquet import parquet_bytes
from ripple.storage.shard_reader import unpack_tensors
from ripple.storage.shard_writer import pack_tensors


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A unit to search, and where to write its scores.

    Parameters
    ----------
    unit
        What to read.
    preprocess, constants
        As for `preprocess_batch`.
    score
        How to score.
    model
        Digest of the model in `score.model`, which must not change while it is used.
    directory, name
        Where the table of the unit goes.
    graphs
        Backbones for ONNX Runtime; none for PyTorch.
    embeddings
        Directory and name of the shard of embeddings of the same rows; None for none.
    """

    unit: UnitTask
    preprocess: PreprocessConfig
    constants: DataConstants
    score: ScoreConfig
    model: str
    directory: str
    name: str
    graphs: tuple[Path, ...] = ()
    embeddings: tuple[str, str] | None = None


def make_shard(task: SearchTask) -> ShardResult:
    """Read, preprocess and score one unit, and write its table under a temporary name."""
    profile = Profile()
    read, digests = _read(task.unit, profile)
    made = preprocess_batch(read.batch, task.preprocess, task.constants, profile)
    with profile.time("pack"):
        # As `score` would read them: shards decide the types and the order of columns.
        tensors = unpack_tensors(pack_tensors(made, {}))
    # What quality control rejects is in the index of the scores, as it would be in that of the tensors.
    quality = rejections(tensors.catalog, task.preprocess)
    index = np.asarray(tensors.catalog["index"])
    duplicates = index[np.isin(index, np.asarray(task.constants.duplicates or (), np.int64))].tolist()
    what = (tensors, task.score, task.model, task.unit.number, task.graphs)
    beside = None
    with profile.time("score"):
        if task.embeddings is None:
            table = score_tensors(*what)
        else:
            found = embed_tensors(*what)
            table = found.scores
            directory, name = task.embeddings
            beside = stage(Path(directory), name, found.data), found.facts
        data = parquet_bytes(table)
    with profile.time("write", bytes=len(data)):
        staged = stage(Path(task.directory), task.name, data)
    facts = {
        **unit_facts(read.reading, read.no_data, digests),
        "quality": quality.record(),
        "duplicates": duplicates,
    }
    return ShardResult(staged, len(tensors), profile.operations, peak_rss(), facts, beside)


def _read(unit: UnitTask, profile: Profile) -> tuple[UnitBatch, dict[str, str]]:
    # One more thread, which hashes the files while this one decodes them.
    with ThreadPoolExecutor(1) as beside, profile.time("fetch"):
        read = read_batch(unit, RepositoryFiles(unit.repo, beside, profile), profile)
        return read, read.reading.digests()
