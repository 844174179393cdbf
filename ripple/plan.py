"""`ripple plan`: targets plus what exists give units of work; the dry run of fetch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ripple.config import Config
from ripple.errors import Reason
from ripple.geometry import Box, Tan
from ripple.rubin.repo import Dataset
from ripple.targets import Targets

__all__ = ["Dataset", "Plan", "Selection", "Unit", "make_plan"]

#: Rows that a unit (one shard) holds at most, unless one patch alone has more.
UNIT_ROWS = 2000

Positive = Annotated[int, Field(ge=1, le=65536)]


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
    size: Positive = Field(64, description="Side of a cutout, pixels.")
    size_column: str | None = Field(None, description="Column of the targets with the side in pixels.")
    region: str | None = Field(
        None, description="Piece of sky: 'CIRCLE ra dec r', 'POLYGON ra dec ...', 'RANGE ra0 ra1 dec0 dec1'."
    )
    tract: tuple[int, ...] = Field((), description="Only these tracts.")
    patch: tuple[int, ...] = Field((), description="Only these patches (sequential ids) of one tract.")
    targets: str | None = Field(
        None, description="Table of targets: CSV, ECSV, FITS, VOTable, Parquet, or a HATS catalogue."
    )
    id_column: str | None = Field(None, description="Column with the identifier; recognised by default.")
    ra_column: str | None = Field(None, description="Column with right ascension; recognised by default.")
    dec_column: str | None = Field(None, description="Column with declination; recognised by default.")
    label_column: str | None = Field(None, description="Column with the label: 1 lens, 0 not, -1 unknown.")
    ra_unit: Literal["deg", "hour"] | None = Field(
        None, description="Unit of right ascension when the table does not say it."
    )
    object_type: str | None = Field(
        None, description="Dataset type of the object table used when no --targets are given."
    )
    select: str | None = Field(
        None, description="Condition on columns of the targets: 'i_cModelMag < 22 and extendedness == 1'."
    )
    grid: float | None = Field(
        None, gt=0, description="Blind windows instead of targets: distance of their centres, pixels."
    )
    where: str | None = Field(None, description="Butler query expression that coadds must satisfy.")
    duplicate_radius: float = Field(
        0.2, ge=0, description="Arcsec within which two targets count as the same object; 0: only equal ids."
    )
    missing_band: Literal["partial", "reject"] = Field(
        "partial", description="What to do with targets that lack some bands."
    )
    edge: Literal["pad", "reject"] = Field(
        "pad", description="What to do with boxes that leave the survey: fill with NO_DATA, or reject."
    )
    cross_tract: Literal["whole", "resample"] = Field(
        "whole",
        description="Boxes that leave their tract: take the tract that holds them whole, or resample.",
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work, which becomes one shard.

    Parameters
    ----------
    number
        Position among the units; shard number.
    tract
        The tract of all its rows.
    patches
        Inner patches of its rows, ascending; no other unit has them.
    rows
        `(n,)` int64 positions in the targets, sorted by (patch, row).
    """

    number: int
    tract: int
    patches: tuple[int, ...]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Targets, the datasets they need, and the units of work.

    Parameters
    ----------
    bands
        In the order of the output.
    skymap, repo, collections, dataset_type
        What was searched; `collections` in search order, chains as given.
    targets
        All targets that were asked for, N rows.
    tract, patch
        `(N,)` int32; inner patch of each target, -1 where there is none.
    x, y
        `(N,)` float64 PARENT pixels; NaN where there is no tract.
    size
        `(N,)` int32 pixels.
    projections
        Tract -> projection, for the tracts of the units (and of neighbours to resample from).
    patch_boxes
        (tract, patch) -> outer box, for every dataset.
    datasets
        (tract, patch, band) -> dataset, those of neighbouring patches that a box reaches into included.
    units
        In the order of shards.
    rejected
        Row -> reason and text; these rows are in no unit.
    partial
        Row -> reason and text; these rows are in a unit and lack something.
    skymap_source
        `known`, `repository` or `dataset`: where the geometry came from.
    notes
        Lines worth reading.
    """

    bands: tuple[str, ...]
    skymap: str
    repo: str
    collections: tuple[str, ...]
    dataset_type: str
    targets: Targets
    tract: NDArray[np.int32]
    patch: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.int32]
    projections: dict[int, Tan]
    patch_boxes: dict[tuple[int, int], Box]
    datasets: dict[tuple[int, int, str], Dataset]
    units: tuple[Unit, ...]
    rejected: dict[int, tuple[Reason, str]]
    partial: dict[int, tuple[Reason, str]] = field(default_factory=dict)
    skymap_source: str = "known"
    notes: tuple[str, ...] = ()

    def unit_datasets(self, unit: Unit) -> list[Dataset]:
        """Datasets whose pixels the boxes of a unit may need, sorted by (patch, band order)."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Counts and sizes as JSON values."""
        raise NotImplementedError


def make_plan(selection: Selection) -> Plan:
    """Find targets, their patches and what exists for them, and group them into units."""
    raise NotImplementedError
