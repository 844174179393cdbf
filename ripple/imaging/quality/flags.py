"""Quality flags by name and bit, and which of them reject a row by default."""

from __future__ import annotations

from enum import IntEnum


class Flag(IntEnum):
    """Bits of `qc`. The order is part of the format: append only."""

    MISSING_BAND = 0  # a band has no data at all
    BAD_PIXELS = 1  # too many pixels are unusable: no data, bad, saturated, not finite, variance not positive
    NO_DATA = 2  # too many pixels have no data
    SATURATED = 3  # too many pixels are saturated
    COSMIC_RAY = 4  # too many pixels are cosmic rays, or there are spikes of one pixel without a mask
    INTERPOLATED = 5  # too many pixels are interpolated
    MISSING_CELL = 6  # pixels lie in cells that the coadd lacks
    EDGE = 7  # too many pixels lie at an edge
    SUSPECT = 8  # too many pixels are suspect, vignetted, crosstalk or a streak
    INEXACT_PSF = 9  # too many pixels have another PSF than the cell says
    CENTRE_BAD = 10  # as bad_pixels, in the central half
    CENTRE_SATURATED = 11  # as saturated, in the central half
    CENTRE_COSMIC_RAY = 12  # as cosmic_ray, in the central half
    CENTRE_INTERPOLATED = 13  # as interpolated, in the central half
    BLANK = 14  # no band has light in the central half
    BACKGROUND = 15  # a band lies above or below zero, and no light explains it
    DIP = 16  # a block of pixels lies far below zero
    VARIANCE = 17  # the noise is not that of the variance plane
    PSF_INVALID = 18  # there is no PSF, or it cannot be one
    PSF_WIDTH = 19  # the PSF is narrower or wider than a PSF can be
    PSF_RESIDUAL = 20  # the matched PSF misses its target
    SHARPENED = 21  # the PSF was wider than its target, so that matching amplified the noise
    PSF_EDGE = 22  # the matching kernel reaches beyond the margin of the cutout
    PSF_JUMP = 23  # the PSF changes across a border of cells in the cutout
    REGISTRATION = 24  # a band is turned or shifted against the others
    DUPLICATE = 25  # the row repeats an earlier one
    CLIPPED = 26  # values beyond ±65504, the range of float16 tensors

    @property
    def label(self) -> str:
        """The name in configuration and reports."""
        return self.name.lower()


# By bit, as in `qc`.
LABELS: tuple[str, ...] = tuple(flag.label for flag in Flag)
# What makes a row useless for a network; the other flags, e.g. a missing band, only mark.
DEFAULT_REJECT: tuple[str, ...] = (
    "bad_pixels", "no_data", "saturated", "missing_cell", "centre_bad", "centre_saturated",
    "centre_cosmic_ray", "blank", "background", "dip", "variance", "psf_invalid", "psf_width", "psf_residual",
    "registration", "duplicate",
)  # fmt: skip


def flag_names(qc: int) -> list[str]:
    """Labels of the flags set in one `qc` value."""
    return [flag.label for flag in Flag if qc >> flag & 1]
