"""The conservation law of an index: accepted + rejected = requested, and every shard row has one target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import IntegrityError


def check_law(index: pa.Table, shard_rows: Sequence[int], *, asked: int | None = None) -> dict[str, int]:
    """Check that no target was lost: accepted + rejected = requested, and every shard row has one target.

    Columns `index` (distinct), `status` (`ok`, `partial` or `rejected`), `reason`, `shard`, `row` are
    required. A row with `shard >= 0` is in that shard; `ok` and `partial` rows must be in one, `rejected`
    rows must have a reason.

    Parameters
    ----------
    index
        One row per target.
    shard_rows
        Rows of each shard.
    asked
        Number of requested targets, when known independently of `index`.

    Returns
    -------
    dict
        `asked`, `ok`, `partial`, `rejected`.

    Raises
    ------
    IntegrityError
        Names the first row or column that is wrong.
    """
    law = Law(shard_rows)
    law.add(index)
    return law.counts(asked)


#: Rows checked together: their texts become Python objects, which take a hundred bytes a row.
_PIECE = 65_536


class Law:
    """The conservation law over an index that comes in parts; keeps a few bytes for each row."""

    def __init__(self, shard_rows: Sequence[int]) -> None:
        self._rows = np.asarray(shard_rows, np.int64)
        # All rows of all shards in one numbering; `_starts` is the first of each shard.
        self._starts = np.concatenate([[0], np.cumsum(self._rows, dtype=np.int64)])
        self._filled = np.zeros(int(self._starts[-1]), np.uint8)
        self._numbers: list[NDArray[np.int64]] = []
        self._counts = dict.fromkeys(("asked", "ok", "partial", "rejected"), 0)

    def add(self, index: pa.Table) -> None:
        """Check the next part; raises `IntegrityError` as `check_law` does."""
        lacking = [k for k in ("index", "status", "reason", "shard", "row") if k not in index.column_names]
        if lacking:
            raise IntegrityError(f"the index has no column {lacking[0]!r}")
        for name in ("index", "shard", "row"):
            column = index[name]
            if not pa.types.is_integer(column.type) or column.null_count:
                raise IntegrityError(
                    f"index column {name!r} ({column.type}) must have a whole number in every row"
                )
        for at in range(0, index.num_rows, _PIECE):
            self._add(index.slice(at, _PIECE))

    def _add(self, index: pa.Table) -> None:
        number, shard, row = (index[name].to_numpy() for name in ("index", "shard", "row"))
        # "rejected" has 8 letters; None becomes "None", which is no status.
        status = np.asarray(index["status"].to_pylist(), "U8")
        no_reason = np.array([not value for value in index["reason"].to_pylist()], bool)
        self._numbers.append(number)
        _require_none(~np.isin(status, ("ok", "partial", "rejected")), number, "has an unknown status")
        _require_none((status != "rejected") & (shard < 0), number, "is accepted but in no shard")
        _require_none((status == "rejected") & no_reason, number, "is rejected without a reason")
        # Rejected rows may be in a shard: `preprocess` keeps them for inspection.
        placed = shard >= 0
        outside = placed & ((shard >= len(self._rows)) | (row < 0))
        _require_none(outside, number, "points outside the shards")
        at = shard[placed].astype(np.int64)
        _require_none(row[placed] >= self._rows[at], number[placed], "points beyond the end of its shard")
        self._fill(self._starts[at] + row[placed])
        self._counts["asked"] += len(number)
        for name in ("ok", "partial", "rejected"):
            self._counts[name] += int((status == name).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        """Count the targets of each shard row, up to 255."""
        known, count = np.unique(rows, return_counts=True)
        self._filled[known] = np.minimum(self._filled[known] + count, 255)

    def counts(self, asked: int | None = None) -> dict[str, int]:
        """After the last part: `asked`, `ok`, `partial`, `rejected`; raises as `check_law` does."""
        if asked is not None and self._counts["asked"] != asked:
            raise IntegrityError(f"{asked} targets were requested, but the index has {self._counts['asked']}")
        number = np.concatenate(self._numbers) if self._numbers else np.zeros(0, np.int64)
        # Ascending numbers, the usual case, are distinct without sorting.
        if (np.diff(number) <= 0).any():
            known, count = np.unique(number, return_counts=True)
            _require_none(count > 1, known, "occurs more than once")
        if (self._filled != 1).any():
            first = int(np.flatnonzero(self._filled != 1)[0])
            k = int(np.searchsorted(self._starts, first, side="right")) - 1
            raise IntegrityError(
                f"row {first - self._starts[k]} of shard {k} belongs to {self._filled[first]} targets, not 1"
            )
        return dict(self._counts)


def _require_none(bad: NDArray[np.bool_], number: NDArray[np.integer], what: str) -> None:
    """Raise with the number of the first bad row."""
    if bad.any():
        raise IntegrityError(f"index row {int(number[bad][0])} {what}")
