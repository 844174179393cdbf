"""Why rows are rejected or partial, for catalogues of tens of millions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason

Verdict = tuple[Reason, str]


class Verdicts(Mapping[int, Verdict]):
    """Row -> reason and text, for some of N rows: four bytes a row, and each different verdict once.

    Parameters
    ----------
    count
        N.
    known
        Verdicts to begin with.
    """

    def __init__(self, count: int, known: Mapping[int, Verdict] | None = None) -> None:
        self._kind = np.full(count, -1, np.int32)
        self._kinds: dict[Verdict, int] = {}
        self._verdicts: list[Verdict] = []
        for row, verdict in (known or {}).items():
            self.add([row], verdict)

    def add(self, rows: NDArray[np.intp] | list[int], verdict: Verdict) -> None:
        """A verdict on rows that have none yet; on the others the first one stands."""
        at = np.asarray(rows, np.intp)
        if verdict not in self._kinds:
            self._kinds[verdict] = len(self._verdicts)
            self._verdicts.append(verdict)
        self._kind[at[self._kind[at] < 0]] = self._kinds[verdict]

    def without(self, other: Verdicts) -> Verdicts:
        """These but for the rows that the other has verdicts on."""
        found = Verdicts(0)
        found._kind = np.where(other.mask, np.int32(-1), self._kind)
        found._kinds, found._verdicts = self._kinds, self._verdicts
        return found

    @property
    def mask(self) -> NDArray[np.bool_]:
        """`(N,)` rows with a verdict."""
        return np.asarray(self._kind >= 0)

    def groups(self) -> Iterator[tuple[NDArray[np.intp], Verdict]]:
        """Rows, ascending, by verdict."""
        order = np.argsort(self._kind, kind="stable")
        ends = np.searchsorted(self._kind[order], np.arange(-1, len(self._verdicts)), side="right")
        for k, verdict in enumerate(self._verdicts):
            yield order[ends[k] : ends[k + 1]], verdict

    def reasons(self) -> dict[str, int]:
        """Rows by reason."""
        found: Counter[str] = Counter()
        for rows, (reason, _) in self.groups():
            found[reason.value] += len(rows)
        return {reason: count for reason, count in sorted(found.items()) if count}

    def __getitem__(self, row: int) -> Verdict:
        kind = int(self._kind[row]) if 0 <= row < len(self._kind) else -1
        if kind < 0:
            raise KeyError(row)
        return self._verdicts[kind]

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self.mask).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._kind >= 0))
