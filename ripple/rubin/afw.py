"""The optional path through the LSST stack: where `lsst.afw` is importable, ExposureF coadds come from the
Butler's own formatter, with the exact PSF at each cutout.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.errors import Reason, UnreadableError
from ripple.rubin.coadd import Coadd, NoPsf, PsfCells, naming
from ripple.rubin.formats.afw_wcs import read_projection
from ripple.rubin.formats.exposure import check_image, check_variance
from ripple.rubin.formats.fits import Hdu
from ripple.rubin.remote import client
from ripple.rubin.repository import Dataset, label
from ripple.sky.geometry import Box, Tan

_KERNEL_SPACING = 64  # px between kernels when those of the whole image are read


@functools.cache
def afw_active() -> bool:
    """Whether ExposureF coadds are read through `lsst.afw`; the one place where that is decided."""
    return importlib.util.find_spec("lsst.afw") is not None


@dataclass(frozen=True, slots=True)
class PsfPoints(PsfCells):
    """Kernels at single pixels, `(1, n, K, K)`: `index` finds these pixels only.

    Parameters
    ----------
    pixels
        `(n, 2)` int64 `(x, y)`, PARENT.
    """

    pixels: NDArray[np.int64]

    def index(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.int32]:
        """As `PsfCells.index`: `(0, k)` at the k-th pixel, `(-1, -1)` elsewhere and where no PSF is."""
        px = np.floor(np.asarray(x, float).reshape(-1) + 0.5)
        py = np.floor(np.asarray(y, float).reshape(-1) + 0.5)
        known = {(int(a), int(b)): k for k, (a, b) in enumerate(self.pixels)}
        # afw computed a kernel at exactly these pixels: the nearest one would be that of another target.
        good = np.isfinite(self.kernels[0]).all(axis=(1, 2))
        cells = np.full((len(px), 2), -1, np.int32)
        for row, place in enumerate(zip(px.tolist(), py.tolist(), strict=True)):
            k = known.get(place, -1)
            if k >= 0 and good[k]:
                cells[row] = 0, k
        return cells


def open_with_afw(dataset: Dataset, *, repo: str) -> Coadd:
    """Read an ExposureF dataset through the Butler.

    Parameters
    ----------
    dataset
        As planned.
    repo
        Butler repository.

    Raises
    ------
    UnreadableError
        As `ripple.rubin.formats.exposure.open_exposure`.
    """
    from uuid import UUID

    from lsst.pex.exceptions import Exception as StackError

    name, butler = label(dataset), client(repo)
    try:
        ref = butler.get_dataset(UUID(dataset.uuid))
        exposure = butler.get(ref)
        digest = hashlib.sha256(butler.getURI(ref).read())
    # StackError is the base of the C++ exceptions of lsst.pex.
    except (StackError, OSError, ValueError, RuntimeError, LookupError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableError(f"{name}: lsst.afw cannot read it: {problem[:200]}") from None
    with naming(name):
        return from_exposure(exposure, name=name, digest=digest.hexdigest(), no_psf=(StackError,))


def from_exposure(exposure: Any, *, name: str, digest: str, no_psf: tuple[type[Exception], ...]) -> Coadd:
    """A coadd from an `lsst.afw.image.ExposureF`.

    Parameters
    ----------
    exposure
        With WCS and PhotoCalib.
    name
        File, for messages.
    digest
        sha256 of the file.
    no_psf
        What `computeKernelImage` raises where there is no PSF.
    """
    bounds = exposure.getBBox()
    box = Box(bounds.getBeginX(), bounds.getBeginY(), bounds.getEndX(), bounds.getEndY())
    planes = _calibrated(exposure, name)
    image, variance = np.asarray(planes.image.array), np.asarray(planes.variance.array)
    mask = np.asarray(planes.mask.array)
    check_image(image, name)
    # The same checks as without afw, so that a file is refused or read alike on either path.
    variance = check_variance(variance, name)
    label = exposure.getFilter()

    def psf(boxes: Iterable[Box] | None) -> PsfCells | NoPsf:
        return _psf(exposure.getPsf(), box, boxes, no_psf)

    return Coadd(
        name=name,
        box=box,
        projection=_projection(exposure.getWcs(), name),
        band=label.bandLabel if label is not None and label.hasBandLabel() else None,
        # By name: the numbers differ between files and versions of afw.
        mask_planes={str(k): int(v) for k, v in sorted(planes.mask.getMaskPlaneDict().items())},
        read_image=lambda b: np.ascontiguousarray(image[box.slices(b)], np.float32),
        read_variance=lambda b: np.ascontiguousarray(variance[box.slices(b)], np.float32),
        read_mask=lambda b: mask[box.slices(b)],
        read_psf=psf,
        read_digest=lambda: digest,
        bytes_read=lambda: image.nbytes + variance.nbytes + mask.nbytes,
        notes=("read through lsst.afw",),
    )


def _calibrated(exposure: Any, name: str) -> Any:
    """Masked image in nJy."""
    calib, unit = exposure.getPhotoCalib(), str(exposure.getMetadata().toDict().get("BUNIT", ""))
    if calib is None:
        raise UnreadableError(
            f"{name}: the image is in counts and has no PhotoCalib", reason=Reason.WRONG_UNIT
        )
    mean = calib.getCalibrationMean()
    # Calibrated twice otherwise: a PhotoCalib of 1 leaves an image in nJy as it is.
    if unit.lower() == "njy" and abs(mean - 1) > 1e-6:
        problem = f"{name}: the image is in nJy and has a calibration of {mean} nJy per count"
        raise UnreadableError(problem, reason=Reason.WRONG_UNIT)
    return calib.calibrateImage(exposure.getMaskedImage())


def _projection(wcs: Any, name: str) -> Tan:
    """TAN projection, PARENT: the FITS cards of a SkyWcs count pixels of the PARENT frame from 1."""
    if wcs is None:
        raise UnreadableError(f"{name}: the file has no WCS", reason=Reason.WRONG_WCS)
    # An Hdu without data: only its cards are read, by the same checks as for files.
    return read_projection(Hdu(wcs.getFitsMetadata(True).toDict(), 0, 0, 0), name=name)


def _psf(
    psf: Any, box: Box, boxes: Iterable[Box] | None, no_psf: tuple[type[Exception], ...]
) -> PsfCells | NoPsf:
    """Kernels at the middle pixels of `boxes`, or on a grid over the image."""
    if psf is None:
        return NoPsf("the file has no PSF")
    if boxes is None:
        xs, ys = _cell_middles(box.x0, box.x1), _cell_middles(box.y0, box.y1)
        pixels = np.array([(x, y) for y in ys for x in xs], np.int64)
        # A regular grid, so that the same class of cells serves as for CellCoadd.
        kernels = _kernels(psf, pixels, no_psf)
        size = kernels.shape[-1]
        return PsfCells(
            kernels.reshape(len(ys), len(xs), size, size), box.x0, box.y0, _KERNEL_SPACING, _KERNEL_SPACING
        )
    # A set: cutouts of one target in several sizes share the kernel. Sorted, so that the order is fixed.
    middles = {(b.x0 + b.width // 2, b.y0 + b.height // 2) for b in boxes}
    pixels = np.array(sorted(middles), np.int64).reshape(-1, 2)
    return PsfPoints(_kernels(psf, pixels, no_psf)[None], box.x0, box.y0, box.width, box.height, pixels)


def _cell_middles(start: int, stop: int) -> list[int]:
    """Middle pixels of the grid's cells along one axis; the last cell ends with the image."""
    return [
        (first + min(first + _KERNEL_SPACING, stop)) // 2 for first in range(start, stop, _KERNEL_SPACING)
    ]


def _kernels(psf: Any, pixels: NDArray[np.int64], no_psf: tuple[type[Exception], ...]) -> NDArray[np.float32]:
    """`(n, K, K)` of `computeKernelImage`, framed with zeros to one odd size; NaN where there is none."""
    from lsst.geom import Point2D

    found: list[tuple[NDArray[np.float64], int, int] | None] = []
    for x, y in pixels.tolist():
        try:
            kernel = psf.computeKernelImage(Point2D(float(x), float(y)))
        except no_psf:
            found.append(None)
            continue
        # X0, Y0 is the first pixel relative to the centre of the kernel.
        found.append((np.array(kernel.array, np.float64), -kernel.getX0(), -kernel.getY0()))
    # Kernels of a CoaddPsf differ in size: the largest half-width over all sides holds every one.
    halves = [max(cx, cy, k.shape[1] - 1 - cx, k.shape[0] - 1 - cy) for k, cx, cy in filter(None, found)]
    half = max(halves, default=0)
    out = np.zeros((len(found), 2 * half + 1, 2 * half + 1), np.float32)
    for slot, kernel_at in zip(out, found, strict=True):
        if kernel_at is None:
            slot[:] = np.nan
            continue
        kernel, cx, cy = kernel_at
        slot[half - cy : half - cy + kernel.shape[0], half - cx : half - cx + kernel.shape[1]] = (
            kernel / kernel.sum()
        )
    return out
