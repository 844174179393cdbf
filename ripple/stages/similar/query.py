"""What a search looks for: the vectors of examples, found by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.config import suggest
from ripple.errors import ConfigError
from ripple.storage.artefact import Artefact
from ripple.storage.embeddings import mapped

#: Ids among which the nearest to an unknown one are looked for.
_KNOWN = 5000
#: Digits of a similarity after the point: beyond them the order of the sums speaks.
DIGITS = 12


@dataclass(frozen=True, slots=True)
class Example:
    """A row by its place, and the number of the row over all shards; `vector` is `(F,)` int8."""

    shard: int
    number: int
    vector: NDArray[np.int8]


def starts(artefact: Artefact) -> NDArray[np.int64]:
    """Number of the first row of each shard, and at the end the number of all rows."""
    return np.concatenate([[0], np.cumsum([shard.rows for shard in artefact.shards], dtype=np.int64)])


def examples_of(artefact: Artefact, ids: Sequence[str]) -> dict[str, Example]:
    """The rows with these ids.

    Raises
    ------
    ConfigError
        No row has one of the ids (names the nearest ones), or several have.
    """
    first = starts(artefact)
    found: dict[str, list[Example]] = {name: [] for name in ids}
    for k in range(len(artefact.shards)):
        with mapped(artefact, k, ("id",), check=False) as rows:  # the search itself compares checksums
            for name, mine in found.items():
                for row in _rows_with(rows.table["id"], name):
                    mine.append(Example(k, int(first[k]) + row, rows.vector[row].copy()))
    for name, mine in found.items():
        if not mine:
            raise ConfigError(
                f"{artefact.directory} has no row {name!r}" + suggest(name, _near(artefact, name))
            )
        if len(mine) > 1:
            raise ConfigError(
                f"{artefact.directory} has {len(mine)} rows {name!r}",
                hint="embed the tensors into directories of their own, and give one with --examples",
            )
    return {name: mine[0] for name, mine in found.items()}


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: directions `(K, F)` and `(M, F)` float64 of examples and of counter-examples."""

    like: NDArray[np.float64]
    unlike: NDArray[np.float64]

    @classmethod
    def of(cls, like: Sequence[Example], unlike: Sequence[Example] = ()) -> Self:
        """The query of some rows."""
        features = like[0].vector.shape
        sides = (
            np.array([e.vector for e in side], np.int8).reshape(-1, *features) for side in (like, unlike)
        )
        return cls(*map(unit, sides))

    def similarity(self, vector: NDArray[np.int8]) -> NDArray[np.float64]:
        """Largest cosine of each vector `(N, F)` with an example; minus infinity where a counter-example is
        nearer.

        The nearest example, not the mean of all: lenses differ from each other, and the mean of five is like
        none of them (docs/howto/find-similar.md).
        """
        there = unit(vector)
        # Rounded, so that how the sums were taken does not speak.
        best = np.round(there @ self.like.T, DIGITS).max(axis=1, initial=-np.inf)
        other = np.round(there @ self.unlike.T, DIGITS).max(axis=1, initial=-np.inf)
        return np.where(other > best, -np.inf, best)


def unit(vector: NDArray[np.int8]) -> NDArray[np.float64]:
    """Vectors `(..., F)` at unit length; zeros stay zero."""
    value = vector.astype(np.float64)
    # Sums of whole numbers: exact, whatever their order.
    length = np.sqrt((value**2).sum(axis=-1, keepdims=True))
    return np.asarray(value / np.maximum(length, 1.0))


def _rows_with(column: pa.ChunkedArray, name: str) -> list[int]:
    if pa.types.is_integer(column.type):
        # As text, as ids are everywhere: "007" is not 7.
        if not name.removeprefix("-").isdecimal() or str(int(name)) != name or abs(int(name)) >= 1 << 63:
            return []
        same = pc.equal(column, pa.scalar(int(name), pa.int64()))
    else:
        same = pc.equal(column, name)
    # `pc.any` is quick where, as nearly always, there is none.
    return np.flatnonzero(same.to_numpy()).tolist() if pc.any(same).as_py() else []


def _near(artefact: Artefact, name: str) -> list[str]:
    """Some ids that may be meant: those that begin alike, then the first ones."""
    alike: list[str] = []
    others: list[str] = []
    for k in range(len(artefact.shards)):
        with mapped(artefact, k, ("id",), check=False) as rows:
            column = pc.cast(rows.table["id"], pa.string())
            begin = pc.starts_with(column, pattern=name[: max(len(name) - 2, 1)])
            alike += column.filter(begin).slice(0, _KNOWN - len(alike)).to_pylist()
            others += column.slice(0, _KNOWN - len(others)).to_pylist()
    return list(dict.fromkeys([*alike, *others]))[:_KNOWN]
