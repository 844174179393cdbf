"""Options of `ripple inject`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ripple.config import Config, neutral, setting


class InjectConfig(Config):
    """Options of `ripple inject`."""

    verb: ClassVar[str] = "inject"

    cutouts: str = neutral("", description="Directory of cutouts; best of galaxies that could be deflectors.")
    output: str = neutral("", description="Directory for the labelled cutouts.")
    lenses: str = neutral(
        "",
        description="Table of lenses and sources (CSV, Parquet, FITS, VOTable) instead of drawn ones: one "
        "for each cutout by its id, or, without a column id, a set to draw from.",
    )
    sources: str = neutral(
        "",
        description="Pictures of real sources (FITS: a cube and a table) to draw from, lensed instead of "
        "smooth profiles.",
    )
    hosts: str = Field(
        "",
        description="Condition that a cutout must meet to get a lens, on columns of its catalogue, such as "
        "'mag_r - mag_i > 0.5 and mag_i < 21'; written like --select. Labelled lenses never get one.",
    )
    fraction: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Share of the hosts that get a lensed source; 0.5 unless the lenses have ids.",
    )
    theta_min: float = Field(0.6, gt=0.0, le=10.0, description="Smallest Einstein radius, arcsec.")
    theta_max: float = Field(2.5, gt=0.0, le=10.0, description="Largest Einstein radius, arcsec.")
    theta_from: str = Field(
        "",
        description="Column with the velocity dispersion of each galaxy, km/s: its Einstein radius is that "
        "of an isothermal sphere at its redshift (--set lens_redshift=COLUMN), within the two limits.",
    )
    lens_redshift: str = setting("z_lens", description="Column with the redshift of each galaxy.")
    source_bright: float = setting(22.2, description="Brightest source before lensing, i magnitude.")
    source_faint: float = setting(27.2, description="Faintest source before lensing, i magnitude.")
    keep_arcs: bool = Field(False, description="Also write the arcs without noise, arcs-00000.npy per shard.")
    card: bool = Field(
        False,
        description="Also write realism.html and .json: what was painted beside the hosts, and whether the "
        "two kinds of rows can be told apart without looking for arcs.",
    )
    seed: int = Field(1, ge=0, description="Same seed, same sources.")
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

    @model_validator(mode="after")
    def _ordered(self) -> InjectConfig:
        if self.theta_min > self.theta_max or self.source_bright > self.source_faint:
            raise ValueError("theta_min and source_bright must not exceed theta_max and source_faint")
        drawn = ("theta_min", "theta_max", "theta_from", "source_bright", "source_faint")
        if self.lenses and self.sources:
            raise ValueError("lenses and sources both say what the source is: give one of them")
        if self.lenses and (given := self.model_fields_set.intersection(drawn)):
            raise ValueError(f"{min(given)} is for drawn lenses: the file of lenses says what is painted")
        if self.sources and (given := self.model_fields_set.intersection(drawn[2:])):
            raise ValueError(f"{min(given)} is for drawn sources: the file of sources has magnitudes")
        return self
