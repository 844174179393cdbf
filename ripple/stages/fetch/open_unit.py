"""Opening a unit: its files, boxes that leave their patch or tract, and PSFs, band by band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.imaging.batch import MASK_PLANES, psf_gaps
from ripple.imaging.resample import locate, resample
from ripple.imaging.stitch import Seams, inside, is_sparse, stitch_row, touches
from ripple.rubin.coadd import Coadd, PsfCells
from ripple.rubin.open import CoaddFiles
from ripple.rubin.repository import Dataset
from ripple.runtime.profile import Profile
from ripple.sky.geometry import Box, Tan
from ripple.stages.fetch.judge import delivered, judge
from ripple.stages.fetch.reading import (
    NO_DATA,
    PLANES,
    BandReading,
    Damaged,
    DamagedError,
    Psfs,
    UnitReading,
    box_of,
)
from ripple.stages.fetch.task import UnitTask

#: Projections of one row must agree to this many pixels (a milli-pixel).
WCS_TOLERANCE = 1e-3

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Planes = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class _Source:
    """What the functions of this module share: the task, the files, and which files to leave out."""

    task: UnitTask
    files: CoaddFiles
    damaged: Damaged
    profile: Profile
    x0: Ints
    y0: Ints

    def box(self, row: int) -> Box:
        return box_of(self.x0, self.y0, self.task.size, row)


@dataclass(frozen=True, slots=True)
class _Edges:
    """Boxes that leave their patch, put together from all patches that have a part of them.

    `(E,)` arrays, except `stitched` (plane -> `(E, S, S)`). `centre` is the patch of the central pixel, -1
    for none; `parts` is the number of patches used.
    """

    stitched: Planes
    centre: Ints
    coverage: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    parts: NDArray[np.int16]


def read_unit[R](
    task: UnitTask, files: CoaddFiles, profile: Profile, read: Callable[[UnitReading], R]
) -> tuple[UnitReading, R]:
    """An opened unit, and what `read` made of it; begun anew without each file that turns out damaged."""
    damaged: Damaged = {}
    while True:  # each round leaves out one more file, so this ends
        try:
            reading = open_unit(task, files, damaged, profile)
            return reading, read(reading)
        except DamagedError as err:
            damaged[err.key] = err.error


def open_unit(task: UnitTask, files: CoaddFiles, damaged: Damaged, profile: Profile) -> UnitReading:
    """Open the files of a unit, stitch the boxes that leave their patch, look up PSFs, judge the rows.

    Parameters
    ----------
    task
        What to read.
    files
        Where coadds are opened.
    damaged
        Files that earlier attempts found damaged; they are not opened.
    profile
        Gets what each operation costs.

    Raises
    ------
    DamagedError
        A file turned out to be damaged: call again with it among `damaged`.
    """
    source = _Source(task, files, damaged, profile, *task.corners())
    bands = tuple(_open_band(source, k) for k in range(len(task.bands)))
    # Judged before the planes are streamed, which leaves out the rejected rows.
    outcomes = judge(task, source.x0, source.y0, bands)
    kept = np.flatnonzero(~outcomes.has("rejected"))
    table = delivered(task, source.x0, source.y0, bands, kept)
    return UnitReading(task, source.x0, source.y0, bands, outcomes, table, kept)


def _open_band(source: _Source, k: int) -> BandReading:
    """The reading of band number k."""
    task, own = source.task, source.task.patch
    band = task.bands[k]
    coadds, failures, notes, whole = _open_files(source, k)
    # A row whose own file cannot be used is not put together from neighbours, which hold only its border.
    edge = np.flatnonzero(~whole & ~np.isin(own, list(failures)))
    edges = _stitched(source, k, coadds, edge)
    coverage = whole.astype(np.float32)  # share of the box: 1 inside the own file
    coverage[edge] = edges.coverage
    resampled, crossed, cross_failures = _completed(source, band, edge, edges)
    coverage += resampled
    disagreement, parts = np.zeros(task.rows, np.float32), np.ones(task.rows, np.int16)
    disagreement[edge], parts[edge] = edges.disagreement, np.maximum(edges.parts, 1)
    # The PSF is that of the patch whose pixel is at the centre.
    centre = np.where(whole, own, -1)
    centre[edge] = edges.centre
    psfs, remarks = _psfs(source, k, coadds, centre)
    missing = np.zeros(task.rows, np.float32)
    for patch, coadd in coadds.items():
        missing += _missing_cells(source, coadd, own == patch)
    return BandReading(
        band,
        coadds,
        failures,
        whole,
        edge,
        edges.stitched,
        coverage,
        resampled,
        missing,
        disagreement,
        parts,
        crossed,
        cross_failures,
        psfs,
        (*notes, *remarks),
    )


# Files --------------------------------------------------------------


def _open_files(
    source: _Source, k: int
) -> tuple[dict[int, Coadd], dict[int, UnreadableError], list[str], Flags]:
    """Open files by patch, errors by patch, remarks, and the rows whose box lies inside their own file."""
    task, own = source.task, source.task.patch
    here = {d.patch: d for d in task.datasets if d.band == task.bands[k]}
    coadds: dict[int, Coadd] = {}
    failures = {patch: error for (patch, band), error in source.damaged.items() if band == k}
    notes: list[str] = []
    whole = np.zeros(task.rows, bool)
    # Own patches first: neighbours are only opened for boxes that leave their own patch.
    for patch in sorted(here.keys() - failures.keys(), key=lambda p: (p not in own, p)):
        if patch not in own and not _reached(source, task.boxes[patch], ~whole):
            continue
        try:
            coadd = _open(source, here[patch])
        except UnreadableError as err:
            failures[patch] = err  # only this patch and band
            continue
        coadds[patch] = coadd
        notes += coadd.notes
        whole |= (own == patch) & inside(coadd.box, source.x0, source.y0, task.size)
    return dict(sorted(coadds.items())), failures, notes, whole


def _reached(source: _Source, patch: Box, rows: Flags) -> bool:
    """Whether a box among `rows` reaches into a patch."""
    return bool(touches(patch, source.x0[rows], source.y0[rows], source.task.size).any())


def _open(source: _Source, dataset: Dataset) -> Coadd:
    """The open file, after a check that it is on the pixel grid of the tract."""
    task, planned = source.task, source.task.boxes[dataset.patch]
    rows = int(touches(planned, source.x0, source.y0, task.size).sum())
    sparse = is_sparse(rows, task.size, planned)
    label = "open sparse" if sparse else "open dense"
    with source.profile.time(label):
        coadd = source.files.open(dataset, sparse=sparse)
    # On what the choice was based, see `is_sparse`.
    source.profile.count(label, rows=rows, plane_pixels=planned.width * planned.height)
    _check_grid(coadd, task.projection, task.tract)
    return coadd


def _check_grid(coadd: Coadd, projection: Tan, tract: int) -> None:
    """Raise when a file is not on the pixel grid of its tract."""
    gap = projection.separation(coadd.projection, coadd.box)
    # Written so that NaN fails as well.
    if not gap <= WCS_TOLERANCE:
        raise UnreadableError(
            f"{coadd.name}: its projection differs from that of tract {tract} by {gap:.3g} px",
            hint="the file is not on the pixel grid of its tract",
            reason=Reason.WRONG_WCS,
        )


def read_plane(
    coadd: Coadd, plane: str, box: Box, key: tuple[int, int], profile: Profile
) -> NDArray[np.generic]:
    """A box of one plane of a file; `key` is its patch and band number.

    Raises
    ------
    DamagedError
        The file is damaged.
    """
    # Image, variance and mask have four bytes per pixel each.
    with profile.time("decode", bytes=4 * box.width * box.height):
        try:
            if plane == "mask":
                return coadd.mask(box, MASK_PLANES)
            return coadd.image(box) if plane == "image" else coadd.variance(box)
        except UnreadableError as err:
            raise DamagedError(key, err) from None


# Boxes that leave their patch ---------------------------------------


def _stitched(source: _Source, k: int, coadds: dict[int, Coadd], edge: Ints) -> _Edges:
    """Put the boxes of the rows `edge` together from all patches that have a part of them."""
    task, own = source.task, source.task.patch
    shape = (len(edge), task.size, task.size)
    none = np.zeros(len(edge), np.float32)
    parts = np.zeros(len(edge), np.int16)
    # Patch -> rows of `edge` whose box it touches.
    near = {p: edge[touches(c.box, source.x0[edge], source.y0[edge], task.size)] for p, c in coadds.items()}
    if not any(len(rows) for rows in near.values()):
        return _Edges({}, np.full(len(edge), -1), none, none, parts)
    stitched: Planes = {
        "image": np.full(shape, np.nan, np.float32),
        "variance": np.full(shape, np.nan, np.float32),
        "mask": np.full(shape, NO_DATA, np.uint32),
    }
    seams = Seams.empty(len(edge), task.size)
    for patch, rows in near.items():
        if not rows.size:
            continue
        coadd, key = coadds[patch], (patch, k)
        commons = [source.box(row) & coadd.box for row in rows.tolist()]
        # Many boxes: one read of all that they touch in this patch; few: one read each.
        whole = _union(commons)
        dense = not is_sparse(len(rows), task.size, whole)
        planes = {n: read_plane(coadd, n, whole, key, source.profile) for n in PLANES} if dense else {}
        for row, common in zip(rows.tolist(), commons, strict=True):
            pixels, box = planes, whole
            if not dense:
                pixels = {n: read_plane(coadd, n, common, key, source.profile) for n in PLANES}
                box = common
            e = int(np.searchsorted(edge, row))
            out = {n: stitched[n][e] for n in PLANES}  # views: filled in place
            with source.profile.time("stitch"):
                stitch_row(seams, e, source.box(row), pixels, box, out, patch=patch, own=own[row] == patch)
            parts[e] += 1
    centre = _drop_uncentred(seams, stitched)
    filled = seams.filled.mean(axis=(1, 2)).astype(np.float32)
    return _Edges(stitched, centre, filled, seams.disagreement.astype(np.float32), parts)


def _drop_uncentred(seams: Seams, stitched: Planes) -> Ints:
    """Blank the boxes whose central pixel no file covers: they are pieces of a border, not cutouts.

    Returns the patch of each central pixel, -1 for none.
    """
    half = seams.filled.shape[-1] // 2
    lost = ~seams.filled[:, half, half]
    seams.filled[lost] = False
    seams.disagreement[lost] = 0
    for name, pixels in stitched.items():
        pixels[lost] = NO_DATA if name == "mask" else np.nan
    return np.where(lost, -1, seams.source[:, half, half])


def _union(boxes: Sequence[Box]) -> Box:
    return Box(
        min(b.x0 for b in boxes), min(b.y0 for b in boxes), max(b.x1 for b in boxes), max(b.y1 for b in boxes)
    )


# Boxes that leave their tract ---------------------------------------


def _completed(
    source: _Source, band: str, edge: Ints, edges: _Edges
) -> tuple[NDArray[np.float32], dict[str, Coadd], dict[tuple[int, int], UnreadableError]]:
    """Fill what is still empty in boxes from other tracts, resampled onto the grid of this one.

    Returns the share of each of the N boxes that was filled, the files it came from, and files that could
    not be used. The pixels are written into `edges.stitched`.
    """
    task = source.task
    here = {(d.tract, d.patch): d for d in task.cross_datasets if d.band == band}
    filled = np.zeros(task.rows, np.float32)
    crossed: dict[str, Coadd] = {}
    failures: dict[tuple[int, int], UnreadableError] = {}
    for e, row in enumerate(edge.tolist()):
        if row not in task.cross or edges.coverage[e] == 0:
            continue  # nothing of the own tract in this band: all of the cutout would be resampled
        out = {n: edges.stitched[n][e] for n in PLANES}
        # Pixels that no file of this tract gave; masked ones that are there stay.
        wanted = np.asarray((out["mask"] == NO_DATA) & np.isnan(out["image"]))
        for pair in task.cross[row]:
            if pair not in here or not wanted.any():
                continue
            dataset = here[pair]
            if pair in failures and dataset.uuid not in crossed:
                continue  # it could not be opened; one that failed at another box is tried again
            try:
                if dataset.uuid not in crossed:
                    coadd = source.files.open(dataset, sparse=True)
                    _check_grid(coadd, task.cross_projections[pair[0]], pair[0])
                    crossed[dataset.uuid] = coadd
                done = _resampled(crossed[dataset.uuid], source.box(row), task, pair[0], wanted, out)
            except UnreadableError as err:
                failures.setdefault(pair, err)
                continue
            wanted &= ~done
            filled[row] += done.mean()
    return filled, crossed, failures


def _resampled(coadd: Coadd, target: Box, task: UnitTask, tract: int, wanted: Flags, out: Planes) -> Flags:
    """Write the `wanted` pixels that a patch of another tract has into `out`, `(S, S)`; returns which."""
    # Where each pixel of the box lies on the grid of the other tract.
    sources = locate(target, task.projection, task.cross_projections[tract])
    box = sources.box(wanted) & coadd.box
    if box.empty:
        return np.zeros_like(wanted)
    planes = {
        "image": coadd.image(box),
        "variance": coadd.variance(box),
        "mask": coadd.mask(box, MASK_PLANES),
    }
    done, values = resample(planes, box, sources, wanted)
    for name, pixels in values.items():
        out[name][done] = pixels
    return done


# PSFs ---------------------------------------------------------------


def _psfs(source: _Source, k: int, coadds: dict[int, Coadd], centre: Ints) -> tuple[Psfs, list[str]]:
    """PSFs at the centre of each row and in the other cells under its box; remarks on files without PSFs."""
    task = source.task
    kernels: list[NDArray[np.float32]] = []
    key = np.full(task.rows, -1, np.int32)
    jump = np.zeros(task.rows, np.float32)
    cells = [np.empty((0, 6), np.int32)]
    notes: list[str] = []
    for patch, coadd in coadds.items():
        rows = np.flatnonzero(centre == patch)
        if not rows.size:
            continue
        with source.profile.time("psf"):
            try:
                psf = coadd.psf_near([source.box(row) for row in rows.tolist()])
            except UnreadableError as err:
                raise DamagedError((patch, k), err) from None
            if isinstance(psf, PsfCells):
                cells.append(_look_up(source, psf, rows, kernels, key, jump))
            else:
                # The cutouts are good for all that needs no PSF, so this rejects nothing.
                notes.append(f"{coadd.name}: no PSF: {psf.reason}")
    return Psfs(tuple(kernels), key, np.concatenate(cells), jump), notes


def _look_up(
    source: _Source,
    psf: PsfCells,
    rows: Ints,
    kernels: list[NDArray[np.float32]],
    key: NDArray[np.int32],
    jump: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Add the kernels of one file that `rows` need to `kernels`, and fill in `key` and `jump`.

    Returns the parts of boxes in other cells, as `Psfs.cells`.
    """
    half, columns = source.task.size // 2, psf.kernels.shape[1]  # kernels: (rows, columns, K, K)
    place = psf.index(source.x0[rows] + half, source.y0[rows] + half)
    rows, place = rows[place[:, 0] >= 0], place[place[:, 0] >= 0]  # -1: the cell has no PSF
    centre = place[:, 0] * columns + place[:, 1]  # flat number of the cell
    at, box, cell = _other_cells(source, psf, rows, centre)
    used, number = np.unique(np.concatenate([centre, cell]), return_inverse=True)
    number += len(kernels)  # behind those of the files before
    kernels.extend(psf.kernels[c // columns, c % columns] for c in used)
    key[rows] = number[: len(rows)]
    flat = psf.kernels.reshape(-1, *psf.kernels.shape[2:])
    # A box may touch several other cells: the largest difference counts.
    np.maximum.at(jump, rows[at], psf_gaps(flat, cell, centre[at]))
    return np.column_stack([rows[at], box, number[len(rows) :]]).astype(np.int32)


def _other_cells(source: _Source, psf: PsfCells, rows: Ints, centre: Ints) -> tuple[Ints, Ints, Ints]:
    """Parts of the boxes of `rows` in cells with a PSF other than that of the centre.

    Returns
    -------
    at, box, cell
        `(L,)` position among `rows`; `(L, 4)` first and end pixel in y and in x, of the box; `(L,)` flat
        number of the cell.
    """
    size, (ny, nx) = source.task.size, psf.kernels.shape[:2]
    y0, x0 = source.y0[rows] - psf.y0, source.x0[rows] - psf.x0
    # First and last cell, row and column, under each box, within the grid of cells.
    (i0, i1), (j0, j1) = (
        (np.maximum(first // cell, 0), np.minimum((first + size - 1) // cell, count - 1))
        for first, cell, count in ((y0, psf.cell_height, ny), (x0, psf.cell_width, nx))
    )
    # Cells without PSF are NaN throughout, so the central pixel tells.
    known = np.isfinite(psf.kernels[:, :, psf.kernels.shape[2] // 2, psf.kernels.shape[3] // 2]).ravel()
    found: list[Ints] = [np.empty((0, 6), np.int64)]
    # Over the few offsets between cells instead of over rows: each step is one operation on all boxes.
    for di in range(int((i1 - i0).max(initial=-1)) + 1):
        for dj in range(int((j1 - j0).max(initial=-1)) + 1):
            i, j = i0 + di, j0 + dj
            at = np.flatnonzero((i <= i1) & (j <= j1) & (i * nx + j != centre))
            cell = (i * nx + j)[at]
            at, cell = at[known[cell]], cell[known[cell]]
            top, left = i[at] * psf.cell_height - y0[at], j[at] * psf.cell_width - x0[at]
            bottom, right = np.minimum(top + psf.cell_height, size), np.minimum(left + psf.cell_width, size)
            found.append(np.column_stack([at, np.maximum(top, 0), bottom, np.maximum(left, 0), right, cell]))
    every = np.concatenate(found)
    return every[:, 0], every[:, 1:5], every[:, 5]


def _missing_cells(source: _Source, coadd: Coadd, rows: Flags) -> NDArray[np.float32]:
    """`(N,)` share of the boxes of `rows`, margins left out, that lies in missing cells of a file."""
    margin, share = source.task.margin, np.zeros(source.task.rows, np.float32)
    x0, y0, size = source.x0 + margin, source.y0 + margin, source.task.size - 2 * margin
    # Missing cells do not overlap, so their shares add up.
    for cell in coadd.missing:
        for row in np.flatnonzero(rows & touches(cell, x0, y0, size)).tolist():
            common = box_of(x0, y0, size, row) & cell
            share[row] += common.width * common.height / size**2
    return share
