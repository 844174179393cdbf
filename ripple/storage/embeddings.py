"""Shards of embeddings: Arrow files whose vectors are searched where they lie (`FORMAT.md`).

A vector is a direction: features divided by their length, as int8 with one scale per shard. A scale has no
influence on the cosine of an angle, so that similarities are made of whole numbers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ripple.config import Json
from ripple.errors import IntegrityError
from ripple.storage.artefact import Artefact
from ripple.storage.files import REDO, opened

KIND = "embeddings"
SUFFIX = ".arrow"
VECTOR, LENGTH = "vector", "length"
#: Largest number of a component; -128 is not used, so that the numbers are symmetric.
MOST = 127


@dataclass(frozen=True, slots=True)
class Quantised:
    """Vectors `(N, F)` int8; `scale` times them are the directions, each component to half a scale."""

    vector: NDArray[np.int8]
    scale: float


def directions(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Directions `(N, E F)` of unit length and lengths `(N,)` of features `(E, N, F)` of E members.

    Each member counts alike: the cosine of two rows is the mean over the members. Lengths are means, too. A
    row of zeros stays zero.
    """
    members, rows, count = features.shape
    length = np.linalg.norm(features.astype(np.float64), axis=2)  # (E, N)
    unit = features / np.maximum(length, 1e-30)[:, :, None] / np.sqrt(members)
    whole = np.moveaxis(unit, 0, 1).reshape(rows, members * count)
    return whole.astype(np.float32), length.mean(axis=0).astype(np.float32)


def quantise(direction: NDArray[np.float32]) -> Quantised:
    """Directions `(N, F)` as int8 with one scale.

    Returns
    -------
    No component is off by more than half the scale, and the cosine of the angle between two vectors of unit
    length by no more than s / (1 - s / 4) with s = scale sqrt(F).
    """
    largest = float(np.abs(direction).max(initial=0.0))
    scale = np.float32(largest / MOST) if largest > 0 else np.float32(1)
    # The scale is rounded to float32: a component may come to lie just beyond the last number.
    number = np.clip(np.rint(direction / scale), -MOST, MOST)
    return Quantised(number.astype(np.int8), float(scale))


def pack(table: pa.Table, quantised: Quantised) -> tuple[bytes, Json]:
    """The bytes of a shard: the columns of `table` and the vectors; and the facts for its record."""
    vector = np.ascontiguousarray(quantised.vector)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector.reshape(-1)), vector.shape[1])
    field = pa.field(VECTOR, column.type, metadata={"scale": repr(quantised.scale)})
    whole = table.append_column(field, column)
    sink = pa.BufferOutputStream()
    # One batch, also of no rows, so that the vectors of a shard are one array.
    with pa.ipc.new_file(sink, whole.schema) as out:
        out.write_batch(pa.RecordBatch.from_arrays([_whole(c) for c in whole.columns], schema=whole.schema))
    data = sink.getvalue().to_pybytes()
    return data, {"scale": quantised.scale, "crc32": zlib_ng.crc32(data)}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column as one array."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a shard, on the disk: the columns that were asked for, and vectors `(N, F)` int8."""

    table: pa.Table
    vector: NDArray[np.int8]


@contextmanager
def mapped(artefact: Artefact, k: int, columns: Sequence[str] = (), *, check: bool = True) -> Iterator[Rows]:
    """Shard `k` of embeddings, mapped while the block runs; copy what is to outlive it.

    Parameters
    ----------
    artefact
        Embeddings.
    k
        Number of the shard.
    columns
        Names of columns to read besides the vectors; those that the shard lacks are left out.
    check
        Compare the CRC-32 of the bytes: a damaged byte is found at a tenth of the cost of SHA-256, which a
        search of 10^7 rows would otherwise spend most of its time on. `ripple verify` compares SHA-256.

    Raises
    ------
    IntegrityError
        The bytes differ from those that were written, or are no shard of embeddings.
    """
    path, record = artefact.shard_path(k), artefact.shards[k]
    with _errors(path):
        rows = _rows(_buffer(artefact, k, check=check), columns, record.rows, artefact.attributes["features"])
    yield rows


def taken(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """A copy of rows of a table, which outlives `mapped`.

    Raises
    ------
    IntegrityError
        A text is not UTF-8.
    """
    copy = table.take(rows)
    try:
        copy.validate(full=True)
    except pa.ArrowInvalid as err:
        raise IntegrityError(f"embeddings: {' '.join(str(err).split())[:200]}", hint=REDO) from None
    return copy


def column_names(artefact: Artefact) -> list[str]:
    """Columns of the rows of embeddings, those of the first shard; errors as for `mapped`."""
    if not artefact.shards:
        return []
    with _errors(artefact.shard_path(0)):
        names = pa.ipc.RecordBatchFileReader(pa.BufferReader(_buffer(artefact, 0, check=True))).schema.names
    return [name for name in names if name != VECTOR]


def _buffer(artefact: Artefact, k: int, *, check: bool) -> pa.Buffer:
    path, record = artefact.shard_path(k), artefact.shards[k]
    damaged = IntegrityError(f"{path}: damaged", hint=REDO)
    with opened(path) as file:
        try:
            whole = mmap.mmap(file.fileno(), record.bytes, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # shorter than the manifest says, or empty
            raise damaged from None
    if check and zlib_ng.crc32(whole) != record.extra.get("crc32"):
        raise damaged
    return pa.py_buffer(whole)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Errors of Arrow as one of ours."""
    try:
        yield
    except (pa.ArrowException, OSError) as err:  # Arrow raises both for damaged files
        raise IntegrityError(f"{path}: cannot be read: {' '.join(str(err).split())[:200]}") from None


def _rows(buffer: pa.Buffer, columns: Sequence[str], rows: int, features: int) -> Rows:
    """The rows of a shard; raises `pa.ArrowInvalid` for other layouts."""
    # Not `read_all`, which copies the columns when only some of them are asked for.
    reader = pa.ipc.RecordBatchFileReader(pa.BufferReader(buffer))
    kind, there = pa.list_(pa.int8(), features), reader.schema.names
    if VECTOR not in there or reader.schema.field(VECTOR).type != kind or reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"not one batch of vectors of {features} int8")
    batch = reader.get_batch(0)
    wanted = batch.select([name for name in dict.fromkeys((*columns, VECTOR)) if name in there])
    for array in wanted.columns:
        _validate(array)
    vector = wanted[VECTOR]
    if len(vector) != rows or vector.null_count:
        raise pa.ArrowInvalid(f"not {rows} vectors")
    names = [name for name in wanted.schema.names if name != VECTOR]
    return Rows(
        pa.Table.from_batches([wanted.select(names)]), vector.flatten().to_numpy().reshape(rows, features)
    )


def _validate(array: pa.Array) -> None:
    """Raise `pa.ArrowInvalid` where reading a value would lead out of the file, and crash the process."""
    if not pa.types.is_string(array.type):
        array.validate(full=True)
        return
    # Ids are searched byte by byte, so that whether they are UTF-8, which takes ten times as long to know,
    # matters only for those that are found.
    array.validate()
    offsets = (
        np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset) if len(array) else ()
    )
    if np.any(np.diff(offsets) < 0):
        raise pa.ArrowInvalid("texts that begin after their end")
