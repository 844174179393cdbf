"""Is a row fit for use: measures per row and band, thresholds, and a verdict with named reasons.

Measures are taken on the pixels as delivered by the survey, before filling and PSF matching. Mask planes of
both vocabularies (`lsst.images` and afw) count into the same measures. A flag says what is wrong, `reject`
which flags make a row unfit; nothing is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from ripple.config import Config, suggest
from ripple.cutouts import CutoutBatch
from ripple.psf import Fault

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

#: Measure -> mask planes that count into it.
VOCABULARY: dict[str, tuple[str, ...]] = {
    "no_data": ("NO_DATA",),
    "saturated": ("SATURATED", "SAT"),
    "cosmic_ray": ("COSMIC_RAY", "CR"),
    "interpolated": ("INTERPOLATED", "INTRP"),
    "edge": ("DETECTION_EDGE", "EDGE", "SENSOR_EDGE"),
    "suspect": ("SUSPECT", "VIGNETTED", "CROSSTALK", "STREAK", "ITL_DIP", "BRIGHT_OBJECT"),
    "inexact_psf": ("INEXACT_PSF",),
}
#: Planes whose pixels are no measurement: filled before anything is computed, `valid` 0.
UNUSABLE: tuple[str, ...] = ("NO_DATA", "BAD", "SATURATED", "SAT", "UNMASKEDNAN")
DETECTED: tuple[str, ...] = ("DETECTED", "DETECTED_NEGATIVE")
BLOCK = 4  # px; block means for signal and dips
MIN_SKY = 0.1  # share of a stamp that must be sky for its statistics to be taken there
SPIKE_SIGMAS, SPIKE_SHARE = 8.0, 0.25  # an unmasked spike: so bright, while its neighbours have so little
TINY = 1e-30
MAX_FLUX = np.float32(1e15)  # nJy, magnitude -6: what is more is damage, and would overflow


class Flag(IntEnum):
    """Bits of `qc`. The order is part of the format: append only."""

    MISSING_BAND = 0
    BAD_PIXELS = 1
    NO_DATA = 2
    SATURATED = 3
    COSMIC_RAY = 4
    INTERPOLATED = 5
    MISSING_CELL = 6
    EDGE = 7
    SUSPECT = 8
    INEXACT_PSF = 9
    CENTRE_BAD = 10
    CENTRE_SATURATED = 11
    CENTRE_COSMIC_RAY = 12
    CENTRE_INTERPOLATED = 13
    BLANK = 14
    BACKGROUND = 15
    DIP = 16
    VARIANCE = 17
    PSF_INVALID = 18
    PSF_WIDTH = 19
    PSF_RESIDUAL = 20
    SHARPENED = 21
    PSF_EDGE = 22
    PSF_JUMP = 23
    REGISTRATION = 24
    DUPLICATE = 25

    @property
    def label(self) -> str:
        """The name in configuration and reports."""
        return self.name.lower()


LABELS: tuple[str, ...] = tuple(flag.label for flag in Flag)
DEFAULT_REJECT: tuple[str, ...] = (
    "bad_pixels", "no_data", "saturated", "missing_cell", "centre_bad", "centre_saturated",
    "centre_cosmic_ray", "blank", "background", "dip", "variance", "psf_invalid", "psf_width", "psf_residual",
    "registration", "duplicate",
)  # fmt: skip


def _share(default: float, what: str) -> Any:
    return Field(default, ge=0, le=1, description=f"Flag when a larger share of a band's pixels {what}.")


class Thresholds(Config):
    """When a measure becomes a flag, and which flags reject. `configs/quality-*.yaml` carry releases."""

    reject: tuple[str, ...] = Field(
        DEFAULT_REJECT, description="Flags that reject a row; the others only mark it."
    )
    max_bad: float = _share(0.10, "is unusable (no data, bad, saturated, not finite, variance not positive)")
    max_no_data: float = _share(0.05, "has no data")
    max_saturated: float = _share(0.05, "is saturated")
    max_cosmic_ray: float = _share(0.02, "is a cosmic ray")
    max_interpolated: float = _share(0.25, "is interpolated")
    max_missing_cell: float = _share(0.0, "lies in missing cells")
    max_edge: float = _share(0.25, "lies at an edge")
    max_suspect: float = _share(0.25, "is suspect, vignetted, crosstalk or a streak")
    max_inexact_psf: float = _share(0.5, "has an inexact PSF")
    max_centre_bad: float = _share(0.02, "of the central half is unusable")
    max_centre_saturated: float = _share(0.0, "of the central half is saturated")
    max_centre_cosmic_ray: float = _share(0.01, "of the central half is a cosmic ray")
    max_centre_interpolated: float = _share(0.25, "of the central half is interpolated")
    max_spikes: int = Field(0, ge=0, description="Unmasked single-pixel spikes allowed in a band.")
    min_signal: float = Field(
        5.0,
        ge=0,
        description="Blank when no band has a 4 x 4 px block of the central half this many sigma up.",
    )
    max_background: float = Field(
        0.8, ge=0, description="Background offset allowed, in units of pixel noise."
    )
    max_dip: float = Field(5.0, ge=0, description="Depth of the deepest 8 x 8 px hole allowed, in sigma.")
    min_noise_ratio: float = Field(
        0.6, ge=0, description="Measured noise over that of the variance plane, least."
    )
    max_noise_ratio: float = Field(
        1.5, ge=0, description="Measured noise over that of the variance plane, most."
    )
    min_psf: float = Field(0.3, ge=0, description="Least PSF FWHM, arcsec.")
    max_psf: float = Field(2.5, gt=0, description="Largest PSF FWHM, arcsec.")
    max_psf_residual: float = Field(
        0.03, ge=0, description="Misfit allowed after matching, share of the light."
    )
    max_sharpening: float = Field(1.02, gt=0, description="PSF FWHM over that of its target, at most.")
    max_gain: float = Field(1.0, gt=0, description="Noise after matching over noise before, at most.")
    max_psf_edge: float = Field(
        0.05, ge=0, description="Share of the matching kernel that may lie beyond the margin of the stamp."
    )
    max_psf_jump: float = Field(
        0.05, ge=0, description="Change of the PSF across a cell border in the stamp."
    )
    min_separation: float = Field(
        1.0, ge=0, description="Near-duplicate: closer than this to an earlier row, arcsec."
    )

    @field_validator("reject")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in LABELS:
                raise ValueError(f"unknown flag {name!r}" + suggest(name, list(LABELS)))
        return value


def names(qc: int) -> list[str]:
    """Labels of the flags set in one `qc` value."""
    return [flag.label for flag in Flag if qc >> flag & 1]


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured on N rows of B bands.

    Parameters
    ----------
    good
        `(N, B, H, W)` pixels that are a measurement.
    noise, background
        `(N, B)` float32 nJy: noise per pixel and level of the sky; NaN without data.
    measures
        Name -> `(N, B)` float32; NaN in missing bands.
    present
        `(N, B)` bands with data.
    """

    good: Bool
    noise: Float
    background: Float
    measures: dict[str, Float]
    present: Bool


def usable(batch: CutoutBatch) -> Bool:
    """`(N, B, H, W)` measurements: |flux| < `MAX_FLUX`, 0 < variance < `MAX_FLUX`², no `UNUSABLE` bit.

    A plane whose variance is NaN throughout has none (stamps from elsewhere): only its image is looked at.
    """
    v = batch.variance
    good: Bool = (batch.mask & batch.bits(*UNUSABLE)) == 0
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False: not a measurement
        good &= np.abs(batch.image) < MAX_FLUX
        sound = (v > 0) & (v < MAX_FLUX**2)
    unknown = ~sound.any(axis=(2, 3))
    if unknown.any():
        sound[unknown] |= np.isnan(v[unknown]).all(axis=(1, 2))[:, None, None]
    good &= sound
    return good


def measure(batch: CutoutBatch, good: Bool) -> Quality:
    """Measure every band of every row; thresholds play no part yet.

    Parameters
    ----------
    batch
        Stamps without margin.
    good
        From `usable`.

    Returns
    -------
    quality
        Shares of pixels (`no_data`, `bad`, ..., and `centre_*` for the central half), `spikes` (count),
        `signal`, `dip` (sigma), `background`, `noise_ratio`.
    """
    h, w = batch.image.shape[2:]
    measures = _mask_shares(batch, good)
    present = good.any(axis=(2, 3))
    # Every second column: quantiles to 3 per cent of the noise at half the cost.
    half = (..., slice(None), slice(None, None, 2))
    sky = good[half] & ((batch.mask[half] & batch.bits(*DETECTED)) == 0)
    few = np.count_nonzero(sky, axis=(2, 3)) < MIN_SKY * h * ((w + 1) // 2)
    sky[few] = good[half][few]
    noise, level, count = _sky(batch.image[half], sky)
    with np.errstate(all="ignore"):
        mean_variance = np.where(sky, batch.variance[half], 0).sum(axis=(2, 3)) / count
        measures["noise_ratio"] = (noise / np.sqrt(mean_variance)).astype(np.float32)
        measures["background"] = (level / np.maximum(noise, TINY)).astype(np.float32)
    measures["missing_cell"] = _mean(np.isposinf(batch.variance))
    measures |= _structure(batch.image, good, noise, level)
    for name, values in measures.items():
        if name not in ("no_data", "bad", "missing_cell"):
            values[~present] = np.nan
    return Quality(good, noise, level, measures, present)


def _mean(flags: Bool) -> Float:
    size = max(flags.shape[2] * flags.shape[3], 1)
    return np.asarray(np.count_nonzero(flags, axis=(2, 3)) / size, np.float32)


def _mask_shares(batch: CutoutBatch, good: Bool) -> dict[str, Float]:
    """Shares of pixels per mask measure, whole stamp and centre; planes without the bit cost nothing."""
    n, b, h, w = batch.image.shape
    seen = (
        np.bitwise_or.reduce(batch.mask.reshape(n, b, h * w), axis=2)
        if h * w
        else np.zeros((n, b), np.uint32)
    )
    y, x = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
    out: dict[str, Float] = {}
    for name, planes in VOCABULARY.items():
        bits = batch.bits(*planes)
        whole, centre = np.zeros((n, b), np.float32), np.zeros((n, b), np.float32)
        where = np.nonzero(seen & bits)
        if len(where[0]):
            hit = (batch.mask[where] & bits) != 0
            whole[where] = hit.mean(axis=(1, 2))
            centre[where] = hit[:, y, x].mean(axis=(1, 2))
        out[name] = whole
        if f"CENTRE_{name.upper()}" in Flag.__members__:
            out[f"centre_{name}"] = centre
    out["bad"] = 1 - _mean(good)
    out["centre_bad"] = 1 - _mean(good[:, :, y, x])
    return out


def _sky(image: Float, sky: Bool) -> tuple[Float, Float, NDArray[np.intp]]:
    """Noise, level and pixels of the sky `(N, B)`: from the lower half, which sources do not reach."""
    n, b = image.shape[:2]
    size = image.shape[2] * image.shape[3]
    flat = np.where(sky, image, np.float32(np.inf)).reshape(n, b, size)
    count = np.count_nonzero(sky, axis=(2, 3))
    flat.sort(axis=-1)

    def at(fraction: float) -> Float:
        place = np.rint(fraction * np.maximum(count - 1, 0)).astype(np.int64)
        return np.asarray(np.take_along_axis(flat, place[..., None], -1)[..., 0])

    with np.errstate(invalid="ignore"):
        level, noise = at(0.5), at(0.5) - at(0.158655)
    none = count == 0
    level[none], noise[none] = np.nan, np.nan
    return noise, level, count


def _structure(image: Float, good: Bool, noise: Float, level: Float) -> dict[str, Float]:
    """Signal, dips and unmasked spikes, from block means; bad pixels count as sky."""
    n, b, h, w = image.shape
    base = np.nan_to_num(level)[..., None, None]
    flat = np.where(good, image, base) - base
    k = BLOCK if min(h, w) >= 4 * BLOCK else 1
    rows, cols = h // k, w // k
    means = _averages(h, k) @ flat @ _averages(w, k).T
    # Differences of neighbours: the scatter of blocks whatever the noise correlation, without gradients.
    steps = np.abs(means[..., 1:] - means[..., :-1]).reshape(n, b, rows * (cols - 1))
    scatter = 1.4826 / np.sqrt(2) * _middle(steps)
    scatter = np.maximum(scatter, np.nan_to_num(noise) / (4 * k) + TINY)
    y, x = slice(rows // 4, rows - rows // 4), slice(cols // 4, cols - cols // 4)
    signal = means[:, :, y, x].max(axis=(2, 3)) / scatter
    pairs = (means[..., 1:, :] + means[..., :-1, :])[..., 1:] + (means[..., 1:, :] + means[..., :-1, :])[
        ..., :-1
    ]
    dip = -pairs.min(axis=(2, 3)) / 4 / (scatter / 2)
    return {
        "signal": signal.astype(np.float32),
        "dip": dip.astype(np.float32),
        "spikes": _spikes(flat, noise),
    }


def _averages(length: int, k: int) -> Float:
    """`(length // k, length)` matrix that averages `k` neighbours, centred when `length` is no multiple."""
    count = length // k
    start = (length - count * k) // 2
    out = np.zeros((count, length), np.float32)
    for row in range(count):
        out[row, start + row * k : start + (row + 1) * k] = 1 / k
    return out


def _middle(values: Float) -> Float:
    """Median along the last axis (the lower of two middles)."""
    k = (values.shape[-1] - 1) // 2
    return np.asarray(np.partition(values, k, axis=-1)[..., k])


def _spikes(flat: Float, noise: Float) -> Float:
    """Count pixels far above the noise whose four neighbours have hardly any of it: no PSF is so narrow."""
    out = np.zeros(noise.shape, np.float32)
    with np.errstate(invalid="ignore"):
        bright = flat[:, :, 1:-1, 1:-1] > (SPIKE_SIGMAS * np.nan_to_num(noise, nan=np.inf))[..., None, None]
    i, j, y, x = np.nonzero(bright)
    y, x = y + 1, x + 1
    around = flat[i, j, y - 1, x] + flat[i, j, y + 1, x] + flat[i, j, y, x - 1] + flat[i, j, y, x + 1]
    lonely = around / 4 < SPIKE_SHARE * flat[i, j, y, x]
    np.add.at(out, (i[lonely], j[lonely]), 1)
    return out


#: Flag, measure, attribute of `Thresholds`: flagged when the measure is above.
_ABOVE: tuple[tuple[Flag, str, str], ...] = (
    (Flag.BAD_PIXELS, "bad", "max_bad"), (Flag.NO_DATA, "no_data", "max_no_data"),
    (Flag.SATURATED, "saturated", "max_saturated"), (Flag.COSMIC_RAY, "cosmic_ray", "max_cosmic_ray"),
    (Flag.INTERPOLATED, "interpolated", "max_interpolated"), (Flag.EDGE, "edge", "max_edge"),
    (Flag.MISSING_CELL, "missing_cell", "max_missing_cell"), (Flag.SUSPECT, "suspect", "max_suspect"),
    (Flag.INEXACT_PSF, "inexact_psf", "max_inexact_psf"), (Flag.CENTRE_BAD, "centre_bad", "max_centre_bad"),
    (Flag.CENTRE_SATURATED, "centre_saturated", "max_centre_saturated"),
    (Flag.CENTRE_COSMIC_RAY, "centre_cosmic_ray", "max_centre_cosmic_ray"),
    (Flag.CENTRE_INTERPOLATED, "centre_interpolated", "max_centre_interpolated"),
    (Flag.COSMIC_RAY, "spikes", "max_spikes"), (Flag.DIP, "dip", "max_dip"),
    (Flag.VARIANCE, "noise_ratio", "max_noise_ratio"), (Flag.PSF_WIDTH, "psf_fwhm", "max_psf"),
    (Flag.SHARPENED, "psf_sharpening", "max_sharpening"), (Flag.PSF_EDGE, "psf_edge", "max_psf_edge"),
    (Flag.PSF_RESIDUAL, "psf_residual", "max_psf_residual"), (Flag.PSF_JUMP, "psf_jump", "max_psf_jump"),
)  # fmt: skip
_BELOW: tuple[tuple[Flag, str, str], ...] = (
    (Flag.VARIANCE, "noise_ratio", "min_noise_ratio"),
    (Flag.PSF_WIDTH, "psf_fwhm", "min_psf"),
)


def judge(quality: Quality, extra: dict[str, Float], limits: Thresholds) -> NDArray[np.uint64]:
    """Flags per row and band.

    Parameters
    ----------
    quality
        From `measure`.
    extra
        Measures made elsewhere, each `(N, B)`: `psf_fault`, `psf_fwhm` (arcsec), and where PSFs were matched
        `psf_residual`, `psf_gain`, `psf_edge`; `psf_jump`, `registration` when known.
    limits
        Thresholds.

    Returns
    -------
    qc
        `(N, B)` bits of `Flag`; `BLANK` stands in all bands or none.
    """
    values = {**quality.measures, **extra}
    qc = np.zeros(quality.present.shape, np.uint64)

    def mark(flag: Flag, where: Bool) -> None:
        qc[where & quality.present] |= np.uint64(1 << flag)

    with np.errstate(invalid="ignore"):
        for flag, name, limit in _ABOVE:
            if name in values:
                mark(flag, values[name] > getattr(limits, limit))
        for flag, name, limit in _BELOW:
            if name in values:
                mark(flag, values[name] < getattr(limits, limit))
        mark(Flag.BACKGROUND, np.abs(values["background"]) > limits.max_background)
        best = np.where(quality.present, values["signal"], -np.inf).max(axis=1, initial=-np.inf)
    mark(Flag.BLANK, np.broadcast_to((best < limits.min_signal)[:, None], qc.shape))
    # A flat plane has no noise to compare: its variance plane cannot be right.
    mark(Flag.VARIANCE, ~(quality.noise > 0))
    if "psf_fault" in values:
        mark(Flag.PSF_INVALID, values["psf_fault"] != Fault.NONE)
    if "psf_gain" in values:
        mark(Flag.SHARPENED, values["psf_gain"] > limits.max_gain)
    if "registration" in values:
        mark(Flag.REGISTRATION, values["registration"] > 0)
    # Absent bands carry only what their absence means; a missing cell is the reason when it is one.
    gone = ~quality.present
    qc[gone] |= np.uint64(1 << Flag.MISSING_BAND)
    qc[gone & (values["missing_cell"] > limits.max_missing_cell)] |= np.uint64(1 << Flag.MISSING_CELL)
    return qc


def duplicates(ra: NDArray[np.floating], dec: NDArray[np.floating], separation: float) -> Bool:
    """Rows closer than `separation` arcsec to an earlier row, `(N,)`; rows without a position never are."""
    from scipy.spatial import cKDTree

    out = np.zeros(len(ra), bool)
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if separation <= 0 or len(known) < 2:
        return out
    a, d = np.radians(np.asarray(ra, float)[known]), np.radians(np.asarray(dec, float)[known])
    xyz = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
    pairs = cKDTree(xyz).query_pairs(2 * np.sin(np.radians(separation / 3600) / 2), output_type="ndarray")
    out[known[pairs.max(axis=1)]] = True
    return out


def verdict(qc: NDArray[np.uint64], reject: tuple[str, ...]) -> NDArray[np.uint8]:
    """`accept` `(N,)` from the row masks `qc` `(N,)`: 0 when a flag named in `reject` is set."""
    bits = sum(1 << Flag[name.upper()] for name in reject)
    return np.asarray((qc & np.uint64(bits)) == 0, np.uint8)
