"""The members of a committee: what each of them says about the objects of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.errors import ConfigError, ContractError, DataError, IntegrityError
from ripple.learn.model.calibrate import one_in
from ripple.sky.neighbours import separation
from ripple.stages.report.figures import numbers
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.ids import check_distinct
from ripple.storage.labels import plain_class

Float = NDArray[np.float64]
#: Rows with one id lie within this, arcsec, or the ids are those of other objects.
SAME_PLACE = 1.0
#: Columns of a table of scores that a committee reads, where they are there.
_READ = ("id", "ra", "dec", "score", "probability", "split", "accept")


@dataclass(frozen=True, slots=True)
class Member:
    """Scores of one model.

    Parameters
    ----------
    artefact
        The scores.
    table
        One row per scored row, in the order of shard and row: `id` (text), `score` and what else of
        position, probability, split and verdict of quality control there is.
    ranked_by
        Name of the class that the scores are about.
    """

    artefact: Artefact
    table: pa.Table
    ranked_by: str

    @property
    def prevalence(self) -> float | None:
        """Fraction of lenses at which its probabilities hold; None without any."""
        return self.artefact.attributes.get("prevalence")


@dataclass(frozen=True, slots=True)
class Said:
    """What M members say about the N rows of the first.

    Parameters
    ----------
    score, probability
        `(M, N)`, NaN where a member has none.
    split
        M times `(N,)`; `test` where a member has no score.
    notes
        What was left out or is missing.
    """

    score: Float
    probability: Float
    split: list[NDArray[np.str_]]
    notes: tuple[str, ...]


def open_members(paths: Sequence[str]) -> list[Member]:
    """The members, which must be able to speak of the same thing.

    Raises
    ------
    ConfigError
        Fewer than two are given, or one twice.
    ContractError
        One regresses quantities, or they rank by different classes, or state different prevalences.
    DataError
        An id occurs twice in one of them.
    IntegrityError
        One is damaged.
    """
    if len(paths) < 2:
        raise ConfigError("committee: give two or more directories of scores, as in scores-a scores-b")
    artefacts = [open_artefact(Path(path), "scores") for path in paths]
    if len({a.digest for a in artefacts}) < len(artefacts):
        raise ConfigError("committee: the same scores are given twice", hint="give each member once")
    members = [Member(a, _table(a), _ranked_by(a)) for a in artefacts]
    first = members[0]
    for other in members[1:]:
        if other.ranked_by != first.ranked_by:
            raise ContractError(
                f"{first.artefact.directory} ranks by {first.ranked_by!r}, {other.artefact.directory} by "
                f"{other.ranked_by!r}",
                hint="score with --rank-by for one class that both models have",
            )
    stated = {m.prevalence: m for m in members if m.prevalence is not None}
    if len(stated) > 1:
        said = [f"{m.artefact.directory}: {one_in(p)} is a lens" for p, m in stated.items()]
        raise ContractError(
            f"committee: the probabilities hold at different prevalences: {', '.join(said)}",
            hint="score all members with one --prevalence",
        )
    return members


def _ranked_by(artefact: Artefact) -> str:
    """The class that scores are about; `lens` also for every class but the one that means none."""
    attributes = artefact.attributes
    output, labels = attributes.get("output", "lens"), attributes.get("lens_labels", [1])
    if output == "regression":
        raise ContractError(
            f"{artefact.directory}: its model regresses quantities", hint="give scores of models with classes"
        )
    if "ranked_by" in attributes:  # a committee
        return str(attributes["ranked_by"])
    if output == "lens" or len(labels) != 1:
        return "lens"
    names = pq.read_schema(artefact.shard_path(0)).names if artefact.shards else []
    # Those before the flags are the model's, in the order of the labels; the others are of the catalogue.
    own = names[: names.index("qc")] if "qc" in names else names
    classes = [name.removeprefix("p_") for name in own if name.startswith("p_")]
    return plain_class(classes[labels[0]]) if labels[0] < len(classes) else str(labels[0])


def _table(artefact: Artefact) -> pa.Table:
    """The rows of all shards, ids as text.

    Raises
    ------
    DataError
        An id occurs twice.
    IntegrityError
        A shard has not the columns of scores.
    """
    parts = []
    for k in range(len(artefact.shards)):
        path = artefact.verified_path(k)
        names = pq.read_schema(path).names
        if not {"id", "score"} <= set(names):
            raise IntegrityError(f"{path}: no columns id and score", hint="score again")
        part = pq.read_table(path, columns=[name for name in _READ if name in names], use_threads=False)
        parts.append(part.set_column(part.column_names.index("id"), "id", pc.cast(part["id"], pa.string())))
    if not any(part.num_rows for part in parts):
        raise DataError(f"{artefact.directory} has no rows", hint="score tensors with rows")
    table = pa.concat_tables(parts, promote_options="default")
    check_distinct(table["id"], artefact.directory)
    return table


def said_by(members: Sequence[Member]) -> Said:
    """What the members say about the rows of the first.

    Raises
    ------
    DataError
        Two members have fewer than half of their objects in common, or other objects under the same ids.
    """
    _check_shared(members)
    first, rows = members[0].table, members[0].table.num_rows
    score, probability = np.full((2, len(members), rows), np.nan)
    splits, notes = [], []
    for k, member in enumerate(members):
        at = _places(first["id"], member.table["id"])
        _check_places(members[0], member, at)
        there, known = at >= 0, at[at >= 0]
        score[k, there] = numbers(member.table, "score")[known]
        probability[k, there] = numbers(member.table, "probability")[known]
        has = np.isfinite(score[k])
        splits.append(_splits(member.table, at, has))
        notes += _notes(k + 1, member.table, at, has)
    return Said(score, probability, splits, tuple(notes))


def _check_shared(members: Sequence[Member]) -> None:
    for k, one in enumerate(members):
        for other in members[:k]:
            shared = int((_places(one.table["id"], other.table["id"]) >= 0).sum())
            most = max(one.table.num_rows, other.table.num_rows)
            if 2 * shared < most:
                raise DataError(
                    f"{other.artefact.directory} and {one.artefact.directory} have {shared:,} of {most:,} "
                    "ids in common, fewer than half",
                    hint="give scores of the same objects",
                )


def _check_places(first: Member, member: Member, at: NDArray[np.int64]) -> None:
    """Refuse other objects under the same ids."""
    here, there = np.flatnonzero(at >= 0), at[at >= 0]
    places = [
        numbers(m.table, name)[rows] for m, rows in ((first, here), (member, there)) for name in ("ra", "dec")
    ]
    apart = separation(*places)
    far = np.flatnonzero(apart > SAME_PLACE)  # a row without a position is not
    if len(far):
        worst = far[0]
        raise DataError(
            f"the id {first.table['id'][int(here[worst])].as_py()!r} is another object in "
            f"{member.artefact.directory} than in {first.artefact.directory}: {apart[worst]:.3g} arcsec away "
            f"({len(far):,} such rows)",
            hint="give scores of the same objects",
        )


def _places(wanted: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """`(N,)` position of each id among others, -1 where it is not there."""
    found = pc.index_in(wanted, value_set=among.combine_chunks())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), np.int64)


def _splits(table: pa.Table, at: NDArray[np.int64], has: NDArray[np.bool_]) -> NDArray[np.str_]:
    """`(N,)` what a member used the rows for: `test` where it has no score."""
    out = np.full(len(at), "test", "U10")
    known = ["unknown"] * table.num_rows if "split" not in table.column_names else table["split"].to_pylist()
    out[has] = np.array([str(v) for v in known], "U10")[at[has]]
    return out


def _notes(number: int, table: pa.Table, at: NDArray[np.int64], has: NDArray[np.bool_]) -> list[str]:
    """What a member lacks, or has too much; members go by their number, as directories may be moved."""
    notes = []
    if lacking := int((~has).sum()):
        notes.append(f"member {number} has no score of {lacking:,} rows: theirs are of the other members")
    if more := table.num_rows - int((at >= 0).sum()):
        notes.append(f"{more:,} rows of member {number} are not among those of member 1 and are left out")
    if "accept" in table.column_names:
        refused = int((numbers(table, "accept")[at[has]] == 0).sum())
        if number > 1 and refused:
            notes.append(f"quality control of member {number} does not accept {refused:,} rows; they count")
    return notes
