"""What became of each known lens in a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ripple.errors import InputError, Reason
from ripple.sky.neighbours import arcsec, chord, unit_vectors
from ripple.stages.match.config import MatchConfig
from ripple.stages.match.known import Lens
from ripple.stages.report.figures import numbers
from ripple.stages.report.report import ranked_table
from ripple.storage.artefact import Artefact
from ripple.storage.candidates import Candidates, read_candidates

Float = NDArray[np.float64]

#: Rejections that say that there are no data at a position.
NO_DATA = frozenset(
    (
        Reason.NO_TRACT, Reason.NO_PATCH, Reason.NO_DATASET, Reason.MISSING_BAND, Reason.NO_DATA,
        Reason.OUTSIDE, Reason.MISSING_CELL, Reason.UNREADABLE_SOURCE,
    )
)  # fmt: skip


class Miss(StrEnum):
    """Why a known lens was not recovered."""

    NOT_COVERED = "not covered"
    NO_OBJECT = "no object"
    REJECTED = "rejected"
    LOW_SCORE = "low score"
    GRADED_DOWN = "graded down"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a known lens: `miss` is None when it was recovered; NaN and -1 stand for unknown."""

    miss: Miss | None
    detail: str
    id: str = ""
    separation: float = float("nan")
    rank: int = -1
    probability: float = float("nan")


@dataclass(frozen=True, slots=True)
class Searched:
    """The rows of a search: positions, and what became of each.

    Parameters
    ----------
    id, ra, dec
        `(N,)`.
    pixels
        Whether the row has pixels.
    reason, detail
        Of rejected rows; empty.
    rank
        -1 without a score.
    graded, test
        Probability after grading, NaN for rows that nobody graded; whether the row was a hidden test.
    ranked
        Rows with a score.
    complete
        False when only candidates are known, and not what else was searched.
    """

    id: tuple[str, ...]
    ra: Float
    dec: Float
    pixels: NDArray[np.bool_]
    reason: tuple[str, ...]
    detail: tuple[str, ...]
    rank: NDArray[np.int64]
    graded: Float
    test: NDArray[np.bool_]
    ranked: int
    complete: bool


def of_search(scores: Artefact | None, candidates: Path | None) -> Searched:
    """What a search looked at, from scores, candidates, or both.

    Raises
    ------
    InputError
        The candidates are those of other scores.
    """
    read = read_candidates(candidates) if candidates else None
    graded = _graded(read) if read else {}
    if scores is None:
        rows = list(graded.values())
        n = len(rows)
        return Searched(
            tuple(str(r["id"]) for r in rows), _floats(rows, "ra"), _floats(rows, "dec"), np.ones(n, bool),
            ("",) * n, ("",) * n, _floats(rows, "rank").astype(np.int64), _floats(rows, "probability"),
            np.array([bool(r["test"]) for r in rows], bool), n, False,
        )  # fmt: skip
    if read and read.scores != scores.digest:
        raise InputError(f"{candidates}: candidates of other scores than {scores.directory}")
    index, table = scores.index(), ranked_table(scores)
    shard, row, ranks = (table[name].to_pylist() for name in ("shard", "row", "rank"))
    where: dict[tuple[int, int], int] = dict(zip(zip(shard, row, strict=True), ranks, strict=True))
    places = zip(index["shard"].to_pylist(), index["row"].to_pylist(), strict=True)
    rank = np.array([where.get(place, -1) for place in places], np.int64)
    of = [graded.get(int(r)) for r in rank]
    text = {name: _text(index, name) for name in ("id", "reason", "detail")}
    return Searched(
        text["id"], numbers(index, "ra"), numbers(index, "dec"), np.asarray(index["shard"].to_numpy()) >= 0,
        text["reason"], text["detail"], rank,
        np.array([np.nan if r is None else r["probability"] for r in of], np.float64),
        np.array([bool(r and r["test"]) for r in of], bool), table.num_rows, True,
    )  # fmt: skip


def _text(table: pa.Table, name: str) -> tuple[str, ...]:
    if name not in table.column_names:
        return tuple("" for _ in range(table.num_rows))
    values: list[object] = table[name].to_pylist()
    return tuple("" if v is None else str(v) for v in values)


def _floats(rows: Sequence[dict[str, object]], name: str) -> Float:
    return np.array([row[name] for row in rows], np.float64)


def _graded(found: Candidates) -> dict[int, dict[str, object]]:
    """Rank -> candidate or hidden test, as it was graded."""
    rows: list[dict[str, object]] = [{**row, "test": False} for row in found.table.to_pylist()]
    rows += [{**row, "test": True} for row in found.tests.to_pylist()]
    return {int(str(row["rank"]).split(".")[0]): row for row in rows}


# Verdicts -----------------------------------------------------------


def verdicts(lenses: Sequence[Lens], searched: Searched, config: MatchConfig) -> list[Verdict]:
    """What became of each known lens."""
    known = unit_vectors([lens.ra for lens in lenses], [lens.dec for lens in lenses])
    placed = np.flatnonzero(np.isfinite(searched.ra) & np.isfinite(searched.dec))
    points = unit_vectors(searched.ra[placed], searched.dec[placed])
    if not len(placed):
        return [Verdict(Miss.NOT_COVERED, "nothing was searched")] * len(lenses)
    near = cKDTree(points).query_ball_point(known, chord(config.radius))
    filled = searched.pixels[placed]
    gap = cKDTree(points[filled]).query(known)[0] if filled.any() else np.full(len(known), np.inf)
    nearest = arcsec(gap)
    out = []
    for k, close in enumerate(near):
        if not close:
            out.append(_nothing_near(float(nearest[k]), searched, config))
            continue
        rows = placed[close]
        apart = arcsec(np.linalg.norm(points[close] - known[k], axis=1))
        out.append(_of_rows(rows, apart, searched, config))
    return out


def _nothing_near(nearest: float, searched: Searched, config: MatchConfig) -> Verdict:
    if not searched.complete:
        return Verdict(Miss.NO_OBJECT, f"nothing within {config.radius:g} arcsec was graded")
    if nearest > config.covered:
        return Verdict(Miss.NOT_COVERED, f"no pixels within {config.covered:g} arcsec")
    return Verdict(
        Miss.NO_OBJECT, f"no row within {config.radius:g} arcsec; the nearest is {nearest:.1f} away"
    )


def _of_rows(rows: NDArray[np.intp], apart: Float, searched: Searched, config: MatchConfig) -> Verdict:
    """The verdict on the best of several rows at a lens: the best rank, else the nearest."""
    rank = searched.rank[rows]
    ranked = np.where(rank > 0, rank, np.iinfo(np.int64).max)
    best = int(np.lexsort((apart, ranked))[0])
    k, facts = int(rows[best]), (float(apart[best]), int(rank[best]), float(searched.graded[rows[best]]))
    miss, detail = _fate(k, searched, config)
    return Verdict(miss, detail, searched.id[k], *facts)


def _fate(k: int, searched: Searched, config: MatchConfig) -> tuple[Miss | None, str]:
    rank, p = int(searched.rank[k]), float(searched.graded[k])
    test = ", as a hidden test" if searched.test[k] else ""
    if np.isfinite(p):
        text = f"rank {rank:,}, graded{test}: probability {p:.3f}"
        return (None if p >= config.probability else Miss.GRADED_DOWN), text
    if 0 < rank <= config.top:
        return None, f"rank {rank:,}"
    if reason := searched.reason[k]:
        found = f"{reason}: {searched.detail[k]}" if searched.detail[k] else reason
        return (Miss.NOT_COVERED if reason in NO_DATA and rank < 0 else Miss.REJECTED), found
    if rank < 0:
        return Miss.REJECTED, "no score"
    return Miss.LOW_SCORE, f"rank {rank:,} of {searched.ranked:,}, below --top {config.top:,}"
