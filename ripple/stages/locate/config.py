"""Options of `ripple locate`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral


class LocateConfig(Config):
    """Options of `ripple locate`."""

    verb: ClassVar[str] = "locate"

    ra: str | None = Field(None, description="Right ascension: deg, or hours as in 03:32:30.")
    dec: str | None = Field(None, description="Declination: deg, or degrees as in -27:48:00.")
    targets: str | None = Field(None, description="Table of positions instead of RA DEC.")
    skymap: str | None = Field(None, description="Sky map, for example lsst_cells_v2 (DP2).")
    repo: str = Field(
        "", description="Butler repository that knows the sky map, for maps without public name."
    )
    collections: tuple[str, ...] = Field((), description="Collections of the repository to search.")
    dataset_type: str | None = Field(None, description="Coadds to read the projection from.")
    size: str | None = Field(None, description="Also the box of a cutout: pixels, or 12.8arcsec.")
    hdu: str | None = Field(None, description="Name or number of the table in a FITS file with several.")
    id_column: str | None = Field(None, description="Column with the identifier; recognised by default.")
    ra_column: str | None = Field(None, description="Column with right ascension; recognised by default.")
    dec_column: str | None = Field(None, description="Column with declination; recognised by default.")
    ra_unit: Literal["deg", "hour"] | None = Field(
        None, description="Unit of right ascension when the table does not say it."
    )
    select: str | None = Field(None, description="Condition on columns of the table.")
    output: str | None = neutral(None, description="File for the table: .csv or .parquet; stdout by default.")
