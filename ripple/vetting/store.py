"""Grades on disk: a directory that says what is graded, and an SQLite file that only ever grows.

    GRADES/objects.parquet   what is graded: id, position, rank, probability, truth of hidden tests
    GRADES/pixels.npy        their pixels, so that grading needs nothing else
    GRADES/session.json      bands, pixel scale, widths of the PSFs
    GRADES/manifest.json     the scores that they come from, and the options
    GRADES/grades.sqlite     links, queues and grades; not part of the content, as it grows

A grade is on disk before it is acknowledged (write-ahead log, synced at each commit). Nothing is overwritten:
a second grade of the same place is another row, and the last one counts.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ripple.errors import IntegrityError

DATABASE = "grades.sqlite"
#: Certain, probable and possible lens, no lens, and not graded.
Grade = Literal["A", "B", "C", "X", "skip"]
GRADES: tuple[Grade, ...] = get_args(Grade)
#: What an X is.
KINDS = ("spiral", "ring", "merger", "artefact", "star", "other")
LONGEST_NOTE = 2000

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS graders (name TEXT PRIMARY KEY, token TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS queue (
  grader TEXT NOT NULL, place INTEGER NOT NULL, object INTEGER NOT NULL, PRIMARY KEY (grader, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grades (
  number INTEGER PRIMARY KEY AUTOINCREMENT, grader TEXT NOT NULL, place INTEGER NOT NULL,
  object INTEGER NOT NULL, grade TEXT NOT NULL, kind TEXT NOT NULL, note TEXT NOT NULL,
  seconds REAL, view TEXT NOT NULL, source TEXT NOT NULL, time TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS last ON grades (grader, place, number);
"""


@dataclass(frozen=True, slots=True)
class Given:
    """One grade as it was given.

    Parameters
    ----------
    place
        In the queue of the grader, from 0.
    grade
        One of `GRADES`.
    kind
        What an X is, one of `KINDS`; empty when nobody said.
    note
        Text of the grader.
    seconds
        From seeing the object to the grade; None when it was not timed.
    view
        The picture that was looked at.
    """

    place: int
    grade: Grade
    kind: str = ""
    note: str = ""
    seconds: float | None = None
    view: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """The grade that counts at one place of a queue; `first`: the object was not seen at an earlier place."""

    grader: str
    place: int
    object: int
    grade: Grade
    kind: str
    note: str
    seconds: float | None
    source: str
    first: bool


class GradeStore:
    """The SQLite file of a session; one connection, used by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        path = directory / DATABASE
        path.touch(mode=0o600)  # it has the links of the graders
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, check_same_thread=False, timeout=30.0, isolation_level=None)
        try:
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_TABLES)
        except sqlite3.DatabaseError as err:
            raise IntegrityError(f"{path}: {err}", hint="restore it from a copy") from None

    def close(self) -> None:
        """Close the file; SQLite merges its log into it."""
        self._base.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk at the end of the block."""
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._base.execute(query, values).fetchall()

    def secret(self) -> bytes:
        """Key of this session, from which the keys of objects are made."""
        with self._writing() as base:
            base.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (secrets.token_bytes(32),))
            (value,) = base.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
        return bytes(value)

    def order(self, grader: str) -> str | None:
        """The order of the queue of a grader; None for who is new."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", _order_of(grader))
        return bytes(rows[0][0]).decode() if rows else None  # type: ignore[call-overload]

    def join(self, grader: str, objects: NDArray[np.int64], order: str = "shuffle") -> str:
        """The token of a grader; who is new gets one, and the queue, which is in an order of that name."""
        with self._writing() as base:
            found = base.execute("SELECT token FROM graders WHERE name = ?", (grader,)).fetchone()
            if found is not None:
                return str(found[0])
            token = secrets.token_urlsafe(24)
            base.execute("INSERT INTO graders VALUES (?, ?)", (grader, token))
            base.execute("INSERT INTO facts VALUES (?, ?)", (_order_of(grader), order.encode()))
            places = ((grader, place, int(k)) for place, k in enumerate(objects))
            base.executemany("INSERT INTO queue VALUES (?, ?, ?)", places)
        return token

    def queue(self, grader: str) -> NDArray[np.int64]:
        """Objects by place."""
        rows = self._rows("SELECT object FROM queue WHERE grader = ? ORDER BY place", grader)
        return np.array([row[0] for row in rows], np.int64)

    def add(self, grader: str, given: Sequence[Given], source: str) -> None:
        """Keep grades; they are on disk when this returns.

        Parameters
        ----------
        grader
            Who.
        given
            At places of the grader's queue.
        source
            `one`, `mosaic`, `training` or `page`.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._writing() as base:
            for g in given:
                base.execute(
                    "INSERT INTO grades (grader, place, object, grade, kind, note, seconds, view, source, "
                    "time) SELECT grader, place, object, ?, ?, ?, ?, ?, ?, ? FROM queue "
                    "WHERE grader = ? AND place = ?",
                    (g.grade, g.kind, g.note, g.seconds, g.view, source, time, grader, g.place),
                )

    def latest(self, grader: str) -> dict[int, Record]:
        """Place -> the grade that counts there."""
        with self._lock:
            return {r.place: r for r in _records(self._base, grader)}


def _order_of(grader: str) -> str:
    return f"order of {grader}"


def spread(records: Iterable[Record], objects: int) -> NDArray[np.float64]:
    """Scatter of the grades of each object `(N,)`, X to A as 0 to 3, over graders; NaN for fewer than two.

    The first look of each grader counts.
    """
    levels = {"X": 0, "C": 1, "B": 2, "A": 3}
    first = {(r.object, r.grader): levels[r.grade] for r in records if r.first and r.grade in levels}
    found: dict[int, list[int]] = {}
    for (row, _), level in first.items():
        found.setdefault(row, []).append(level)
    out = np.full(objects, np.nan)
    for row, mine in found.items():
        if len(mine) > 1:
            out[row] = np.std(mine)
    return out


def _records(base: sqlite3.Connection, grader: str) -> Iterable[Record]:
    query = (
        "SELECT g.place, g.object, g.grade, g.kind, g.note, g.seconds, g.source, NOT EXISTS "
        "(SELECT 1 FROM queue q WHERE q.grader = g.grader AND q.object = g.object AND q.place < g.place) "
        "FROM grades g WHERE g.grader = ? AND g.number = "
        "(SELECT max(number) FROM grades h WHERE h.grader = g.grader AND h.place = g.place) ORDER BY g.place"
    )
    for place, k, grade, kind, note, seconds, source, first in base.execute(query, (grader,)):
        yield Record(grader, place, k, grade, kind, note, seconds, source, bool(first))


def read_grades(directory: Path) -> list[Record]:
    """The grades of everybody that count, by grader and place; a session may be running meanwhile.

    Raises
    ------
    IntegrityError
        The file is damaged.
    """
    path = directory / DATABASE
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)) as base:
            names = [name for (name,) in base.execute("SELECT name FROM graders ORDER BY name")]
            return [record for name in names for record in _records(base, name)]
    except sqlite3.DatabaseError as err:
        raise IntegrityError(f"{path}: {err}", hint="restore it from a copy") from None
