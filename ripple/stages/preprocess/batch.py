"""Cutouts in memory to tensors in memory: the configuration, and the steps on one batch.

measure quality -> fill bad pixels -> match PSFs -> trim the margin -> normalise
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.imaging import convolve, noise, normalize
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.imaging.half import to_half
from ripple.imaging.psf import kernels as psf_kernels
from ripple.imaging.psf import match
from ripple.imaging.psf import shape as psf
from ripple.imaging.psf.cells import Parts
from ripple.imaging.quality import judge, measure
from ripple.imaging.quality.flags import Flag
from ripple.imaging.quality.sky import sky_pixels, white_noise
from ripple.imaging.registration.check import check_registration
from ripple.imaging.rescale import covered, rescaled
from ripple.runtime.profile import Profile
from ripple.sky.neighbours import repeated
from ripple.stages.preprocess.config import PreprocessConfig

Float = NDArray[np.float32]

CORRELATION_ROWS = 128  # per batch; their sky fixes the noise correlation to a per cent
TOGETHER = 4  # chunks whose bands are compared at once, which has a cost of its own
HALF_MAX = np.float32(65504.0)


@dataclass(frozen=True, slots=True)
class DataConstants:
    """What a row needs to know of the whole data set.

    Parameters
    ----------
    margin
        Pixels on each side of the cutouts that are used and trimmed.
    duplicates
        Values of the `index` column of rows that repeat an earlier one; None looks within the batch.
    class_map
        Label value -> class name.
    noise_correlation
        Band -> `(L, L)`; None measures it in the batch.
    offset, scale
        Band -> nJy, for scope `dataset`.
    rows
        Training rows that `offset` and `scale` were measured on.
    outliers
        Those of them that were left out in some band, far beyond the others.
    """

    margin: int = 0
    duplicates: tuple[int, ...] | None = None
    class_map: Mapping[str, str] = field(default_factory=dict)
    noise_correlation: Mapping[str, list[list[float]]] | None = None
    offset: Mapping[str, float] | None = None
    scale: Mapping[str, float] | None = None
    rows: int = 0
    outliers: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch matched and judged, not yet normalised.

    Parameters
    ----------
    batch
        The cutouts in the pixels that are asked for, zero points applied, margin still on.
    image
        `(N, B, H, W)` float32 nJy, matched and trimmed, finite; 0 in missing bands.
    valid
        `(N, B, H, W)` bool.
    noise
        `(N, B)` float32 nJy, sky noise after matching; NaN in missing bands.
    quality
        Measures.
    extra
        Measures made outside of `quality`, `(N, B)` each.
    variance
        `(N, B, H, W)` float32 nJy² after matching, NaN in missing bands; None when not wanted.
    """

    batch: CutoutBatch
    image: Float
    valid: NDArray[np.bool_]
    noise: Float
    quality: measure.Quality
    extra: dict[str, Float]
    variance: Float | None = None


def preprocess_batch(
    batch: CutoutBatch,
    config: PreprocessConfig,
    constants: DataConstants,
    profile: Profile | None = None,
    release: Callable[[int], None] = lambda _: None,
) -> TensorBatch:
    """Cutouts to tensors, in memory.

    Parameters
    ----------
    batch
        N rows; a margin of `constants.margin` pixels on each side is used and trimmed.
    config
        What to do.
    constants
        Facts beyond the batch.
    profile
        Gets the seconds of each step.
    release
        Called with the number of rows whose pixels are not needed any more.

    Returns
    -------
    tensors
        Same rows in the same order.

    Raises
    ------
    DataError
        The margin leaves no pixels, or constants of the data set are missing.
    """
    profile = Profile() if profile is None else profile
    prepared = prepare(batch, config, constants, profile, release)
    with profile.time("normalise"):
        offset, scale = _constants_of_rows(prepared, config, constants)
        image, clipped = _normalised(prepared, config, offset, scale)
    qc_bands = judge.judge(prepared.quality, prepared.extra, config.quality)
    qc_bands[clipped] |= np.uint64(1 << Flag.CLIPPED)
    if config.missing_band == "ignore":
        qc_bands &= ~np.uint64(1 << Flag.MISSING_BAND)
    qc = np.bitwise_or.reduce(qc_bands, axis=1) if len(batch.bands) else np.zeros(len(batch), np.uint64)
    qc[_duplicate_rows(batch, config, constants)] |= np.uint64(1 << Flag.DUPLICATE)
    accept = judge.verdict(qc, config.reject)
    accept[~prepared.quality.present.any(axis=1)] = 0
    catalog = dict(prepared.batch.catalog)
    catalog["band_mask"] = _band_mask(prepared.quality.present)
    catalog |= _columns(prepared, qc_bands, batch.bands)
    catalog |= {"qc": qc, "accept": accept}
    catalog |= normalize.columns(offset, scale, config.scope, batch.bands)
    target = config.target
    return TensorBatch(
        bands=batch.bands,
        image=image,
        valid=prepared.valid.view(np.uint8),
        catalog=catalog,
        pixel_scale=prepared.batch.pixel_scale,
        psf_fwhm=target if isinstance(target, float) else float("nan"),
        normalization=describe(config, constants),
        class_map=dict(constants.class_map),
        variance=prepared.variance,
    )


def copies_planes(config: PreprocessConfig) -> bool:
    """Whether these options need the pixels of all rows at once; else rows can be released one by one."""
    return bool(config.variance or config.size or config.pixel_scale or config.zero_point)


def prepare(
    batch: CutoutBatch,
    config: PreprocessConfig,
    constants: DataConstants,
    profile: Profile,
    release: Callable[[int], None] = lambda _: None,
) -> Prepared:
    """Judge, fill, match and trim; parameters and errors as in `preprocess_batch`."""
    _, _, h, w = batch.image.shape
    if min(h, w) <= 2 * constants.margin:
        raise DataError(f"stamps of {w} x {h} px have a margin of {constants.margin} px: nothing is left")
    batch, margin = on_grid(calibrated(batch, config.zero_point), config, constants.margin)
    with profile.time("kernels"):
        plan = match.plan_matching(
            batch, config.target, config.psf_profile, config.psf_beta, config.psf_tolerance
        )
        shape = batch.image.shape[2], batch.image.shape[3]
        frame = match.make_frame(plan.kernels, shape, margin, variance=config.variance)
    rho = _rho(batch, config, constants)
    done = _matched(batch, config, plan, frame, rho, profile, release)
    absent = ~done.quality.present
    done.image[absent] = 0
    done.valid[absent] = False
    gain, factor = match.gains(plan, rho)
    if done.variance is not None:
        done.variance[...] *= factor[..., None, None]  # K² * variance is right for white noise only
        done.variance[absent] = np.nan
    after = (done.noise * gain).astype(np.float32)
    extra = _psf_measures(batch, config, plan, gain, margin, rho) | done.extra
    prepared = replace(done, noise=after, extra=extra)
    return prepared if config.size is None else _padded(prepared, config.size)


def _matched(
    batch: CutoutBatch,
    config: PreprocessConfig,
    plan: match.Matching,
    frame: match.Frame,
    rho: NDArray[np.float64] | None,
    profile: Profile,
    release: Callable[[int], None],
) -> Prepared:
    """All rows measured, filled, matched and trimmed, some at a time; `noise` is that before matching."""
    (n, b, h, w), margin = batch.image.shape, frame.trim
    device = _device(config.device)
    parts, frame = _kernels_on(device, plan.parts, frame)
    damping = None if rho is None else noise.damping(rho)
    spread = match.variance_of_parts(batch, plan, rho) if config.variance else None
    image = np.empty((n, b, h - 2 * margin, w - 2 * margin), np.float32)
    valid = np.empty(image.shape, bool)
    variance = np.empty(image.shape, np.float32) if config.variance else None
    judged: list[measure.Quality] = []
    agreement: list[Float] = []
    inner = (..., slice(margin, h - margin), slice(margin, w - margin))
    step = convolve.CHUNK if device is None else 64 * convolve.CHUNK
    end = max(n, 1)  # one piece for an empty batch: it has columns too
    for first in range(0, end, TOGETHER * step):
        several = slice(first, min(first + TOGETHER * step, end))
        looked: list[NDArray[np.bool_]] = []
        for start in range(several.start, several.stop, step):
            rows = slice(start, start + step)
            piece, trimmed = _rows(batch, rows, 0), _rows(batch, rows, margin)
            with profile.time("quality"):
                good = measure.usable(piece)
                looked.append(good[inner])
                judged.append(measure.measure(trimmed, looked[-1], sky_pixels(trimmed, looked[-1]), damping))
            planes = piece.image if good.all() else np.where(good, piece.image, np.float32(0))
            given = [planes, good, None if spread is None else spread[rows]]
            if device is not None:
                given = [None if array is None else device.put(array) for array in given]
            how = (plan.number[rows], parts.of(rows), frame)
            done = match.apply(given[0], given[1], *how, given[2], profile)
            image[rows], valid[rows] = convolve.to_numpy(done[0]), convolve.to_numpy(done[1])
            if variance is not None:
                variance[rows] = convolve.to_numpy(done[2])
        if config.registration and b > 1 and n:
            with profile.time("registration"):
                sky = np.concatenate([q.noise for q in judged[-len(looked) :]])
                agreement.append(_registration(_rows(batch, several, margin), np.concatenate(looked), sky))
        release(min(several.stop, n))
    measured = _joined(judged)
    extra = {"registration": np.concatenate(agreement)} if agreement else {}
    return Prepared(batch, image, valid, measured.noise, measured, extra, variance)


def _kernels_on(device: Any, parts: Parts, frame: match.Frame) -> tuple[Parts, match.Frame]:
    """The kernels of cells and the spectra of those of planes, where they are applied; None is numpy."""
    if device is None:
        return parts, frame
    spectra = {"image": frame.image, "variance": frame.variance}
    frame = replace(frame, **{k: device.put(v) for k, v in spectra.items() if v is not None})
    kernels = {name: device.put(getattr(parts, name)) for name in ("kernel", "backward")}
    return replace(parts, **kernels), frame


def on_grid(batch: CutoutBatch, config: PreprocessConfig, margin: int) -> tuple[CutoutBatch, int]:
    """The batch in the pixels and size of `config`, as far as its pixels reach, and its margin there."""
    if config.pixel_scale is None and config.size is None:
        return batch, margin
    scale = config.pixel_scale or batch.pixel_scale
    ratio = scale / batch.pixel_scale
    margin_there = round(margin / ratio)
    filled = [covered(n, ratio) for n in batch.image.shape[-2:]]
    wanted = [config.size or round((n - 2 * margin) / ratio) for n in batch.image.shape[-2:]]
    size = [min(n, m + 2 * margin_there) for n, m in zip(filled, wanted, strict=True)]
    if min(size) <= 2 * margin_there:
        raise DataError(f"pixels of {scale:g} arcsec leave nothing of cutouts of {batch.image.shape[-1]} px")
    return rescaled(batch, scale, (size[0], size[1])), margin_there


def _padded(prepared: Prepared, size: int) -> Prepared:
    """Pixels of no measurement around smaller cutouts, after everything that looks at pixels."""
    h, w = prepared.image.shape[-2:]
    before = size // 2 - h // 2, size // 2 - w // 2
    pads = [(0, 0), (0, 0), *((a, size - n - a) for a, n in zip(before, (h, w), strict=True))]
    if not any(map(any, pads)):
        return prepared
    variance = prepared.variance
    return replace(
        prepared,
        image=np.pad(prepared.image, pads),
        valid=np.pad(prepared.valid, pads),
        variance=None if variance is None else np.pad(variance, pads, constant_values=np.nan),
    )


def _rows(batch: CutoutBatch, rows: slice, margin: int) -> CutoutBatch:
    """Some rows, without margin; views."""
    h, w = batch.image.shape[-2:]
    cut = (rows, slice(None), slice(margin, h - margin), slice(margin, w - margin))
    return CutoutBatch(
        batch.bands,
        batch.image[cut],
        batch.variance[cut],
        batch.mask[cut],
        batch.mask_planes,
        batch.psf,
        batch.psf_index[rows],
        {},
        {},
        batch.pixel_scale,
    )


def _joined(parts: list[measure.Quality]) -> measure.Quality:
    names = parts[0].measures
    return measure.Quality(
        np.concatenate([p.noise for p in parts]),
        np.concatenate([p.background for p in parts]),
        {k: np.concatenate([p.measures[k] for p in parts]) for k in names},
        np.concatenate([p.present for p in parts]),
    )


def calibrated(batch: CutoutBatch, zero_point: tuple[str, ...]) -> CutoutBatch:
    """Fluxes with the zero-point offsets applied: magnitudes are added, so fluxes shrink."""
    offsets = {band: float(m) for band, _, m in (item.partition(":") for item in zero_point)}
    factor = np.array([10 ** (-0.4 * offsets.get(b, 0.0)) for b in batch.bands], np.float32)
    if (factor == 1).all():
        return batch
    f = factor[:, None, None]
    with np.errstate(over="ignore"):
        return replace(batch, image=batch.image * f, variance=batch.variance * f * f)


def _rho(
    batch: CutoutBatch, config: PreprocessConfig, constants: DataConstants
) -> NDArray[np.float64] | None:
    """Noise correlation `(B, L, L)`; None for white noise."""
    if config.noise_correlation == "white" or not len(batch):
        return None
    given = constants.noise_correlation
    if given is not None:
        return np.stack([np.asarray(given[band], np.float64) for band in batch.bands])
    return correlation_of(batch).rho()


def correlation_of(batch: CutoutBatch) -> noise.Correlation:
    """Correlation sums of the sky pixels of up to `CORRELATION_ROWS` rows, evenly spread."""
    if len(batch) > CORRELATION_ROWS:
        k = np.unique(np.linspace(0, len(batch) - 1, CORRELATION_ROWS).astype(np.int64))
        batch = replace(batch, catalog={}).take(k)
    good = measure.usable(batch)
    sky = sky_pixels(batch, good)
    variance = batch.variance
    if measure.without_variance(variance).any():
        variance = with_noise(variance, white_noise(batch.image, sky))
    return noise.correlation(batch.image, variance, sky)


def with_noise(variance: Float, noise: Float) -> Float:
    """Variances `(N, B, H, W)`, with the square of `noise` `(N, B)` in planes that have none."""
    unknown = measure.without_variance(variance)
    if not unknown.any():
        return variance
    return np.where(unknown[..., None, None], (noise**2)[..., None, None], variance)


def _psf_measures(
    batch: CutoutBatch,
    config: PreprocessConfig,
    plan: match.Matching,
    gain: Float,
    margin: int,
    rho: NDArray[np.float64] | None,
) -> dict[str, Float]:
    """What goes to the index per row and band."""
    out = {
        # Without matching a PSF may be absent, but not be wrong.
        "psf_fault": np.where(
            (plan.fault == psf.Fault.MISSING) & (config.psf == "none"), psf.Fault.NONE, plan.fault
        ).astype(np.float32),
        "psf_fwhm": (plan.fwhm * batch.pixel_scale).astype(np.float32),
    }
    if "psf_jump" in batch.catalog:
        jump = np.asarray(batch.catalog["psf_jump"], np.float32)
        out["psf_jump"] = np.broadcast_to(jump[:, None], plan.fault.shape).copy()
    if np.isnan(plan.target).all():
        return out
    kernels = plan.kernels
    flux = kernels.kernel.sum(axis=(1, 2), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        out["psf_sharpening"] = (plan.fwhm / plan.target).astype(np.float32)
    out["psf_residual"] = plan.of_planes(kernels.residual, 0.0)
    out["psf_cell_residual"] = plan.parts.misfit(plan.number.shape)
    out["psf_spill"] = plan.of_planes(kernels.spill, 0.0)
    out["psf_flux"] = plan.of_planes(flux, 1.0)
    out["psf_edge"] = plan.of_planes(psf_kernels.weight_beyond(kernels.kernel, margin), 0.0)
    out["psf_gain"] = gain
    out["psf_area"] = noise.noise_area(
        noise.WHITE[None] if rho is None else rho, gain.astype(np.float64)
    ).astype(np.float32)
    return out


def _registration(stamp: CutoutBatch, good: NDArray[np.bool_], noise: Float) -> Float:
    """1 where a band is turned or shifted, 0 where it is not, NaN where that could not be measured."""
    found = check_registration(stamp.image, with_noise(stamp.variance, noise), good)
    flagged = found.flagged.astype(np.float32)
    flagged[np.isnan(found.peak)] = np.nan
    return flagged


def _constants_of_rows(
    prepared: Prepared, config: PreprocessConfig, constants: DataConstants
) -> tuple[Float, Float]:
    shape = prepared.noise.shape
    if config.scope == "dataset":
        if constants.offset is None or constants.scale is None:
            raise DataError("scope dataset needs constants of the data set", hint="run ripple preprocess")
        bands = prepared.batch.bands
        both = (constants.offset, constants.scale)
        pair = (np.array([values[band] for band in bands], np.float32) for values in both)
        offset, scale = (np.broadcast_to(v, shape).copy() for v in pair)
        return offset, scale
    stats = None
    if config.normalize not in normalize.SOFTENED | {"none"}:
        stats = normalize.statistics(prepared.image, prepared.valid, prepared.noise)
    return normalize.constants_of(stats, prepared.noise, config.normalize, config.scope, config.softening)


def _normalised(
    prepared: Prepared, config: PreprocessConfig, offset: Float, scale: Float
) -> tuple[NDArray[np.float32] | NDArray[np.float16], NDArray[np.bool_]]:
    """Normalised planes in the type of the tensors, 0 in missing bands; and `(N, B)` which were clipped."""
    image = prepared.image
    half = config.dtype == "float16"
    out = np.empty(image.shape, np.float16 if half else np.float32)
    clipped = np.zeros(image.shape[:2], bool)
    device = _device(config.device)
    step = convolve.CHUNK if device is None else 64 * convolve.CHUNK
    for start in range(0, len(image), step):
        rows = slice(start, start + step)
        if device is None:
            y = normalize.transform(image[rows], offset[rows], scale[rows], config.normalize)
        else:
            x, o, s = (device.put(a[rows]) for a in (image, offset, scale))
            y = convolve.to_numpy(normalize.transform(x, o, s, config.normalize))
        if half:
            clipped[rows] = np.maximum(y.max(axis=(2, 3)), -y.min(axis=(2, 3))) > HALF_MAX
            if clipped[rows].any():
                y = np.clip(y, -HALF_MAX, HALF_MAX)
            to_half(y, out[rows])
        else:
            out[rows] = y
    clipped &= prepared.quality.present
    out[~prepared.quality.present] = 0
    return out, clipped


def _device(name: str) -> Any:
    """Where to compute: None for numpy, else an object with `put(array)`."""
    if name == "cpu":
        return None
    from ripple.learn.model.device import Device

    return Device(name)


def _duplicate_rows(
    batch: CutoutBatch, config: PreprocessConfig, constants: DataConstants
) -> NDArray[np.bool_]:
    if constants.duplicates is not None and "index" in batch.catalog:
        return np.isin(batch.catalog["index"], np.asarray(constants.duplicates, np.int64))
    if "ra" not in batch.catalog or "dec" not in batch.catalog:
        return np.zeros(len(batch), bool)
    ra, dec = (np.asarray(batch.catalog[k], np.float64) for k in ("ra", "dec"))
    return repeated(ra, dec, config.quality.min_separation)


def _band_mask(present: NDArray[np.bool_]) -> NDArray[np.uint32]:
    bits = np.uint32(1) << np.arange(present.shape[1], dtype=np.uint32)
    return np.asarray((present * bits).sum(axis=1), np.uint32)


def _columns(
    prepared: Prepared, qc_bands: NDArray[np.uint64], bands: tuple[str, ...]
) -> dict[str, NDArray[np.generic]]:
    """One column per measure and band: `qc_bad_g`, `psf_residual_g`, `noise_g`, ..."""
    tables: dict[str, NDArray[Any]] = {f"qc_{k}": v for k, v in prepared.quality.measures.items()}
    for name, values in prepared.extra.items():
        tables[name if name.startswith("psf_") else f"qc_{name}"] = values
    tables["qc_level"] = prepared.quality.background
    tables["qc_flags"] = qc_bands
    tables["noise"] = prepared.noise
    return {f"{k}_{band}": v[:, i].copy() for k, v in tables.items() for i, band in enumerate(bands)}


def describe(config: PreprocessConfig, constants: DataConstants) -> dict[str, object]:
    out: dict[str, object] = {
        "method": config.normalize,
        "scope": config.scope,
        "softening": config.softening,
        "unit": "nJy",
    }
    if config.normalize == "lupton":
        out["q"] = normalize.LUPTON_Q
    if config.scope == "dataset":
        assert constants.offset is not None
        assert constants.scale is not None
        out |= {"offset": dict(constants.offset), "scale": dict(constants.scale)}
    return out
