"""PSF matching: one kernel per distinct pair of PSF and target, applied to whole batches.

A kernel K solves, on a finite support, `min sum |P * K - T|² + mu sum K²`. Written with Fourier products and
started from the Wiener solution it takes a few conjugate-gradient steps, and unlike the plain Wiener filter
it puts nothing outside its support: stamps of real PSFs are cut at their edges, so their spectra have zeros,
and a plain quotient rings over the whole stamp. Sum and centroid of K are then set exactly: light is
conserved and does not move.

Kernels are made by numpy in float64. Their application (`fill`, `convolve`) takes numpy arrays or torch
tensors on any device and runs the same operations on both, so there is one implementation to trust; torch
itself is never imported here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

Float = NDArray[np.float64]
Profile = Literal["moffat", "gaussian"]

REGULARISATION = (
    3e-7  # mu, for PSFs of sum 1: amplitudes below sqrt(mu) are noise in every stamp we have seen
)
#: Regularisations tried in turn when a tolerance is given.
LADDER = (1e-4, 1e-5, 1e-6)
STEPS = 3  # conjugate-gradient steps; three times as many change the residual by a few per cent
CHUNK = 16  # kernels solved at a time: their spectra fit in the cache
MAX_OFFSET = 0.6  # px; a PSF further off its centre pixel has been cut out wrongly
FWHM_ANGLES, FWHM_STEP = 12, 0.5


class Fault(IntEnum):
    """What is wrong with a PSF stamp."""

    NONE = 0
    MISSING = 1
    NOT_FINITE = 2
    SUM = 3  # not positive, or so small that normalising amplifies rubbish
    OFF_CENTRE = 4  # even sizes among them: the centre is not pixel K // 2
    NEGATIVE = 5  # more than a fifth of its light is negative
    SHAPE = 6  # no peak, or its half maximum lies outside the stamp


def faults(psf: NDArray[np.floating], width: NDArray[np.floating] | None = None) -> NDArray[np.uint8]:
    """Judge PSF stamps before they are trusted.

    Parameters
    ----------
    psf
        `(M, Ky, Kx)`; the centre is pixel `Ky // 2, Kx // 2`.
    width
        `fwhm(psf)` when it is known already.

    Returns
    -------
    fault
        `(M,)` values of `Fault`.
    """
    p = np.asarray(psf, np.float64)
    out = np.zeros(len(p), np.uint8)
    if not len(p):
        return out
    finite = np.isfinite(p).all(axis=(1, 2))
    p = np.where(finite[:, None, None], p, 0.0)
    total, light = p.sum(axis=(1, 2)), np.abs(p).sum(axis=(1, 2))
    positive = total > 0.5 * np.maximum(light, 1e-30)
    safe = np.where((positive & finite)[:, None, None], p, _delta(p.shape[1:]))
    y, x = centroid(safe)
    off = np.maximum(np.abs(y - p.shape[1] // 2), np.abs(x - p.shape[2] // 2)) > MAX_OFFSET
    off |= (p.shape[1] % 2 == 0) | (p.shape[2] % 2 == 0)
    negative = np.minimum(safe, 0).sum(axis=(1, 2)) < -0.1 * light
    out[~np.isfinite(fwhm(p) if width is None else width)] = Fault.SHAPE
    out[negative] = Fault.NEGATIVE
    out[off] = Fault.OFF_CENTRE
    out[~positive] = Fault.SUM
    out[~finite] = Fault.NOT_FINITE
    return out


def _delta(shape: tuple[int, ...]) -> Float:
    out = np.zeros(shape)
    out[shape[0] // 2, shape[1] // 2] = 1.0
    return out


def centroid(psf: NDArray[np.floating]) -> tuple[Float, Float]:
    """First moments `(y, x)`, each `(M,)` in array pixels, of stamps `(M, Ky, Kx)`."""
    p = np.asarray(psf, np.float64)
    total = p.sum(axis=(1, 2))
    y = (p.sum(axis=2) @ np.arange(p.shape[1])) / total
    x = (p.sum(axis=1) @ np.arange(p.shape[2])) / total
    return y, x


def fwhm(psf: NDArray[np.floating]) -> Float:
    """Full width at half maximum of PSF stamps.

    Parameters
    ----------
    psf
        `(M, Ky, Kx)`.

    Returns
    -------
    width
        `(M,)` pixels: the diameter of the circle with the area inside the half-maximum contour, on a cubic
        spline through the pixels; NaN where the contour does not close inside the stamp.
    """
    p = np.asarray(psf, np.float64)
    m, h, w = p.shape
    if not m:
        return np.zeros(0)
    p = np.where(np.isfinite(p), p, 0.0)
    spline = scipy.ndimage.spline_filter1d(scipy.ndimage.spline_filter1d(p, axis=1), axis=2)
    y0, x0, peak = _peak(p, spline)
    radius = np.arange(0.0, min(h, w) / 2, FWHM_STEP)
    angle = np.arange(FWHM_ANGLES) * (2 * np.pi / FWHM_ANGLES)
    dy, dx = np.outer(np.sin(angle), radius), np.outer(np.cos(angle), radius)
    index = np.broadcast_to(np.arange(m)[:, None, None], (m, *dy.shape))
    at = np.stack([index, y0[:, None, None] + dy, x0[:, None, None] + dx])
    rays = _sample(spline, at) - 0.5 * peak[:, None, None]
    below = rays <= 0
    first = below.argmax(axis=2)
    closed = below.any(axis=2) & (first > 0)
    one = np.maximum(first, 1)[..., None]
    inner = np.take_along_axis(rays, one - 1, 2)[..., 0]
    outer = np.take_along_axis(rays, one, 2)[..., 0]
    cross = (one[..., 0] - 1 + inner / np.where(inner > outer, inner - outer, 1.0)) * FWHM_STEP
    # One secant step: the profile is curved between samples.
    slope = np.where(inner > outer, inner - outer, 1.0) / FWHM_STEP
    back = np.stack([index[..., 0], y0[:, None] + np.sin(angle) * cross, x0[:, None] + np.cos(angle) * cross])
    cross = cross + (_sample(spline, back) - 0.5 * peak[:, None]) / slope
    width = 2 * np.sqrt((cross**2).mean(axis=1))
    return np.where(closed.all(axis=1) & (peak > 0), width, np.nan)


def _sample(spline: Float, at: Float) -> Float:
    """Cubic spline values; the first coordinate is a stamp number, so it is not interpolated across."""
    _, h, w = spline.shape
    pad = np.pad(spline, ((0, 0), (3, 3), (3, 3)))
    y, x = np.clip(at[1], -1.0, h) + 3, np.clip(at[2], -1.0, w) + 3
    iy, ix = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    number = at[0].astype(np.intp)
    wy, wx = _bspline(y - iy), _bspline(x - ix)
    out = np.zeros(y.shape)
    for j in range(4):
        for i in range(4):
            out += wy[j] * wx[i] * pad[number, iy + j - 1, ix + i - 1]
    return out


def _bspline(t: Float) -> tuple[Float, Float, Float, Float]:
    s = 1 - t
    return s**3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - s**2 * (2 - s) / 2, t**3 / 6


def _peak(p: Float, spline: Float) -> tuple[Float, Float, Float]:
    """Position and height of the highest point of the spline, from the quadratic at the highest pixel."""
    m, h, w = p.shape
    y, x = np.divmod(p.reshape(m, -1).argmax(axis=1), w)
    row, y, x = np.arange(m), np.clip(y, 1, max(h - 2, 1)), np.clip(x, 1, max(w - 2, 1))
    if h < 3 or w < 3:
        return y.astype(float), x.astype(float), p.reshape(m, -1).max(axis=1)
    c = p[row, y, x]
    left, right, down, up = p[row, y, x - 1], p[row, y, x + 1], p[row, y - 1, x], p[row, y + 1, x]
    with np.errstate(all="ignore"):
        sx = np.nan_to_num((right - left) / (2 * (2 * c - left - right)), posinf=0, neginf=0)
        sy = np.nan_to_num((up - down) / (2 * (2 * c - down - up)), posinf=0, neginf=0)
    yy, xx = y + np.clip(sy, -0.5, 0.5), x + np.clip(sx, -0.5, 0.5)
    at = np.stack([row.astype(float), yy, xx])
    return yy, xx, _sample(spline, at)


def target_stamp(width: float, size: int, profile: Profile = "moffat", beta: float = 3.5) -> Float:
    """A round target PSF.

    Parameters
    ----------
    width
        FWHM in pixels, of the profile before it is integrated over pixels.
    size
        Pixels per side, odd.
    profile, beta
        Moffat `(1 + r²/a²)^-beta`, or Gaussian.

    Returns
    -------
    stamp
        `(size, size)` float64, integrated over pixels, sum 1, centre pixel `size // 2`; zero beyond the
        largest circle in the stamp, as PSF stamps carry no light there either.
    """
    fine = 5
    t = (np.arange(size * fine) + 0.5) / fine - size / 2
    r2 = t[:, None] ** 2 + t[None, :] ** 2
    if profile == "gaussian":
        values = np.exp(-4 * np.log(2) * r2 / width**2)
    else:
        values = (1 + r2 * 4 * (2 ** (1 / beta) - 1) / width**2) ** -beta
    values = np.where(r2 <= (size / 2) ** 2, values, 0.0)
    stamp = values.reshape(size, fine, size, fine).sum(axis=(1, 3))
    return np.asarray(stamp / stamp.sum())


@dataclass(frozen=True, slots=True)
class Kernels:
    """Matching kernels and what they do.

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
    """

    kernel: NDArray[np.float32]
    residual: Float
    spill: Float
    gain: Float
    sharpening: Float
    reach: NDArray[np.int32]

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
        The smoothest kernel of `LADDER` whose residual is at most this is taken: smooth kernels are short and
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
    starts = range(0, len(psf), CHUNK)
    parts = [_Solver(psf[s : s + CHUNK], _part(target, slice(s, s + CHUNK)), h) for s in starts]
    solved = [part.solve(tolerance, max_gain) for part in parts]
    if not solved:
        none = np.zeros(0)
        empty = np.zeros((0, 2 * h + 1, 2 * h + 1), np.float32)
        return Kernels(empty, none, none, none, none, none.astype(np.int32))
    return Kernels(*(np.concatenate([getattr(part, name) for part in solved]) for name in _FIELDS))


_FIELDS = ("kernel", "residual", "spill", "gain", "sharpening", "reach")


def _part(target: NDArray[np.floating], rows: Any) -> NDArray[np.floating]:
    return target if len(target) == 1 else target[rows]


class _Solver:
    """Kernels of support `h` for some pairs, with what does not depend on the regularisation."""

    def __init__(self, psf: NDArray[np.floating], target: NDArray[np.floating], h: int) -> None:
        self.h = h
        half_target = max(target.shape[1:]) // 2
        size = scipy.fft.next_fast_len(max(psf.shape[1:]) // 2 + h + max(h, half_target) + 1, real=True)
        self.shape = (size, size)
        self.psf = spectra(psf, size)
        self.target = np.broadcast_to(spectra(target, size), self.psf.shape)
        self.power, self.cross = np.abs(self.psf) ** 2, np.conj(self.psf) * self.target
        self.inside, self.near = _inside(size, h), _inside(size, half_target)
        line = scipy.fft.fftfreq(size, 1 / size)
        self.moments = np.stack([self.inside, self.inside * line[:, None], self.inside * line[None, :]])
        # Directions in which a kernel can be corrected at little cost in the fit.
        smooth = scipy.fft.rfft2(self.moments) / (self.power + 1e-4)[:, None]
        self.steps = self.within(smooth)  # (M, 3, P, P)
        self.response = np.einsum("aij,kbij->kab", self.moments, self.steps)

    def within(self, spectrum: Any) -> Float:
        """A spectrum back in real space, cut to the support."""
        return np.asarray(self.inside * scipy.fft.irfft2(spectrum, s=self.shape))

    def solve(self, tolerance: float, max_gain: float) -> Kernels:
        """See `match_kernels`."""
        every = np.arange(len(self.psf))
        if tolerance <= 0:
            out, todo = self.judged(every, self.fit(every, REGULARISATION)), every[:0]
        else:
            out = self.judged(every, self.wiener(every, LADDER[0]))
            todo = np.flatnonzero(out.residual > tolerance)
        for mu in LADDER[1:]:
            if not len(todo):
                break
            again = self.judged(todo, self.wiener(todo, mu))
            self._take(out, todo, again)
            todo = todo[again.residual > tolerance]
        if len(todo):
            self._take(out, todo, self.judged(todo, self.fit(todo, REGULARISATION)))
        mu = REGULARISATION
        while len(loud := np.flatnonzero(out.gain > max_gain)) and mu < 1e-2:
            mu *= 3
            self._take(out, loud, self.judged(loud, self.fit(loud, mu)))
        return out

    @staticmethod
    def _take(out: Kernels, rows: NDArray[np.intp], new: Kernels) -> None:
        for name in _FIELDS:
            getattr(out, name)[rows] = getattr(new, name)

    def wiener(self, rows: NDArray[np.intp], mu: float) -> Float:
        """Wiener filters cut to the support: as good as `fit` when `mu` is large."""
        return self.within(self.cross[rows] / (self.power[rows] + mu))

    def fit(self, rows: NDArray[np.intp], mu: float) -> Float:
        """Solve `inside (power * x) + mu x = inside cross` for x within the support."""
        power, cross = self.power[rows], self.cross[rows]
        wiener = 1 / (power + mu)
        x = self.within(cross * wiener)
        r = self.within(cross) - self.within(power * scipy.fft.rfft2(x)) - mu * x
        z = self.within(wiener * scipy.fft.rfft2(r))
        p, rz = z, _dot(r, z)
        for _ in range(STEPS):
            ap = self.within(power * scipy.fft.rfft2(p)) + mu * p
            step = rz / np.maximum(_dot(p, ap), 1e-300)
            x, r = x + step * p, r - step * ap
            z = self.within(wiener * scipy.fft.rfft2(r))
            rz, old = _dot(r, z), rz
            p = z + rz / np.maximum(old, 1e-300) * p
        return x

    def judged(self, rows: NDArray[np.intp], x: Float) -> Kernels:
        """Give kernels sum 1 and first moments 0, and measure what they do."""
        error = np.array([1.0, 0.0, 0.0]) - np.einsum("aij,kij->ka", self.moments, x)
        amount = np.linalg.solve(self.response[rows], error[..., None])[..., 0]
        x = x + np.einsum("ka,kaij->kij", amount, self.steps[rows])
        spectrum = scipy.fft.rfft2(x)
        miss = np.abs(scipy.fft.irfft2(spectrum * self.psf[rows] - self.target[rows], s=self.shape))
        residual = (miss * self.near).sum(axis=(1, 2))
        h = self.h
        kernel = np.roll(x, (h, h), axis=(1, 2))[:, : 2 * h + 1, : 2 * h + 1].astype(np.float32)
        return Kernels(
            kernel=np.ascontiguousarray(kernel),
            residual=residual,
            spill=miss.sum(axis=(1, 2)) - residual,
            gain=np.sqrt((x**2).sum(axis=(1, 2))),
            sharpening=np.abs(spectrum).max(axis=(1, 2)),
            reach=_reach(kernel),
        )


def _dot(a: Float, b: Float) -> Float:
    return np.asarray(np.einsum("kij,kij->k", a, b)[:, None, None])


def _inside(size: int, h: int) -> Float:
    """1 within `h` pixels of the origin of a wrapped `(size, size)` array, else 0."""
    line = (np.abs(scipy.fft.fftfreq(size, 1 / size)) <= h).astype(np.float64)
    return np.asarray(line[:, None] * line[None, :])


def spectra(psf: NDArray[np.floating], size: int) -> NDArray[np.complex128]:
    """Fourier transforms `(M, size, size // 2 + 1)` of stamps of sum 1, first moments at the origin."""
    p = np.asarray(psf, np.float64)
    p = p / p.sum(axis=(1, 2), keepdims=True)
    y, x = centroid(p)
    fy, fx = scipy.fft.fftfreq(size), scipy.fft.rfftfreq(size)
    shift_y = np.exp(2j * np.pi * y[:, None] * fy)[:, :, None]
    shift_x = np.exp(2j * np.pi * x[:, None] * fx)[:, None, :]
    out: NDArray[np.complex128] = scipy.fft.rfft2(p, s=(size, size)) * shift_y * shift_x
    return out


def weight_beyond(kernel: NDArray[np.float32], margin: int) -> Float:
    """Share of sum |K| beyond `margin` px from the centre, `(M,)`: what the edge of a stamp can spoil."""
    h = kernel.shape[1] // 2
    m = min(margin, h)
    weight = np.abs(kernel)
    inner = weight[:, h - m : h + m + 1, h - m : h + m + 1].sum(axis=(1, 2), dtype=np.float64)
    total: Float = 1 - inner / np.maximum(weight.sum(axis=(1, 2), dtype=np.float64), 1e-30)
    return total


def _reach(kernel: NDArray[np.float32]) -> NDArray[np.int32]:
    h = kernel.shape[1] // 2
    weight = np.abs(kernel).astype(np.float64)
    cumulative = weight.cumsum(axis=1).cumsum(axis=2)
    padded = np.pad(cumulative, ((0, 0), (1, 0), (1, 0)))
    r = np.arange(h + 1)
    lo, hi = h - r, h + r + 1
    box = padded[:, hi, hi] - padded[:, lo, hi] - padded[:, hi, lo] + padded[:, lo, lo]
    return np.asarray((box < 0.99 * box[:, -1:]).sum(axis=1), np.int32)


# Applying them: numpy arrays or torch tensors ------------------------------------------------------------


def namespace(array: Any) -> Any:
    """The module whose functions take `array`: numpy, or torch when that is what made it."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def to_numpy(array: Any) -> NDArray[Any]:
    """`array` in host memory as numpy."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def contiguous(array: Any) -> Any:
    """A fresh copy in C order."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def as_float(flags: Any, like: Any) -> Any:
    """Bool to the type of `like`."""
    return flags.astype(like.dtype) if isinstance(flags, np.ndarray) else flags.to(like.dtype)


def _transforms(xp: Any) -> Any:
    # scipy's FFT transforms several lines at once with SIMD; numpy's does not.
    return scipy.fft if xp is np else xp.fft


def reflect(length: int, before: int, after: int) -> NDArray[np.intp]:
    """Indices that extend an axis by reflection about its end pixels, as often as needed."""
    period = max(2 * (length - 1), 1)
    i = np.abs(np.arange(-before, length + after)) % period
    return np.where(i < length, i, period - i).astype(np.intp)


def fill(image: Any, good: Any, passes: int = 6) -> Any:
    """Replace bad pixels by the mean of their good neighbours, growing inwards, then by the plane's mean.

    Parameters
    ----------
    image
        `(..., H, W)` float; values of bad pixels are never used.
    good
        `(..., H, W)` bool.
    passes
        Depth in pixels to which a hole is filled from its rim (3 x 3 means); what is left gets the mean of
        the good pixels (0 without any).

    Returns
    -------
    filled
        A new array, finite where `image` is finite on good pixels.
    """
    xp = namespace(image)
    zero = xp.zeros_like(image)
    out = xp.where(good, image, zero)
    weight = xp.where(good, zero + 1, zero)
    mean = out.sum(axis=(-2, -1)) / xp.maximum(weight.sum(axis=(-2, -1)), zero[..., 0, 0] + 1)
    for _ in range(passes):
        share = _box3(weight)
        new = (weight == 0) & (share > 0)
        if not bool(new.any()):
            break
        out = xp.where(new, _box3(out) / xp.where(share > 0, share, zero + 1), out)
        weight = xp.where(new, zero + 1, weight)
    return xp.where(weight > 0, out, mean[..., None, None])


def _box3(a: Any) -> Any:
    """Sum over 3 x 3 neighbours, zero outside."""
    xp = namespace(a)
    rows = xp.zeros_like(a)
    rows[...] = a
    rows[..., 1:, :] += a[..., :-1, :]
    rows[..., :-1, :] += a[..., 1:, :]
    out = xp.zeros_like(a)
    out[...] = rows
    out[..., 1:] += rows[..., :-1]
    out[..., :-1] += rows[..., 1:]
    return out


def kernel_spectra(kernel: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Transforms `(M, Hp, Wp // 2 + 1)` of kernels, cut to an odd size that fits `shape`, sum kept."""
    h = kernel.shape[-1] // 2
    used = min(h, (min(shape) - 1) // 2)
    k = kernel[:, h - used : h + used + 1, h - used : h + used + 1].astype(np.float64)
    k *= (kernel.sum(axis=(1, 2), dtype=np.float64) / k.sum(axis=(1, 2)))[:, None, None]
    frame = np.zeros((len(k), *shape), np.float32)
    frame[:, : k.shape[1], : k.shape[2]] = k
    frame = np.roll(frame, (-used, -used), axis=(1, 2))
    out: NDArray[np.complex64] = scipy.fft.rfft2(frame)
    return out


def frame_shape(shape: tuple[int, int], pad: int) -> tuple[int, int]:
    """Shape of the transforms for planes of `shape` extended by `pad` pixels on each side."""
    h, w = shape
    # Without `real`, factors 7 and 11 count as fast: for transforms of this size they are.
    return int(scipy.fft.next_fast_len(h + 2 * pad)), int(scipy.fft.next_fast_len(w + 2 * pad))


def convolve(
    image: Any, spectra: Any, number: NDArray[np.integer], frame: tuple[int, int], trim: int = 0
) -> Any:
    """Convolve planes with kernels.

    Parameters
    ----------
    image
        `(..., H, W)` float32, finite.
    spectra
        `(M, frame[0], frame[1] // 2 + 1)` complex64, see `kernel_spectra`.
    number
        `(...)` which of them each plane gets.
    frame
        Shape of the transform, at least `(H, W)`; the difference is filled by reflection.
    trim
        Pixels to cut off each side of the result.

    Returns
    -------
    out
        `(..., H - 2 trim, W - 2 trim)` float32.
    """
    xp = namespace(image)
    transforms = _transforms(xp)
    h, w = image.shape[-2:]
    before_y, before_x = (frame[0] - h) // 2, (frame[1] - w) // 2
    if frame[0] > h:
        image = image[..., reflect(h, before_y, frame[0] - h - before_y), :]
    if frame[1] > w:
        image = image[..., reflect(w, before_x, frame[1] - w - before_x)]
    product = transforms.rfft2(image)
    if xp is np:
        for place in np.ndindex(number.shape):  # one by one: gathering the spectra first costs a copy
            product[place] *= spectra[number[place]]
    else:
        product = product * spectra[number]
    out = transforms.irfft2(product, s=frame)
    y, x = before_y + trim, before_x + trim
    return out[..., y : y + h - 2 * trim, x : x + w - 2 * trim]
