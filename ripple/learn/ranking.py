"""The whole from the parts: one table sorted by score, its best rows, and the index of all targets."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.artefact import INDEX, Artefact
from ripple.errors import IntegrityError
from ripple.files import TEMPORARY, hash_file

#: Rows of the sorted table held at a time.
PIECE = 100_000
#: Columns that scoring makes, in their order; the others follow as the catalogue has them.
OWN = ("id", "ra", "dec", "score", "probability", "spread", "rank", "qc", "split", "shard", "row")


def write_sorted(paths: list[Path], target: Path) -> tuple[str, int]:
    """One table sorted by falling score, written in pieces of ranks; ties by shard and row.

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
    scores = [pq.read_table(path, columns=["score"])["score"].to_numpy() for path in paths]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in scores])]).astype(np.int64)
    everything = np.concatenate(scores) if scores else np.zeros(0)
    rank = np.empty(len(everything), np.int64)
    rank[np.argsort(-everything, kind="stable")] = np.arange(1, len(everything) + 1)
    del everything, scores
    staged = target.with_name(TEMPORARY + target.name)
    schema: pa.Schema | None = None
    out: Any = None
    total = int(offsets[-1])
    try:
        for low in range(0, max(total, 1), PIECE):
            piece = _piece(paths, offsets, rank, low, low + PIECE)
            schema = schema or piece.schema
            out = out or pq.ParquetWriter(staged, schema, compression="zstd")
            out.write_table(piece.cast(schema))
    finally:
        if out is not None:
            out.close()
    _, digest = hash_file(staged)
    staged.replace(target)
    return digest, total


def _piece(
    paths: list[Path], offsets: NDArray[np.int64], rank: NDArray[np.int64], low: int, high: int
) -> pa.Table:
    """Rows with rank in `(low, high]`, sorted, `rank` in its place among the columns."""
    parts: list[pa.Table] = []
    for k, path in enumerate(paths):
        mine = rank[offsets[k] : offsets[k + 1]]
        chosen = np.flatnonzero((mine > low) & (mine <= high))
        if len(chosen) or not parts:
            parts.append(pq.read_table(path).take(chosen).append_column("rank", pa.array(mine[chosen])))
    table = pa.concat_tables(parts, promote_options="default").sort_by("rank")
    own = [name for name in OWN if name in table.column_names]
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
    for batch in file.iter_batches(batch_size=min(count, 10_000), columns=names):
        for record in batch.slice(0, left).to_pylist():
            values = [record[name] for name in names]
            writer.writerow(["'" + v if isinstance(v, str) and v[:1] in FORMULA else v for v in values])
        left -= batch.num_rows
        if left <= 0:
            break
    return out.getvalue().encode()


def joined_index(artefacts: list[Artefact]) -> pa.Table:
    """The indexes of all tensor artefacts, one after the other, with the shard numbers of the scores."""
    names = ["index", "id", "ra", "dec", "status", "reason", "shard", "row"]
    parts, first, start = [], 0, 0
    for artefact in artefacts:
        path, entry = artefact.directory / INDEX, artefact.manifest["index"]
        if hash_file(path) != (entry["bytes"], entry["sha256"]):
            raise IntegrityError(f"{path}: not the bytes that were written")
        have = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in names if name in have])
        place, number = table["shard"].to_numpy(), table["index"].to_numpy()
        moved = np.where(place >= 0, place + first, place)
        table = table.set_column(table.column_names.index("shard"), "shard", pa.array(moved))
        table = table.set_column(table.column_names.index("index"), "index", pa.array(number + start))
        parts.append(table)
        first += len(artefact.shards)
        start += int(number.max()) + 1 if len(number) else 0
    return pa.concat_tables(parts, promote_options="default")
