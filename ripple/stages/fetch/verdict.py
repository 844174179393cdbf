"""What is said of the rows of a unit: status, reason, catalog columns, distinct PSF kernels."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason

if TYPE_CHECKING:
    from ripple.stages.fetch.unit import UnitReader

#: Overlapping patches hold the same pixels; a difference beyond this share of the noise is named.
SEAM_SIGMA = 1.0


def judge(reader: UnitReader) -> None:
    """Status and reason of each row; the first reason that applies, gravest first."""
    task, n = reader.task, reader.task.rows
    has = reader.coverage > 0
    failed = _failed(reader)
    reader.status, reader.reason = np.full(n, "ok", "U8"), np.full(n, "", "U24")
    level = "rejected" if task.missing_band == "reject" else "partial"
    lost = ~has.any(axis=1)
    faults = (Reason.WRONG_WCS, Reason.WRONG_UNIT, Reason.BAD_PSF, Reason.UNREADABLE_SOURCE)
    for why in faults:
        _verdict(reader, lost & (failed == why.value).any(axis=1), "rejected", why)
    _verdict(reader, lost, "rejected", Reason.NO_DATASET)
    empty = np.where(has, reader.missing >= 1 - 1e-6, True).all(axis=1)
    _verdict(reader, empty, "rejected", Reason.MISSING_CELL)
    for why in faults:
        _verdict(reader, (failed == why.value).any(axis=1), level, why)
    _verdict(reader, ~has.all(axis=1), level, Reason.MISSING_BAND)
    outside = np.where(has, reader.coverage < 1 - 1e-6, False).any(axis=1)
    _verdict(reader, outside, "rejected" if task.edge == "reject" else "partial", Reason.OUTSIDE)
    _verdict(reader, reader.disagreement.max(axis=1) > SEAM_SIGMA, "partial", Reason.SEAM)
    reader.kept = np.flatnonzero(reader.status != "rejected")


def _verdict(reader: UnitReader, rows: NDArray[np.bool_], level: str, why: Reason) -> None:
    """Give rows that are still `ok` a status; a rejection also overrides `partial`."""
    open_ = (reader.status == "ok") | ((reader.status == "partial") & (level == "rejected"))
    reader.status[rows & open_], reader.reason[rows & open_] = level, why.value


def _failed(reader: UnitReader) -> NDArray[np.str_]:
    """`(N, B)` reason for which the own patch's file of a band could not be used."""
    failed = np.full(reader.coverage.shape, "", "U24")
    own = reader.task.catalog["patch"]
    for (patch, k), why in reader.failures.items():
        failed[(own == patch) & (reader.coverage[:, k] == 0), k] = why.value
    return failed


def pack_kernels(
    kernels: list[NDArray[np.float32]], index: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Kernels in use, padded about their centre to one odd size, and `index` into them; equal ones once."""
    seen: dict[str, int] = {}
    place = np.full(len(kernels) + 1, -1, np.int32)
    for k in np.unique(index[index >= 0]):
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


def catalog(reader: UnitReader) -> dict[str, NDArray[Any]]:
    """Columns of the delivered rows."""
    task, half = reader.task, reader.task.size // 2
    bits = np.arange(len(task.bands), dtype=np.uint32)
    has = reader.coverage > 0
    own: dict[str, NDArray[Any]] = {
        "tract": np.full(task.rows, task.tract, np.int32),
        "x0": reader.x0.astype(np.int32),
        "y0": reader.y0.astype(np.int32),
        "dx": (task.catalog["x"] - (reader.x0 + half)).astype(np.float32),
        "dy": (task.catalog["y"] - (reader.y0 + half)).astype(np.float32),
        "band_mask": np.left_shift(has.astype(np.uint32), bits).sum(axis=1).astype(np.uint32),
        "coverage": np.where(has, reader.coverage, np.inf).min(axis=1).astype(np.float32),
        "missing_cell": reader.missing.max(axis=1),
        "n_patches": reader.n_patches,
        "seam_difference": reader.disagreement.max(axis=1),
        "resampled": reader.resampled.max(axis=1),
        "psf_jump": reader.psf_jump.max(axis=1),
    }
    first = ("index", "id", "ra", "dec")
    columns = {c: task.catalog[c] for c in first} | {"patch": task.catalog["patch"].astype(np.int32)} | own
    columns |= {c: v for c, v in task.catalog.items() if c not in columns and c not in ("x", "y")}
    return {c: v[reader.kept] for c, v in columns.items()}
