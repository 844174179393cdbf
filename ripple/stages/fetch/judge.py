"""What becomes of each row of a unit, and the delivered rows: catalogue and distinct PSF kernels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason
from ripple.imaging.batch import MASK_PLANES, CutoutTable
from ripple.stages.fetch.reading import BandReading, box_of
from ripple.stages.fetch.task import UnitTask
from ripple.storage.outcomes import Outcome, Outcomes, Status

#: Overlapping patches have the same pixels; a difference beyond this many sigma of noise is reported.
SEAM_SIGMA = 1.0
#: Share of pixels without data in a band above which a row is `partial`; as `max_no_data` in preprocess.
NO_DATA_SHARE = 0.05
#: A share of a box below one by no more than this counts as one, because it is a mean of float32.
ROUNDING = 1e-6
#: Reasons why a file cannot be used, most serious first.
FAULTS = (Reason.WRONG_WCS, Reason.WRONG_UNIT, Reason.BAD_PSF, Reason.UNREADABLE_SOURCE)

Ints = NDArray[np.int64]


def judge(task: UnitTask, x0: Ints, y0: Ints, bands: Sequence[BandReading]) -> Outcomes:
    """The outcome of each of N rows: the most serious reason that applies.

    Parameters
    ----------
    task
        The requested rows.
    x0, y0
        `(N,)` first pixels of the boxes, PARENT frame.
    bands
        What was read.
    """
    has = np.stack([band.has for band in bands], axis=1)  # (N, B), as the three below
    coverage = np.stack([band.coverage for band in bands], axis=1)
    missing = np.stack([band.missing for band in bands], axis=1)
    seams = np.stack([band.disagreement for band in bands], axis=1)
    own, lost = task.patch, ~has.any(axis=1)
    failed = {why: _failed(own, bands, why) & ~has for why in FAULTS}
    outcomes = Outcomes(task.rows)

    def mark(rows: NDArray[np.bool_], status: Status, reason: Reason, text: Callable[[int], str]) -> None:
        # `Outcomes` keeps the first of equally serious outcomes: the calls below are in order of importance.
        # Rows with the same text share one outcome.
        alike: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(rows).tolist():
            faults = _faults_under(task, x0, y0, bands, row)
            alike["; ".join(filter(None, [text(row), *faults]))].append(row)
        for detail, some in alike.items():
            outcomes.add(some, Outcome(status, reason, detail))

    def names(rows: NDArray[np.bool_], row: int) -> str:
        return ", ".join(band.name for band, chosen in zip(bands, rows[row], strict=True) if chosen)

    def shares(values: NDArray[np.floating], row: int, form: str) -> str:
        by_band = zip(bands, values[row], has[row], strict=True)
        return ", ".join(f"{band.name} {format(value, form)}" for band, value, there in by_band if there)

    level: Status = "rejected" if task.require_all_bands else "partial"
    # First rows without any band: a damaged file, whose message is the detail, counts before a missing one.
    for why in FAULTS:
        mark(lost & failed[why].any(axis=1), "rejected", why, lambda _: "")
    mark(lost, "rejected", Reason.NO_DATASET, lambda _: "no coadd covers the centre of the box")
    empty = np.where(has, missing >= 1 - ROUNDING, True).all(axis=1)
    mark(empty, "rejected", Reason.MISSING_CELL, lambda row: f"all of the box in {names(has, row)}")
    # Then rows that lack a band; `level` is what the user wants for these.
    for why in FAULTS:
        mark(failed[why].any(axis=1), level, why, lambda _: "")
    mark(~has.all(axis=1), level, Reason.MISSING_BAND, lambda row: f"no {names(~has, row)}")
    # Last, rows that have all bands, but not all pixels, or doubtful ones.
    outside = np.where(has, coverage < 1 - ROUNDING, False).any(axis=1)
    mark(
        outside,
        "rejected" if task.edge == "reject" else "partial",
        Reason.OUTSIDE,
        lambda row: f"pixels in {shares(coverage, row, '.0%')} of the box",
    )
    mark(
        seams.max(axis=1) > SEAM_SIGMA,
        "partial",
        Reason.SEAM,
        lambda row: f"overlapping patches differ by {shares(seams, row, '.1f')} sigma",
    )
    return outcomes


def mark_no_data(outcomes: Outcomes, bands: Sequence[str], share: NDArray[np.float32]) -> None:
    """Make rows `partial` that lack more than `NO_DATA_SHARE` of their pixels in some band.

    Parameters
    ----------
    outcomes
        Of N rows.
    bands
        Names of the B bands.
    share
        `(N, B)` pixels without data; 1 in bands that the row does not have, which is a reason already.
    """
    some = share > NO_DATA_SHARE
    for row in np.flatnonzero(some.any(axis=1)).tolist():
        named = ", ".join(f"{share[row, k]:.2f} in {bands[k]}" for k in np.flatnonzero(some[row]).tolist())
        outcomes.add([row], Outcome("partial", Reason.NO_DATA, f"no data: {named}"))


def _failed(own: Ints, bands: Sequence[BandReading], why: Reason) -> NDArray[np.bool_]:
    """`(N, B)` rows whose own patch has a file that could not be used for this reason."""
    lists = [[p for p, error in band.failures.items() if error.reason is why] for band in bands]
    return np.stack([np.isin(own, patches) for patches in lists], axis=1)


def _faults_under(task: UnitTask, x0: Ints, y0: Ints, bands: Sequence[BandReading], row: int) -> list[str]:
    """Messages about the files under the box of a row that could not be used, each once."""
    found: dict[str, None] = {}
    box = box_of(x0, y0, task.size, row)
    for band in bands:
        for patch, error in band.failures.items():
            if patch == task.patch[row] or not (task.boxes[patch] & box).empty:
                found[error.message] = None
        for pair, error in band.cross_failures.items():
            if pair in task.cross.get(row, ()):
                found[error.message] = None
    return list(found)


# Delivered rows -----------------------------------------------------


def delivered(task: UnitTask, x0: Ints, y0: Ints, bands: Sequence[BandReading], kept: Ints) -> CutoutTable:
    """The shard of the rows `kept` without its planes: catalogue, PSFs and projection."""
    place = np.full(task.rows, -1, np.int32)  # row of the unit -> row of the shard
    place[kept] = np.arange(len(kept))
    # Kernels of all bands in one list; `starts` is where those of each band begin.
    starts = np.cumsum([0, *(len(band.psfs.kernels) for band in bands)])[:-1]
    centres = np.stack(
        [np.where(b.psfs.key >= 0, b.psfs.key + s, -1) for b, s in zip(bands, starts, strict=True)], axis=1
    )[kept]
    cells = np.concatenate(
        [_cells(band, k, int(s)) for k, (band, s) in enumerate(zip(bands, starts, strict=True))]
    )
    cells[:, 0] = place[cells[:, 0]]
    cells = cells[cells[:, 0] >= 0]  # of rejected rows
    kernels = [kernel for band in bands for kernel in band.psfs.kernels]
    psf, keys = pack_kernels(kernels, np.concatenate([centres.ravel(), cells[:, 6]]))
    index, cells[:, 6] = keys[: centres.size].reshape(centres.shape), keys[centres.size :]
    # A part whose kernel equals that of the centre needs no entry of its own.
    cells = cells[cells[:, 6] != index[cells[:, 0], cells[:, 1]]]
    return CutoutTable(
        bands=task.bands,
        mask_planes=MASK_PLANES,
        psf=psf,
        psf_index=index,
        psf_cells=cells[np.lexsort(cells.T[::-1])],  # by row, band, y, x: the same bytes in every run
        catalog=_catalog(task, x0, y0, bands, kept),
        wcs={task.tract: task.projection},
        pixel_scale=task.projection.pixel_scale,
    )


def _cells(band: BandReading, k: int, start: int) -> NDArray[np.int32]:
    """Parts of boxes in other cells as rows of `CutoutBatch.psf_cells`, kernels counted from `start`."""
    cells = band.psfs.cells
    return np.column_stack([cells[:, 0], np.full(len(cells), k), cells[:, 1:5], cells[:, 5] + start]).astype(
        np.int32
    )


def pack_kernels(
    kernels: Sequence[NDArray[np.float32]], index: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The distinct kernels in use, padded around their centre to one size, and `index` into them."""
    seen: dict[str, int] = {}
    # One entry more, so that index -1 stays -1.
    place = np.full(len(kernels) + 1, -1, np.int32)
    for k in np.unique(index[index >= 0]):
        # By checksum: neighbouring patches and units repeat the kernel of a cell.
        name = hashlib.sha256(np.ascontiguousarray(kernels[k]).tobytes()).hexdigest()
        place[k] = seen.setdefault(f"{kernels[k].shape} {name}", len(seen))
    side = max((s for k in kernels for s in k.shape), default=1)
    packed = np.zeros((len(seen), side, side), np.float32)
    for k, slot in enumerate(place[:-1]):
        if slot >= 0:
            h, w = kernels[k].shape
            y, x = (side - h) // 2, (side - w) // 2
            packed[slot, y : y + h, x : x + w] = kernels[k]
    return packed, place[index]


def _catalog(
    task: UnitTask, x0: Ints, y0: Ints, bands: Sequence[BandReading], kept: Ints
) -> dict[str, NDArray[Any]]:
    """Columns of the delivered rows."""
    half, bits = task.size // 2, np.arange(len(bands), dtype=np.uint32)
    has = np.stack([band.has for band in bands], axis=1)
    coverage = np.stack([band.coverage for band in bands], axis=1)
    # Facts with one value per row take the worst band.
    own: dict[str, NDArray[Any]] = {
        "tract": np.full(task.rows, task.tract, np.int32),
        "x0": x0.astype(np.int32),
        "y0": y0.astype(np.int32),
        # Position minus the centre of the central pixel, in pixels: within half a pixel.
        "dx": (task.catalog["x"] - (x0 + half)).astype(np.float32),
        "dy": (task.catalog["y"] - (y0 + half)).astype(np.float32),
        "band_mask": np.left_shift(has.astype(np.uint32), bits).sum(axis=1).astype(np.uint32),
        "coverage": np.where(has, coverage, np.inf).min(axis=1).astype(np.float32),
        "missing_cell": np.max([band.missing for band in bands], axis=0),
        "n_patches": np.max([band.n_patches for band in bands], axis=0),
        "seam_difference": np.max([band.disagreement for band in bands], axis=0),
        "resampled": np.max([band.resampled for band in bands], axis=0),
        "psf_jump": np.max([band.psfs.jump for band in bands], axis=0),
    }
    first = ("index", "id", "ra", "dec")
    columns = {c: task.catalog[c] for c in first} | {"patch": task.catalog["patch"].astype(np.int32)} | own
    columns |= {c: v for c, v in task.catalog.items() if c not in columns and c not in ("x", "y")}
    return {c: v[kept] for c, v in columns.items()}
