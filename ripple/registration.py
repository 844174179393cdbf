"""Are the bands of a stamp the same piece of sky, the same way up? A check by image cross-correlation.

A public lens-finding blind set shipped stamps whose bands were rotated against each other. Headers cannot
show that, pixels can: each band is compared with a reference band of the same row, as it is and in the seven
other orientations, over all shifts. Nothing is said where the signal cannot decide: faint rows, sources that
look the same in every orientation, bands that do not look like each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Float = NDArray[np.float32]

#: What was done to a band, relative to the reference: counter-clockwise turns as `numpy.rot90` makes them.
TRANSFORMS: tuple[str, ...] = (
    "identity", "rot90", "rot180", "rot270", "mirror_x", "mirror_y", "transpose", "antitranspose",
)  # fmt: skip

MIN_SHIFT = 0.25  # px, so that 0.3 is mostly found; less is what colour gradients and refraction do
NOTICEABLE = 0.3  # px; a band is decided when a shift this large would be sure
SIGMAS = 5.0  # a shift or an orientation must be this sure
MIN_CORRELATION = 0.85  # bands that look less alike than this, once put right, say nothing
MAX_WORSE = 0.1  # where a shift makes bands differ more, over where it makes them differ less, at most
TILE = 8  # px, for that comparison
PART = 0.2  # of a shift: as close to its start or end are the bands that did not move against each other
TILE_NOISE = 4.0  # square of the noise; what noise alone changes in a tile
MIN_EXPLAINED = (
    0.3  # a shift must explain this much of what it leaves unexplained (colours of blended sources)
)
MIN_GAIN = 0.08  # by how much an orientation must beat the given one, plus half of what it leaves unexplained
DOUBT = 0.03  # correlations corrected for noise may come out above 1
KNEE = 10.0  # S/N above which pixels are compressed, so that one bright source does not decide alone
SMOOTH = 1.2  # px, Gaussian; about the seeing, so that noise beyond it is not correlated
CHUNK = 64  # rows at a time

#: Orientations that keep a stamp's width and height.
UPRIGHT: tuple[str, ...] = ("identity", "rot180", "mirror_x", "mirror_y")


@dataclass(frozen=True, slots=True)
class Registration:
    """Measures of each band against the reference band of its row; the reference has shift 0, correlation 1.

    Parameters
    ----------
    reference
        `(N,)` int16 band compared with: the one with most signal; -1 when no two bands have data.
    shift
        `(N, B)` float32 px between band and reference in the given orientation; NaN where not measured.
    shift_error
        `(N, B)` float32 px, one sigma, from noise alone.
    correlation
        `(N, B)` float32 correlation of band and reference as given (no shift), corrected for noise.
    peak
        `(N, B)` float32 correlation in the best orientation at its best shift, corrected for noise.
    transform
        `(N, B)` int8 best orientation, index into `TRANSFORMS`; 0 unless another one is significantly better.
    decided
        `(N, B)` bool: there was enough signal to notice a shift of `NOTICEABLE` px.
    flagged
        `(N, B)` bool: turned, mirrored or shifted against the reference. The reference is flagged too where
        more than half of the bands disagree with it; of two bands either may be the wrong one.
    """

    reference: NDArray[np.int16]
    shift: Float
    shift_error: Float
    correlation: Float
    peak: Float
    transform: NDArray[np.int8]
    decided: NDArray[np.bool_]
    flagged: NDArray[np.bool_]

    @property
    def bad(self) -> NDArray[np.bool_]:
        """`(N,)` rows with a flagged band."""
        return np.asarray(self.flagged.any(axis=1))


def check_registration(
    image: NDArray[np.floating], variance: NDArray[np.floating], valid: NDArray[np.bool_] | None = None
) -> Registration:
    """Compare the bands of each row.

    Parameters
    ----------
    image
        `(N, B, H, W)`, any unit.
    variance
        `(N, B, H, W)`, the square of that unit.
    valid
        `(N, B, H, W)` pixels to use; by default those with finite image and finite, positive variance.

    Returns
    -------
    registration
        Arrays of N rows, see `Registration`.

    Notes
    -----
    Planes are divided by their noise, compressed (asinh), tapered at the edge and smoothed by a Gaussian.
    With f = s + n of two bands, the shift error follows from C(d) = sum f1(x) f2(x + d): sigma_d =
    sqrt(Var C'(0)) / |C''(0)| with Var C' = sum |k|² (P1 N2 + P2 N1 + N1 N2) / 2 per axis, P the power of the
    signal, N of the noise. The noise is taken as white; correlated noise of resampled images makes the error
    too small by up to its variance ratio, which `SIGMAS` leaves room for. Real displacements between bands,
    such as differential chromatic refraction, count as shifts.
    """
    n, b = image.shape[:2]
    shape = (n, b)
    out = Registration(
        np.full(n, -1, np.int16), np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32), np.zeros(shape, np.int8),
        np.zeros(shape, bool), np.zeros(shape, bool),
    )  # fmt: skip
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        with np.errstate(invalid="ignore"):
            good = np.isfinite(image[rows]) & np.isfinite(variance[rows]) & (variance[rows] > 0)
        if valid is not None:
            good &= valid[rows]
        _compare(_signal(image[rows], variance[rows], good), good, rows, out)
    return out


def _signal(image: NDArray[np.floating], variance: NDArray[np.floating], good: NDArray[np.bool_]) -> Float:
    """Signal-to-noise planes `(n, B, H, W)` float32, no background, bright pixels compressed, 0 if bad."""
    from ripple import plane_loops

    with np.errstate(invalid="ignore"):
        unit = np.float32(KNEE) * np.sqrt(_masked_median(variance, good))
    planes = np.empty(image.shape, np.float32)
    level = _masked_median(image, good)
    plane_loops.asinh(np.ascontiguousarray(image, np.float32), level, unit, KNEE, planes)
    planes[~good] = 0
    return planes


def _masked_median(values: NDArray[np.floating], good: NDArray[np.bool_]) -> Float:
    """Median of every other good pixel of each plane and axis, `(n, B)` float32; NaN when there is none."""
    n, b, h, w = values[:, :, ::2, ::2].shape
    some = good[:, :, ::2, ::2]
    flat = np.where(some, values[:, :, ::2, ::2], np.inf).astype(np.float32).reshape(n, b, h * w)
    flat.sort(axis=-1)
    middle = np.maximum(np.count_nonzero(some, axis=(2, 3)) - 1, 0) // 2
    median = np.take_along_axis(flat, middle[..., None], axis=-1)[..., 0]
    return np.where(np.isinf(median), np.float32(np.nan), median)


def _compare(planes: Float, good: NDArray[np.bool_], rows: slice, out: Registration) -> None:
    """Measure all bands of these rows against their reference and write the result into `out`."""
    n, b, h, w = planes.shape
    enough = good.mean(axis=(2, 3)) > 0.7
    power = np.where(enough, (_blocks(planes) ** 2).sum(axis=(2, 3)), -1.0)
    reference = power.argmax(axis=1)
    usable = enough.sum(axis=1) >= 2
    out.reference[rows] = np.where(usable, reference, -1)
    taper = np.outer(_taper(h), _taper(w)).astype(np.float32)
    index = np.arange(n)
    vectors = np.zeros((n, b, 2))
    first_good, holed = good[index, reference], ~good.all(axis=(2, 3))
    first = planes[index, reference] * (first_good * taper)
    spectrum = scipy.fft.rfft2(first)
    for band in range(b):
        mine = np.flatnonzero(usable & enough[:, band] & (reference != band))
        if len(mine):
            f1, a = first[mine], spectrum[mine]
            more = holed[mine, band]  # pixels that the reference must do without too
            f1[more] *= good[mine[more], band]
            a[more] = scipy.fft.rfft2(f1[more])
            f2 = planes[mine, band] * (first_good[mine] * taper)
            at = index[mine] + rows.start
            vectors[mine, band] = _measure(f1, a, f2, taper, at, band, out)
    at = index[usable] + rows.start
    for measure, value in ((out.shift, 0.0), (out.shift_error, 0.0), (out.correlation, 1.0), (out.peak, 1.0)):
        measure[at, reference[usable]] = value
    _clear(rows, vectors, out)
    _blame(index[usable] + rows.start, out)


def _blocks(planes: Float) -> Float:
    """Sums of 4 x 4 pixels, about as wide as the seeing."""
    h, w = planes.shape[2] // 4 * 4, planes.shape[3] // 4 * 4
    rows = sum((planes[:, :, k:h:4, :w] for k in range(1, 4)), planes[:, :, 0:h:4, :w])
    return np.asarray(sum((rows[..., k::4] for k in range(1, 4)), rows[..., ::4]))


def _taper(size: int) -> NDArray[np.float64]:
    """A window that falls to 0 over an eighth of the width on each side (Tukey)."""
    x = (np.arange(size) + 0.5) / size
    edge = np.minimum(np.minimum(x, 1 - x) / 0.125, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * edge))


@dataclass(frozen=True, slots=True)
class _Pair:
    """Cross-correlation of one band (m rows) with its reference, and what noise alone does to it."""

    cross: NDArray[np.complex64]  # its spectrum, smoothed
    scale: NDArray[np.float64]  # (m,) correlation of a perfect match
    noise: NDArray[np.float64]  # (m,) one sigma of the correlation
    shift_error: NDArray[np.float64]  # (m,) px


def _beam(h: int, w: int) -> Float:
    """What smoothing both images multiplies their correlation by: the transform of the Gaussian squared."""
    ky, kx = 2 * np.pi * scipy.fft.fftfreq(h)[:, None], 2 * np.pi * scipy.fft.rfftfreq(w)
    return np.exp(-(SMOOTH**2) * (kx**2 + ky**2)).astype(np.float32)


def _pair(a: NDArray[np.complex64], b: NDArray[np.complex64], beam: Float, taper: Float) -> _Pair:
    """Formulas: the notes of `check_registration`; sums run over the half plane that rfft2 keeps."""
    from ripple import plane_loops

    h, w = taper.shape
    cross = np.empty(a.shape, np.complex64)
    sums = np.empty((len(a), 3, 3))
    white = float((taper**2).sum())  # power per mode of noise 1 per pixel
    plane_loops.correlate(a, b, beam, w, white, cross, sums)
    # Of the first signal, the second, and the variance: in all, and weighted by ky² and kx².
    one, two, fluctuation = np.maximum(sums, 1e-12).transpose(1, 2, 0)
    error = (fluctuation[1:] / (one[1:] * two[1:])).sum(axis=0)
    return _Pair(
        cross, np.sqrt(one[0] * two[0]) / (h * w), np.sqrt(fluctuation[0]) / (h * w), np.sqrt(error)
    )


def _measure(
    f1: Float,
    a: NDArray[np.complex64],
    f2: Float,
    taper: Float,
    at: NDArray[np.intp],
    band: int,
    out: Registration,
) -> NDArray[np.float64]:
    """Compare `f2` (m, H, W) with the reference `f1`, of spectrum `a`, into rows `at` of `band`.

    Returns the shifts y, x `(m, 2)` in px.
    """
    h, w = f1.shape[1:]
    beam = _beam(h, w)
    pair = _pair(a, scipy.fft.rfft2(f2), beam, taper)
    names = TRANSFORMS if h == w else tuple(t for t in TRANSFORMS if t in UPRIGHT)
    cross = scipy.fft.irfft2(pair.cross, s=(h, w))
    limit = max(2, min(h, w) // 4)
    first, dy, dx = _peak(cross, limit)
    out.shift[at, band], vector = np.hypot(dy, dx), np.stack([dy, dx], axis=1)
    out.correlation[at, band] = cross[:, 0, 0] / pair.scale
    upright = first / pair.scale
    peaks = np.broadcast_to(first, (len(names), len(f1))).copy()
    # What agrees so well cannot agree better by as much as is asked for.
    sure = pair.scale > SIGMAS * pair.noise
    odd = np.flatnonzero(sure & (upright < 1 - MIN_GAIN + DOUBT))
    conjugate = np.conj(a[odd]) * beam
    for k, name in enumerate(names[1:] if len(odd) else (), 1):
        cross = scipy.fft.irfft2(conjugate * scipy.fft.rfft2(undo(f2[odd], name)), s=(h, w))
        peaks[k, odd] = _peak(cross, limit)[0]
    best = peaks.argmax(axis=0)
    gain = peaks.max(axis=0) - first
    match = peaks.max(axis=0) / pair.scale
    turned = sure & (gain > SIGMAS * np.sqrt(2) * pair.noise)
    turned &= gain / pair.scale > MIN_GAIN + (1 - match) / 2
    turned &= (match >= MIN_CORRELATION) & (best > 0)
    error = pair.shift_error
    moved = (out.shift[at, band] >= np.maximum(MIN_SHIFT, SIGMAS * error)) & (upright >= MIN_CORRELATION)
    moved &= upright - out.correlation[at, band] > MIN_EXPLAINED * (1 - upright)
    for row in np.flatnonzero(sure & moved):
        moved[row] = _worse(f1[row], f2[row], vector[row]) <= MAX_WORSE
    out.shift_error[at, band] = error
    out.peak[at, band] = np.where(turned, match, upright)
    codes = np.array([TRANSFORMS.index(name) for name in names], np.int8)
    out.transform[at, band] = np.where(turned, codes[best], 0)
    out.decided[at, band] = turned | (sure & (SIGMAS * error <= NOTICEABLE) & (match >= MIN_CORRELATION))
    out.flagged[at, band] = turned | (sure & moved)
    return vector


def undo(plane: Float, name: str) -> Float:
    """Put a plane `(..., H, W)` right that was turned or mirrored as `name` says.

    Raises
    ------
    ValueError
        When `name` is not one of `TRANSFORMS`.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"{name} is not one of {', '.join(TRANSFORMS)}")
    if name.startswith("rot"):
        return np.rot90(plane, -int(name[3:]) // 90, axes=(-2, -1))
    flip = {"mirror_x": -1, "mirror_y": -2}
    if name in flip:
        return np.flip(plane, axis=flip[name])
    if name == "identity":
        return plane
    swapped = np.swapaxes(plane, -1, -2)
    return np.flip(swapped, axis=(-2, -1)) if name == "antitranspose" else swapped


def _worse(f1: Float, f2: Float, shift: NDArray[np.float64]) -> float:
    """Does a shift of `f2` make it differ more from `f1` somewhere? The sum of that over the sum of gains.

    A band that was moved gets better in every part of the stamp. Where two sources of different colours lie
    side by side a shift makes the blend more alike, and spoils its surroundings.
    """
    a, b = (scipy.ndimage.gaussian_filter(f, SMOOTH) for f in (f1, f2))
    gain = _misfit(a, b) - _misfit(a, scipy.ndimage.shift(b, -shift))
    gain = np.sign(gain) * np.maximum(np.abs(gain) - TILE_NOISE, 0)
    return float(-gain[gain < 0].sum() / max(gain[gain > 0].sum(), 1e-9))


def _misfit(a: Float, b: Float) -> NDArray[np.float64]:
    """Sum of squares of `b` not explained by a multiple of `a` and a constant, tile by tile."""
    ny, nx = a.shape[0] // TILE, a.shape[1] // TILE
    tiles = []
    for plane in (a, b):
        t = plane[: ny * TILE, : nx * TILE].astype(np.float64).reshape(ny, TILE, nx, TILE)
        tiles.append(t - t.mean(axis=(1, 3), keepdims=True))
    aa, ab, bb = ((tiles[i] * tiles[j]).sum(axis=(1, 3)) for i, j in ((0, 0), (0, 1), (1, 1)))
    return np.asarray(bb - np.maximum(ab, 0) ** 2 / (aa + 1e-3))


def _peak(cross: Float, limit: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Highest value `(m,)` of each correlation map within `limit` px of no shift, and its shift y, x in px.

    The peak between pixels comes from the quadratic through its 3 x 3 neighbours.
    """
    m = len(cross)
    window = np.roll(cross, (limit + 1, limit + 1), axis=(1, 2))[:, : 2 * limit + 3, : 2 * limit + 3]
    inner = window[:, 1:-1, 1:-1].reshape(m, -1)
    y, x = np.divmod(inner.argmax(axis=1), 2 * limit + 1)
    rows = np.arange(m)
    c = {(j, i): window[rows, y + 1 + j, x + 1 + i].astype(float) for j in (-1, 0, 1) for i in (-1, 0, 1)}
    gx, gy = (c[0, 1] - c[0, -1]) / 2, (c[1, 0] - c[-1, 0]) / 2
    xx, yy = c[0, 1] + c[0, -1] - 2 * c[0, 0], c[1, 0] + c[-1, 0] - 2 * c[0, 0]
    xy = (c[1, 1] + c[-1, -1] - c[1, -1] - c[-1, 1]) / 4
    det = xx * yy - xy**2
    curved = det > 1e-6 * (xx * yy + 1e-30)
    det = np.where(curved, det, 1.0)
    dx = np.where(curved, np.clip((xy * gy - yy * gx) / det, -1, 1), 0.0)
    dy = np.where(curved, np.clip((xy * gx - xx * gy) / det, -1, 1), 0.0)
    return c[0, 0] + (gx * dx + gy * dy) / 2, y - limit + dy, x - limit + dx


def _clear(rows: slice, vectors: NDArray[np.float64], out: Registration) -> None:
    """Take back a shift when another band is neither where it was nor where it is: colours do that."""
    length = np.linalg.norm(vectors, axis=2)
    along = np.einsum("njc,nkc->nkj", vectors, vectors) / np.maximum(length[..., None] ** 2, 1e-12)
    elsewhere = (along > PART) & (np.abs(along - 1) > PART) & (length[:, None, :] >= MIN_SHIFT)
    upright = out.transform[rows] == 0
    out.flagged[rows] &= ~(upright & elsewhere.any(axis=2))


def _blame(at: NDArray[np.intp], out: Registration) -> None:
    """Flag the reference too where more than half of the bands that could be compared disagree with it."""
    decided = (out.decided[at] | out.flagged[at]).sum(axis=1)
    wrong = out.flagged[at].sum(axis=1) * 2 > decided
    out.flagged[at[wrong], out.reference[at[wrong]]] = True
