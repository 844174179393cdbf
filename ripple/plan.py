"""`ripple plan`: targets plus what exists give units of work; the dry run of fetch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from ripple.config import Config
from ripple.coverage import boxes_around
from ripple.errors import ConfigError
from ripple.geometry import Box, Tan
from ripple.reasons import Verdicts
from ripple.rubin.repo import Dataset
from ripple.targets import Targets

__all__ = ["Dataset", "Plan", "Selection", "Unit", "check_selection", "make_plan", "side_of"]


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
        None, description="Dataset type of the object table used without --targets; recognised by default."
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
    margin: int = Field(0, ge=0, le=256, description="Pixels read beyond each side of a cutout.")
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

    @field_validator("size", mode="before")
    @classmethod
    def _whole_size(cls, value: object) -> object:
        # A flag gives "64" and YAML gives 64: the same size must have the same digest.
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work, which becomes one shard.

    Parameters
    ----------
    number
        Position among the units; shard number.
    tract
        The tract of all its rows; they have one size, too.
    patches
        Inner patches of its rows, ascending. Other units have them only when one patch holds more rows than a
        unit may.
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
        `(N,)` int32 pixels, without margins.
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
    margin
        Pixels that are read beyond each side of a cutout.
    cross
        Row -> (tract, patch) in other tracts that its box reaches into, when those are to be resampled.
    skymap_source
        `known`, `hash` or `repository`: where the geometry came from (`ripple.rubin.geometry`).
    gaps
        (tract, inner patch of a target) -> bands without dataset there; of tracts that have datasets.
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
    rejected: Verdicts
    partial: Verdicts
    margin: int = 0
    cross: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    skymap_source: str = "known"
    gaps: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def _patches(self) -> dict[int, list[tuple[int, Box]]]:
        """Tract -> (patch, outer box) of the patches that have datasets."""
        out: dict[int, list[tuple[int, Box]]] = {}
        for (tract, patch), box in sorted(self.patch_boxes.items()):
            out.setdefault(tract, []).append((patch, box))
        return out

    def unit_datasets(self, unit: Unit) -> list[Dataset]:
        """Datasets whose pixels the boxes of a unit may need, by patch and then band."""
        found = []
        boxes = boxes_around(self.x[unit.rows], self.y[unit.rows], self.reach[unit.rows])
        for patch, box in self._patches.get(unit.tract, []):
            edge = np.array([box.x0, box.y0, box.x1, box.y1])
            if ((boxes[:, :2] < edge[2:]) & (boxes[:, 2:] > edge[:2])).all(axis=1).any():
                keys = ((unit.tract, patch, band) for band in self.bands)
                found += [self.datasets[key] for key in keys if key in self.datasets]
        return found

    @property
    def reach(self) -> NDArray[np.int32]:
        """`(N,)` int32 sides of the boxes that are read: cutouts with their margins."""
        return self.size + np.int32(2 * self.margin)


def make_plan(selection: Selection) -> Plan:
    """Find targets, their patches and what exists for them, and group them into units.

    Parameters
    ----------
    selection
        What the user asked for.

    Raises
    ------
    ConfigError, InputError, SourceError
        The selection contradicts itself, names things that do not exist, or the repository is out of reach.
        What is wrong with single targets is in `Plan.rejected` instead.
    """
    from ripple.planning import Planner
    from ripple.rubin.repo import open_repository

    check_selection(selection)
    with open_repository(selection.repo, selection.collections) as repository:
        return Planner(selection, repository).plan()


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
            "plan: a --grid has no columns: --select, --label-column and --size-column need targets"
        )
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
