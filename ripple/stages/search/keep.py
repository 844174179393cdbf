"""`search --keep`: cutouts, tensors and scores of the best rows, so that they can be looked at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ripple.learn.config import ScoreConfig
from ripple.learn.scoring.ranking import SORTED
from ripple.learn.scoring.score import score
from ripple.runtime.log import say
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.stages.search.config import kept_of, only
from ripple.stages.search.detections import DETECTIONS
from ripple.storage.files import make_directory, write_atomic
from ripple.storage.parquet import parquet_bytes

#: Where they are, in the output of the search, and what is there.
KEPT, MADE = "kept", ("cutouts", "tensors", "scores")
#: Options of `fetch` that select targets: those of the kept rows are given by their table.
_SELECTING: dict[str, Any] = {
    "region": None,
    "tract": (),
    "patch": (),
    "hdu": None,
    "select": None,
    "grid": None,
    "ra_unit": None,
    "id_column": "id",
    "ra_column": "ra",
    "dec_column": "dec",
    "duplicate_radius": 0.0,
}


def keep_best(
    output: Path, keep: str, fetching: FetchConfig, preparing: PreprocessConfig, scoring: ScoreConfig
) -> int:
    """Write `kept/targets.parquet`, `kept/cutouts`, `kept/tensors` and `kept/scores`.

    Parameters
    ----------
    output
        A finished search.
    keep
        How many, or the probability that they exceed.
    fetching, preparing, scoring
        The options of the search; only the patches of these rows are read again.

    Returns
    -------
    Number of rows.
    """
    detections = output / DETECTIONS
    table = best_rows(detections if detections.is_file() else output / SORTED, keep)
    if not table.num_rows:
        say(f"no row has {keep}: nothing is kept")
        return 0
    where = output / KEPT
    make_directory(where)
    targets, data = where / "targets.parquet", parquet_bytes(table)
    if targets.is_file() and targets.read_bytes() != data:
        say(f"{where}: others are kept now; those of before are removed")
        for name in MADE:
            shutil.rmtree(where / name, ignore_errors=True)
    write_atomic(targets, data)
    labels = {"label_column": "label"} if "label" in table.column_names else {"label_column": None}
    cutouts, tensors, scores = (where / name for name in MADE)
    fetch(only(FetchConfig, fetching, **_SELECTING, **labels, targets=str(targets), output=str(cutouts)))
    preprocess(preparing.model_copy(update={"cutouts": str(cutouts), "output": str(tensors)}))
    score(scoring.model_copy(update={"tensors": (tensors,), "output": scores}))
    return int(table.num_rows)


def best_rows(path: Path, keep: str) -> pa.Table:
    """Id and position (and label) of the best rows of a sorted table, best first."""
    limit = kept_of(keep)
    names = [name for name in ("id", "ra", "dec", "label") if name in pq.read_schema(path).names]
    if isinstance(limit, int):
        return pq.read_table(path, columns=names).slice(0, limit)
    table = pq.read_table(path, columns=[*names, "probability"])
    return table.filter(pc.greater(table["probability"], limit)).select(names)
