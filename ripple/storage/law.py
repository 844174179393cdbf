"""The conservation law of an index: accepted + rejected = asked for, every shard row has one owner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa


def check_law(index: pa.Table, shard_rows: Sequence[int], *, asked: int | None = None) -> dict[str, int]:
    """The conservation law: accepted + rejected = asked for, and every row of every shard is somebody's.

    Columns `index` (distinct), `status` (`ok`, `partial` or `rejected`), `reason`, `shard`, `row` are
    required. A row with `shard >= 0` lies there; `ok` and `partial` rows must lie somewhere, `rejected` ones
    give a reason.

    Parameters
    ----------
    index
        One row per target.
    shard_rows
        Rows of each shard.
    asked
        Number of targets asked for, when known independently of `index`.

    Returns
    -------
    dict
        `asked`, `ok`, `partial`, `rejected`.

    Raises
    ------
    IntegrityError
        Names the first row or column at fault.
    """
    law = Law(shard_rows)
    law.add(index)
    return law.counts(asked)


#: Rows looked at together: their words are Python objects for a moment, a hundred bytes a row.
_PIECE = 65_536


class Law:
    """The conservation law over an index that comes in parts; a few bytes for each row are kept."""

    def __init__(self, shard_rows: Sequence[int]) -> None:
        self._rows = np.asarray(shard_rows, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._rows, dtype=np.int64)])
        self._filled = np.zeros(int(self._starts[-1]), np.uint8)
        self._numbers: list[NDArray[np.int64]] = []
        self._counts = dict.fromkeys(("asked", "ok", "partial", "rejected"), 0)

    def add(self, index: pa.Table) -> None:
        """The next part; raises `IntegrityError` as `check_law` does."""
        import pyarrow as pa

        lacking = [k for k in ("index", "status", "reason", "shard", "row") if k not in index.column_names]
        if lacking:
            raise IntegrityError(f"index has no column {lacking[0]!r}")
        for name in ("index", "shard", "row"):
            column = index[name]
            if not pa.types.is_integer(column.type) or column.null_count:
                raise IntegrityError(f"index column {name!r} is {column.type}, not whole numbers throughout")
        for at in range(0, index.num_rows, _PIECE):
            self._add(index.slice(at, _PIECE))

    def _add(self, index: pa.Table) -> None:
        number, shard, row = (index[name].to_numpy() for name in ("index", "shard", "row"))
        status = np.asarray(index["status"].to_pylist(), "U8")
        bare = np.array([not value for value in index["reason"].to_pylist()], bool)
        self._numbers.append(number)
        _law(~np.isin(status, ("ok", "partial", "rejected")), number, "has an unknown status")
        _law((status != "rejected") & (shard < 0), number, "is accepted and in no shard")
        _law((status == "rejected") & bare, number, "is rejected without a reason")
        placed = shard >= 0
        _law(placed & ((shard >= len(self._rows)) | (row < 0)), number, "points outside the shards")
        at = shard[placed].astype(np.int64)
        _law(row[placed] >= self._rows[at], number[placed], "points behind the end of its shard")
        self._fill(self._starts[at] + row[placed])
        self._counts["asked"] += len(number)
        for name in ("ok", "partial", "rejected"):
            self._counts[name] += int((status == name).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        """Count how many own each row, up to 255."""
        known, count = np.unique(rows, return_counts=True)
        self._filled[known] = np.minimum(self._filled[known] + count, 255)

    def counts(self, asked: int | None = None) -> dict[str, int]:
        """After the last part: `asked`, `ok`, `partial`, `rejected`; raises as `check_law` does."""
        if asked is not None and self._counts["asked"] != asked:
            raise IntegrityError(f"{asked} targets were asked for, the index has {self._counts['asked']}")
        number = np.concatenate(self._numbers) if self._numbers else np.zeros(0, np.int64)
        if (np.diff(number) <= 0).any():
            known, count = np.unique(number, return_counts=True)
            _law(count > 1, known, "is there more than once")
        if (self._filled != 1).any():
            first = int(np.flatnonzero(self._filled != 1)[0])
            k = int(np.searchsorted(self._starts, first, side="right")) - 1
            raise IntegrityError(
                f"row {first - self._starts[k]} of shard {k} belongs to {self._filled[first]} targets, not 1"
            )
        return dict(self._counts)


def _law(bad: Any, number: Any, what: str) -> None:
    if bad.any():
        raise IntegrityError(f"index row {int(number[bad][0])} {what}")
