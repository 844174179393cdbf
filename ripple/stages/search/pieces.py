"""The rows of a unit a few at a time: cutouts of those that are worked on, and no others, are in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch
from ripple.stages.fetch.reading import UnitReading
from ripple.storage.files import release_pages
from ripple.storage.shard_reader import unpack_cutouts


class Pieces:
    """The shard of cutouts that `fetch` would write, whose pixels come and go.

    Attributes
    ----------
    batch
        All N rows as the shard has them; a row has pixels once they are filled in, and until it is released.
    planes
        Image, variance and mask to fill in, `(N, B, S, S)`.

    Parameters
    ----------
    reading
        An opened unit.
    """

    def __init__(self, reading: UnitReading) -> None:
        draft = reading.draft()
        self._places, self._released = draft.places, 0
        # Pages of private memory that nobody has touched take none, and can be given back.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(draft.size, 1), flags=flags)
        for offset, data in draft.pieces:
            self._memory[offset : offset + len(data)] = data
        # Through the bytes of a shard: what the network sees is what `fetch` would have written.
        self.batch: CutoutBatch = unpack_cutouts(memoryview(self._memory)[: draft.size])
        self.planes: dict[str, NDArray[Any]] = {
            name: self._plane(name, getattr(self.batch, name)) for name in draft.places
        }

    def _plane(self, name: str, like: NDArray[Any]) -> NDArray[Any]:
        """A plane to write to; those of the batch can only be read."""
        offset, size = self._places[name]
        flat = np.frombuffer(self._memory, like.dtype, size // like.dtype.itemsize, offset)
        return flat.reshape(like.shape)

    def release(self, row: int) -> None:
        """Give the memory of all rows before this one back; they are zero from then on."""
        for plane in self.planes.values():
            release_pages(plane[self._released : row])
        self._released = row
