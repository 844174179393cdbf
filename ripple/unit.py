"""One unit of a fetch: its rows cut from all bands of a few patches, ready to be packed.

A unit is read, cut and packed by one worker and depends on nothing but its task, so its bytes are the same
whoever does it and whenever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.cutouts import MASK_PLANES, CutoutBatch
from ripple.errors import Reason, UnreadableError
from ripple.geometry import Box, Tan
from ripple.plan import Dataset
from ripple.profile import Profile
from ripple.rubin.read import open_dataset
from ripple.rubin.source import Coadd, PsfCells
from ripple.stitch import Seams, gather, inside, stitch_row, touches

#: Projections of one row must agree to this many pixels (a milli-pixel).
WCS_TOLERANCE = 1e-3
NO_DATA = np.uint32(1 << MASK_PLANES.index("NO_DATA"))


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
        Columns of the N rows: `index`, `id`, `ra`, `dec`, `patch`, `x`, `y`, and user columns.
    datasets
        What exists for the patches that the boxes touch.
    repo
        Where to resolve datasets that have no local file.
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
    repo: str
    missing_band: Literal["partial", "reject"] = "partial"
    edge: Literal["pad", "reject"] = "pad"


@dataclass(slots=True)
class UnitRows:
    """What reading a unit gave: the batch of kept rows, and a verdict for each row asked for.

    Parameters
    ----------
    batch
        Rows that are `ok` or `partial`, in task order.
    status, reason
        `(N,)` per row asked for: `ok`, `partial` or `rejected`, and a `Reason` or the empty string.
    kept
        Row numbers of the batch's rows among those asked for.
    digests
        Dataset UUID -> SHA-256 of the bytes read.
    notes
        Remarks of the readers, each once.
    """

    batch: CutoutBatch
    status: NDArray[np.str_]
    reason: NDArray[np.str_]
    kept: NDArray[np.int64]
    digests: dict[str, str]
    notes: tuple[str, ...]
    profile: Profile


@dataclass(slots=True)
class _Work:
    """Arrays being filled: `(N, B, S, S)` planes and `(N, B)` facts."""

    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    planes: dict[str, NDArray[Any]]
    coverage: NDArray[np.float32]
    missing: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    psf_jump: NDArray[np.float32]
    patches: list[set[int]]
    psf_key: NDArray[np.int32]
    kernels: list[NDArray[np.float32]] = field(default_factory=list)
    failures: dict[tuple[int, int], Reason] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    profile: Profile = field(default_factory=Profile)


def read_unit(task: UnitTask) -> UnitRows:
    """Read, cut and judge the rows of one unit.

    Faults of a source file reject or reduce the rows that need it and leave all others as they are.
    """
    work = _allocate(task)
    for b in range(len(task.bands)):
        _read_band(task, work, b)
    return _finish(task, work)


def _allocate(task: UnitTask) -> _Work:
    n, b, s = len(task.catalog["index"]), len(task.bands), task.size
    x = np.floor(task.catalog["x"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    y = np.floor(task.catalog["y"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    planes: dict[str, NDArray[Any]] = {
        "image": np.empty((n, b, s, s), np.float32),
        "mask": np.empty((n, b, s, s), np.uint32),
        "variance": np.empty((n, b, s, s), np.float32),
    }
    coverage, missing, disagreement, jump = (np.zeros((n, b), np.float32) for _ in range(4))
    patches: list[set[int]] = [set() for _ in range(n)]
    key = np.full((n, b), -1, np.int32)
    return _Work(x, y, planes, coverage, missing, disagreement, jump, patches, key)


def _read_band(task: UnitTask, work: _Work, b: int) -> None:
    """Fill band b of all rows, patch by patch in the order of their ids."""
    here = {d.patch: d for d in task.datasets if d.band == task.bands[b]}
    own = task.catalog["patch"].astype(np.int64)
    whole = np.zeros(len(own), bool)
    opened: dict[int, Coadd] = {}
    for patch in sorted(here):
        coadd = _open(task, work, b, here[patch])
        if coadd is not None:
            opened[patch] = coadd
            whole |= (own == patch) & inside(coadd.box, work.x0, work.y0, task.size)
    _blank(work, b, ~whole)
    rows = np.flatnonzero(~whole)
    edge = {int(row): e for e, row in enumerate(rows)}
    seams = Seams.empty(len(rows), task.size)
    for patch, coadd in opened.items():
        mine = whole & (own == patch)
        near = ~whole & touches(coadd.box, work.x0, work.y0, task.size)
        near &= ~np.isin(own, [p for (p, band) in work.failures if band == b and p != patch])
        if not (mine.any() or near.any()):
            continue
        try:
            _cut(task, work, b, patch, coadd, mine, near, seams, edge)
        except UnreadableError as err:
            _fail(work, b, patch, err)
            _blank(work, b, mine | near)
            work.coverage[mine | near, b] = 0
        work.digests[here[patch].uuid] = coadd.digest
    for row, e in edge.items():
        work.coverage[row, b] = seams.filled[e].mean()
        work.disagreement[row, b] = seams.disagreement[e]


def _blank(work: _Work, b: int, rows: NDArray[np.bool_]) -> None:
    work.planes["image"][rows, b] = np.float32(np.nan)
    work.planes["variance"][rows, b] = np.float32(np.nan)
    work.planes["mask"][rows, b] = NO_DATA


def _fail(work: _Work, b: int, patch: int, err: UnreadableError) -> None:
    work.failures[patch, b] = err.reason
    work.notes[str(err)] = None


def _open(task: UnitTask, work: _Work, b: int, dataset: Dataset) -> Coadd | None:
    """The open file, or None with the reason noted: a fault here concerns one patch and band only."""
    try:
        with work.profile.time("open"):
            coadd = open_dataset(dataset, repo=task.repo)
        gap = task.projection.separation(coadd.projection, coadd.box)
        if gap > WCS_TOLERANCE:
            raise UnreadableError(
                f"{coadd.name}: its projection is {gap:.3g} px away from that of tract {task.tract}",
                hint="the file is not on the tract's pixel grid",
                reason=Reason.WRONG_WCS,
            )
    except UnreadableError as err:
        _fail(work, b, dataset.patch, err)
        return None
    for note in coadd.notes:
        work.notes[note] = None
    return coadd


def _cut(
    task: UnitTask,
    work: _Work,
    b: int,
    patch: int,
    coadd: Coadd,
    mine: NDArray[np.bool_],
    near: NDArray[np.bool_],
    seams: Seams,
    edge: dict[int, int],
) -> None:
    """Slice the rows inside the patch, stitch those at its edge, look up their PSF."""
    readers: dict[str, Callable[[], NDArray[Any]]] = {
        "image": coadd.image,
        "mask": lambda: coadd.mask(planes=MASK_PLANES),
        "variance": coadd.variance,
    }
    kept: dict[str, NDArray[Any]] = {}
    rows = np.flatnonzero(mine)
    for name, read in readers.items():
        with work.profile.time("decode"):
            plane = read()
        with work.profile.time("gather"):
            work.planes[name][rows, b] = gather(
                plane, work.x0[rows] - coadd.box.x0, work.y0[rows] - coadd.box.y0, task.size
            )
        if near.any():
            kept[name] = plane
    work.profile.count("decode", bytes=3 * 4 * coadd.box.width * coadd.box.height)
    work.coverage[rows, b] = 1
    own = task.catalog["patch"]
    with work.profile.time("stitch"):
        for row in np.flatnonzero(near):
            out = {name: work.planes[name][row, b] for name in kept}
            stitch_row(
                seams, edge[int(row)], _stamp(work, row, task.size), kept, coadd.box, out,
                patch=patch, own=own[row] == patch,
            )  # fmt: skip
            work.patches[row].add(patch)
    for row in rows:
        work.patches[row].add(patch)
    with work.profile.time("psf"):
        _psf(task, work, b, coadd, np.flatnonzero(mine | near), own == patch)
    _missing_cells(task, work, b, coadd, mine | (near & (own == patch)))


def _stamp(work: _Work, row: Any, size: int) -> Box:
    x, y = int(work.x0[row]), int(work.y0[row])
    return Box(x, y, x + size, y + size)


def _psf(
    task: UnitTask,
    work: _Work,
    b: int,
    coadd: Coadd,
    rows: NDArray[np.int64],
    own: NDArray[np.bool_],
) -> None:
    """Kernel at the cutout centre, and how much it changes over the cells under the cutout."""
    psf = coadd.psf
    if not isinstance(psf, PsfCells):
        work.notes[f"{coadd.name}: no PSF: {psf.reason}"] = None
        return
    half = task.size // 2
    cells = psf.index(work.x0[rows] + half, work.y0[rows] + half)
    first = len(work.kernels)
    columns = psf.kernels.shape[1]
    flat = np.where(cells[:, 0] < 0, -1, cells[:, 0] * columns + cells[:, 1])
    # A neighbour's PSF serves only where the own patch gave none.
    take = (flat >= 0) & (own[rows] | (work.psf_key[rows, b] < 0))
    used = np.unique(flat[take])
    work.kernels.extend(psf.kernels[c // columns, c % columns] for c in used)
    work.psf_key[rows[take], b] = first + np.searchsorted(used, flat[take])
    jumps: dict[tuple[int, ...], float] = {}
    for row, cell, ok in zip(rows, flat, take, strict=True):
        if ok:
            key = (int(cell), *_cell_span(psf, _stamp(work, row, task.size)))
            if key not in jumps:
                jumps[key] = _jump(psf, key)
            work.psf_jump[row, b] = jumps[key]


def _cell_span(psf: PsfCells, stamp: Box) -> tuple[int, int, int, int]:
    rows, columns = psf.kernels.shape[:2]
    i0, i1 = (stamp.y0 - psf.y0) // psf.cell_height, (stamp.y1 - 1 - psf.y0) // psf.cell_height
    j0, j1 = (stamp.x0 - psf.x0) // psf.cell_width, (stamp.x1 - 1 - psf.x0) // psf.cell_width
    return max(i0, 0), min(i1, rows - 1), max(j0, 0), min(j1, columns - 1)


def _jump(psf: PsfCells, key: tuple[int, ...]) -> float:
    """Largest sum|K_cell - K_centre| over the cells under a stamp; 0 for one cell."""
    cell, i0, i1, j0, j1 = key
    columns = psf.kernels.shape[1]
    centre = psf.kernels[cell // columns, cell % columns]
    gaps = np.abs(psf.kernels[i0 : i1 + 1, j0 : j1 + 1] - centre).sum(axis=(2, 3))
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0


def _missing_cells(task: UnitTask, work: _Work, b: int, coadd: Coadd, rows: NDArray[np.bool_]) -> None:
    for cell in coadd.missing:
        for row in np.flatnonzero(rows & touches(cell, work.x0, work.y0, task.size)):
            common = _stamp(work, row, task.size) & cell
            work.missing[row, b] += common.width * common.height / task.size**2


def _finish(task: UnitTask, work: _Work) -> UnitRows:
    status, reason = _judge(task, work)
    kept = np.flatnonzero(status != "rejected")
    batch = _batch(task, work, kept)
    return UnitRows(batch, status, reason, kept, work.digests, tuple(work.notes), work.profile)


def _judge(task: UnitTask, work: _Work) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Status and reason of each row; the first reason that applies, gravest first."""
    n = len(work.x0)
    has = work.coverage > 0
    failed = _failed(task, work)
    status = np.full(n, "ok", "U8")
    reason = np.full(n, "", "U24")

    def verdict(rows: NDArray[np.bool_], level: str, why: Reason) -> None:
        rows = rows & ((status == "ok") | ((status == "partial") & (level == "rejected")))
        status[rows], reason[rows] = level, why.value

    lost = ~has.any(axis=1)
    for why in (Reason.WRONG_WCS, Reason.WRONG_UNIT, Reason.BAD_PSF, Reason.UNREADABLE_SOURCE):
        verdict(lost & (failed == why.value).any(axis=1), "rejected", why)
    verdict(lost, "rejected", Reason.NO_DATASET)
    empty = np.where(has, work.missing >= 1 - 1e-6, True).all(axis=1)
    verdict(empty, "rejected", Reason.MISSING_CELL)
    level = "rejected" if task.missing_band == "reject" else "partial"
    for why in (Reason.WRONG_WCS, Reason.WRONG_UNIT, Reason.BAD_PSF, Reason.UNREADABLE_SOURCE):
        verdict((failed == why.value).any(axis=1), level, why)
    verdict(~has.all(axis=1), level, Reason.MISSING_BAND)
    outside = np.where(has, work.coverage < 1, False).any(axis=1)
    verdict(outside, "rejected" if task.edge == "reject" else "partial", Reason.OUTSIDE)
    return status, reason


def _failed(task: UnitTask, work: _Work) -> NDArray[np.str_]:
    """`(N, B)` reason for which the own patch's file of a band could not be used."""
    failed = np.full(work.coverage.shape, "", "U24")
    own = task.catalog["patch"]
    for (patch, b), why in work.failures.items():
        failed[(own == patch) & (work.coverage[:, b] == 0), b] = why.value
    return failed


def _batch(task: UnitTask, work: _Work, kept: NDArray[np.int64]) -> CutoutBatch:
    planes = work.planes
    if len(kept) < len(work.x0):
        planes = {name: plane[kept] for name, plane in planes.items()}
    psf, index = _pack_kernels(work.kernels, work.psf_key[kept])
    return CutoutBatch(
        bands=task.bands,
        image=planes["image"],
        variance=planes["variance"],
        mask=planes["mask"],
        mask_planes=MASK_PLANES,
        psf=psf,
        psf_index=index,
        catalog=_catalog(task, work, kept),
        wcs={task.tract: task.projection},
        pixel_scale=task.projection.pixel_scale,
    )


def _pack_kernels(
    kernels: list[NDArray[np.float32]], index: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Kernels in use, padded about their centre to one odd size; equal kernels stored once."""
    seen: dict[str, int] = {}
    place = np.full(len(kernels) + 1, -1, np.int32)
    for k in np.unique(index[index >= 0]):
        name = hashlib.sha256(np.ascontiguousarray(kernels[k]).tobytes()).hexdigest()
        place[k] = seen.setdefault(f"{kernels[k].shape} {name}", len(seen))
    side = max((k.shape[0] for k in kernels), default=1)
    packed = np.zeros((len(seen), side, side), np.float32)
    for k, slot in enumerate(place[:-1]):
        if slot >= 0:
            pad = (side - kernels[k].shape[0]) // 2
            packed[slot, pad : side - pad, pad : side - pad] = kernels[k]
    return packed, place[index]


def _catalog(task: UnitTask, work: _Work, kept: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    half = task.size // 2
    b = np.arange(len(task.bands), dtype=np.uint32)
    has = work.coverage > 0
    own = {
        "tract": np.full(len(work.x0), task.tract, np.int32),
        "x0": work.x0.astype(np.int32),
        "y0": work.y0.astype(np.int32),
        "dx": (task.catalog["x"] - (work.x0 + half)).astype(np.float32),
        "dy": (task.catalog["y"] - (work.y0 + half)).astype(np.float32),
        "band_mask": np.left_shift(has.astype(np.uint32), b).sum(axis=1).astype(np.uint32),
        "coverage": np.where(has, work.coverage, np.inf).min(axis=1).astype(np.float32),
        "missing_cell": work.missing.max(axis=1),
        "n_patches": np.array([len(p) for p in work.patches], np.int16),
        "seam_difference": work.disagreement.max(axis=1),
        "psf_jump": work.psf_jump.max(axis=1),
    }
    first = ("index", "id", "ra", "dec")
    columns = {k: task.catalog[k] for k in first} | {"patch": task.catalog["patch"].astype(np.int32)} | own
    columns |= {k: v for k, v in task.catalog.items() if k not in columns and k not in ("x", "y")}
    return {k: v[kept] for k, v in columns.items()}


def seam_map(stamp: Box, own: int, boxes: dict[int, Box]) -> NDArray[np.int32]:
    """Patch that each pixel of a cutout came from: `(H, W)` int32, -1 where no patch holds it.

    Parameters
    ----------
    stamp
        Pixels of the cutout, PARENT frame.
    own
        Patch of the target.
    boxes
        Outer box of each patch that had data.
    """
    out = np.full(stamp.shape, -1, np.int32)
    for patch in [*sorted((p for p in boxes if p != own), reverse=True), own]:
        if patch in boxes:
            common = stamp & boxes[patch]
            if not common.empty:
                out[stamp.slices(common)] = patch
    return out
