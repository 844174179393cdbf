"""Decoded planes kept in memory: least recently used go first when the budget of bytes is spent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PlaneKey:
    """One plane of one dataset.

    Parameters
    ----------
    repository
        Butler repository: UUIDs say which dataset, not where its bytes came from.
    dataset
        Dataset UUID.
    plane
        `image`, `variance`, `mask`, or the mask with its numbering of bits.
    """

    repository: str
    dataset: str
    plane: Hashable


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What the cache did so far.

    Parameters
    ----------
    hits, misses
        Planes that were there, and planes that had to be decoded.
    evictions
        Planes dropped to make room.
    planes, bytes
        What it holds now.
    """

    hits: int
    misses: int
    evictions: int
    planes: int
    bytes: int


class PlaneCache:
    """Thread-safe cache of decoded planes with a budget of bytes.

    Planes are handed out read-only. Two threads that want the same absent plane decode it once: the second
    waits. A plane larger than the budget is handed out and not kept.

    Parameters
    ----------
    budget
        Most bytes of planes to keep.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._planes: OrderedDict[PlaneKey, Array] = OrderedDict()
        self._pending: dict[PlaneKey, Future[Array]] = {}
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._lock = threading.Lock()

    def get(self, key: PlaneKey, decode: Callable[[], Array]) -> Array:
        """The plane, decoded if it is not there.

        Parameters
        ----------
        key
            Which plane.
        decode
            Makes it; its errors are raised to everyone who waits for this plane, and nothing is kept.

        Returns
        -------
        plane
            Read-only array.
        """
        with self._lock:
            if key in self._planes:
                self._planes.move_to_end(key)
                self._hits += 1
                return self._planes[key]
            waiting = self._pending.get(key)
            if waiting is None:
                self._misses += 1
                self._pending[key] = mine = Future[Array]()
            else:
                self._hits += 1
        if waiting is not None:
            return waiting.result()
        return self._decode(key, decode, mine)

    def counts(self) -> CacheCounts:
        """What the cache did so far."""
        with self._lock:
            return CacheCounts(self._hits, self._misses, self._evictions, len(self._planes), self._bytes)

    def clear(self) -> None:
        """Forget all planes; the counts of hits, misses and evictions go on."""
        with self._lock:
            self._planes.clear()
            self._bytes = 0

    def _decode(self, key: PlaneKey, decode: Callable[[], Array], mine: Future[Array]) -> Array:
        try:
            plane = np.asarray(decode()).view()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        plane.flags.writeable = False
        with self._lock:
            del self._pending[key]
            self._keep(key, plane)
        mine.set_result(plane)
        return plane

    def _keep(self, key: PlaneKey, plane: Array) -> None:
        size = _held(plane)
        if size > self.budget:
            return
        while self._bytes + size > self.budget:
            _, dropped = self._planes.popitem(last=False)
            self._bytes -= _held(dropped)
            self._evictions += 1
        self._planes[key] = plane
        self._bytes += size


def _held(plane: Array) -> int:
    """Bytes that stay in memory with an array: those of the array that it is a view of."""
    base = plane.base
    return base.nbytes if isinstance(base, np.ndarray) else plane.nbytes
