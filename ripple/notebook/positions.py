"""What users write for a position, a size or a table: sky coordinates, angles, paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ripple.errors import ConfigError, InputError
from ripple.stages.plan.config import side_of
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import DEC_NAMES, RA_NAMES, Columns, Targets, from_table


def arcsec_of(angle: Any) -> float:
    """An angle in arcsec: a number, or an astropy quantity.

    Raises
    ------
    ConfigError
        A quantity that is no angle.
    """
    if not hasattr(angle, "unit"):
        return float(angle)
    try:
        return float(angle.to_value("arcsec"))
    except ValueError:  # astropy's UnitConversionError is one
        raise ConfigError(f"{angle} is not an angle") from None


def pixels_of(size: Any, pixel_scale: float) -> int:
    """A side in pixels: a whole number, `"12.8arcsec"`, or an astropy angle, which is rounded up to even.

    Raises
    ------
    ConfigError
        It cannot be read as a size.
    """
    if not hasattr(size, "unit"):
        return side_of(size, pixel_scale)
    if str(size.unit) in ("pix", "pixel"):
        return side_of(f"{size.value:.15g}", pixel_scale)
    return side_of(f"{arcsec_of(size):.9f}arcsec", pixel_scale)


def single(position: Any) -> tuple[float, float] | None:
    """Deg ICRS of a scalar `SkyCoord`; None for anything else."""
    if (sky := getattr(position, "icrs", None)) is None:
        return None
    if not sky.isscalar:
        raise ConfigError(
            f"{len(sky)} positions are given for one cutout", hint="survey.cutouts takes many positions"
        )
    return float(sky.ra.deg), float(sky.dec.deg)


def targets_of(table: Any) -> Targets:
    """Targets from a table of any kind, sky coordinates, or the path of a table; without unit in deg.

    Raises
    ------
    CatalogueError
        The columns are not understood.
    """
    if isinstance(table, str | Path):
        found = read_table(Path(table))
    elif getattr(table, "icrs", None) is not None:
        found = UserTable.in_memory({"position": table.reshape(-1)})
    else:
        found = UserTable.in_memory(table)
    if not found.columns.num_rows:
        raise InputError("the table has no rows")
    angles = {*RA_NAMES, *DEC_NAMES}
    plain = {
        name: "deg"
        for name in found.columns.column_names
        if name.lower() in angles and not pa.types.is_string(found.columns[name].type)
    }
    found = replace(found, units=plain | found.units)
    # A radius of 0: who asks for neighbours in Python wants them both.
    return from_table(found, Columns(), source={"name": "cutouts"}, duplicate_radius=0.0)
