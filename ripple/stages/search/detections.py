"""A blind search has many windows on one object: the best of them is kept, each place once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ripple.learn.scoring.ranking import SORTED
from ripple.sky.neighbours import chord, unit_vectors
from ripple.storage.files import write_atomic
from ripple.storage.parquet import parquet_bytes

DETECTIONS = "detections.parquet"
#: Columns of a window that a detection has.
COLUMNS = ["id", "ra", "dec", "score", "probability", "spread", "split", "qc"]
#: Best windows that are looked at; what lies beyond is far below any threshold.
MOST = 1_000_000


def accepted(table: pa.Table) -> pa.Table:
    """Windows that quality control accepted: of those with missing cells the network saw zeros."""
    return table.filter(pc.equal(table["accept"], 1))


def best_windows(directory: Path, separation: float, score: float) -> pa.Table:
    """Windows that are the best within `separation`, best first.

    Parameters
    ----------
    directory
        Of the search, its sorted table written.
    separation
        arcsec.
    score
        Worse windows are left out.

    Notes
    -----
    Patches and tracts that overlap have windows on the same place, too.
    """
    table = pq.read_table(directory / SORTED, columns=[*COLUMNS, "accept"]).slice(0, MOST)
    table = accepted(table.filter(pc.greater_equal(table["score"], score)))
    return once(table.select(COLUMNS), separation)


def once(table: pa.Table, separation: float) -> pa.Table:
    """Rows of a table, best first, without those that have a better one within `separation` arcsec."""
    kept = local_maxima(table["ra"].to_numpy(), table["dec"].to_numpy(), separation)
    return table.filter(pa.array(kept))


def write_detections(directory: Path, found: pa.Table) -> None:
    """Write `detections.parquet`: the windows, best first, with their rank."""
    rank = pa.array(np.arange(1, found.num_rows + 1))
    write_atomic(directory / DETECTIONS, parquet_bytes(found.add_column(6, "rank", rank)))


def local_maxima(ra: NDArray[np.float64], dec: NDArray[np.float64], separation: float) -> NDArray[np.bool_]:
    """`(N,)` rows, best first, without a better one that is kept within `separation` arcsec."""
    points = unit_vectors(ra, dec)
    kept = np.ones(len(points), bool)
    if not len(points):
        return kept
    tree = cKDTree(points)
    for row in range(len(points)):
        if kept[row]:  # suppress the worse ones around it
            near = np.array(tree.query_ball_point(points[row], chord(separation)))
            kept[near[near > row]] = False
    return kept
