"""The grades of several sessions as one table: objects against graders."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.config import canonical_json
from ripple.errors import InputError
from ripple.vetting.consensus import SCALE
from ripple.vetting.session import Session
from ripple.vetting.store import Record, read_grades


@dataclass(frozen=True, slots=True)
class Panel:
    """Objects in order of rank, and what graders said.

    Parameters
    ----------
    place
        `(N, 2)` of each object: which session, and which row in it.
    truth
        `(N,)` 1 and 0 of hidden tests, -1 of candidates.
    graders
        Names, in alphabetical order.
    level, again
        `(N, J)` level at the first and at the second look; -1 where there is none.
    seconds
        Median seconds per object of each grader, NaN where nothing was timed.
    kinds, notes
        `(N,)` what an X is, most frequent first, and the notes with the names of who wrote them.
    told
        Grades of hidden tests that were left out because their truth was told (`vet --training`).
    digests
        SHA-256 of the grades of each session.
    """

    place: NDArray[np.int64]
    truth: NDArray[np.int8]
    graders: tuple[str, ...]
    level: NDArray[np.int8]
    again: NDArray[np.int8]
    seconds: NDArray[np.float64]
    kinds: tuple[str, ...]
    notes: tuple[str, ...]
    told: int
    digests: tuple[str, ...]

    @property
    def tests(self) -> NDArray[np.intp]:
        """Hidden tests that somebody graded."""
        return np.flatnonzero((self.truth >= 0) & (self.level >= 0).any(axis=1))

    @property
    def candidates(self) -> NDArray[np.intp]:
        """Candidates that somebody graded."""
        return np.flatnonzero((self.truth < 0) & (self.level >= 0).any(axis=1))


def grades_digest(records: Sequence[Record]) -> str:
    """SHA-256 of the grades that count in a session."""
    rows = [[r.grader, r.place, r.object, r.grade, r.kind, r.note, r.source] for r in records]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def gather(sessions: Sequence[Session]) -> Panel:
    """The grades of all sessions; one person may have graded in several.

    Raises
    ------
    InputError
        The sessions are of different scores, or nobody has graded.
    """
    scores = {str(s.manifest["inputs"]["scores"]) for s in sessions}
    if len(scores) > 1:
        names = ", ".join(str(s.directory) for s in sessions)
        raise InputError(
            f"{names}: these are grades of different scores", hint="give those of the same scores"
        )
    place, row_of = _objects(sessions)
    # Read once: a session may go on meanwhile, and the digest is of the grades that were fused.
    read = [read_grades(s.directory) for s in sessions]
    records = [(k, r) for k, mine in enumerate(read) for r in mine if r.grade != "skip"]
    if not records:
        raise InputError(f"{sessions[0].directory}: nobody has graded yet", hint="run ripple vet")
    truth = np.full(len(place), -1, np.int8)
    for k, session in enumerate(sessions):
        for row, true in enumerate(session.truth.tolist()):
            at = row_of[k, row]
            truth[at] = max(truth[at], true)
    graders = tuple(sorted({r.grader for _, r in records}))
    first, again = np.full((2, len(place), len(graders)), -1, np.int8)
    told, said = 0, [(row_of[k, r.object], r) for k, r in records]
    for at, record in said:
        if record.source == "training" and truth[at] >= 0:
            told += 1
            continue
        j = graders.index(record.grader)
        table = first if first[at, j] < 0 else again
        table[at, j] = SCALE.index(record.grade)
    seconds = [[r.seconds for _, r in said if r.grader == g and r.seconds] for g in graders]
    median = np.array([np.median(each) if each else np.nan for each in seconds])
    kinds, notes = _words(said, len(place))
    digests = tuple(map(grades_digest, read))
    return Panel(place, truth, graders, first, again, median, kinds, notes, told, digests)


def _objects(sessions: Sequence[Session]) -> tuple[NDArray[np.int64], dict[tuple[int, int], int]]:
    """Objects of all sessions by rank, one with several sessions once; and (session, row) -> object."""
    ranks = [s.objects["rank"].to_numpy() for s in sessions]
    found: dict[int, list[tuple[int, int]]] = {}
    for k, of in enumerate(ranks):
        for row, rank in enumerate(of.tolist()):
            found.setdefault(rank, []).append((k, row))
    ordered = [found[rank] for rank in sorted(found)]
    row_of = {where: at for at, places in enumerate(ordered) for where in places}
    return np.array([places[0] for places in ordered], np.int64).reshape(-1, 2), row_of


def _words(said: Sequence[tuple[int, Record]], count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kinds: list[Counter[str]] = [Counter() for _ in range(count)]
    notes: list[list[str]] = [[] for _ in range(count)]
    for at, record in said:
        kinds[at].update([record.kind] if record.kind else [])
        notes[at] += [f"{record.grader}: {record.note}"] if record.note else []
    # Equally frequent ones in alphabetical order.
    best = tuple(min(c, key=lambda kind, c=c: (-c[kind], kind)) if c else "" for c in kinds)  # type: ignore[misc]
    return best, tuple("; ".join(each) for each in notes)
