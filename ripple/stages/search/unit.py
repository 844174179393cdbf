"""One unit of a search in one worker: coadds to cutouts, tensors and scores, all in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import TensorBatch
from ripple.imaging.convolve import CHUNK
from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.in_memory import embed_tensors
from ripple.learn.scoring.in_memory import score_tensors
from ripple.rubin.open import RepositoryFiles
from ripple.runtime.profile import Profile, peak_rss
from ripple.stages.fetch.fetch import unit_facts
from ripple.stages.fetch.judge import mark_no_data
from ripple.stages.fetch.open_unit import read_unit
from ripple.stages.fetch.planes import PlaneStream
from ripple.stages.fetch.reading import UnitReading
from ripple.stages.fetch.task import UnitTask
from ripple.stages.preprocess.batch import TOGETHER, DataConstants, copies_planes, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import rejections
from ripple.stages.search.pieces import Pieces
from ripple.storage.files import stage
from ripple.storage.map_shards import ShardResult
from ripple.storage.parquet import parquet_bytes
from ripple.storage.shard_reader import unpack_tensors
from ripple.storage.shard_writer import pack_tensors

#: Rows whose cutouts are in memory: `preprocess_batch` lets go of a quarter of them at a time.
AHEAD = 4 * TOGETHER * CHUNK


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
    # One more thread, which hashes the files while this one decodes them.
    with ThreadPoolExecutor(1) as beside:
        files = RepositoryFiles(task.unit.repo, beside, profile)
        reading, (made, no_data) = read_unit(
            task.unit, files, profile, lambda opened: _preprocessed(task, opened, profile)
        )
        digests = reading.digests()  # waits for the hashing, so before its thread ends
    with profile.time("pack"):
        # As `score` would read them: shards decide the types and the order of columns, but not the planes.
        corner = (slice(None), slice(None), slice(1), slice(1))
        small = replace(made, image=made.image[corner], valid=made.valid[corner], variance=None)
        tensors = replace(unpack_tensors(pack_tensors(small, {})), image=made.image, valid=made.valid)
    # What quality control rejects is in the index of the scores, as it would be in that of the tensors.
    quality = rejections(tensors.catalog, task.preprocess)
    index = np.asarray(tensors.catalog["index"])
    duplicates = index[np.isin(index, np.asarray(task.constants.duplicates or (), np.int64))].tolist()
    what = (tensors, task.score, task.model, task.unit.number, task.graphs)
    embeddings = None
    with profile.time("score"):
        if task.embeddings is None:
            table = score_tensors(*what)
        else:
            found = embed_tensors(*what)
            table = found.scores
            directory, name = task.embeddings
            embeddings = stage(Path(directory), name, found.data), found.facts
        data = parquet_bytes(table)
    with profile.time("write", bytes=len(data)):
        staged = stage(Path(task.directory), task.name, data)
    facts = {**unit_facts(reading, no_data, digests), "quality": quality.record(), "duplicates": duplicates}
    return ShardResult(staged, len(tensors), profile.operations, peak_rss(), facts, embeddings)


def _preprocessed(
    task: SearchTask, reading: UnitReading, profile: Profile
) -> tuple[TensorBatch, NDArray[np.float32]]:
    """Tensors of a unit, and the `(N, B)` shares of pixels without data; `DamagedError` as for `PlaneStream`.

    The pixels of cutouts are filled in shortly before `preprocess_batch` comes to them, and are gone after.
    """
    stream, pieces, config = PlaneStream(reading, profile), Pieces(reading), task.preprocess
    rows = len(pieces.batch)
    ahead = rows if copies_planes(config) else AHEAD
    filling = profile.each("fetch", stream.rows(pieces.planes, ahead))
    there = next(filling).stop

    def release(done: int) -> None:
        nonlocal there
        pieces.release(done)
        if there <= done < rows:
            there = next(filling).stop

    made = preprocess_batch(pieces.batch, config, task.constants, profile, release)
    mark_no_data(reading.outcomes, reading.task.bands, stream.no_data)
    return made, stream.no_data
