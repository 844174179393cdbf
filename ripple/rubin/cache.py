"""Decoded planes kept in memory; when the budget of bytes is spent, the least recently used ones go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from ripple.rubin.coadd import Coadd
from ripple.rubin.open import open_dataset
from ripple.rubin.repository import Dataset
from ripple.sky.geometry import Box

Array = NDArray[Any]

#: Files kept open with their headers and PSFs.
OPEN_FILES = 256


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
        Planes found in the cache, and planes that had to be decoded.
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


class _Planes(LRUCache[PlaneKey, Array]):
    """`cachetools` evicts through `popitem` and does not count."""

    evictions = 0

    def popitem(self) -> tuple[PlaneKey, Array]:
        self.evictions += 1
        return super().popitem()


class PlaneCache:
    """Cache of decoded planes with a budget of bytes; threads take turns, so a plane is decoded once.

    Planes are handed out read-only. A plane larger than the budget is handed out and not kept.

    Parameters
    ----------
    budget
        Most bytes of planes to keep.
    """

    def __init__(self, budget: int) -> None:
        self._planes = _Planes(budget, getsizeof=_bytes_kept)
        self._hits = self._misses = 0
        # Reentrant: a `decode` may itself read another plane through the cache.
        self._lock = threading.RLock()

    def get(self, key: PlaneKey, decode: Callable[[], Array]) -> Array:
        """The plane, read-only; `decode` reads it when the cache does not have it."""
        with self._lock:
            if (known := self._planes.get(key)) is not None:
                self._hits += 1
                return known
            self._misses += 1
            plane = np.asarray(decode()).view()
            plane.flags.writeable = False
            # cachetools raises for an item larger than the whole cache.
            if _bytes_kept(plane) <= self._planes.maxsize:
                self._planes[key] = plane
            return plane

    def counts(self) -> CacheCounts:
        """What the cache has done so far."""
        with self._lock:
            held = int(self._planes.currsize)
            return CacheCounts(self._hits, self._misses, self._planes.evictions, len(self._planes), held)


def _bytes_kept(plane: Array) -> int:
    """Bytes that stay in memory with an array: those of the array that it is a view of."""
    # A slice keeps the whole array it was cut from alive.
    base = plane.base
    return base.nbytes if isinstance(base, np.ndarray) else plane.nbytes


class CachedFiles:
    """The files of a repository, their planes answered from a cache.

    Parameters
    ----------
    repo
        Butler repository.
    cache
        Where decoded planes are kept.
    """

    def __init__(self, repo: str, cache: PlaneCache) -> None:
        self._repo, self._cache = repo, cache
        self._open: LRUCache[str, Coadd] = LRUCache(OPEN_FILES)

    def open(self, dataset: Dataset, *, sparse: bool) -> Coadd:
        """The open file; errors as for `open_dataset`."""
        del sparse  # a file is opened for its ranges, and a requested plane is kept whole
        coadd = self._open.get(dataset.uuid)
        if coadd is None:
            coadd = self._cached(open_dataset(dataset, True, repo=self._repo), dataset.uuid)
            self._open[dataset.uuid] = coadd
        return coadd

    def _cached(self, coadd: Coadd, uuid: str) -> Coadd:
        def through(name: str, read: Callable[[Box], Array]) -> Callable[[Box], Array]:
            key = PlaneKey(self._repo, uuid, name)

            def piece(box: Box) -> Array:
                # The whole plane is decoded once; boxes are views of it.
                plane = self._cache.get(key, lambda: read(coadd.box))
                return plane[coadd.box.slices(box)]

            return piece

        return replace(
            coadd,
            read_image=through("image", coadd.read_image),
            read_variance=through("variance", coadd.read_variance),
            read_mask=through("mask", coadd.read_mask),
        )
