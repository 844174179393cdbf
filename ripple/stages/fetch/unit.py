"""One unit of a fetch: its rows cut from all bands of a few patches, streamed in the order of the shard.

A unit is read, cut and packed by one worker and depends on nothing but its task, so its bytes are the same
whoever does it and whenever. Only one plane per band is in memory at a time, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.stitch import cut, is_sparse
from ripple.rubin.coadd import Coadd
from ripple.rubin.repository import Dataset
from ripple.runtime.profile import Profile
from ripple.sky.geometry import Box, Tan
from ripple.stages.fetch.verdict import catalog, pack_kernels
from ripple.storage.shard_writer import Draft, draft_cutouts

NO_DATA = np.uint32(1 << MASK_PLANES.index("NO_DATA"))
#: Rows per chunk of a shard: a chunk stays in the processor's cache from the cut to the disk.
CHUNK_BYTES = 1 << 22
PLANES = ("image", "variance", "mask")


@dataclass(frozen=True, slots=True)
class UnitTask:
    """All that a worker needs to make one shard.

    Parameters
    ----------
    number
        Shard number.
    bands
        Bands in order.
    size
        Pixels per side, margins included.
    margin
        Pixels of it on each side that preprocess trims.
    tract
        Tract of all rows.
    projection
        Projection of the tract.
    catalog
        Columns of the N rows, sorted by patch: `index`, `id`, `ra`, `dec`, `patch`, `x`, `y`, user columns.
    datasets
        What exists for the patches that the boxes touch.
    boxes
        Outer box of each of these patches, as planned.
    repo
        Where to resolve datasets that have no local file.
    cross
        Row -> (tract, patch) pairs to complete it from by resampling.
    cross_datasets, cross_projections
        What exists for these pairs, and the projections of their tracts.
    missing_band, edge
        Policies, as in `FetchConfig`.
    """

    number: int
    bands: tuple[str, ...]
    size: int
    margin: int
    tract: int
    projection: Tan
    catalog: dict[str, NDArray[Any]]
    datasets: tuple[Dataset, ...]
    boxes: dict[int, Box]
    repo: str
    cross: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    cross_datasets: tuple[Dataset, ...] = ()
    cross_projections: dict[int, Tan] = field(default_factory=dict)
    missing_band: Literal["partial", "reject"] = "partial"
    edge: Literal["pad", "reject"] = "pad"

    @property
    def rows(self) -> int:
        """Number of rows asked for."""
        return len(self.catalog["index"])


@dataclass(slots=True)
class Band:
    """One band: its open files, and the boxes that leave their patch, already stitched."""

    coadds: dict[int, Coadd]
    whole: NDArray[np.bool_]
    centre: NDArray[np.int64]  # patch that the central pixel of each row is from, -1 for none
    edge: NDArray[np.int64]
    stamps: dict[str, NDArray[Any]]


@dataclass(slots=True)
class UnitReader:
    """A unit with everything known but the pixels of boxes inside their patch, which are streamed.

    Parameters
    ----------
    task
        What was asked for.
    status, reason
        `(N,)` per row asked for: `ok`, `partial` or `rejected`, and a `Reason` or the empty string.
    kept
        Row numbers of the rows that are delivered.
    notes
        Remarks of the readers, each once.
    kernels, psf_key, psf_cells
        PSFs in use, some of them twice; which of them each plane has at its centre, and in other cells: as in
        `CutoutBatch.psf_cells`, but for rows asked for, in any order.
    crossed
        Open files of other tracts, by dataset UUID.
    unweighted
        Planes (row, band number) whose variance, read before the mask, is NaN throughout.
    """

    task: UnitTask
    bands: list[Band]
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    coverage: NDArray[np.float32]
    missing: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    psf_jump: NDArray[np.float32]
    n_patches: NDArray[np.int16]
    resampled: NDArray[np.float32]
    psf_key: NDArray[np.int32]
    failures: dict[tuple[int, int], Reason]
    kernels: list[NDArray[np.float32]] = field(default_factory=list)
    psf_cells: list[NDArray[np.int32]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    crossed: dict[str, Coadd] = field(default_factory=dict)
    unweighted: set[tuple[int, int]] = field(default_factory=set)
    profile: Profile = field(default_factory=Profile)
    status: NDArray[Any] = field(default_factory=lambda: np.empty(0, "U8"))
    reason: NDArray[Any] = field(default_factory=lambda: np.empty(0, "U24"))
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def draft(self) -> Draft:
        """The shard without its planes."""
        shape = (len(self.kept), len(self.task.bands), self.task.size, self.task.size)
        return draft_cutouts(shape, self.batch(), {"margin": self.task.margin})

    def batch(self) -> CutoutBatch:
        """Everything but the planes, which are zeros without memory here: only for `draft`."""
        b, s = len(self.task.bands), self.task.size
        place = np.full(self.task.rows, -1, np.int32)
        place[self.kept] = np.arange(len(self.kept))
        cells = np.concatenate([np.empty((0, 7), np.int32), *self.psf_cells])
        cells[:, 0] = place[cells[:, 0]]
        cells = cells[cells[:, 0] >= 0]
        centres = self.psf_key[self.kept]
        psf, keys = pack_kernels(self.kernels, np.concatenate([centres.ravel(), cells[:, 6]]))
        index, cells[:, 6] = keys[: centres.size].reshape(centres.shape), keys[centres.size :]
        cells = cells[cells[:, 6] != index[cells[:, 0], cells[:, 1]]]
        return CutoutBatch(
            bands=self.task.bands,
            image=np.broadcast_to(np.float32(0), (len(self.kept), b, s, s)),
            variance=np.broadcast_to(np.float32(0), (len(self.kept), b, s, s)),
            mask=np.broadcast_to(np.uint32(0), (len(self.kept), b, s, s)),
            mask_planes=MASK_PLANES,
            psf=psf,
            psf_index=index,
            psf_cells=cells[np.lexsort(cells.T[::-1])],
            catalog=catalog(self),
            wcs={self.task.tract: self.task.projection},
            pixel_scale=self.task.projection.pixel_scale,
        )

    def digests(self) -> dict[str, str]:
        """Dataset UUID -> SHA-256 of what was read so far, as `Coadd.digest`."""
        found = {}
        for d in self.task.datasets:
            coadd = self.bands[self.task.bands.index(d.band)].coadds.get(d.patch)
            if coadd is not None:
                found[d.uuid] = coadd.digest
        return found | {uuid: coadd.digest for uuid, coadd in self.crossed.items()}

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """One plane of all delivered rows in order, `(n, B, S, S)` at a time.

        Raises
        ------
        DamagedError
            A file turned out to be damaged: begin again without it.
        """
        own = self.task.catalog["patch"][self.kept]
        b, s = len(self.task.bands), self.task.size
        step = max(1, CHUNK_BYTES // (b * s * s * 4))
        dtype = np.dtype(np.uint32 if name == "mask" else np.float32)
        for first, last in _runs(own):
            rows = self.kept[first:last]
            layers = [self._layer(k, int(own[first]), name, rows) for k in range(b)]
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                out = np.empty((len(part), b, s, s), dtype)
                with self.profile.time("gather", bytes=out.nbytes):
                    for k, layer in enumerate(layers):
                        self._fill(out, k, name, part, layer)
                    self._without_variance(out, name, part)
                yield out

    def _without_variance(self, out: NDArray[Any], name: str, rows: NDArray[np.int64]) -> None:
        """NO_DATA in planes whose variance is NaN throughout, which would otherwise mean "not known"."""
        if name == "variance":
            for i, k in np.argwhere(np.isnan(out[:, :, 0, 0])).tolist():
                if np.isnan(out[i, k]).all():
                    self.unweighted.add((int(rows[i]), k))
        elif name == "mask" and self.unweighted:
            for i, row in enumerate(rows.tolist()):
                for k in range(out.shape[1]):
                    if (row, k) in self.unweighted:
                        out[i, k] |= NO_DATA

    def _layer(self, k: int, patch: int, name: str, rows: NDArray[np.int64]) -> _Layer | None:
        """The plane of a patch that rows of it are cut from; None when no row lies wholly inside it."""
        band = self.bands[k]
        coadd = band.coadds.get(patch)
        if coadd is None or not band.whole[rows].any():
            return None
        boxes = [stamp_of(self, row) for row in rows[band.whole[rows]]]
        if is_sparse(len(boxes), self.task.size, coadd.box):
            pieces = [self.read(k, patch, coadd, name, box) for box in boxes]
            return _Layer(None, dict(zip(rows[band.whole[rows]].tolist(), pieces, strict=True)), coadd.box)
        return _Layer(self.read(k, patch, coadd, name, coadd.box), {}, coadd.box)

    def read(self, k: int, patch: int, coadd: Coadd, name: str, box: Box) -> NDArray[Any]:
        """A box of one plane of a file of band number k."""
        with self.profile.time("decode", bytes=4 * box.width * box.height):
            return _read_plane(coadd, name, box, (patch, k))

    def _fill(
        self, out: NDArray[Any], k: int, name: str, rows: NDArray[np.int64], layer: _Layer | None
    ) -> None:
        band = self.bands[k]
        blank = NO_DATA if name == "mask" else np.float32(np.nan)
        if layer is not None and layer.plane is not None and band.whole[rows].all():
            cut(layer.plane, self.x0[rows] - layer.box.x0, self.y0[rows] - layer.box.y0, out, k)
            return
        at = np.searchsorted(band.edge, rows)
        for i, row in enumerate(rows):
            if band.whole[row] and layer is not None:
                x, y = self.x0[row] - layer.box.x0, self.y0[row] - layer.box.y0
                if layer.plane is None:
                    out[i, k] = layer.pieces[int(row)]
                else:
                    out[i, k] = layer.plane[y : y + self.task.size, x : x + self.task.size]
            elif name in band.stamps:
                out[i, k] = band.stamps[name][at[i]]
            else:
                out[i, k] = blank


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoded plane, or the boxes of single rows when there are few."""

    plane: NDArray[Any] | None
    pieces: dict[int, NDArray[Any]]
    box: Box


class DamagedError(Exception):
    """A file is damaged; `(patch, band number)` in `key`. Never leaves this module's callers."""

    def __init__(self, key: tuple[int, int], error: UnreadableError) -> None:
        super().__init__(str(error))
        self.key, self.error = key, error


def stamp_of(reader: UnitReader, row: Any) -> Box:
    """Pixels of the box of a row, PARENT frame."""
    x, y, s = int(reader.x0[row]), int(reader.y0[row]), reader.task.size
    return Box(x, y, x + s, y + s)


def _runs(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of equal values."""
    if len(values):
        cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True)


def _read_plane(coadd: Coadd, name: str, box: Box, key: tuple[int, int]) -> NDArray[Any]:
    try:
        if name == "mask":
            return coadd.mask(box, MASK_PLANES)
        return coadd.image(box) if name == "image" else coadd.variance(box)
    except UnreadableError as err:
        raise DamagedError(key, err) from None
