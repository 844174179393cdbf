"""The outcome of each target, from plan to index: `ok`, or `partial` or `rejected` with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import Reason

Status = Literal["ok", "partial", "rejected"]
#: By increasing seriousness: a row keeps its outcome unless a later one is more serious.
STATUSES: tuple[Status, ...] = ("ok", "partial", "rejected")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one target.

    Parameters
    ----------
    status
        `ok`, `partial` (delivered, but something is missing) or `rejected` (not delivered, or not usable).
    reason
        Why it is not `ok`; None when it is.
    detail
        The file or the value behind the reason, for people.
    """

    status: Status = "ok"
    reason: Reason | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        assert (self.reason is None) == (self.status == "ok")


OK = Outcome()


class Outcomes:
    """Outcomes of N rows: five bytes per row, and each distinct outcome once.

    A row keeps its first outcome unless a later one is more serious: rejected, then partial, then ok.

    Parameters
    ----------
    count
        N; all rows are `ok` at first.
    """

    def __init__(self, count: int) -> None:
        # `(N,)` number of the outcome in `_known`, and of its status in `STATUSES`.
        self._kind, self._grade = np.zeros(count, np.int32), np.zeros(count, np.int8)
        self._kinds: dict[Outcome, int] = {OK: 0}
        self._known: list[Outcome] = [OK]

    def add(self, rows: NDArray[Any] | list[int], outcome: Outcome) -> None:
        """Give rows (numbers or a mask) an outcome."""
        at = np.asarray(rows)
        at = np.flatnonzero(at) if at.dtype == bool else at.astype(np.intp)
        grade = STATUSES.index(outcome.status)
        at = at[self._grade[at] < grade]  # rows whose outcome is less serious
        self._kind[at], self._grade[at] = self._number(outcome), grade

    def put(self, rows: NDArray[Any], other: Outcomes) -> None:
        """Replace the outcomes of rows (numbers) by those of `other`, which has as many rows."""
        # From numbers of `other` to numbers here: no loop over rows.
        numbers = np.array([self._number(outcome) for outcome in other._known], np.int32)
        self._kind[rows], self._grade[rows] = numbers[other._kind], other._grade

    def _number(self, outcome: Outcome) -> int:
        """Position of an outcome in `_known`, where it is added when it is new."""
        if outcome not in self._kinds:
            self._kinds[outcome] = len(self._known)
            self._known.append(outcome)
        return self._kinds[outcome]

    def has(self, status: Status) -> NDArray[np.bool_]:
        """`(N,)` rows with a status."""
        return np.asarray(self._grade == STATUSES.index(status))

    def count(self, status: Status) -> int:
        """Rows with a status."""
        return int(np.count_nonzero(self.has(status)))

    def groups(self, *statuses: Status) -> Iterator[tuple[NDArray[np.intp], Outcome]]:
        """Rows, ascending, by outcome; without a status, of all rows that are not `ok`."""
        # Sorted by number, the rows of each outcome are one slice.
        order = np.argsort(self._kind, kind="stable")
        ends = np.searchsorted(self._kind[order], np.arange(-1, len(self._known)), side="right")
        for k, outcome in enumerate(self._known):
            if outcome.status in (statuses or STATUSES[1:]) and ends[k + 1] > ends[k]:
                yield order[ends[k] : ends[k + 1]], outcome

    def reasons(self, *statuses: Status) -> dict[str, int]:
        """Number of rows for each reason."""
        found: Counter[str] = Counter()
        for rows, outcome in self.groups(*statuses):
            found[str(outcome.reason)] += len(rows)
        return dict(sorted(found.items()))

    def columns(self) -> dict[str, pa.Array]:
        """The columns `status`, `reason` and `detail` of an index, text."""
        words = [(known.status, str(known.reason or ""), known.detail) for known in self._known]
        # Through dictionaries: Arrow copies the few texts to millions of rows faster than Python could.
        kind = pa.array(self._kind)
        return {
            name: pa.DictionaryArray.from_arrays(kind, pa.array(values, pa.string())).cast(pa.string())
            for name, values in zip(("status", "reason", "detail"), zip(*words, strict=True), strict=True)
        }

    def record(self) -> list[Any]:
        """The rows that are not `ok`, as JSON values for `read_record`."""
        return [
            [outcome.status, str(outcome.reason), outcome.detail, rows.tolist()]
            for rows, outcome in self.groups()
        ]

    @classmethod
    def read_record(cls, count: int, record: Iterable[Any]) -> Self:
        """The outcomes from which `record` was made."""
        found = cls(count)
        for status, reason, detail, rows in record:
            found.add(rows, Outcome(status, Reason(reason), detail))
        return found

    @classmethod
    def read_columns(cls, columns: Mapping[str, Any]) -> Self:
        """From the columns of an index, lists of text or None; `detail` may be absent."""
        status, reason = columns["status"], columns["reason"]
        detail = columns.get("detail") or [""] * len(status)
        found = cls(len(status))
        for row, (state, why, text) in enumerate(zip(status, reason, detail, strict=True)):
            if state != "ok":
                found.add([row], Outcome(state, Reason(why), text or ""))
        return found

    def __getitem__(self, row: int) -> Outcome:
        return self._known[int(self._kind[row])]

    def __len__(self) -> int:
        return len(self._kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcomes):
            return NotImplemented
        # By content: the same outcomes may have been added in another order.
        mine, theirs = self.columns(), other.columns()
        return all(mine[name].equals(theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]  # outcomes change

    def __repr__(self) -> str:
        return f"<Outcomes of {len(self)} rows: {', '.join(f'{self.count(s)} {s}' for s in STATUSES)}>"
