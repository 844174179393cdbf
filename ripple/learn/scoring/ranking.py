"""From the tables of the shards: one table sorted by score, its best rows, and the index of all targets."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.errors import IntegrityError
from ripple.storage.artefact import Artefact
from ripple.storage.files import TEMPORARY, hash_file, sync_directory, write_error
from ripple.storage.manifest import INDEX
from ripple.storage.parquet import TableWriter

#: The table of all rows, best first.
SORTED = "scores.parquet"
#: Rows of the sorted table held at a time.
PIECE = 100_000
#: Columns that scoring itself writes, in this order; those of the catalogue follow.
SCORE_COLUMNS = ("id", "ra", "dec", "score", "probability", "spread", "rank", "qc", "split", "shard", "row")

#: Columns of the index of scores.
INDEX_COLUMNS = ("index", "id", "ra", "dec", "status", "reason", "detail", "shard", "row")


def write_sorted(paths: list[Path], target: Path) -> tuple[str, int]:
    """Write one table sorted by falling score; ties keep the order of shard and row.

    Parameters
    ----------
    paths
        Tables of the shards.
    target
        Where to write, atomically.

    Returns
    -------
    SHA-256 and number of rows.
    """
    # Only ranks are in memory as a whole; the rows themselves are sorted PIECE ranks at a time.
    counts = [pq.read_metadata(path).num_rows for path in paths]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rank = _ranks(paths, offsets)  # (total,)
    staged = target.with_name(TEMPORARY + target.name)
    schema: pa.Schema | None = None
    out: TableWriter | None = None
    total = int(offsets[-1])
    try:
        # At least one piece, so that a table without rows still has its columns.
        for low in range(0, max(total, 1), PIECE):
            piece = _rows_of_ranks(paths, offsets, rank, low, low + PIECE)
            schema = schema or piece.schema
            out = out or TableWriter(staged, schema)
            out.write(piece)
        assert out is not None
        out.close()
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        _, digest = hash_file(staged)
        # Synced before it gets its name: after a power cut the name never stands for a torn table.
        staged.replace(target)
        sync_directory(target.parent)
    except OSError as err:
        staged.unlink(missing_ok=True)
        raise write_error(target, err, 0) from None
    return digest, total


def _ranks(paths: list[Path], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of every row, from 1. Three arrays of 8 bytes per row are all that is held of the whole table."""
    falling = np.empty(offsets[-1])  # negated scores, so that an ascending sort ranks the best first
    for k, path in enumerate(paths):
        scores = pq.read_table(path, columns=["score"], use_threads=False)["score"].to_numpy()
        np.negative(scores, out=falling[offsets[k] : offsets[k + 1]])
    # Stable: rows with equal scores keep the order of shard and row.
    order = np.argsort(falling, kind="stable")
    del falling  # 8 bytes per row less while the ranks are filled in
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def _rows_of_ranks(
    paths: list[Path], offsets: NDArray[np.int64], rank: NDArray[np.int64], low: int, high: int
) -> pa.Table:
    """Rows with rank in `(low, high]`, sorted, with `rank` in its place among the columns."""
    parts: list[pa.Table] = []
    for k, path in enumerate(paths):
        mine = rank[offsets[k] : offsets[k + 1]]
        chosen = np.flatnonzero((mine > low) & (mine <= high))
        # The first shard is always among the parts, if only to give the columns.
        if len(chosen) or not parts:
            parts.append(pq.read_table(path).take(chosen).append_column("rank", pa.array(mine[chosen])))
    # Shards of different artefacts may have different catalogue columns: null where one is absent.
    table = pa.concat_tables(parts, promote_options="default").sort_by("rank")
    own = [name for name in SCORE_COLUMNS if name in table.column_names]
    return table.select(own + [name for name in table.column_names if name not in own])


#: First characters of cells that a spreadsheet takes for a formula, or skips to reach one.
FORMULA = tuple("=+-@\t\r\n")


def top_csv(table: Path, count: int) -> bytes:
    """The best rows as CSV; text that a spreadsheet would run as a formula is quoted."""
    file = pq.ParquetFile(table)
    names = ["rank", "id", "ra", "dec", "score", "probability", "spread", "qc", "label"]
    names = [name for name in names if name in file.schema_arrow.names]
    out = io.StringIO()
    # With this line end the writer also quotes a lone carriage return, which readers take for one.
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(names)
    left = count
    # The table is sorted already: its head is enough.
    for batch in file.iter_batches(batch_size=min(count, 10_000), columns=names):
        for record in batch.slice(0, left).to_pylist():
            values = [record[name] for name in names]
            writer.writerow(["'" + v if isinstance(v, str) and v[:1] in FORMULA else v for v in values])
        left -= batch.num_rows
        if left <= 0:
            break
    return out.getvalue().encode()


def joined_index(artefacts: list[Artefact], metadata: dict[str, str]) -> Iterator[pa.Table]:
    """The indexes of all tensor artefacts, one after the other, with the shard numbers of the scores.

    Parameters
    ----------
    artefacts
        Tensors, in the order of the scores.
    metadata
        Of the tables.

    Raises
    ------
    IntegrityError
        The checksum of an index is not the one in its manifest.
    """
    names = INDEX_COLUMNS
    # A column that only some have is null in the parts of the others.
    schema = pa.unify_schemas(
        [
            pa.schema([field for field in pq.read_schema(a.directory / INDEX) if field.name in names])
            for a in artefacts
        ],
        promote_options="default",
    ).with_metadata(metadata)
    if not any(a.manifest["index"]["rows"] for a in artefacts):
        yield schema.empty_table()
    first, start = 0, 0
    for artefact in artefacts:
        path, entry = artefact.directory / INDEX, artefact.manifest["index"]
        if hash_file(path) != (entry["bytes"], entry["sha256"]):
            raise IntegrityError(f"{path}: its checksum is not the one in the manifest")
        file, last = pq.ParquetFile(path), -1
        have = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=PIECE, columns=have, use_threads=False):
            columns = {name: batch[name] for name in have}
            place, number = batch["shard"].to_numpy(), batch["index"].to_numpy()
            # Targets that were rejected have no shard (-1) and keep that.
            columns["shard"] = pa.array(np.where(place >= 0, place + first, place))
            columns["index"] = pa.array(number + start)
            last = max(last, int(number.max(initial=-1)))
            parts = {name: columns.get(name, pa.nulls(len(batch))) for name in schema.names}
            yield pa.table(parts).cast(schema)
        first += len(artefact.shards)
        start += last + 1  # `index` stays unique over all artefacts
