"""Kernels that turn one PSF into another.

A kernel K solves, on a finite support, `min sum |P * K - T|² + mu sum K²`. Written with Fourier products and
started from the Wiener solution it takes a few conjugate-gradient steps, and unlike the plain Wiener filter
it puts nothing outside its support: stamps of real PSFs are cut at their edges, so their spectra have zeros,
and a plain quotient rings over the whole stamp. Sum and centroid of K are then set exactly: light is
conserved and does not move. All in float64, by numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging import convolve
from ripple.imaging.noise import LAG, autocorrelation
from ripple.imaging.psf.shape import centroid

Float = NDArray[np.float64]

#: mu, for PSFs of sum 1: Fourier amplitudes below sqrt(mu) = 7e-4 are taken as noise of the stamp.
REGULARISATION = 5e-7
#: Regularisations tried in turn when a tolerance is given.
LADDER = (1e-4, 1e-5, 1e-6)
STEPS = 3  # conjugate-gradient steps; three times as many change the residual by a few per cent
TINY = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Matching kernels and their properties.

    Parameters
    ----------
    kernel
        `(M, 2h + 1, 2h + 1)` float32, centre pixel `h`, sum 1.
    residual
        `(M,)` sum |P * K - T| / sum T inside the target's stamp.
    spill
        `(M,)` the same outside that stamp, where the target is not known and taken as zero.
    gain
        `(M,)` sqrt(sum K²): white noise after matching over noise before.
    sharpening
        `(M,)` largest Fourier amplitude of the kernel: above 1 it sharpens some scale.
    reach
        `(M,)` int32 px: half width of the square that holds 99 % of sum |K|.
    auto
        `(M, 2 LAG + 1, 2 LAG + 1)` autocorrelation of K (`noise.LAG`); the centre is sum K².
    """

    kernel: NDArray[np.float32]
    residual: Float
    spill: Float
    gain: Float
    sharpening: Float
    reach: NDArray[np.int32]
    auto: Float

    def __len__(self) -> int:
        return len(self.kernel)


def match_kernels(
    psf: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    half: int | None = None,
    tolerance: float = 0.0,
    max_gain: float = 2.0,
) -> Kernels:
    """Kernels that turn each PSF into its target.

    Parameters
    ----------
    psf
        `(M, Ky, Kx)`; any parity, any positive sum. Recentred on its first moments, normalised to sum 1.
    target
        `(M, Ly, Lx)`, or `(1, Ly, Lx)` for one common target; treated likewise.
    half
        Half width of the kernels. By default the sum of the half widths of PSF and target: pixels further
        out never meet both.
    tolerance
        The smoothest kernel of `LADDER` with at most this residual is chosen: smooth kernels are short and
        amplify less. With 0 the residual is made as small as the stamps allow.
    max_gain
        A kernel that amplifies white noise by more than this is solved again with three times as much
        regularisation, until it does not: a target that is sharper than the PSF at some scale is then not
        reached, and `residual` says by how much.

    Returns
    -------
    kernels
        In the order of `psf`.

    Notes
    -----
    Regularised least squares on a finite support; the circulant approximation of its normal equations is the
    preconditioner (Chan & Ng 1996, SIAM Review 38, 427). Wiener start as in Boucaud et al. 2016, A&A 596,
    A63.
    """
    h = max(psf.shape[1:]) // 2 + max(target.shape[1:]) // 2 if half is None else half
    starts = range(0, len(psf), convolve.CHUNK)
    parts = [
        _Solver(psf[s : s + convolve.CHUNK], _rows_of(target, slice(s, s + convolve.CHUNK)), h)
        for s in starts
    ]
    solved = [part.solve(tolerance, max_gain) for part in parts]
    if not solved:
        none = np.zeros(0)
        empty = np.zeros((0, 2 * h + 1, 2 * h + 1), np.float32)
        lags = np.zeros((0, 2 * LAG + 1, 2 * LAG + 1))
        return Kernels(empty, none, none, none, none, none.astype(np.int32), lags)
    return Kernels(*(np.concatenate([getattr(part, name) for part in solved]) for name in _FIELDS))


_FIELDS = ("kernel", "residual", "spill", "gain", "sharpening", "reach", "auto")


def _rows_of(target: NDArray[np.floating], rows: Any) -> NDArray[np.floating]:
    return target if len(target) == 1 else target[rows]


class _Solver:
    """Kernels of support `h` for some pairs of PSF and target; holds what no regularisation changes."""

    def __init__(self, psf: NDArray[np.floating], target: NDArray[np.floating], h: int) -> None:
        self.h = h
        half, half_target = max(psf.shape[1:]) // 2, max(target.shape[1:]) // 2
        # Where the outermost kernel pixels meet the rim of the PSF products may wrap around: both are faint.
        size = scipy.fft.next_fast_len(max(2 * h, h + half, half + half_target) + 2, real=True)
        self.shape = (size, size)
        self.psf = spectra(psf, size)
        self.target = np.broadcast_to(spectra(target, size), self.psf.shape)
        self.power, self.cross = _squared(self.psf), np.conj(self.psf) * self.target  # |P|² and conj(P) T
        self.inside, self.near = _square_mask(size, h), _square_mask(size, half_target)
        # Pixel offsets from the origin in the wrapped order: 0, 1, ..., -2, -1.
        line = scipy.fft.fftfreq(size, 1 / size).astype(np.float32)
        moments = np.stack([self.inside, self.inside * line[:, None], self.inside * line[None, :]])
        self.moments = moments.astype(np.float64)
        # A constant and two slopes over the support put sum and centroid right: they are the cheapest
        # corrections in the sum of squares, as PSFs pass such long waves unchanged.
        # (3, S, S): each changes its own moment by one and leaves the others.
        self.steps = (moments / (self.moments**2).sum(axis=(1, 2))[:, None, None]).astype(np.float32)

    def within(self, spectrum: Any) -> Float:
        """A spectrum back in real space, cut to the support."""
        return np.asarray(self.inside * scipy.fft.irfft2(spectrum, s=self.shape))

    def solve(self, tolerance: float, max_gain: float) -> Kernels:
        """See `match_kernels`."""
        every = np.arange(len(self.psf))
        mu = self.smoothest(tolerance)
        out = self.finished(every, self.wiener(every, mu))
        todo = np.flatnonzero(~(out.residual <= tolerance))
        if len(todo):
            self._take(out, todo, self.finished(todo, self.fit(todo, REGULARISATION)))
        more = REGULARISATION
        # Bounded: a target far sharper than the PSF is never reached, and the residual tells by how much.
        while len(noisy := np.flatnonzero(out.gain > max_gain)) and more < 1e-2:
            more *= 3
            self._take(out, noisy, self.finished(noisy, self.fit(noisy, more)))
        return out

    @staticmethod
    def _take(out: Kernels, rows: NDArray[np.intp], new: Kernels) -> None:
        for name in _FIELDS:
            getattr(out, name)[rows] = getattr(new, name)

    def smoothest(self, tolerance: float) -> NDArray[np.float32]:
        """The largest of `LADDER` whose Wiener filter, not yet cut, fits to the tolerance; or the least."""
        mu = np.full(len(self.psf), LADDER[-1], np.float32)
        todo = np.arange(len(mu) if tolerance > 0 else 0)
        for rung in LADDER[:-1]:
            if not len(todo):
                break
            # What the Wiener filter misses is T mu / (|P|² + mu), known without computing the filter.
            lost = self.target[todo] * (np.float32(rung) / (self.power[todo] + np.float32(rung)))
            miss = np.abs(scipy.fft.irfft2(lost, s=self.shape))
            fits = np.einsum("kij,ij->k", miss, self.near) <= tolerance
            mu[todo[fits]] = rung
            todo = todo[~fits]
        return mu

    def wiener(self, rows: NDArray[np.intp], mu: NDArray[np.float32]) -> Float:
        """Wiener filters cut to the support: as good as `fit` when `mu` is large."""
        return self.within(self.cross[rows] / (self.power[rows] + mu[:, None, None]))

    def fit(self, rows: NDArray[np.intp], regularisation: float) -> Float:
        """Solve `inside (power * x) + mu x = inside cross` for x within the support."""
        power, cross, mu = self.power[rows], self.cross[rows], np.float32(regularisation)
        wiener = 1 / (power + mu)
        x = self.within(cross * wiener)
        r = self.within(cross) - self.within(power * scipy.fft.rfft2(x)) - mu * x
        z = self.within(wiener * scipy.fft.rfft2(r))
        p, rz = z, _inner(r, z)
        # Preconditioned conjugate gradients on all kernels at once, with the Wiener filter as preconditioner.
        for _ in range(STEPS):
            ap = self.within(power * scipy.fft.rfft2(p)) + mu * p
            step = rz / np.maximum(_inner(p, ap), TINY)
            x, r = x + step * p, r - step * ap
            z = self.within(wiener * scipy.fft.rfft2(r))
            rz, old = _inner(r, z), rz
            p = z + rz / np.maximum(old, TINY) * p
        return x

    def finished(self, rows: NDArray[np.intp], x: Float) -> Kernels:
        """Give kernels sum 1 and first moments 0, and measure what they do."""
        for _ in range(2):  # once more for what single precision left
            error = np.array([1.0, 0.0, 0.0]) - np.einsum("aij,kij->ka", self.moments, x)
            x = x + np.einsum("ka,aij->kij", error.astype(np.float32), self.steps)
        spectrum = scipy.fft.rfft2(x)
        # P * K - T in pixels: inside the target's stamp it is error, outside it is spill.
        miss = np.abs(scipy.fft.irfft2(spectrum * self.psf[rows] - self.target[rows], s=self.shape))
        residual = np.einsum("kij,ij->k", miss, self.near, dtype=np.float64)
        power = _squared(spectrum)
        auto = autocorrelation(power)
        # Up to here the centre was pixel 0, 0.
        kernel = centred(x, self.h)
        return Kernels(
            kernel=kernel,
            residual=residual,
            spill=miss.sum(axis=(1, 2), dtype=np.float64) - residual,
            gain=np.sqrt(auto[:, LAG, LAG]),
            sharpening=np.sqrt(power.max(axis=(1, 2))).astype(np.float64),
            reach=_reach(kernel),
            auto=auto,
        )


def centred(wrapped: NDArray[np.floating], h: int) -> NDArray[np.float32]:
    """The `2h + 1` pixels around the origin of wrapped planes, the origin in their centre, `(M, ...)`."""
    out = np.empty((len(wrapped), 2 * h + 1, 2 * h + 1), np.float32)
    for to, at in ((slice(h, None), slice(0, h + 1)), (slice(0, h), slice(-h, None))):
        for to_x, at_x in ((slice(h, None), slice(0, h + 1)), (slice(0, h), slice(-h, None))):
            out[:, to, to_x] = wrapped[:, at, at_x]
    return out


def _squared(spectrum: NDArray[np.complexfloating]) -> Any:
    return spectrum.real**2 + spectrum.imag**2


def _inner(a: Float, b: Float) -> Float:
    return np.asarray(np.einsum("kij,kij->k", a, b)[:, None, None])


def _square_mask(size: int, h: int) -> NDArray[np.float32]:
    """1 within `h` pixels of the origin of a wrapped `(size, size)` array, else 0."""
    line = (np.abs(scipy.fft.fftfreq(size, 1 / size)) <= h).astype(np.float32)
    return np.asarray(line[:, None] * line[None, :])


def spectra(psf: NDArray[np.floating], size: int) -> NDArray[np.complex64]:
    """Fourier transforms `(M, size, size // 2 + 1)` of stamps of sum 1, first moments at the origin."""
    p = np.asarray(psf, np.float64)
    total = p.sum(axis=(1, 2), keepdims=True)
    y, x = centroid(p)
    fy, fx = scipy.fft.fftfreq(size), scipy.fft.rfftfreq(size)
    # A phase moves the first moment to the origin to a fraction of a pixel.
    shift_y = np.exp(2j * np.pi * y[:, None] * fy).astype(np.complex64)
    shift_x = np.exp(2j * np.pi * x[:, None] * fx).astype(np.complex64)
    out: NDArray[np.complex64] = scipy.fft.rfft2((p / total).astype(np.float32), s=(size, size))
    out *= shift_y[:, :, None]
    out *= shift_x[:, None, :]
    return out


def weight_beyond(kernel: NDArray[np.float32], margin: int) -> Float:
    """Share of sum |K| beyond `margin` px from the centre, `(M,)`: what the edge of a stamp can spoil."""
    weight = _rings(kernel)
    return np.asarray(weight[:, margin + 1 :].sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-30))


def _reach(kernel: NDArray[np.float32]) -> NDArray[np.int32]:
    inside = _rings(kernel).cumsum(axis=1)
    return np.asarray((inside < 0.99 * inside[:, -1:]).sum(axis=1), np.int32)


def _rings(kernel: NDArray[np.float32]) -> Float:
    from ripple.imaging.psf import loops

    out = np.empty((len(kernel), kernel.shape[1] // 2 + 1))
    loops.rings(kernel, out)
    return out
