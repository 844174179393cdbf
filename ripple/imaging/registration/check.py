"""Whether the bands of a cutout show the same sky, the same way up: a check by cross-correlation.

A public lens-finding blind set shipped cutouts whose bands were rotated against each other. Headers cannot
show that, pixels can: each band is compared with a reference band of the same row, as it is and in the seven
other orientations, over all shifts. Nothing is said where the signal cannot decide: faint rows, sources that
look the same in every orientation, bands that do not look like each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging.registration import correlate

Float = NDArray[np.float32]

MIN_SHIFT = 0.25  # px, so that 0.3 is mostly found; colour gradients and refraction shift by less
NOTICEABLE = 0.3  # px; a band is decided when a shift this large would be sure
SIGMAS = 5.0  # a shift or an orientation must be this sure
MIN_CORRELATION = 0.85  # bands that correlate less than this at their best cannot be compared
MAX_WORSE = 0.1  # where a shift makes bands differ more, over where it makes them differ less, at most
TILE = 8  # px, for that comparison
ALIKE = 0.6  # two bands that find the reference moved by vectors that differ by less than this share of them
ALIKE_SHIFT, ALIKE_SIGMAS = 1.5, 10.0  # px and sigma of both: colours of blends hardly do that
ALIKE_CORRELATION, ALIKE_EXPLAINED = 0.6, 0.3  # and these in place of the next two
PART_WAY = (
    0.2,
    0.6,
)  # of a shift: another band that moved this far has a colour in between, and no band was moved
TILE_NOISE = 4.0  # in units of the squared noise: what noise alone changes in a tile
# A shift must explain this much of what it leaves unexplained (colours of blended sources).
MIN_EXPLAINED = 0.5
MAX_LEFT = 0.7  # an orientation must leave less than this of what the given one leaves unexplained
MIN_GAIN = 0.08  # and beat it by this plus half of what it leaves, where no third band can confirm it
# Another orientation is tried when sums of 4 x 4 pixels correlate in it nearly as well as upright.
NEARLY_AS_GOOD = 0.985
CORRELATION_ERROR = 0.03  # correlations corrected for noise may come out above 1
KNEE = 10.0  # S/N above which pixels are compressed, so that one bright source does not decide alone
SMALLEST = 8  # px, planes of sums that are still compared
CHUNK = 64  # rows at a time


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
        `(N, B)` int8 best orientation, index into `correlate.TRANSFORMS`; 0 unless another one is
        significantly better.
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
        `(N, B, H, W)` pixels to use, all of finite image and finite, positive variance; by default all those.

    Returns
    -------
    registration
        Arrays of N rows, see `Registration`.

    Notes
    -----
    Planes are divided by their noise, compressed (asinh), tapered at the edge and smoothed by a Gaussian.
    With f = s + n of two bands, the shift error follows from C(d) = sum f1(x) f2(x + d): sigma_d =
    sqrt(Var C'(0)) / |C''(0)| with Var C' = sum |k|² (P1 N2 + P2 N1 + N1 N2) / 2 per axis, P the power of the
    signal, N of the noise. The noise is assumed white; correlated noise of resampled images makes the error
    too small by up to its variance ratio, which `SIGMAS` leaves room for. Real displacements between bands,
    such as differential chromatic refraction, count as shifts.
    """
    n, b = image.shape[:2]
    shape = (n, b)
    out = Registration(
        np.full(n, -1, np.int16),
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32),
        np.zeros(shape, np.int8),
        np.zeros(shape, bool),
        np.zeros(shape, bool),
    )
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        if valid is not None:
            good = valid[rows]
        else:
            with np.errstate(invalid="ignore"):
                good = np.isfinite(image[rows]) & np.isfinite(variance[rows]) & (variance[rows] > 0)
        _compare(_signal(image[rows], variance[rows], good), good, rows, out)
    return out


def _signal(image: NDArray[np.floating], variance: NDArray[np.floating], good: NDArray[np.bool_]) -> Float:
    """Signal-to-noise planes `(n, B, H, W)` float32, no background, bright pixels compressed, 0 if bad."""
    from ripple.imaging import loops

    with np.errstate(invalid="ignore"):
        unit = np.float32(KNEE) * np.sqrt(_masked_median(variance, good))
    planes = np.empty(image.shape, np.float32)
    level = _masked_median(image, good)
    loops.asinh(np.ascontiguousarray(image, np.float32), level, unit, KNEE, planes)
    planes[~good] = 0
    return planes


def _masked_median(values: NDArray[np.floating], good: NDArray[np.bool_]) -> Float:
    """Median of every other good pixel of each plane and axis, `(n, B)` float32; NaN when there is none."""
    n, b, h, w = values[:, :, ::2, ::2].shape
    some = good[:, :, ::2, ::2]
    flat = np.where(some, values[:, :, ::2, ::2], np.inf).astype(np.float32).reshape(n, b, h * w)
    middle = np.maximum(np.count_nonzero(some, axis=(2, 3)) - 1, 0) // 2
    # Few different counts: planes without bad pixels all have the same.
    flat.partition(np.unique(middle), axis=-1)
    median = np.take_along_axis(flat, middle[..., None], axis=-1)[..., 0]
    return np.where(np.isinf(median), np.float32(np.nan), median)


def _compare(planes: Float, good: NDArray[np.bool_], rows: slice, out: Registration) -> None:
    """Measure all bands of these rows against their reference and write the result into `out`."""
    n, b, h, w = planes.shape
    enough = good.mean(axis=(2, 3)) > 0.7
    # 4 x 4 sums: structure as wide as the seeing counts, noise of single pixels hardly.
    power = np.where(enough, (correlate.blocks(planes) ** 2).sum(axis=(2, 3)), -1.0)
    reference = power.argmax(axis=1)
    usable = enough.sum(axis=1) >= 2
    out.reference[rows] = np.where(usable, reference, -1)
    # Without the taper, sources cut by the edge would correlate at zero shift.
    taper = np.outer(correlate.taper(h), correlate.taper(w)).astype(np.float32)
    index = np.arange(n)
    found = _Findings(
        np.zeros((n, b, 2)),
        np.zeros((n, b), bool),
        np.zeros((n, b), bool),
        np.zeros((n, b), np.int8),
        np.zeros((n, b)),
        np.zeros((n, b), bool),
        np.zeros((n, b), bool),
    )
    first_good, holed = good[index, reference], ~good.all(axis=(2, 3))
    first = np.asarray(planes[index, reference] * (first_good * taper), np.float32)
    for band in range(b):
        mine = np.flatnonzero(usable & enough[:, band] & (reference != band))
        if len(mine):
            f1 = first[mine]
            more = holed[mine, band]  # pixels that the reference must do without too
            f1[more] *= good[mine[more], band]
            f2 = np.asarray(planes[mine, band] * (first_good[mine] * taper), np.float32)
            _measure_band(f1, f2, taper, mine, band, found, rows.start, out)
    at = index[usable] + rows.start
    for measure, value in ((out.shift, 0.0), (out.shift_error, 0.0), (out.correlation, 1.0), (out.peak, 1.0)):
        measure[at, reference[usable]] = value
    turned = np.zeros((n, b), bool)
    for row, band in zip(*np.nonzero(found.turned), strict=True):
        sky = planes[row] * (good[row] * taper)
        turned[row, band] = _confirmed(sky, taper, int(reference[row]), int(row), int(band), found)
    out.transform[rows] = np.where(turned, found.turned, 0)
    out.peak[rows] = np.where(turned, found.match, out.peak[rows])
    out.decided[rows] |= turned
    out.flagged[rows] = turned | (found.moved & ~_moved_part_way(found)) | _agree_on_shift(found)
    _flag_reference(at, out)


@dataclass(frozen=True, slots=True)
class _Findings:
    """What some rows show: `(n, B)` each, shifts y, x `(n, B, 2)` px."""

    vectors: NDArray[np.float64]
    far: NDArray[np.bool_]  # clearly away from the reference, colours or not
    moved: NDArray[np.bool_]  # and colours are not the reason
    turned: NDArray[np.int8]  # orientation that fits better, index into `correlate.TRANSFORMS`
    match: NDArray[np.float64]  # correlation in that orientation
    alone: NDArray[np.bool_]  # it fits so much better that no other band need confirm it
    sure: NDArray[np.bool_]  # there is signal to compare


@dataclass(frozen=True, slots=True)
class _Match:
    """How m bands fit their references: `(m,)` each, `vector` `(m, 2)` y and x in px."""

    zero: Any  # correlation without a shift
    upright: Any  # and at its peak
    vector: Any  # the shift there
    error: Any  # px, one sigma
    noise: Any  # one sigma of the correlations

    def update(self, other: _Match, rows: NDArray[np.intp]) -> None:
        """Take the values of `other` for some rows."""
        for name in ("zero", "upright", "vector", "error", "noise"):
            getattr(self, name)[rows] = getattr(other, name)


def _match(f1: Float, f2: Float, taper: Float, block: int) -> _Match:
    """Cross-correlate planes `(m, H, W)` of sums of `block` x `block` pixels."""
    h, w = f1.shape[1:]
    beam = correlate.beam(h, w, block)
    pair = correlate.pair(scipy.fft.rfft2(f1), scipy.fft.rfft2(f2), beam, taper, (h, w))
    cross = scipy.fft.irfft2(pair.cross, s=(h, w))
    top, dy, dx = correlate.peak(cross, max(2, min(h, w) // 4))
    scale = pair.scale
    vector = block * np.stack([dy, dx], axis=1)
    return _Match(cross[:, 0, 0] / scale, top / scale, vector, block * pair.shift_error, pair.noise / scale)


def _unsettled(coarse: _Match) -> NDArray[np.bool_]:
    """Rows that a look at half the resolution does not settle: half of every limit counts as reached."""
    shift, left = np.hypot(*coarse.vector.T), 1 - coarse.upright
    away = shift >= 0.5 * np.maximum(MIN_SHIFT, SIGMAS * coarse.error)
    better = coarse.upright - coarse.zero > 0.5 * ALIKE_EXPLAINED * left
    moved = away & better & (SIGMAS * coarse.noise < 2)
    # Its errors are 2 to 7 % larger: some rows are decided only at the full one.
    border = np.abs(SIGMAS * coarse.error / NOTICEABLE - 1.05) < 0.05
    return np.asarray(moved | border)


def _measure_band(
    f1: Float,
    f2: Float,
    taper: Float,
    mine: NDArray[np.intp],
    band: int,
    found: _Findings,
    start: int,
    out: Registration,
) -> None:
    """Compare `f2` (m, H, W) with the reference `f1`: rows `mine` of `band`."""
    at = mine + start
    # Sums of 2 x 2 pixels cost a quarter, and settle most rows: the seeing is wider than they are.
    coarse = min(f1.shape[1:]) >= 2 * SMALLEST
    match = (
        _match(correlate.halved(f1), correlate.halved(f2), taper, 2) if coarse else _match(f1, f2, taper, 1)
    )
    if coarse and len(doubtful := np.flatnonzero(_unsettled(match))):
        match.update(_match(f1[doubtful], f2[doubtful], taper, 1), doubtful)
    vector, upright, error = match.vector, match.upright, match.error
    out.shift[at, band], found.vectors[mine, band] = np.hypot(*vector.T), vector
    out.correlation[at, band] = match.zero
    sure = SIGMAS * match.noise < 1
    better = upright - out.correlation[at, band]
    moved = (out.shift[at, band] >= np.maximum(MIN_SHIFT, SIGMAS * error)) & (upright >= MIN_CORRELATION)
    moved &= sure & (better > MIN_EXPLAINED * (1 - upright))
    far = sure & (out.shift[at, band] >= np.maximum(ALIKE_SHIFT, ALIKE_SIGMAS * error))
    found.far[mine, band] = far & (upright >= ALIKE_CORRELATION) & (better > ALIKE_EXPLAINED * (1 - upright))
    # The costly test last, for the few rows that all others leave.
    for row in np.flatnonzero(moved):
        moved[row] = _worsening(f1[row], f2[row], vector[row]) <= MAX_WORSE
    out.shift_error[at, band] = error
    out.peak[at, band] = upright
    found.moved[mine, band], found.sure[mine, band] = moved, sure
    best, fit, turned = np.zeros(len(f1), np.int8), upright.copy(), np.zeros(len(f1), bool)
    odd = np.flatnonzero(sure & _could_fit_better(upright, match.noise))
    odd = odd[_may_be_turned(f1[odd], f2[odd], taper)] if len(odd) else odd
    if len(odd):
        table = _correlations_by_orientation(correlate.halved(f1[odd]), correlate.halved(f2[odd]), taper, 2)
        best[odd], fit[odd] = table.argmax(axis=0), table.max(axis=0)
        turned[odd] = _fits_better_turned(table[0], fit[odd], match.noise[odd])
        found.alone[mine[odd], band] = fit[odd] - table[0] > MIN_GAIN + (1 - fit[odd]) / 2
    turned &= (fit >= MIN_CORRELATION) & (best > 0)
    found.turned[mine, band], found.match[mine, band] = np.where(turned, best, 0), fit
    out.decided[at, band] = sure & (SIGMAS * error <= NOTICEABLE) & (fit >= MIN_CORRELATION)


def _fits_better_turned(upright: Any, match: Any, noise: Any) -> Any:
    """Whether another orientation fits so much better that neither noise nor colours can be the reason.

    Noise changes two correlations of the same planes alike, but for the part of the light that looks
    different when turned: about `1 - upright` of it.
    """
    gain = match - upright
    sigma = noise * np.sqrt(2 * np.clip(1 - upright + CORRELATION_ERROR, 0, 1))
    return (gain > SIGMAS * sigma) & (1 - match < MAX_LEFT * (1 - upright))


def _could_fit_better(upright: Any, noise: Any) -> NDArray[np.bool_]:
    """Rows in which a perfect fit in another orientation would be found better by `_fits_better_turned`."""
    perfect = 1 + CORRELATION_ERROR
    return np.asarray(_fits_better_turned(np.minimum(upright, perfect - 1e-6), perfect, noise))


def _may_be_turned(f1: Float, f2: Float, taper: Float) -> NDArray[np.bool_]:
    """Rows whose blocks agree better in some other orientation: two quick looks that spare most."""
    one, two = (correlate.halved(correlate.halved(f)) for f in (f1, f2))
    names = correlate.orientations(one.shape[1:])[1:]
    upright = np.einsum("kij,kij->k", one, two)
    best = np.max([np.einsum("kij,kij->k", one, correlate.undo(two, name)) for name in names], axis=0)
    may = np.asarray(best > NEARLY_AS_GOOD * upright)
    if may.any() and min(one.shape[1:]) >= SMALLEST:
        table = _correlations_by_orientation(one[may], two[may], taper, 4)
        # Half of the gain that is asked for in the end.
        may[may] = table.max(axis=0) - table[0] > 0.5 * (1 - MAX_LEFT) * (1 - table[0])
    return may


def _correlations_by_orientation(one: Float, two: Float, taper: Float, block: int) -> NDArray[np.float64]:
    """Correlation `(8, m)` of two planes in each of `TRANSFORMS` at its best shift, from sums of pixels.

    `one` and `two` are sums of `block` x `block` pixels. Minus infinity where it would change the shape.
    """
    h, w = one.shape[1:]
    beam = correlate.beam(h, w, block)
    a = scipy.fft.rfft2(one)
    pair = correlate.pair(a, scipy.fft.rfft2(two), beam, taper, (h, w))
    conjugate = np.conj(a) * beam
    limit = max(2, min(h, w) // 4)
    out = np.full((len(correlate.TRANSFORMS), len(one)), -np.inf)
    for name in correlate.orientations((h, w)):
        turned = scipy.fft.rfft2(np.ascontiguousarray(correlate.undo(two, name)))
        cross = scipy.fft.irfft2(conjugate * turned, s=(h, w))
        out[correlate.TRANSFORMS.index(name)] = correlate.peak(cross, limit)[0] / pair.scale
    return out


def _confirmed(planes: Float, taper: Float, reference: int, row: int, band: int, found: _Findings) -> bool:
    """Whether the other bands confirm that this one is turned: colours may make two bands fit better turned.

    Most of those that have signal must agree; where there are none, the fit must be better by far.
    """
    turn = found.turned[row, band]
    votes = []
    for other in np.flatnonzero(found.sure[row]):
        if other in (band, reference):
            continue
        one, two = (correlate.halved(planes[k][None]) for k in (other, band))
        fits = _correlations_by_orientation(one, two, taper, 2)[:, 0]
        # Turned alike, the two agree as they are: then it is the reference that is turned.
        alike = found.turned[row, other] == turn
        votes.append(bool(alike or 1 - fits[turn] < MAX_LEFT * (1 - fits[0])))
    return sum(votes) * 2 > len(votes) if votes else bool(found.alone[row, band])


def _worsening(f1: Float, f2: Float, shift: NDArray[np.float64]) -> float:
    """How much a shift of `f2` makes parts of it differ more from `f1`, over how much it improves others.

    A band that was moved improves in every part of the cutout. Where two sources of different colours lie
    side by side a shift makes the blend more alike, and spoils its surroundings.
    """
    a, b = (scipy.ndimage.gaussian_filter(f, correlate.SMOOTH) for f in (f1, f2))
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


def _moved_part_way(found: _Findings) -> NDArray[np.bool_]:
    """Bands `(n, B)` with another one moved part of the way, or further, as colour gradients do it."""
    v = found.vectors
    length = np.linalg.norm(v, axis=2)
    dot = np.einsum("njc,nkc->njk", v, v)
    longer = np.maximum(length[:, :, None], length[:, None, :])
    part = dot / np.maximum(longer**2, 1e-12)
    both = np.minimum(length[:, :, None], length[:, None, :]) >= MIN_SHIFT
    return np.asarray((both & (part > PART_WAY[0]) & (part < PART_WAY[1])).any(axis=2))


def _agree_on_shift(found: _Findings) -> NDArray[np.bool_]:
    """Bands `(n, B)` that find the reference moved like another one does, which colours do not explain."""
    v = found.vectors
    length = np.linalg.norm(v, axis=2)
    apart = np.linalg.norm(v[:, :, None] - v[:, None, :], axis=3)
    alike = apart < ALIKE * np.maximum(length[:, :, None], length[:, None, :])
    alike &= found.far[:, :, None] & found.far[:, None, :] & ~np.eye(v.shape[1], dtype=bool)
    return np.asarray(alike.any(axis=2))


def _flag_reference(at: NDArray[np.intp], out: Registration) -> None:
    """Flag the reference too where more than half of the bands that could be compared disagree with it."""
    decided = (out.decided[at] | out.flagged[at]).sum(axis=1)
    wrong = out.flagged[at].sum(axis=1) * 2 > decided
    out.flagged[at[wrong], out.reference[at[wrong]]] = True
