"""Cell coadds: pixels in other cells brought to the PSF of the cell of the stamp's centre.

Each cell has a PSF of its own, so the two halves of a star on the border of two cells do not fit together,
and no kernel for the whole stamp can mend that. A pixel y of another cell becomes `(D * I)(y)`, where D
turns the PSF of its cell into that of the centre's. D reaches over the border to pixels that have the other
PSF already; as D is close to a delta function, what that leaves is of second order in the difference of the
PSFs.

Where that is too much, the result J is seen through the PSF of the cell again (E, the kernel the other way)
and compared with what was observed there: `J + D * (I - E * J)`, the difference taken inside the cell only.
This is a step of the iteration of Van Cittert (1931, Z. Phys. 69, 298), and leaves an error of third order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple import convolution, noise, psf_kernels
from ripple.cutouts import CutoutBatch
from ripple.psf_kernels import Kernels

HALF = 10  # px; neighbouring cells differ little, so D is short
MAX_GAIN = 1.2  # of white noise: a neighbour with a much broader PSF is not sharpened any further


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the stamps of a batch that need a kernel of their own.

    Parameters
    ----------
    part
        `(L, 7)` int32 as `CutoutBatch.psf_cells`, but the last column counts `kernels`.
    kernels
        Distinct kernels D from the PSF of a cell to that of a centre.
    back
        `(M,)` int32 into `backward`; -1 where one step is enough.
    backward
        Kernels E the other way.
    """

    part: NDArray[np.int32]
    kernels: Kernels
    back: NDArray[np.int32]
    backward: Kernels

    def of(self, rows: slice) -> NDArray[np.int32]:
        """Parts of some rows of the batch, the row counted from the first of them."""
        first, last = np.searchsorted(self.part[:, 0], (rows.start, rows.stop))
        found = self.part[first:last].copy()
        found[:, 0] -= rows.start
        return found

    def residual(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """`(N, B)` largest misfit of a cell's PSF to that of the centre, after its kernel; 0 without one."""
        out = np.zeros(shape, np.float32)
        k = self.kernels.residual[self.part[:, 6]]
        np.maximum.at(out, (self.part[:, 0], self.part[:, 1]), k.astype(np.float32))
        return out


def plan_parts(
    batch: CutoutBatch, use: NDArray[np.bool_], sound: NDArray[np.bool_], tolerance: float
) -> Parts:
    """Kernels for the parts of stamps in other cells, one per distinct pair of PSFs.

    Parameters
    ----------
    batch
        PSFs, and where which holds.
    use
        `(N, B)` planes to be made even.
    sound
        `(M,)` PSFs that can be trusted.
    tolerance
        PSFs whose sum |difference| is at most this are one; kernels as in `psf_kernels.match_kernels`.
    """
    part = batch.psf_cells
    part = part[use[part[:, 0], part[:, 1]] & sound[part[:, 6]]]
    centre = batch.psf_index[part[:, 0], part[:, 1]]
    pairs, place = np.unique(np.stack([part[:, 6], centre], axis=1), axis=0, return_inverse=True)
    gap = np.array([np.abs(batch.psf[a] - batch.psf[b]).sum() for a, b in pairs], float)
    differ, twice = gap > tolerance, gap**2 > tolerance
    number = np.cumsum(differ) - 1
    place = place.reshape(-1)
    part, place = part[differ[place]], place[differ[place]]
    half = max(min(HALF, batch.psf.shape[-1] // 2), 1)

    def kernels(pairs: NDArray[np.int32]) -> Kernels:
        stamps = (batch.psf[pairs[:, 0]], batch.psf[pairs[:, 1]])
        return psf_kernels.match_kernels(*stamps, half=half, tolerance=tolerance, max_gain=MAX_GAIN)

    back = np.where(twice, np.cumsum(twice) - 1, -1)[differ].astype(np.int32)
    numbered = np.column_stack([part[:, :6], number[place]]).astype(np.int32)
    return Parts(numbered, kernels(pairs[differ]), back, kernels(pairs[twice][:, ::-1]))


@dataclass(frozen=True, slots=True)
class Spectra:
    """Transforms of the kernels of `Parts`: numpy, or torch on any device.

    Parameters
    ----------
    forward, backward
        `(M, ...)` complex64.
    back
        As in `Parts`.
    """

    forward: Any
    backward: Any
    back: NDArray[np.int32]


def spectra_of(parts: Parts, frame: tuple[int, int]) -> Spectra:
    """Transform the kernels for a frame."""
    there, back = (convolution.kernel_spectra(k.kernel, frame) for k in (parts.kernels, parts.backward))
    return Spectra(there, back, parts.back)


def even_out(image: Any, part: NDArray[np.int32], spectra: Spectra, frame: tuple[int, int]) -> Any:
    """A copy of some rows in which each part has gone through its kernel.

    Parameters
    ----------
    image
        `(n, B, H, W)` float32 without holes; numpy, or torch with `spectra` on the same device.
    part
        From `Parts.of`.
    spectra, frame
        Of the kernels, and the shape of the transforms, see `convolution`.
    """
    out = convolution.contiguous(image)
    for whole, (row, band, y0, y1, x0, x1, _) in _each(image, part, spectra.forward, part[:, 6], frame):
        out[row, band, y0:y1, x0:x1] = whole[y0:y1, x0:x1]
    again = part[spectra.back[part[:, 6]] >= 0]
    if not len(again):
        return out
    missing = convolution.namespace(image).zeros_like(image[again[:, 0], again[:, 1]])
    seen = _each(out, again, spectra.backward, spectra.back[again[:, 6]], frame)
    for k, (whole, (row, band, y0, y1, x0, x1, _)) in enumerate(seen):
        missing[k, y0:y1, x0:x1] = image[row, band, y0:y1, x0:x1] - whole[y0:y1, x0:x1]
    steps = convolution.convolve(missing, spectra.forward, again[:, 6], frame)
    for step, (row, band, y0, y1, x0, x1, _) in zip(steps, again.tolist(), strict=True):
        out[row, band, y0:y1, x0:x1] += step[y0:y1, x0:x1]
    return out


def _each(
    image: Any, part: NDArray[np.int32], spectra: Any, number: NDArray[np.int32], frame: tuple[int, int]
) -> Iterator[tuple[Any, list[int]]]:
    """The plane of each part after a kernel, and the part."""
    planes, at = np.unique(part[:, :2], axis=0, return_inverse=True)
    chosen = image[planes[:, 0], planes[:, 1]]
    whole = convolution.convolve_each(chosen, at.reshape(-1), spectra, number, frame)
    return zip(whole, part.tolist(), strict=True)


def variance_ratio(
    parts: Parts, number: NDArray[np.int32], kernels: Kernels, rho: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """`(L,)` variance of the noise after D and the plane's kernel over that after the plane's kernel alone.

    Parameters
    ----------
    parts
        What is made even.
    number, kernels
        `(N, B)` kernel of each plane, -1 for none, as in `matching.Matching`.
    rho
        `(B, L, L)` noise correlation; white when None.
    """
    part = parts.part
    plane = number[part[:, 0], part[:, 1]]
    cases, place = np.unique(np.stack([plane, part[:, 6], part[:, 1]], axis=1), axis=0, return_inverse=True)
    size = scipy.fft.next_fast_len(kernels.kernel.shape[-1] + 2 * HALF + 1 + noise.LAG, real=True)
    ratio = np.empty(len(cases))
    white = np.zeros((2 * noise.LAG + 1, 2 * noise.LAG + 1))
    white[noise.LAG, noise.LAG] = 1
    for c, (k, d, band) in enumerate(cases.tolist()):
        known = white if rho is None else rho[band]
        power = np.abs(convolution.kernel_spectra(parts.kernels.kernel[d : d + 1], (size, size))) ** 2
        before = 1.0
        if k >= 0:
            power = power * np.abs(convolution.kernel_spectra(kernels.kernel[k : k + 1], (size, size))) ** 2
            before = float((kernels.auto[k] * known).sum())
        ratio[c] = (noise.autocorrelation(power)[0] * known).sum() / before
    return np.asarray(ratio[place.reshape(-1)])
