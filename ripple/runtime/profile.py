"""What a run costs: time, calls and bytes per operation, and progress over time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Counts = dict[str, dict[str, float]]


@dataclass(slots=True)
class Profile:
    """Calls, seconds and bytes per operation, addable over processes.

    `operations[name]` holds `calls`, `seconds`, `bytes` and any other counter given to `count`.
    """

    operations: Counts = field(default_factory=dict)

    @contextmanager
    def time(self, name: str, *, bytes: int = 0) -> Iterator[None]:
        """Time a block under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:  # failures cost time too
            self.count(name, calls=1, seconds=time.perf_counter() - start, bytes=bytes)

    def each[T](self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, each one's coming timed under `name`."""
        found = iter(items)
        while True:
            with self.time(name):
                try:
                    item = next(found)
                except StopIteration:
                    return
            yield item

    def count(self, name: str, **amounts: float) -> None:
        """Add counters to an operation."""
        row = self.operations.setdefault(name, {})
        for key, amount in amounts.items():
            row[key] = row.get(key, 0) + amount

    def add(self, other: Counts) -> None:
        """Add the operations of another profile."""
        for name, row in other.items():
            self.count(name, **row)


@dataclass(slots=True)
class Timeline:
    """What was done when: rows and bytes over the seconds since `start` (of `time.perf_counter`)."""

    start: float
    _seconds: list[float] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _bytes: list[int] = field(default_factory=list)

    def add(self, rows: int, bytes: int) -> None:
        """Record that a unit is done."""
        self._seconds.append(time.perf_counter() - self.start)  # when the unit was done
        self._rows.append(rows + (self._rows[-1] if self._rows else 0))
        self._bytes.append(bytes + (self._bytes[-1] if self._bytes else 0))

    def points(self, most: int = 1000) -> dict[str, list[float]]:
        """`seconds`, and `rows` and `bytes` done by then, at no more than about `most` times."""
        # Every step-th point and always the last, so that the totals are right.
        step = max(1, len(self._seconds) // most)
        chosen = [*range(step - 1, len(self._seconds) - 1, step), len(self._seconds) - 1]
        chosen = chosen if self._seconds else []
        columns: dict[str, Sequence[float]] = {
            "seconds": self._seconds,
            "rows": self._rows,
            "bytes": self._bytes,
        }
        return {name: [values[k] for k in chosen] for name, values in columns.items()}


def peak_rss() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # ru_maxrss is in KiB on Linux
