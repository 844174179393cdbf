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
#: Best windows that are looked at; what lies beyond is far below any threshold.
MOST = 1_000_000


def write_detections(directory: Path, separation: float, threshold: float) -> int:
    """Write the windows that are the best within `separation`, best first; return how many there are.

    Parameters
    ----------
    directory
        Of the search, its sorted table written.
    separation
        arcsec.
    threshold
        Score below which a window is no detection.

    Notes
    -----
    Windows that quality control did not accept, such as those with missing cells, are no detections: the
    network has no verdict on zeros. Patches and tracts that overlap have windows on the same place, too.
    """
    table = pq.read_table(directory / SORTED).slice(0, MOST)
    good = pc.greater_equal(table["score"], threshold)
    if "accept" in table.column_names:
        good = pc.and_(good, pc.equal(table["accept"], 1))
    table = table.filter(good)
    kept = local_maxima(table["ra"].to_numpy(), table["dec"].to_numpy(), separation)
    names = ("id", "ra", "dec", "score", "probability", "spread", "rank", "split", "qc")
    found: pa.Table = table.take(np.flatnonzero(kept)).select([n for n in names if n in table.column_names])
    write_atomic(directory / DETECTIONS, parquet_bytes(found))
    return int(found.num_rows)


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
