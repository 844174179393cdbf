"""Whether a row is fit for use: thresholds on what was measured, and a verdict with named reasons.

A flag says what is wrong, `reject` which flags make a row unfit; nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from ripple.config import Config, suggest
from ripple.imaging.quality.flags import DEFAULT_REJECT, LABELS, Flag
from ripple.imaging.quality.measure import Quality

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


def _max_share(default: float, what: str) -> Any:
    return Field(default, ge=0, le=1, description=f"Flag when a larger share of a band's pixels {what}.")


class Thresholds(Config):
    """When a measure becomes a flag, and which flags reject; `configs/quality-*.yaml` are for releases."""

    verb: ClassVar[str] = "quality"

    reject: tuple[str, ...] = Field(
        DEFAULT_REJECT, description="Flags that reject a row; the others only mark it."
    )
    max_bad: float = _max_share(
        0.10, "is unusable (no data, bad, saturated, not finite, variance not positive)"
    )
    max_no_data: float = _max_share(0.05, "has no data")
    max_saturated: float = _max_share(0.05, "is saturated")
    max_cosmic_ray: float = _max_share(0.02, "is a cosmic ray")
    max_interpolated: float = _max_share(0.25, "is interpolated")
    max_missing_cell: float = _max_share(0.0, "lies in missing cells")
    max_edge: float = _max_share(0.25, "lies at an edge")
    max_suspect: float = _max_share(0.25, "is suspect, vignetted, crosstalk or a streak")
    max_inexact_psf: float = _max_share(0.5, "has an inexact PSF")
    max_centre_bad: float = _max_share(0.02, "of the central half is unusable")
    max_centre_saturated: float = _max_share(0.0, "of the central half is saturated")
    max_centre_cosmic_ray: float = _max_share(0.01, "of the central half is a cosmic ray")
    max_centre_interpolated: float = _max_share(0.25, "of the central half is interpolated")
    max_spikes: int = Field(0, ge=0, description="Unmasked single-pixel spikes allowed in a band.")
    min_signal: float = Field(
        5.0,
        ge=0,
        description="Blank when no band has a 4 x 4 px block in the central half this many sigma high.",
    )
    max_background: float = Field(
        1.3,
        ge=0,
        description="Largest offset of a band that the light does not explain, in units of pixel noise; "
        "twice that with two bands.",
    )
    max_dip: float = Field(
        0.8, ge=0, description="How far the darkest 8 x 8 px may lie below zero, in units of pixel noise."
    )
    min_noise_ratio: float = Field(
        0.6, ge=0, description="Least ratio of measured noise to that of the variance plane."
    )
    max_noise_ratio: float = Field(
        1.5, ge=0, description="Largest ratio of measured noise to that of the variance plane."
    )
    min_psf: float = Field(0.3, ge=0, description="Least FWHM of the PSF image, arcsec.")
    max_psf: float = Field(2.5, gt=0, description="Largest FWHM of the PSF image, arcsec.")
    max_psf_residual: float = Field(
        0.03, ge=0, description="Largest misfit after PSF matching, as a share of the light."
    )
    max_sharpening: float = Field(
        1.02, gt=0, description="Largest ratio of the PSF FWHM to that of its target."
    )
    max_gain: float = Field(
        1.0, gt=0, description="Largest ratio of the noise after PSF matching to that before."
    )
    max_psf_edge: float = Field(
        0.08, ge=0, description="Share of the matching kernel that may lie beyond the margin of the cutout."
    )
    max_psf_jump: float = Field(
        0.25, ge=0, description="Largest change of the PSF across a cell border in the cutout."
    )
    min_separation: float = Field(
        1.0, ge=0, description="A row closer than this to an earlier one is a duplicate, arcsec."
    )

    @field_validator("reject")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in LABELS:
                raise ValueError(f"unknown flag {name!r}" + suggest(name, list(LABELS)))
        return value


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
        Measures from elsewhere, each `(N, B)`: `psf_fault`, `psf_fwhm` (arcsec), and where PSFs were matched
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
        # A missing band has no measures: only its absence is a flag.
        qc[where & quality.present] |= np.uint64(1 << flag)

    with np.errstate(invalid="ignore"):
        for flag, name, limit in _ABOVE:
            if name in values:
                mark(flag, values[name] > getattr(limits, limit))
        for flag, name, limit in _BELOW:
            if name in values:
                mark(flag, values[name] < getattr(limits, limit))
        # Against one other band, the colour of the light explains less.
        allowed = limits.max_background * np.where(quality.present.sum(axis=1, keepdims=True) == 2, 2, 1)
        mark(Flag.BACKGROUND, np.abs(values["background"]) > allowed)
        # One band with signal is enough: lensed arcs may be seen in the bluest alone.
        best = np.where(quality.present, values["signal"], -np.inf).max(axis=1, initial=-np.inf)
    mark(Flag.BLANK, np.broadcast_to((best < limits.min_signal)[:, None], qc.shape))
    # A flat plane has no noise to compare: its variance plane cannot be right.
    mark(Flag.VARIANCE, ~(quality.noise > 0))
    if "psf_fault" in values:
        mark(Flag.PSF_INVALID, values["psf_fault"] != 0)  # psf.Fault.NONE
    if "psf_gain" in values:
        mark(Flag.SHARPENED, values["psf_gain"] > limits.max_gain)
    if "registration" in values:
        mark(Flag.REGISTRATION, values["registration"] > 0)
    # Absent bands carry only what their absence means; a missing cell is the reason when it is one.
    gone = ~quality.present
    qc[gone] |= np.uint64(1 << Flag.MISSING_BAND)
    qc[gone & (values["missing_cell"] > limits.max_missing_cell)] |= np.uint64(1 << Flag.MISSING_CELL)
    return qc


def explain(flag: str, row: Mapping[str, float], limits: Thresholds) -> str:
    """The measures behind a flag of one row, as text for the user.

    Parameters
    ----------
    flag
        Name of a flag that the row has.
    row
        Columns of the row, as in an index of tensors: `qc_bad_g`, `psf_fwhm_g`, ...
    limits
        Thresholds that were applied to it.

    Returns
    -------
    text
        As in `bad_pixels: bad 0.31 in g, 0.24 in r (at most 0.1)`.
    """
    found = []
    for kind, word, over in ((_ABOVE, "at most", True), (_BELOW, "at least", False)):
        for known, name, field in kind:
            if known.label == flag:
                limit = getattr(limits, field)
                bands = _bands_beyond(row, name, limit, over=over)
                if bands:
                    found.append(f"{name} {', '.join(bands)} ({word} {limit:g})")
    # These rules look at several bands: the values are shown, whichever band was decisive.
    if not found and flag in _MEASURED_BY:
        name, word, field = _MEASURED_BY[flag]
        bands = _bands_beyond(row, name, -math.inf, over=True)
        found.append(f"{name} {', '.join(bands)} ({word} {getattr(limits, field):g})")
    return f"{flag}: {'; '.join(found)}" if found else flag


#: Flags by a rule of their own -> measure, word, and attribute of `Thresholds`.
_MEASURED_BY: dict[str, tuple[str, str, str]] = {
    "blank": ("signal", "at least", "min_signal"),
    "background": ("background", "at most", "max_background"),
    "sharpened": ("psf_gain", "at most", "max_gain"),
}


def _bands_beyond(row: Mapping[str, float], name: str, limit: float, *, over: bool) -> list[str]:
    """`VALUE in BAND` of the bands in which a measure is beyond its limit."""
    prefix = f"{name}_" if name.startswith("psf_") else f"qc_{name}_"
    values = {column.removeprefix(prefix): v for column, v in row.items() if column.startswith(prefix)}
    # What follows the prefix must be a band: `qc_bad_` is also the beginning of nothing else.
    return [
        f"{value:.3g} in {band}"
        for band, value in values.items()
        if "_" not in band and (value > limit if over else value < limit)
    ]


def verdict(qc: NDArray[np.uint64], reject: Iterable[str]) -> NDArray[np.uint8]:
    """`accept` `(N,)` from the row masks `qc` `(N,)`: 0 when a flag named in `reject` is set."""
    bits = sum(1 << Flag[name.upper()] for name in reject)
    return np.asarray((qc & np.uint64(bits)) == 0, np.uint8)
