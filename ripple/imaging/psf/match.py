"""PSF matching of a batch: which kernel each plane needs, and its application to image, variance and mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.imaging import convolve, noise
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.psf import cells
from ripple.imaging.psf import kernels as psf_kernels
from ripple.imaging.psf import shape as psf
from ripple.imaging.psf.cells import Parts
from ripple.imaging.psf.kernels import Kernels
from ripple.imaging.psf.shape import Fault, Profile
from ripple.runtime.profile import Profile as Costs

Float = NDArray[np.float32]

MAX_FILLED = 0.05  # a pixel is not valid when filled pixels carry more than this share of its |K|
#: A target's stamp grows until no more of its light than this lies outside, up to three times the PSF stamps.
MAX_LOST = 5e-4
REACH = 12  # px of margin and reflection at most; beyond lie tails of kernels, which may wrap around


@dataclass(frozen=True, slots=True)
class Matching:
    """A kernel for each plane of a batch.

    Parameters
    ----------
    number
        `(N, B)` int32 into `kernels`; -1 where the plane stays as it is.
    kernels
        Distinct kernels. For a target of given width `residual` is an upper limit of what they miss of the
        whole profile, its light beyond the stamps included.
    fault
        `(N, B)` uint8, `shape.Fault` of each plane's PSF.
    fwhm
        `(N, B)` float32 px of each plane's PSF before matching; NaN without one.
    target
        `(N, B)` float32 px FWHM after matching; NaN where nothing is matched.
    parts
        Parts in other cells than the centre, which are first brought to the centre's PSF.
    """

    number: NDArray[np.int32]
    kernels: Kernels
    fault: NDArray[np.uint8]
    fwhm: Float
    target: Float
    parts: Parts

    def of_planes(self, values: NDArray[Any], otherwise: float) -> Float:
        """Values per kernel as `(N, B)` float32; `otherwise` where there is no kernel."""
        if not len(values):
            return np.full(self.number.shape, otherwise, np.float32)
        return np.where(self.number >= 0, values[np.maximum(self.number, 0)], otherwise).astype(np.float32)


def plan_matching(
    batch: CutoutBatch,
    target: Literal["none", "match"] | float,
    profile: Profile = "moffat",
    beta: float = 3.5,
    tolerance: float = 0.003,
) -> Matching:
    """Choose target PSFs and compute the kernels, one per distinct pair of PSF and target.

    Parameters
    ----------
    batch
        PSFs and which plane has which.
    target
        `none`; `match`: the broadest PSF among the bands of each row; or a FWHM in arcsec, pixels included
        (`shape.fwhm`).
    profile, beta
        Shape of the target of given FWHM.
    tolerance
        Residual at which a smooth kernel is good enough, see `psf_kernels.match_kernels`.
    """
    index = batch.psf_index
    has = index >= 0
    # PSFs of other cells than those of a centre need no width, which is costly: 1 stands for it.
    central = np.unique(index[has])
    width_of = np.ones(len(batch.psf), np.float32)
    width_of[central] = psf.fwhm(batch.psf[central])
    fault_of = psf.faults(batch.psf, width_of)
    safe = np.maximum(index, 0)  # -1 would take the last PSF
    fault = np.full(index.shape, Fault.MISSING, np.uint8)
    width = np.full(index.shape, np.nan, np.float32)
    if len(batch.psf):
        fault = np.where(has, fault_of[safe], fault).astype(np.uint8)
        width = np.where(has & (fault == Fault.NONE), width_of[safe], np.nan)
    number, aim = np.full(index.shape, -1, np.int32), np.full(index.shape, np.nan, np.float32)
    size = batch.psf.shape[-1] if batch.psf.size else 1
    none = psf_kernels.match_kernels(np.zeros((0, size, size)), np.zeros((0, size, size)))
    use = (fault == Fault.NONE) & (target != "none")
    parts = cells.plan_parts(batch, use, fault_of == Fault.NONE, tolerance)
    out = Matching(number, none, fault, width, aim, parts)
    if not use.any():
        return out
    if target == "match":
        return _to_broadest(batch, out, tolerance)
    return _to_width(batch, out, float(target) / batch.pixel_scale, profile, beta, tolerance)


def _to_width(
    batch: CutoutBatch, matching: Matching, pixels: float, profile: Profile, beta: float, tolerance: float
) -> Matching:
    # | 1: the target has an odd size, with its centre in a pixel.
    half = _target_half(pixels, batch.psf.shape[-1] | 1, profile, beta)
    stamp = psf.target_stamp(pixels, 2 * half + 1, profile, beta)[None]
    use = matching.fault == Fault.NONE
    wanted, number = np.unique(batch.psf_index[use], return_inverse=True)
    matching.number[use] = number
    matching.target[use] = pixels
    found = _kernels(batch.psf[wanted], stamp, tolerance)
    # The target is known everywhere, not only in its stamp: light beyond it is missed there, and is too much
    # within, where the stamp has sum 1; and what spills over the edge of the stamp is error as well.
    lost = psf.light_beyond(half + 0.5, pixels, profile, beta)
    return replace(matching, kernels=replace(found, residual=found.residual + found.spill + 2 * lost))


def _target_half(pixels: float, size: int, profile: Profile, beta: float) -> int:
    """Half width in pixels of the stamp of a target: that of the PSFs, or more for a wide one."""
    half, most = size // 2, 3 * (size // 2)
    while half < most and psf.light_beyond(half + 0.5, pixels, profile, beta) > MAX_LOST:
        half += 1
    return half


def half_width(size: int) -> int:
    """Half width of kernels for PSF stamps of `size` px.

    Half as wide again as the stamps, so that their rims are matched too; wider kernels gain hardly anything.
    """
    return max(3 * (size // 2) // 2, 1)


def _kernels(stamps: Float, target: NDArray[Any], tolerance: float) -> Kernels:
    # The wings of a target wider than the PSFs are those of the kernel.
    half = max(half_width(stamps.shape[-1]), target.shape[-1] // 2)
    return psf_kernels.match_kernels(stamps, target, half=half, tolerance=tolerance)


def _to_broadest(batch: CutoutBatch, matching: Matching, tolerance: float) -> Matching:
    rows = np.arange(len(batch))
    broadest = np.where(np.isfinite(matching.fwhm), matching.fwhm, -1).argmax(axis=1)
    best = batch.psf_index[rows, broadest]
    # The broadest band itself has no kernel: its pixels stay as they are.
    use = (matching.fault == Fault.NONE) & (batch.psf_index != best[:, None])
    i, _ = np.nonzero(use)
    # (P, 2) PSF and target; `number` is the pair of each plane.
    pairs, number = np.unique(np.stack([batch.psf_index[use], best[i]], axis=1), axis=0, return_inverse=True)
    matching.number[use] = number.reshape(-1)
    width = matching.fwhm[rows, broadest]
    matching.target[:] = np.where(matching.fault == Fault.NONE, width[:, None], np.nan)
    if not len(pairs):
        return matching
    return replace(matching, kernels=_kernels(batch.psf[pairs[:, 0]], batch.psf[pairs[:, 1]], tolerance))


@dataclass(frozen=True, slots=True)
class Frame:
    """Transforms of a batch's kernels for one cutout size.

    Parameters
    ----------
    shape
        Of the transforms.
    trim
        Margin to cut off.
    kernel
        `(M, S, S)` float32.
    image, variance
        Spectra of K and K², each `(M, ...)` complex64; the last None when not wanted.
    """

    shape: tuple[int, int]
    trim: int
    kernel: Float
    image: Any
    variance: Any


def make_frame(kernels: Kernels, shape: tuple[int, int], margin: int, *, variance: bool) -> Frame:
    """Transform kernels for planes of `shape` (margin included)."""
    reach = min(int(kernels.reach.max(initial=0)), REACH)
    pad = max(reach - margin, 0)
    frame = convolve.frame_shape(shape, pad)
    k = kernels.kernel
    return Frame(
        frame,
        margin,
        k,
        convolve.kernel_spectra(k, frame),
        convolve.kernel_spectra(k * k, frame) if variance else None,
    )


def apply(
    image: Any,
    good: Any,
    number: NDArray[np.int32],
    parts: Parts,
    frame: Frame,
    variance: Any = None,
    costs: Costs | None = None,
) -> tuple[Any, Any, Any]:
    """Fill bad pixels, bring all cells to the centre's PSF, convolve and trim some rows.

    Parameters
    ----------
    image
        `(n, B, H, W)` float32 nJy; numpy, or torch with the spectra of `frame` on the same device.
    good
        `(n, B, H, W)` bool pixels that are a measurement.
    number
        `(n, B)` kernels, see `Matching`.
    parts
        From `Parts.of`, with kernels where `image` is.
    frame
        From `make_frame`.
    variance
        `(n, B, H, W)` nJy² or None.
    costs
        Gets the seconds of filling, of the cells and of the matching.

    Returns
    -------
    image, valid, variance
        `(n, B, H - 2 trim, W - 2 trim)`: matched image, finite; pixels still a measurement; K² * variance,
        or None. Planes without a good pixel are 0.
    """
    costs = Costs() if costs is None else costs
    with costs.time("fill"):
        whole = bool(good.all())
        filled = image if whole else _filled(image, good)
        spread: Any = None if variance is None else _filled(variance, good)
    if len(parts.part):
        with costs.time("cells"):
            filled = cells.apply_parts(filled, parts)
    with costs.time("match"):
        return _matched(filled, good, number, frame, spread, whole=whole)


def _matched(
    filled: Any, good: Any, number: NDArray[np.int32], frame: Frame, spread: Any, *, whole: bool
) -> tuple[Any, Any, Any]:
    """Convolve and trim planes without holes; `whole`: there were none."""
    m = frame.trim
    h, w = filled.shape[-2:]
    inner = (..., slice(m, h - m), slice(m, w - m))
    valid = convolve.contiguous(good[inner])
    after: Any = None if spread is None else convolve.contiguous(spread[inner])
    where = np.nonzero(number >= 0)
    k = number[where]
    if len(k) == number.size and spread is None and whole:
        # The usual case without the copies that picking planes costs.
        return convolve.convolve(filled, frame.image, number, frame.shape, m), valid, None
    out = convolve.contiguous(filled[inner])
    if not len(k):
        return out, valid, after
    # Planes without any good pixel are not convolved: `fill` left zeros there.
    holes = ~good[where].reshape(len(k), -1).all(axis=-1)
    alive = good[where].reshape(len(k), -1).any(axis=-1)
    holes, alive = convolve.to_numpy(holes), convolve.to_numpy(alive)
    where, k, holes = (where[0][alive], where[1][alive]), k[alive], holes[alive]
    out[where] = convolve.convolve(filled[where], frame.image, k, frame.shape, m)
    if holes.any():
        at = (where[0][holes], where[1][holes])
        bad = convolve.as_float(~good[at], filled)
        used, place = np.unique(k[holes], return_inverse=True)
        # How much of the result comes from filled pixels: the bad ones seen through |K|.
        weight = np.abs(frame.kernel[used])
        weight /= weight.sum(axis=(1, 2), keepdims=True)
        spectra = convolve.to_library_of(convolve.kernel_spectra(weight, frame.shape), filled)
        share = convolve.convolve(bad, spectra, place.reshape(-1), frame.shape, m)
        valid[at] = valid[at] & (share <= MAX_FILLED)
    if spread is not None:
        after[where] = convolve.convolve(spread[where], frame.variance, k, frame.shape, m)
    return out, valid, after


def _filled(planes: Any, good: Any) -> Any:
    """`convolve.fill` for the planes with bad pixels; the others are only copied."""
    holes = ~good.all(-1).all(-1)  # also of no rows, which have no shape to divide
    out = convolve.contiguous(planes)
    out[holes] = convolve.fill(planes[holes], good[holes])
    return out


def variance_of_parts(batch: CutoutBatch, matching: Matching, rho: Any) -> Float:
    """Variance `(N, B, H, W)`, scaled where parts were brought to the centre's PSF; `rho` as in `gains`."""
    ratio = cells.variance_ratio(matching.parts, matching.number, matching.kernels, rho)
    if not len(ratio):
        return batch.variance
    out = batch.variance.copy()
    for r, (row, band, y0, y1, x0, x1, _) in zip(ratio.tolist(), matching.parts.part.tolist(), strict=True):
        out[row, band, y0:y1, x0:x1] *= r
    return out


def gains(matching: Matching, rho: NDArray[np.float64] | None) -> tuple[Float, Float]:
    """Noise after over noise before, and the factor on `K² * variance`, each `(N, B)`; 1 without kernel."""
    auto = matching.kernels.auto
    gain = np.ones(matching.number.shape, np.float32)
    factor = np.ones(matching.number.shape, np.float32)
    for band in range(matching.number.shape[1]):
        use = matching.number[:, band] >= 0
        if not use.any():
            continue
        f = np.ones(len(auto)) if rho is None else noise.variance_factor(auto, rho[band])
        k = matching.number[use, band]
        factor[use, band] = f[k]
        gain[use, band] = np.sqrt(f * auto[:, noise.LAG, noise.LAG])[k]
    return gain, factor
