"""Which part of the sky, from which data, in which bands: the options of `ripple plan`, shared with fetch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ripple.config import Config, neutral, setting
from ripple.errors import ConfigError

#: Pixels around each cutout for the matching of PSFs, whose widths are known only when coadds are read, while
#: all cutouts of a plan have one size; docs/quality.md says how many rows it serves.
MARGIN = 10


class Selection(Config):
    """Which part of the sky, from which data, in which bands, and how large: shared by plan and fetch."""

    verb: ClassVar[str] = "plan"

    repo: str = Field("", description="Butler repository: path, label from the repository index, or URL.")
    collections: tuple[str, ...] = Field(
        (), description="Collections in search order: names, globs (u/*/run) or chains, comma-separated."
    )
    dataset_type: str | None = Field(
        None, description="Coadd dataset type; by default deep_coadd, deepCoadd_calexp or deepCoadd."
    )
    skymap: str | None = Field(None, description="Sky map; needed when the repository has several.")
    bands: tuple[str, ...] = Field((), description="Bands in order (gri or g,r,i); by default all there are.")
    size: int | str = Field(64, description="Side of a cutout: pixels, or arcsec as in 12.8arcsec.")
    size_column: str | None = setting(None, description="Column of the targets with the side in pixels.")
    region: str | None = Field(
        None, description="Piece of sky: 'CIRCLE ra dec r', 'POLYGON ra dec ...', 'RANGE ra0 ra1 dec0 dec1'."
    )
    tract: tuple[int, ...] = Field((), description="Only these tracts.")
    patch: tuple[int, ...] = Field((), description="Only these patches (sequential ids) of one tract.")
    targets: str | None = Field(
        None, description="Table of targets: CSV, ECSV, FITS, VOTable, Parquet, or a HATS catalogue."
    )
    hdu: str | None = Field(None, description="Name or number of the table in a FITS file with several.")
    id_column: str | None = Field(None, description="Column with the identifier; recognised by default.")
    ra_column: str | None = Field(None, description="Column with right ascension; recognised by default.")
    dec_column: str | None = Field(None, description="Column with declination; recognised by default.")
    label_column: str | None = Field(None, description="Column with the label: 1 lens, 0 not, -1 unknown.")
    classes: tuple[str, ...] = Field(
        (), description="Class names in the order of their labels, for labels that are names: nonlens,lens."
    )
    ra_unit: Literal["deg", "hour"] | None = Field(
        None, description="Unit of right ascension when the table does not say it."
    )
    object_type: str | None = setting(
        None, description="Dataset type of the object table used without --targets; recognised by default."
    )
    select: str | None = Field(
        None, description="Condition on columns of the targets: 'i_cModelMag < 22 and extendedness == 1'."
    )
    grid: float | None = Field(
        None, gt=0, description="Blind windows instead of targets: distance of their centres, pixels."
    )
    where: str | None = Field(None, description="Butler query expression that coadds must satisfy.")
    duplicate_radius: float = setting(
        0.2, ge=0, description="Arcsec within which two targets count as the same object; 0: only equal ids."
    )
    margin: int = Field(
        MARGIN,
        ge=0,
        le=256,
        description="Pixels read beyond each side of a cutout, which PSF matching needs; 0: none.",
    )
    strict: bool = neutral(
        False, description="Stop at a row of the targets that cannot be used, instead of rejecting it."
    )
    require_all_bands: bool = Field(
        False, description="Reject targets that lack some bands, which are partial otherwise."
    )
    edge: Literal["pad", "reject"] = Field(
        "pad", description="What to do with boxes that leave the survey: fill with NO_DATA, or reject."
    )
    cross_tract: Literal["whole", "resample"] = Field(
        "whole",
        description="Boxes that leave their tract: take the tract that holds them whole, or resample.",
    )

    @field_validator("size", mode="before")
    @classmethod
    def _whole_size(cls, value: object) -> object:
        # A flag gives "64" and YAML gives 64: the same size must have the same digest.
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


class PlanConfig(Selection):
    """Options of `ripple plan`: the selection of fetch, and with how many workers it would run."""

    workers: int = neutral(1, ge=0, description="Worker processes that fetch would have.")
    search: Path | None = neutral(
        None,
        description="Plan a search with this model instead, which decides bands, size and margin: bytes, "
        "CPU time, memory, and the same for all of DP2.",
    )


def check_selection(selection: Selection) -> None:
    """Refuse combinations that cannot be meant.

    Raises
    ------
    ConfigError
        Names the options.
    """
    if selection.patch and len(selection.tract) != 1:
        raise ConfigError("plan: --patch needs exactly one --tract", hint="patch ids repeat in every tract")
    if selection.grid is not None and selection.targets is not None:
        raise ConfigError("plan: --grid and --targets exclude each other")
    if selection.grid is not None and not (selection.region or selection.tract):
        raise ConfigError("plan: --grid needs --region or --tract")
    if selection.grid is not None and (selection.select or selection.label_column or selection.size_column):
        raise ConfigError(
            "plan: a --grid has no columns: --select, --label-column and size_column need targets"
        )
    if selection.targets is None and selection.hdu is not None:
        raise ConfigError("plan: --hdu needs --targets")
    if len(set(selection.bands)) != len(selection.bands):
        raise ConfigError(f"plan: a band occurs twice in {','.join(selection.bands)}")


def side_of(size: int | str, pixel_scale: float) -> int:
    """Pixels of a side given in pixels (`64`, `64px`) or arcsec (`12.8arcsec`), rounded up to even.

    Raises
    ------
    ConfigError
        Not such a size, or not between 1 and 65536 pixels.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(px|arcsec|\"|)\s*", str(size))
    if match is None:
        raise ConfigError(f"plan: size {size!r}", hint="pixels, or arcsec as in 12.8arcsec")
    value, unit = float(match[1]), match[2]
    if unit in ("arcsec", '"'):
        pixels = 2 * math.ceil(round(value / pixel_scale / 2, 6))
    elif value.is_integer():
        pixels = int(value)
    else:
        raise ConfigError(f"plan: size {size!r} is no whole number of pixels")
    if not 1 <= pixels <= 65536:
        raise ConfigError(f"plan: a side of {pixels} pixels", hint="between 1 and 65536")
    return pixels
