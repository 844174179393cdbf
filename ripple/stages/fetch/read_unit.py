"""Opening a unit: files, boxes that leave their patch or tract, PSFs; again without files found damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch, psf_gaps
from ripple.imaging.resample import locate, resample
from ripple.imaging.stitch import Seams, inside, is_sparse, stitch_row, touches
from ripple.rubin.coadd import Coadd, PsfCells
from ripple.rubin.repository import Dataset
from ripple.sky.geometry import Box, Tan
from ripple.stages.fetch.unit import NO_DATA, PLANES, Band, DamagedError, UnitReader, UnitTask, stamp_of
from ripple.stages.fetch.verdict import judge
from ripple.storage.shard_reader import unpack_cutouts

#: Projections of one row must agree to this many pixels (a milli-pixel).
WCS_TOLERANCE = 1e-3

#: Opens a dataset; the flag says that few boxes of it will be read.
Opener = Callable[[Dataset, bool], Coadd]


def open_unit(task: UnitTask, opener: Opener, excluded: dict[tuple[int, int], DamagedError]) -> UnitReader:
    """Open the files of a unit, stitch the boxes that leave their patch, look up PSFs, judge the rows.

    Parameters
    ----------
    task
        What to read.
    opener
        Opens a dataset, whole or for a few boxes.
    excluded
        Files found damaged by an earlier attempt.

    Raises
    ------
    DamagedError
        A file turned out to be damaged: call again with it excluded.
    """
    reader = _new(task)
    for key, damaged in excluded.items():
        _fail(reader, key, damaged.error)
    for k in range(len(task.bands)):
        reader.bands.append(_open_band(reader, k, opener, excluded))
    judge(reader)
    return reader


def _new(task: UnitTask) -> UnitReader:
    n, b, s = task.rows, len(task.bands), task.size
    x = np.floor(task.catalog["x"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    y = np.floor(task.catalog["y"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    coverage, missing, disagreement, jump, resampled = (np.zeros((n, b), np.float32) for _ in range(5))
    key, parts = np.full((n, b), -1, np.int32), np.ones(n, np.int16)
    return UnitReader(
        task, [], x, y, coverage, missing, disagreement, jump, parts, resampled, key, failures={}
    )


def _fail(reader: UnitReader, key: tuple[int, int], error: UnreadableError) -> None:
    reader.failures[key] = error.reason
    reader.notes[str(error)] = None


def _open_band(
    reader: UnitReader, k: int, opener: Opener, excluded: dict[tuple[int, int], DamagedError]
) -> Band:
    task = reader.task
    own = task.catalog["patch"].astype(np.int64)
    here = {d.patch: d for d in task.datasets if d.band == task.bands[k] and (d.patch, k) not in excluded}
    coadds: dict[int, Coadd] = {}
    whole = np.zeros(task.rows, bool)
    # Own patches first: neighbours are opened only for boxes that leave them.
    for patch in sorted(here, key=lambda p: (p not in own, p)):
        if patch not in own and not _needed(reader, patch, ~whole):
            continue
        coadd = _open(reader, k, here[patch], opener)
        if coadd is not None:
            coadds[patch] = coadd
            whole |= (own == patch) & inside(coadd.box, reader.x0, reader.y0, task.size)
    coadds = dict(sorted(coadds.items()))
    # A row whose own file cannot be used is not patched together from its neighbours.
    failed = np.isin(own, [patch for patch, band in reader.failures if band == k])
    edge = np.flatnonzero(~whole & ~failed)
    band = Band(coadds, whole, np.where(whole, own, -1), edge, {})
    reader.coverage[whole, k] = 1
    _stitch(reader, k, band)
    _cross(reader, k, band, opener)
    for patch, coadd in coadds.items():
        with reader.profile.time("psf"):
            _psf(reader, k, coadd, patch, band)
        _missing_cells(reader, k, coadd, own == patch)
    return band


def _needed(reader: UnitReader, patch: int, rows: NDArray[np.bool_]) -> bool:
    """Whether a box among `rows` reaches into a patch."""
    near = touches(reader.task.boxes[patch], reader.x0[rows], reader.y0[rows], reader.task.size)
    return bool(near.any())


def _open(reader: UnitReader, k: int, dataset: Dataset, opener: Opener) -> Coadd | None:
    """The open file, or None with the reason noted: a fault here concerns one patch and band only."""
    task = reader.task
    planned = task.boxes[dataset.patch]
    rows = int(touches(planned, reader.x0, reader.y0, task.size).sum())
    sparse = is_sparse(rows, task.size, planned)
    try:
        with reader.profile.time("open sparse" if sparse else "open dense"):
            coadd = opener(dataset, sparse)
        # What the choice was made of, see `is_sparse`.
        pixels = planned.width * planned.height
        reader.profile.count("open sparse" if sparse else "open dense", rows=rows, plane_pixels=pixels)
        _check_grid(coadd, task.projection, task.tract)
    except UnreadableError as err:
        _fail(reader, (dataset.patch, k), err)
        return None
    reader.notes |= dict.fromkeys(coadd.notes)
    return coadd


def _check_grid(coadd: Coadd, projection: Tan, tract: int) -> None:
    """Refuse a file that is not on the pixel grid of its tract."""
    gap = projection.separation(coadd.projection, coadd.box)
    if not gap <= WCS_TOLERANCE:
        raise UnreadableError(
            f"{coadd.name}: its projection is {gap:.3g} px away from that of tract {tract}",
            hint="the file is not on the tract's pixel grid",
            reason=Reason.WRONG_WCS,
        )


def _stitch(reader: UnitReader, k: int, band: Band) -> None:
    """Complete the boxes that leave their patch from all patches that hold a part of them."""
    task, edge = reader.task, band.edge
    own = task.catalog["patch"]
    near = {
        p: edge[touches(c.box, reader.x0[edge], reader.y0[edge], task.size)] for p, c in band.coadds.items()
    }
    if not any(len(rows) for rows in near.values()):
        return
    shape = (len(edge), task.size, task.size)
    band.stamps = {
        "image": np.full(shape, np.nan, np.float32),
        "variance": np.full(shape, np.nan, np.float32),
        "mask": np.full(shape, NO_DATA, np.uint32),
    }
    seams, parts = Seams.empty(len(edge), task.size), np.zeros(len(edge), np.int16)
    for patch, rows in near.items():
        coadd = band.coadds[patch]
        commons = [stamp_of(reader, row) & coadd.box for row in rows]
        whole = _union(commons) if rows.size else coadd.box
        dense = not is_sparse(len(rows), task.size, whole)
        planes = {n: reader.read(k, patch, coadd, n, whole) for n in PLANES} if dense and rows.size else {}
        for row, common in zip(rows, commons, strict=True):
            source, box = planes, whole
            if not dense:
                source, box = {n: reader.read(k, patch, coadd, n, common) for n in PLANES}, common
            e = int(np.searchsorted(edge, row))
            out = {n: band.stamps[n][e] for n in PLANES}
            with reader.profile.time("stitch"):
                stitch_row(
                    seams, e, stamp_of(reader, row), source, box, out, patch=patch, own=own[row] == patch
                )
            parts[e] += 1
    _drop_uncentred(seams, band)
    reader.coverage[edge, k] = seams.filled.mean(axis=(1, 2))
    reader.disagreement[edge, k] = seams.disagreement
    reader.n_patches[edge] = np.maximum(reader.n_patches[edge], parts)


def _drop_uncentred(seams: Seams, band: Band) -> None:
    """A row has a band when a file of it covers the centre of the box: a mere border piece is no cutout."""
    half = seams.filled.shape[-1] // 2
    lost = ~seams.filled[:, half, half]
    band.centre[band.edge] = np.where(lost, -1, seams.source[:, half, half])
    seams.filled[lost] = False
    seams.disagreement[lost] = 0
    for name, stamps in band.stamps.items():
        stamps[lost] = NO_DATA if name == "mask" else np.nan


def _cross(reader: UnitReader, k: int, band: Band, opener: Opener) -> None:
    """Complete boxes that leave their tract from other tracts, resampled onto this one's grid."""
    task = reader.task
    here = {(d.tract, d.patch): d for d in task.cross_datasets if d.band == task.bands[k]}
    opened: dict[tuple[int, int], Coadd] = {}
    for row in (int(r) for r in band.edge if int(r) in task.cross):
        if reader.coverage[row, k] == 0:
            continue  # nothing of the own tract in this band: a resampled stamp would be all there is
        e, stamp = int(np.searchsorted(band.edge, row)), stamp_of(reader, row)
        out = {n: band.stamps[n][e] for n in PLANES}
        wanted = (out["mask"] == NO_DATA) & np.isnan(out["image"])
        for pair in task.cross[row]:
            if pair not in here or not wanted.any():
                continue
            try:
                if pair not in opened:
                    coadd = opener(here[pair], True)
                    _check_grid(coadd, task.cross_projections[pair[0]], pair[0])
                    opened[pair] = reader.crossed[here[pair].uuid] = coadd
                done = _resampled(opened[pair], stamp, task, pair[0], wanted, out)
            except UnreadableError as err:
                reader.notes[str(err)] = None
                continue
            wanted &= ~done
            reader.resampled[row, k] += done.mean()
        reader.coverage[row, k] += reader.resampled[row, k]


def _resampled(
    coadd: Coadd,
    stamp: Box,
    task: UnitTask,
    tract: int,
    wanted: NDArray[np.bool_],
    out: dict[str, NDArray[Any]],
) -> NDArray[np.bool_]:
    """Write what one patch of another tract gives; which pixels that were."""
    sources = locate(stamp, task.projection, task.cross_projections[tract])
    box = sources.box(wanted) & coadd.box
    if box.empty:
        return np.zeros_like(wanted)
    planes: dict[str, NDArray[Any]] = {
        "image": coadd.image(box), "variance": coadd.variance(box), "mask": coadd.mask(box, MASK_PLANES)
    }  # fmt: skip
    done, values = resample(planes, box, sources, wanted)
    for name, pixels in values.items():
        out[name][done] = pixels
    return done


def _union(boxes: list[Box]) -> Box:
    return Box(
        min(b.x0 for b in boxes),
        min(b.y0 for b in boxes),
        max(b.x1 for b in boxes),
        max(b.y1 for b in boxes),
    )


def _psf(reader: UnitReader, k: int, coadd: Coadd, patch: int, band: Band) -> None:
    """Kernels at the cutout centre and in the other cells under the cutout, and how much they differ."""
    half = reader.task.size // 2
    rows = np.flatnonzero(band.centre == patch)
    if not rows.size:
        return
    try:
        psf = coadd.psf_near([stamp_of(reader, row) for row in rows])
    except UnreadableError as err:
        raise DamagedError((patch, k), err) from None
    if not isinstance(psf, PsfCells):
        reader.notes[f"{coadd.name}: no PSF: {psf.reason}"] = None
        return
    columns = psf.kernels.shape[1]
    cells = psf.index(reader.x0[rows] + half, reader.y0[rows] + half)
    rows, cells = rows[cells[:, 0] >= 0], cells[cells[:, 0] >= 0]
    centre = cells[:, 0] * columns + cells[:, 1]
    at, box, cell = _other_cells(reader, psf, rows, centre)
    used, key = np.unique(np.concatenate([centre, cell]), return_inverse=True)
    key += len(reader.kernels)
    reader.kernels.extend(psf.kernels[c // columns, c % columns] for c in used)
    reader.psf_key[rows, k] = key[: len(rows)]
    parts = np.column_stack([rows[at], np.full(len(at), k), box, key[len(rows) :]])
    reader.psf_cells.append(parts.astype(np.int32))
    flat = psf.kernels.reshape(-1, *psf.kernels.shape[2:])
    np.maximum.at(reader.psf_jump[:, k], rows[at], psf_gaps(flat, cell, centre[at]))


def _other_cells(
    reader: UnitReader, psf: PsfCells, rows: NDArray[np.int64], centre: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Parts of the stamps of `rows` in cells with a PSF other than that of the centre.

    Returns
    -------
    at, box, cell
        `(L,)` position among `rows`; `(L, 4)` first and end pixel in y and in x, of the stamp; `(L,)` flat
        number of the cell.
    """
    size, (ny, nx) = reader.task.size, psf.kernels.shape[:2]
    y0, x0 = reader.y0[rows] - psf.y0, reader.x0[rows] - psf.x0
    (i0, i1), (j0, j1) = (
        (np.maximum(first // cell, 0), np.minimum((first + size - 1) // cell, count - 1))
        for first, cell, count in ((y0, psf.cell_height, ny), (x0, psf.cell_width, nx))
    )
    known = np.isfinite(psf.kernels[:, :, psf.kernels.shape[2] // 2, psf.kernels.shape[3] // 2]).ravel()
    found: list[NDArray[np.int64]] = [np.empty((0, 6), np.int64)]
    for di in range(int((i1 - i0).max(initial=-1)) + 1):
        for dj in range(int((j1 - j0).max(initial=-1)) + 1):
            i, j = i0 + di, j0 + dj
            at = np.flatnonzero((i <= i1) & (j <= j1) & (i * nx + j != centre))
            cell = (i * nx + j)[at]
            at, cell = at[known[cell]], cell[known[cell]]
            top, left = i[at] * psf.cell_height - y0[at], j[at] * psf.cell_width - x0[at]
            found.append(np.column_stack([
                at, np.maximum(top, 0), np.minimum(top + psf.cell_height, size),
                np.maximum(left, 0), np.minimum(left + psf.cell_width, size), cell,
            ]))  # fmt: skip
    every = np.concatenate(found)
    return every[:, 0], every[:, 1:5], every[:, 5]


def _missing_cells(reader: UnitReader, k: int, coadd: Coadd, rows: NDArray[np.bool_]) -> None:
    size = reader.task.size
    for cell in coadd.missing:
        for row in np.flatnonzero(rows & touches(cell, reader.x0, reader.y0, size)):
            common = stamp_of(reader, row) & cell
            reader.missing[row, k] += common.width * common.height / size**2


def read_attempts[T](
    task: UnitTask, opener: Opener, consume: Callable[[UnitReader], T]
) -> tuple[UnitReader, T]:
    """Open a unit and hand it to `consume`, again without a file each time one turns out to be damaged.

    Returns
    -------
    reader, result
        Of the attempt that went through.
    """
    excluded: dict[tuple[int, int], DamagedError] = {}
    while True:
        try:
            reader = open_unit(task, opener, excluded)
            return reader, consume(reader)
        except DamagedError as err:
            # Each round excludes one more file, so this ends.
            excluded[err.key] = err


def read_batch(task: UnitTask, opener: Opener) -> tuple[UnitReader, CutoutBatch]:
    """A unit in memory: what its shard would hold."""

    def consume(reader: UnitReader) -> bytes:
        return b"".join(reader.draft().chunks({name: reader.chunks(name) for name in PLANES}))

    reader, data = read_attempts(task, opener, consume)
    return reader, unpack_cutouts(data)
