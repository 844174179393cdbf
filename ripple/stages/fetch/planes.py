"""The planes of a unit's delivered rows, streamed in the order of their shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.stitch import cut, is_sparse
from ripple.rubin.open import CoaddFiles
from ripple.runtime.profile import Profile
from ripple.sky.geometry import Box
from ripple.stages.fetch.judge import mark_no_data
from ripple.stages.fetch.open_unit import read_plane, read_unit
from ripple.stages.fetch.reading import NO_DATA, PLANES, BandReading, UnitReading
from ripple.stages.fetch.task import UnitTask
from ripple.storage.shard_reader import unpack_cutouts

_FEW_PIXELS = 1 << 18
#: Bytes per chunk of a shard: small enough to stay in the processor's cache until it is written.
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoded plane of one file, or, when few rows need it, only their boxes."""

    plane: NDArray[np.generic] | None
    pieces: dict[int, NDArray[np.generic]]
    box: Box


class PlaneStream:
    """The planes of a reading: image, then variance, then mask, each once.

    Parameters
    ----------
    reading
        An opened unit.
    profile
        Gets what each operation costs.
    """

    def __init__(self, reading: UnitReading, profile: Profile) -> None:
        self._reading, self._profile, self._draft = reading, profile, reading.draft()
        # (row, band number) whose variance is NaN everywhere; the mask, which comes later, marks them.
        self._unweighted: set[tuple[int, int]] = set()
        #: `(N, B)` share of pixels without data, margins left out; known when the mask has been streamed.
        self.no_data = np.zeros((reading.task.rows, len(reading.bands)), np.float32)

    @property
    def size(self) -> int:
        """Bytes of the shard."""
        return self._draft.size

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the shard from start to end.

        Raises
        ------
        DamagedError
            A file turned out to be damaged: open the unit again without it.
        """
        yield from self._draft.chunks({name: self.plane(name) for name in PLANES})

    def plane(self, name: str) -> Iterator[NDArray[np.generic]]:
        """One plane of all delivered rows in order, `(n, B, S, S)` at a time; errors as for `chunks`."""
        reading = self._reading
        # Rows are sorted by patch, so the plane of a patch is decoded once and then released.
        own = reading.task.patch[reading.kept]
        b, s = len(reading.bands), reading.task.size
        dtype = np.dtype(np.uint32 if name == "mask" else np.float32)
        for first, last in _runs(own):
            rows = reading.kept[first:last]
            # All bands of the patch at once: the shard stores row by row, and bands within a row.
            layers = [self._layer(k, int(own[first]), name, rows) for k in range(b)]
            for part in self._chunks(rows):
                out = np.empty((len(part), b, s, s), dtype)
                self._gather(out, name, part, layers)
                yield out

    def rows(self, planes: Mapping[str, NDArray[np.generic]], most: int) -> Iterator[slice]:
        """Fill image, variance and mask of the delivered rows in order, a few rows at a time.

        Parameters
        ----------
        planes
            Image, variance and mask, `(n, B, S, S)` each, to fill.
        most
            How many rows to fill before each answer.

        Yields
        ------
        The rows that are there now; one empty slice where there are none at all. Errors as for `chunks`.

        Notes
        -----
        Each plane is decoded once. All three of a patch are in memory in all bands, and of the rows no more
        than the reader keeps; `chunks` has one plane at a time, but all rows of it before the next.
        """
        reading, done = self._reading, 0
        own = reading.task.patch[reading.kept]
        for first, last in _runs(own):
            rows = reading.kept[first:last]
            patch = int(own[first])
            layers = {
                name: [self._layer(k, patch, name, rows) for k in range(len(reading.bands))]
                for name in PLANES
            }
            at = first
            while at < last:
                end = min(last, done + most)
                for name in PLANES:  # the mask last: it marks where the variance is NaN
                    for part in self._chunks(np.arange(at, end)):
                        out = planes[name][part[0] : part[-1] + 1]
                        self._gather(out, name, reading.kept[part], layers[name])
                at = end
                if at == last == len(own):
                    layers = {}  # not needed while the last rows are worked on
                if at - done == most:
                    yield slice(done, at)
                    done = at
        if done < len(own) or not len(own):
            yield slice(done, len(own))

    def _chunks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Rows, as many at a time as stay in the processor's cache."""
        step = max(1, CHUNK_BYTES // (len(self._reading.bands) * self._reading.task.size**2 * 4))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))

    def _gather(
        self, out: NDArray[np.generic], name: str, part: NDArray[np.int64], layers: list[_Layer | None]
    ) -> None:
        """Fill one plane of some rows, all bands."""
        with self._profile.time("gather", bytes=out.nbytes):
            for k, layer in enumerate(layers):
                self._fill(out, k, name, part, layer)
            self._mark_unweighted(out, name, part)
            if name == "mask":
                self.no_data[part] = _share(out, NO_DATA, self._reading.task.margin)

    def _mark_unweighted(self, out: NDArray[np.generic], name: str, rows: NDArray[np.int64]) -> None:
        """Set NO_DATA where the variance is NaN everywhere, which would otherwise mean "unknown variance"."""
        if name == "variance":
            # The first pixel decides for almost all planes, without a look at the others.
            for i, k in np.argwhere(np.isnan(out[:, :, 0, 0])).tolist():
                if np.isnan(out[i, k]).all():
                    self._unweighted.add((int(rows[i]), k))
        elif name == "mask" and self._unweighted:
            for i, row in enumerate(rows.tolist()):
                for k in range(out.shape[1]):
                    if (row, k) in self._unweighted:
                        out[i, k] |= NO_DATA

    def _layer(self, k: int, patch: int, name: str, rows: NDArray[np.int64]) -> _Layer | None:
        """The plane of a patch to cut its rows from; None when no row lies completely inside it."""
        band = self._reading.bands[k]
        coadd = band.coadds.get(patch)
        inside = rows[band.whole[rows]]
        if coadd is None or not len(inside):
            return None  # nothing to decode: `_fill` has the stitched boxes and blanks
        key = (patch, k)
        if is_sparse(len(inside), self._reading.task.size, coadd.box):
            boxes = {row: self._reading.box(row) for row in inside.tolist()}
            pieces = {row: read_plane(coadd, name, box, key, self._profile) for row, box in boxes.items()}
            return _Layer(None, pieces, coadd.box)
        return _Layer(read_plane(coadd, name, coadd.box, key, self._profile), {}, coadd.box)

    def _fill(
        self, out: NDArray[np.generic], k: int, name: str, rows: NDArray[np.int64], layer: _Layer | None
    ) -> None:
        """Fill band number k of these rows into `out`, `(n, B, S, S)`."""
        reading, band = self._reading, self._reading.bands[k]
        # The usual case, in one compiled loop over all rows.
        if layer is not None and layer.plane is not None and band.whole[rows].all():
            cut(layer.plane, reading.x0[rows] - layer.box.x0, reading.y0[rows] - layer.box.y0, out, k)
            return
        for i, row in enumerate(rows.tolist()):
            if layer is None or not band.whole[row]:
                out[i, k] = _stitched_or_blank(band, name, row)
            elif layer.plane is None:
                out[i, k] = layer.pieces[row]
            else:
                out[i, k] = layer.plane[layer.box.slices(reading.box(row))]


def _share(mask: NDArray[np.generic], bits: np.generic, margin: int) -> NDArray[np.float32]:
    """`(n, B)` share of pixels with any of these bits, margins left out."""
    inner = max(mask.shape[2] - 2 * margin, 0) * max(mask.shape[3] - 2 * margin, 0)
    if mask.size <= _FEW_PIXELS:  # numpy is done before numba is loaded
        cut_ = mask[:, :, margin : mask.shape[2] - margin, margin : mask.shape[3] - margin]
        count = np.count_nonzero(np.asarray(cut_) & bits, axis=(2, 3))
    else:
        from ripple.imaging.loops import count_bits

        count = np.zeros(mask.shape[:2], np.int64)
        count_bits(mask, np.uint32(bits), margin, count)
    return np.asarray(count / max(inner, 1), np.float32)


def _stitched_or_blank(band: BandReading, name: str, row: int) -> NDArray[Any] | np.generic:
    """The pixels of a box that leaves its patch; one value for all of it when the row lacks the band."""
    at = int(np.searchsorted(band.edge, row))
    if name in band.stitched and at < len(band.edge) and band.edge[at] == row:
        return np.asarray(band.stitched[name][at])
    return NO_DATA if name == "mask" else np.float32(np.nan)


def _runs(values: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and end index of each run of equal values."""
    if len(values):
        cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True)


@dataclass(frozen=True, slots=True)
class UnitBatch:
    """A unit in memory: how it was read, its delivered rows, and `(N, B)` shares of pixels without data."""

    reading: UnitReading
    batch: CutoutBatch
    no_data: NDArray[np.float32]


def read_batch(task: UnitTask, files: CoaddFiles, profile: Profile) -> UnitBatch:
    """Read a unit into memory: what its shard would contain."""

    def batch_of(reading: UnitReading) -> UnitBatch:
        # Through the bytes of a shard: what users get in memory is what `fetch` would have written.
        stream = PlaneStream(reading, profile)
        data = bytearray(stream.size)
        at = 0
        for chunk in stream.chunks():
            end = at + memoryview(chunk).nbytes
            data[at:end] = memoryview(chunk).cast("B")
            at = end
        batch = unpack_cutouts(memoryview(data))
        mark_no_data(reading.outcomes, reading.task.bands, stream.no_data)
        return UnitBatch(reading, batch, stream.no_data)

    return read_unit(task, files, profile, batch_of)[1]
