"""Options of `ripple preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ripple.config import Config, neutral, setting
from ripple.imaging.normalize import Method, Scope
from ripple.imaging.quality.judge import Thresholds


class PreprocessConfig(Config):
    """Options of `ripple preprocess`."""

    verb: ClassVar[str] = "preprocess"

    cutouts: str = neutral("", description="Directory of cutout shards, as made by fetch.")
    output: str = neutral("", description="Directory for the tensor shards.")
    model: Path | None = neutral(
        None, description="Make what this model takes: its PSF matching, normalisation and noise correlation."
    )
    psf: str = Field(
        "match",
        description="Common PSF: none, match (broadest band of each row), or a FWHM in arcsec: that of the "
        "PSF image, pixels included, as in the columns psf_fwhm_BAND.",
    )
    psf_profile: Literal["moffat", "gaussian"] = setting(
        "moffat", description="Shape of a target given by FWHM."
    )
    psf_beta: float = setting(3.5, gt=1, le=20, description="Exponent of a Moffat target.")
    psf_tolerance: float = setting(
        0.003, ge=0, le=0.1, description="Misfit at which the smoothest kernel is taken; 0: the best fit."
    )
    noise_correlation: Literal["measured", "white"] = setting(
        "measured", description="Noise correlation with which noise after matching is predicted."
    )
    normalize: Method = Field("asinh", description="Stretch of the pixel values; all can be undone.")
    scope: Scope = Field(
        "row", description="What shares constants: all bands of a row, each band, or the data set."
    )
    softening: float = Field(3.0, gt=0, description="Noise levels per unit in asinh, log, sqrt and lupton.")
    variance: bool = Field(False, description="Also write the variance after PSF matching, nJy².")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="Of the tensors; float16: 3 digits, clipped and flagged beyond 65504."
    )
    missing_band: Literal["reject", "flag", "ignore"] = Field(
        "flag", description="Rows that lack some band get zeros there: reject them, flag them, or neither."
    )
    quality: Thresholds = Field(
        Thresholds.make({}),
        description="Thresholds of quality flags, and which flags reject: a mapping in the YAML.",
    )
    pixel_scale: float | None = Field(
        None, gt=0, description="Resample to this pixel scale, arcsec: that of the model to be used."
    )
    size: int | None = Field(
        None, ge=8, description="Side of the tensors, px: larger cutouts are cropped, smaller ones padded."
    )
    zero_point: tuple[str, ...] = Field(
        (), description="Magnitudes to add per band, as in g:0.023,r:0.001 (fluxes are multiplied)."
    )
    registration: bool = Field(True, description="Check that the bands show the same sky the same way up.")
    train_fractions: tuple[float, ...] = setting(
        (0.7, 0.15, 0.15),
        description="Train, validation, test shares; scope dataset looks at training rows only.",
    )
    train_seed: int = setting(0, description="Seed of that split.")
    train_nside: int = setting(2048, gt=0, description="HEALPix cells of that split.")
    workers: int = neutral(1, ge=0, description="Worker processes; 0 works in this process.")
    dask: str | None = neutral(
        None, description="Dask instead of --workers: tcp://HOST:PORT of a scheduler, or slurm."
    )
    dask_settings: dict[str, Any] = neutral({}, description="Settings of the batch system for `dask: slurm`.")
    deadline: float = setting(
        3600.0,
        neutral=True,
        gt=0,
        description="Seconds a shard may take before its worker is killed as stuck.",
    )
    memory: str = neutral("4GiB", description="Memory for the whole run.")
    device: Literal["cpu", "cuda"] = neutral("cpu", description="Where to convolve and normalise.")
    max_rejected: float = neutral(1.0, ge=0, le=1, description="Exit 8 when a larger share is rejected.")

    @field_validator("psf")
    @classmethod
    def _target(cls, value: str) -> str:
        if value in ("none", "match"):
            return value
        try:
            width = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is neither none, match nor a number of arcsec") from None
        if not 0.1 <= width <= 10:
            raise ValueError(f"a FWHM of {value} arcsec is not between 0.1 and 10")
        return repr(width)

    @field_validator("zero_point")
    @classmethod
    def _offsets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            band, _, offset = item.partition(":")
            try:
                large = not band or abs(float(offset)) > 5
            except ValueError:
                large = True
            if large:
                raise ValueError(f"{item!r} is not BAND:MAGNITUDES")
        return value

    @property
    def reject(self) -> frozenset[str]:
        """Flags that reject a row."""
        return frozenset(self.quality.reject) | ({"missing_band"} if self.missing_band == "reject" else set())

    @property
    def target(self) -> Literal["none", "match"] | float:
        """`psf` as `plan_matching` takes it."""
        if self.psf == "none" or self.psf == "match":
            return "none" if self.psf == "none" else "match"
        return float(self.psf)
