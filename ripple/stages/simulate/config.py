"""Options of `ripple simulate`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ripple.config import Config, neutral, setting

BANDS = ("g", "r", "i", "z")


class SimulateConfig(Config):
    """Options of `ripple simulate`."""

    verb: ClassVar[str] = "simulate"

    output: str = neutral("", description="Directory to make: DIR/repo and DIR/truth.parquet.")
    patches: int = Field(
        16, ge=1, le=400, description="Patches of 2 x 2 arcmin, in a block as square as can be."
    )
    bands: tuple[str, ...] = Field(BANDS, description="Bands out of ugrizy.")
    seed: int = Field(1, ge=0, description="Same seed, same sky.")
    targets: int = Field(144, ge=1, le=400, description="Lenses and look-alikes per patch, on a loose grid.")
    lens_fraction: float = setting(
        0.15,
        ge=0.0,
        le=1.0,
        description="Share of targets that are lenses: far above nature, where it is a few in 10^5 galaxies.",
    )
    ordinary: float = setting(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of ordinary galaxies and stars, as the field has them, among the targets that are "
        "no lenses; the others are look-alikes.",
    )
    sources: Literal["even", "survey"] = setting(
        "even",
        description="Lensed sources: even, unlensed i magnitudes from 22.2 to 27.2 evenly and all blue; or "
        "survey, as a search limited by flux finds them, with published counts, magnification bias, red "
        "and clumpy ones. What surrounds look-alikes follows them.",
    )
    min_arc_snr: float = setting(
        0.0,
        ge=0.0,
        description="Lenses whose arc has a smaller S/N in every band are labelled -1: nobody could tell.",
    )
    tract: int = setting(5063, ge=0, description="Tract of the sky map ripple_mini_v1; 5063 holds ECDFS.")
    defects: bool = Field(
        True, description="Missing cell, hole, cosmic ray, trail, and a patch without one band."
    )
    workers: int = neutral(2, ge=0, le=64, description="Processes that paint and write; 0 works in this one.")

    @field_validator("bands")
    @classmethod
    def _known_bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [band for band in value if band not in tuple("ugrizy")]
        if unknown or not value or len(set(value)) != len(value):
            raise ValueError(f"give different bands out of ugrizy, not {','.join(value) or 'none'}")
        return value
