"""Options of `ripple inject`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ripple.config import Config, neutral, setting

#: Value of `theta_from` for masses from light.
FABER_JACKSON = "faber-jackson"


class InjectConfig(Config):
    """Options of `ripple inject`."""

    verb: ClassVar[str] = "inject"

    cutouts: str = neutral("", description="Directory of cutouts; best of galaxies that could be deflectors.")
    output: str = neutral("", description="Directory for the labelled cutouts.")
    lenses: str = neutral(
        "",
        description="Table of lenses and sources (CSV, Parquet, FITS, VOTable) instead of drawn ones: one "
        "for each cutout by its id, or, without a column id, a set to draw from. With --sources its column "
        "source_id names the picture of each.",
    )
    sources: str = neutral(
        "",
        description="Pictures of real sources (FITS: a cube and a table, or a catalogue of GalSim's layout) "
        "to draw from, lensed instead of smooth profiles.",
    )
    source_sed: str = Field(
        "",
        description="Spectrum of the sources of a catalogue in one band, for their colours: a file "
        "(Angstrom, flux per wavelength) or one of GalSim's, such as CWW_Scd_ext.",
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
        description="Where the mass of each galaxy comes from: a column with its velocity dispersion, km/s; "
        "one number for all; or faber-jackson, from its light (--set host_mag=COLUMN --set host_band=i). The "
        "Einstein radius is that of an isothermal sphere at its redshift (--set lens_redshift=COLUMN), "
        "within the two limits.",
    )
    lens_redshift: str = setting("z_lens", description="Column with the redshift of each galaxy.")
    host_mag: str = setting("", description="Column with the AB magnitude of each galaxy, for faber-jackson.")
    host_band: str = setting("", description="Band of host_mag, u, g, r, i, z or y.")
    sigma_scatter: float = setting(
        0.0, ge=0.0, le=0.5, description="Scatter of the velocity dispersions of theta_from, dex."
    )
    source_bright: float = setting(22.2, description="Brightest source before lensing, i magnitude.")
    source_faint: float = setting(27.2, description="Faintest source before lensing, i magnitude.")
    drawn_sources: Literal["even", "survey"] = setting(
        "even",
        description="Drawn sources: even, magnitudes between these two evenly and all blue; or survey, as "
        "those of `ripple simulate --set sources=survey`.",
    )
    min_arc_snr: float = setting(
        0.0,
        ge=0.0,
        description="Painted lenses whose arc has a smaller S/N in every band are labelled -1: nobody could "
        "tell.",
    )
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
        drawn = ("theta_min", "theta_max", "theta_from", "source_bright", "source_faint", "drawn_sources")
        self._masses()
        if self.lenses and (given := self.model_fields_set.intersection(drawn)):
            raise ValueError(f"{min(given)} is for drawn lenses: the file of lenses says what is painted")
        if self.source_sed and not self.sources:
            raise ValueError("source_sed is for a catalogue of sources")
        if self.sources and (given := self.model_fields_set.intersection(drawn[3:])):
            raise ValueError(f"{min(given)} is for drawn sources: the file of sources has magnitudes")
        if self.drawn_sources == "survey" and (given := self.model_fields_set.intersection(drawn[3:5])):
            raise ValueError(f"{min(given)} is for even sources: those of a survey have limits of their own")
        return self

    def _masses(self) -> None:
        """Settings of `theta_from` without it, or too few of them."""
        light = self.theta_from == FABER_JACKSON
        if not self.theta_from and (
            given := self.model_fields_set.intersection(("lens_redshift", "sigma_scatter"))
        ):
            raise ValueError(f"{min(given)} is for theta_from")
        if (self.host_mag or self.host_band) and not light:
            raise ValueError(f"host_mag and host_band are for theta_from {FABER_JACKSON}")
        if light and (not self.host_mag or self.host_band not in tuple("ugrizy")):
            raise ValueError(
                f"theta_from {FABER_JACKSON} needs host_mag=COLUMN, and host_band=u, g, r, i, z or y"
            )
        if self.fixed_sigma is not None and not 50.0 <= self.fixed_sigma <= 1000.0:
            raise ValueError(f"theta_from is {self.theta_from} km/s, not from 50 to 1000")

    @property
    def fixed_sigma(self) -> float | None:
        """The velocity dispersion of all hosts, km/s, where `theta_from` is a number."""
        try:
            return float(self.theta_from)
        except ValueError:
            return None
