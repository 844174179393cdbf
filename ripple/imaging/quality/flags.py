"""Quality flags by name and bit, and which of them reject a row by default."""

from __future__ import annotations

from enum import IntEnum


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
