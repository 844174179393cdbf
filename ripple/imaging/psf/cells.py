"""Cell coadds: pixels in other cells brought to the PSF of the cell of the cutout's centre.

Each cell has a PSF of its own, so the two halves of a star on the border of two cells do not fit
together, and no kernel for the whole cutout can mend that. A pixel of another cell becomes that of `D * I`,
where D turns the PSF of its cell into that of the centre's. D reaches over the border to pixels that have
the other PSF already; as D is close to a delta function, what that leaves is of second order in the
difference of the PSFs.

Where that is too much, the result J is seen through the PSF of the cell again (E, the kernel the other
way) and compared with what was observed there: `J + D * (I - E * J)`, the difference taken inside the
cell only. This is a step of the iteration of Van Cittert (1931, Z. Phys. 69, 298), and leaves an error
of third order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging import convolve, noise
from ripple.imaging.batch import CutoutBatch, psf_gaps
from ripple.imaging.psf import kernels as psf_kernels
from ripple.imaging.psf.kernels import Kernels

Float = NDArray[np.float32]

HALF = 7  # px; neighbouring cells differ little, so kernels are short
REGULARISATION = 1e-4  # amplitudes of PSFs of sum 1, squared


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the cutouts of a batch that need a kernel of their own.

    Parameters
    ----------
    part
        `(L, 7)` int32 as `CutoutBatch.psf_cells`, but the last column counts kernels.
    kernel
        `(M, 2 HALF + 1, 2 HALF + 1)` float32: D, from the PSF of a cell to that of a centre; numpy, or torch.
    backward
        E, the other way; zeros where no second step is needed.
    twice
        `(M,)` bool, whether there is a second step.
    residual
        `(M,)` float32 sum |P * D - Q|, of PSFs P of the cell and Q of the centre, sum 1.
    """

    part: NDArray[np.int32]
    kernel: Any
    backward: Any
    twice: NDArray[np.bool_]
    residual: Float

    def of(self, rows: slice) -> Parts:
        """Those of some rows of the batch, the row counted from the first of them."""
        # Parts are sorted by row.
        first, last = np.searchsorted(self.part[:, 0], (rows.start, rows.stop))
        found = self.part[first:last].copy()
        found[:, 0] -= rows.start
        return replace(self, part=found)

    def misfit(self, shape: tuple[int, int]) -> Float:
        """`(N, B)` largest `residual` of the parts of each plane; 0 without any."""
        out = np.zeros(shape, np.float32)
        np.maximum.at(out, (self.part[:, 0], self.part[:, 1]), self.residual[self.part[:, 6]])
        return out


def plan_parts(
    batch: CutoutBatch, use: NDArray[np.bool_], sound: NDArray[np.bool_], tolerance: float
) -> Parts:
    """Kernels for the parts of cutouts in other cells, one per distinct pair of PSFs.

    Parameters
    ----------
    batch
        PSFs, and where which holds.
    use
        `(N, B)` planes whose parts are brought to the PSF of the centre.
    sound
        `(M,)` PSFs that can be trusted.
    tolerance
        PSFs whose sum |difference| is at most this count as equal; two steps where its square is more.
    """
    part = batch.psf_cells
    part = part[use[part[:, 0], part[:, 1]] & sound[part[:, 6]]]
    centre = batch.psf_index[part[:, 0], part[:, 1]]
    gap = psf_gaps(batch.psf, part[:, 6], centre).astype(float)
    differ = gap > tolerance
    part, centre, gap = part[differ], centre[differ], gap[differ]
    pairs, one, number = np.unique(
        np.stack([part[:, 6], centre], axis=1), axis=0, return_index=True, return_inverse=True
    )
    # The error of one step is of second order in the difference of the PSFs.
    twice = gap[one] ** 2 > tolerance
    # A PSF is in many pairs: transformed once.
    used, place = np.unique(pairs, return_inverse=True)
    stamps, place = batch.psf[used], place.reshape(pairs.shape)
    kernel, residual = cell_kernels(stamps, place)
    backward = np.zeros_like(kernel)
    # PSFs swapped: from the centre's back to the cell's.
    backward[twice] = cell_kernels(stamps, place[twice, ::-1])[0]
    numbered = np.column_stack([part[:, :6], number.reshape(-1)]).astype(np.int32)
    return Parts(numbered, kernel, backward, twice, residual)


def cell_kernels(psf: Float, pairs: NDArray[np.integer]) -> tuple[Float, Float]:
    """Kernels between similar PSFs.

    Only the difference of the PSFs is deconvolved, `D = delta + conj(P) (Q - P) / (|P|^2 + mu)` in Fourier
    space: scales at which the PSFs have no power, where there is only noise, pass unchanged.

    Parameters
    ----------
    psf
        `(U, K, K)` PSFs; recentred on their first moments, normalised to sum 1.
    pairs
        `(M, 2)` which of them are P, of a cell, and Q, of the centre.

    Returns
    -------
    kernel
        `(M, 2 HALF + 1, 2 HALF + 1)` float32 of sum 1 and first moments 0.
    residual
        `(M,)` float32 sum |P * D - Q|.
    """
    reach = psf.shape[-1] // 2
    size = scipy.fft.next_fast_len(2 * max(reach, HALF) + 2, real=True)
    side, line = 2 * HALF + 1, np.arange(-HALF, HALF + 1, dtype=np.float32)
    square = np.ones((side, side), np.float32)
    moments = np.stack([square, square * line[:, None], square * line]).reshape(3, -1)
    steps = moments / (moments**2).sum(axis=1)[:, None]
    kernel = np.empty((len(pairs), side, side), np.float32)
    residual = np.empty(len(pairs), np.float32)
    spectrum = np.empty((len(psf), size, size // 2 + 1), np.complex64)
    for start in range(0, len(psf), convolve.CHUNK):
        rows = slice(start, start + convolve.CHUNK)
        spectrum[rows] = psf_kernels.spectra(psf[rows], size)
    for start in range(0, len(pairs), convolve.CHUNK):
        rows = slice(start, start + convolve.CHUNK)
        p, q = (spectrum[pairs[rows, k]] for k in (0, 1))
        change = np.conj(p) * (q - p) / (p.real**2 + p.imag**2 + np.float32(REGULARISATION))
        x = psf_kernels.centred(scipy.fft.irfft2(change, s=(size, size)), HALF)
        # The change of a kernel of sum 1 must have sum and first moments 0.
        flat = x.reshape(len(x), -1)
        flat -= (flat @ moments.T) @ steps
        x[:, HALF, HALF] += 1  # the delta function
        kernel[rows] = x
        missed = p * convolve.kernel_spectra(x, (size, size)) - q
        residual[rows] = np.abs(scipy.fft.irfft2(missed, s=(size, size))).sum(axis=(1, 2))
    return kernel, residual


def apply_parts(image: Any, parts: Parts) -> Any:
    """A copy of some rows in which each part has gone through its kernel.

    Parameters
    ----------
    image
        `(n, B, H, W)` float32 without holes; numpy, or torch with the kernels of `parts` on the same device.
    parts
        From `Parts.of`.
    """
    part = parts.part
    out = convolve.contiguous(image)
    found = convolve.convolve_parts(image, part[:, :6], parts.kernel, part[:, 6])
    for piece, (row, band, y0, y1, x0, x1, _) in zip(found, part.tolist(), strict=True):
        out[row, band, y0:y1, x0:x1] = piece
    again = part[parts.twice[part[:, 6]]]
    if not len(again):
        return out
    # I - E * J inside the cell, 0 outside: one plane for each part.
    missing = convolve.namespace(image).zeros_like(image[again[:, 0], again[:, 1]])[:, None]
    seen = convolve.convolve_parts(out, again[:, :6], parts.backward, again[:, 6])
    for k, (piece, (row, band, y0, y1, x0, x1, _)) in enumerate(zip(seen, again.tolist(), strict=True)):
        missing[k, 0, y0:y1, x0:x1] = image[row, band, y0:y1, x0:x1] - piece
    lone = np.column_stack([np.arange(len(again)), np.zeros(len(again), int), again[:, 2:6]])
    steps = convolve.convolve_parts(missing, lone, parts.kernel, again[:, 6])
    for piece, (row, band, y0, y1, x0, x1, _) in zip(steps, again.tolist(), strict=True):
        out[row, band, y0:y1, x0:x1] += piece
    return out


def variance_ratio(
    parts: Parts, number: NDArray[np.int32], kernels: Kernels, rho: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """`(L,)` variance of the noise after D and the plane's kernel over that after the plane's kernel alone.

    Parameters
    ----------
    parts
        Parts that are brought to the PSF of the centre.
    number, kernels
        `(N, B)` kernel of each plane, -1 for none, as in `match.Matching`.
    rho
        `(B, L, L)` noise correlation; white when None.
    """
    part = parts.part
    plane = number[part[:, 0], part[:, 1]]
    # Noise depends on plane kernel, part kernel and band alone: few cases for many parts.
    cases, place = np.unique(np.stack([plane, part[:, 6], part[:, 1]], axis=1), axis=0, return_inverse=True)
    size = scipy.fft.next_fast_len(kernels.kernel.shape[-1] + 2 * HALF + 1 + noise.LAG, real=True)
    ratio = np.empty(len(cases))
    for c, (k, d, band) in enumerate(cases.tolist()):
        known = noise.WHITE if rho is None else rho[band]
        power = np.abs(convolve.kernel_spectra(parts.kernel[d : d + 1], (size, size))) ** 2
        before = 1.0
        if k >= 0:
            power = power * np.abs(convolve.kernel_spectra(kernels.kernel[k : k + 1], (size, size))) ** 2
            before = float((kernels.auto[k] * known).sum())
        ratio[c] = (noise.autocorrelation(power)[0] * known).sum() / before
    return np.asarray(ratio[place.reshape(-1)])
