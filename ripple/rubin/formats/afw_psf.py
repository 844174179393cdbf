"""PSFs in afw archives that can be evaluated exactly without afw: Gaussians and fixed kernels.

`CoaddPsf` warps the PSFs of its inputs, `PcaPsf` and others vary over the image: those need lsst.afw, and
saying so is better than a guess at them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.rubin.coadd import NoPsf, PsfCells
from ripple.rubin.formats.afw_archive import Archive
from ripple.sky.geometry import Box

_LARGEST_KERNEL = 501  # px; a larger kernel means that the file is damaged


def read_psf(archive: Archive, key: int, box: Box, *, name: str) -> PsfCells | NoPsf:
    """PSF with this archive id, as `Psf.computeKernelImage` gives it.

    Parameters
    ----------
    archive
        Of the file.
    key
        Archive id of the PSF; 0 when the file has none.
    box
        Pixels of the image; the kernel holds for all of them.
    name
        File, for messages.

    Returns
    -------
    psf
        One cell as large as `box`, or why there is none. A kernel that is not square, or whose centre is
        not its middle, is framed with zeros until it is.

    Raises
    ------
    UnreadableError
        With reason `bad_psf`, when the tables are damaged or the kernel has no finite, positive sum.
    """
    if key == 0:
        return NoPsf("the file has no PSF")
    # Whatever is wrong with the tables of the PSF is a bad PSF: image and mask may still be good.
    try:
        found = _kernel(archive, key)
    except UnreadableError as error:
        raise UnreadableError(error.message, hint=error.hint, reason=Reason.BAD_PSF) from None
    if isinstance(found, NoPsf):
        return found
    kernel, centre = found
    total = kernel.sum()
    if not (np.isfinite(kernel).all() and total > 0):
        raise UnreadableError(f"{name}: the PSF kernel sums to {total}", reason=Reason.BAD_PSF)
    framed = _centred(kernel / total, *centre).astype(np.float32)
    return PsfCells(framed[None, None], box.x0, box.y0, box.width, box.height)


def _kernel(archive: Archive, key: int) -> tuple[NDArray[np.float64], tuple[int, int]] | NoPsf:
    """Kernel `(h, w)`, not normalised, and its centre `(x, y)`."""
    kind = archive[key].kind
    if kind in ("GaussianPsf", "SingleGaussianPsf"):
        row = archive.single(key)
        return _gaussians(_size(archive, row), [(archive.number(row, "sigma"), 1.0)])
    if kind == "DoubleGaussianPsf":
        row = archive.single(key)
        sigma1, sigma2, b = (archive.number(row, c) for c in ("sigma1", "sigma2", "b"))
        if b == 0.0 and sigma2 == 0.0:
            sigma2 = 1.0  # as DoubleGaussianPsf.cc does
        return _gaussians(_size(archive, row), [(sigma1, 1.0), (sigma2, b)])
    # A KernelPsf holds any kernel; only a fixed one is the same everywhere in the image.
    if kind != "KernelPsf":
        return NoPsf(f"{kind} needs lsst.afw")
    inner = archive.integer(archive.single(key), "kernel")
    if archive[inner].kind != "FixedKernel":
        return NoPsf(f"KernelPsf of {archive[inner].kind} needs lsst.afw")
    row = archive.single(inner)
    width, height = _size(archive, row)
    pixels = archive.numbers(row, "image")
    centre = archive.integer(row, "center_x"), archive.integer(row, "center_y")
    if pixels.size != width * height or not (0 <= centre[0] < width and 0 <= centre[1] < height):
        raise UnreadableError(f"{archive.name}: damaged FixedKernel of {width} x {height} px")
    return pixels.reshape(height, width), centre


def _size(archive: Archive, row: np.void) -> tuple[int, int]:
    width, height = archive.integer(row, "dimensions_x"), archive.integer(row, "dimensions_y")
    if not (0 < width <= _LARGEST_KERNEL and 0 < height <= _LARGEST_KERNEL):
        raise UnreadableError(f"{archive.name}: damaged, a PSF of {width} x {height} px")
    return width, height


def _gaussians(
    size: tuple[int, int], parts: list[tuple[float, float]]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Sum of round Gaussians `(sigma, amplitude)`, sampled at pixel centres (`AnalyticKernel.cc`)."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    cx, cy = width // 2, height // 2  # afw puts the centre of even sizes there as well
    radius2 = (x - cx) ** 2 + (y - cy) ** 2  # (height, width), px²
    kernel = np.zeros((height, width))
    for sigma, amplitude in parts:
        if not (np.isfinite(sigma) and sigma > 0):
            raise UnreadableError(f"damaged, a Gaussian PSF has sigma {sigma}")
        kernel += amplitude * np.exp(-0.5 * radius2 / sigma**2)
    return kernel, (cx, cy)


def _centred(kernel: NDArray[np.float64], cx: int, cy: int) -> NDArray[np.float64]:
    """The kernel in the middle of a square of odd size."""
    height, width = kernel.shape
    half = max(cx, cy, width - 1 - cx, height - 1 - cy)
    out = np.zeros((2 * half + 1, 2 * half + 1))
    out[half - cy : half - cy + height, half - cx : half - cx + width] = kernel
    return out
