"""`--lenses FILE`: lenses and sources of the user.

Names are those of RIPPLe, lenstronomy, slsim or deeplenstronomy. Angles on the sky are arcsec along x and y
of the cutout, from the position of the target. Conventions of lenstronomy are converted: ellipticities `e1`,
`e2` to axis ratio and angle, and its half-light radius, which is the product average of both axes, to that
along the major axis.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import CatalogueError
from ripple.imaging.simulation.lensing import Deflector
from ripple.imaging.simulation.profiles import Lensed, Sersic
from ripple.stages.inject.sources import TWICE, Sources
from ripple.stages.plan.tables import UserTable, is_number, read_table

Float = NDArray[np.float64]

#: Column -> smallest and largest value that can be painted, and the default; None: the column is needed.
LENS: dict[str, tuple[float, float, float | None]] = {
    "theta_E": (0.05, 30.0, None), "q": (0.2, 1.0, 1.0), "phi": (-360.0, 360.0, 0.0),
    "gamma1": (-0.5, 0.5, 0.0), "gamma2": (-0.5, 0.5, 0.0), "slope": (1.2, 2.8, 2.0),
    "x_lens": (-10.0, 10.0, 0.0), "y_lens": (-10.0, 10.0, 0.0),
}  # fmt: skip
SOURCE: dict[str, tuple[float, float, float | None]] = {
    "x_source": (-30.0, 30.0, None), "y_source": (-30.0, 30.0, None), "R_source": (0.02, 10.0, None),
    "n_source": (0.4, 6.0, 1.0), "q_source": (0.1, 1.0, 1.0), "phi_source": (-360.0, 360.0, 0.0),
}  # fmt: skip
#: Of the redshifts only their order counts: the Einstein radius is given.
REDSHIFTS = {"z_lens": (0.0, 20.0, np.nan), "z_source": (0.0, 20.0, np.nan)}
MAGNITUDE = (10.0, 40.0)
#: Name of RIPPLe -> what lenstronomy calls it, of the lens and of the source.
_LENS_NAMES = {
    "theta_E": "theta_E", "e1": "e1", "e2": "e2", "slope": "gamma", "gamma1": "gamma1", "gamma2": "gamma2",
    "x_lens": "center_x", "y_lens": "center_y",
}  # fmt: skip
_SOURCE_NAMES = {
    "R_sersic": "R_sersic", "n_source": "n_sersic", "e1_source": "e1", "e2_source": "e2",
    "x_source": "center_x", "y_source": "center_y",
}  # fmt: skip
#: Prefixes of the columns of a lens and of a source: parameters of lenstronomy, and the tables of slsim.
_PREFIXES = (("lens_", "source_"), ("deflector_mass_", "source_light_"))
_REDSHIFT_NAMES = {"z_lens": "deflector_redshift", "z_source": "source_redshift"}
#: Columns of deeplenstronomy, which end in a band.
_DEEP_LENS = ("PLANE_1-OBJECT_1-MASS_PROFILE_1-", "PLANE_1-OBJECT_1-SHEAR_PROFILE_1-")
_DEEP_SOURCE = "PLANE_2-OBJECT_1-LIGHT_PROFILE_1-"
#: Of these nothing is painted, which would change the image: more mass, or more sources.
_DEEP_OTHER = re.compile(
    r"PLANE_(\d\d|[3-9])-|PLANE_2-OBJECT_[2-9]-|PLANE_2-OBJECT_1-LIGHT_PROFILE_[2-9]-"
    r"|PLANE_1-OBJECT_[2-9]-MASS|PLANE_1-OBJECT_1-MASS_PROFILE_[2-9]-"
)


@dataclass(frozen=True)
class Lenses:
    """Lenses of a file.

    Parameters
    ----------
    values
        Names of `LENS`, `SOURCE` and `REDSHIFTS` -> `(N,)` in arcsec and deg.
    mags
        `(N, B)` AB magnitudes of the source before lensing, in the bands of the cutouts.
    pictures
        `(N,)` rows of the pictures that are the sources, -1 where there is none; None: sources are profiles.
    ids
        Id of the cutout -> row, when the file has ids.
    refused
        N texts: why a row cannot be painted; empty where it can.
    sha256
        Of the file.
    """

    values: dict[str, Float]
    mags: Float
    pictures: NDArray[np.int64] | None
    ids: dict[str, int] | None
    refused: tuple[str, ...]
    sha256: str

    @functools.cached_property
    def usable(self) -> NDArray[np.int64]:
        """Rows that can be painted."""
        return np.array([k for k, why in enumerate(self.refused) if not why], np.int64)

    def placed(
        self, row: int, pixel_scale: float
    ) -> tuple[Deflector, tuple[float, float], tuple[float, float]]:
        """The lens, the source as seen from its centre, and that centre as seen from the target; pixels."""
        v = {name: float(column[row]) for name, column in self.values.items()}
        scale = 1.0 / pixel_scale
        shear = v["gamma1"], v["gamma2"]
        lens = Deflector(v["theta_E"] * scale, v["q"], np.radians(v["phi"]), *shear, v["slope"])
        # The source as seen from the centre of the lens. As in lenstronomy the shear of the table is centred
        # on the target, ours on the lens: the deflections differ by a constant.
        x, y = v["x_lens"], v["y_lens"]
        at_x = v["x_source"] - x + v["gamma1"] * x + v["gamma2"] * y
        at_y = v["y_source"] - y + v["gamma2"] * x - v["gamma1"] * y
        return lens, (at_x * scale, at_y * scale), (x * scale, y * scale)

    def lensed(self, row: int, pixel_scale: float) -> tuple[Lensed, float, float]:
        """The lens and its source in pixels, and where the centre of the lens lies from the target."""
        lens, at, centre = self.placed(row, pixel_scale)
        n, size, q = (float(self.values[name][row]) for name in ("n_source", "R_source", "q_source"))
        source = Sersic(n, size / pixel_scale, q, self.turn(row), *at)
        return Lensed(lens, source), *centre

    def turn(self, row: int) -> float:
        """Angle of the source, radians."""
        return float(np.radians(self.values["phi_source"][row]))


def read_lenses(path: Path, bands: Sequence[str], sources: Sources | None = None) -> Lenses:
    """Read and convert a table of lenses.

    Parameters
    ----------
    path
        CSV, Parquet, FITS or VOTable.
    bands
        Of the cutouts, in order.
    sources
        Pictures that its column `source_id` names, instead of profiles.

    Raises
    ------
    CatalogueError
        It cannot be read, lacks a column, says a thing twice, or no row can be painted.
    """
    table = read_table(path)
    values, mags = converted(table, bands, str(path), pictured=sources is not None)
    pictures, why = None, [""] * len(table.columns)
    if sources is not None:
        pictures, why = _pictures(table.columns, sources, str(path))
        mags = sources.mags[pictures]
    # A picture that is not there has no magnitudes either, which says less.
    refused = tuple(a or b for a, b in zip(why, _refusals(values, mags, bands), strict=True))
    if not refused or all(refused):
        first = f": row 1: {refused[0]}" if refused else ", it is empty"
        raise CatalogueError(f"{path}: no lens of it can be painted{first}")
    return Lenses(values, mags, pictures, _ids(table.columns, str(path)), refused, table.sha256)


def _pictures(columns: pa.Table, sources: Sources, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Row of the picture of each lens, and why it has none."""
    if "source_id" not in columns.column_names:
        raise CatalogueError(
            f"{name}: no column 'source_id', which says the picture that each lens gets",
            hint="leave out --sources to paint the profiles of the table",
        )
    rows, why = np.full(len(columns), -1, np.int64), [""] * len(columns)
    for k, value in enumerate(columns["source_id"].to_pylist()):
        row = sources.ids.get(str(value), -1)
        if row < 0:
            why[k] = f"{'several sources have' if row == TWICE else 'no source has'} the id {value}"
        elif sources.refused[row]:
            why[k] = f"source {value}: {sources.refused[row]}"
        else:
            rows[k] = row
    return rows, why


def converted(
    table: UserTable, bands: Sequence[str], name: str, *, pictured: bool = False
) -> tuple[dict[str, Float], Float]:
    """Columns in the names and conventions of RIPPLe, and magnitudes `(N, B)`; `pictured`: without those."""
    columns = table.columns
    names = named(columns.column_names, bands, name, pictured=pictured)
    found = {key: _number(columns, column, name) for key, column in names.items()}
    if pictured:
        # The picture says them.
        found |= {key: np.ones(len(columns)) for key in ("R_source", *(f"mag_{band}" for band in bands))}
    for key in ("phi", "phi_source"):
        unit = table.units.get(key, "deg") if key in found else "deg"
        if unit not in ("deg", "rad", "degree", "radian"):
            raise CatalogueError(f"{name}: column {key!r} has unit {unit!r}", hint="give deg or rad")
        if unit.startswith("rad"):
            found[key] = np.degrees(found[key])
    for end in ("", "_source"):
        if f"e1{end}" in found:
            axis = ellipse(found.pop(f"e1{end}"), found.pop(f"e2{end}"))
            found[f"q{end}"], found[f"phi{end}"] = axis
    if "R_sersic" in found:
        # Along the major axis, from the product average sqrt(a b) = a sqrt(q).
        found["R_source"] = found.pop("R_sersic") / np.sqrt(found.get("q_source", np.ones(len(columns))))
    for key, (_, _, default) in (LENS | SOURCE | REDSHIFTS).items():
        if key not in found and default is None:
            raise CatalogueError(
                f"{name}: no column {key!r}", hint="the how-to page lists the columns of lenses"
            )
        found.setdefault(key, np.full(len(columns), default, np.float64))
    return found, np.stack([found.pop(f"mag_{band}") for band in bands], axis=1)


def named(
    columns: Sequence[str], bands: Sequence[str], name: str, *, pictured: bool = False
) -> dict[str, str]:
    """What the columns of a file are: name of RIPPLe, or `e1`, `e2`, `R_sersic`, `mag_<band>` -> column.

    Raises
    ------
    CatalogueError
        Two columns say the same, half of an ellipticity, or a magnitude is missing; or, where sources are
        pictures, what a picture says itself.
    """
    found: dict[str, str] = {}
    said: dict[str, str] = {}  # without the end of a conversion: the shape and the size each have two names
    for key, column in _candidates(bands):
        if column not in columns:
            continue
        what = key.replace("e1", "q").replace("e2", "phi").replace("R_sersic", "R_source")
        if what in said:
            raise CatalogueError(
                f"{name}: columns {said[what]!r} and {column!r} say the same", hint="keep one of them"
            )
        found[key], said[what] = column, column
    for end in ("", "_source"):
        if (f"e1{end}" in found) != (f"e2{end}" in found):
            raise CatalogueError(f"{name}: it has only one of e1 and e2", hint="give both")
    if pictured:
        light = ("R_source", "R_sersic", "n_source", "q_source", "e1_source", *(f"mag_{b}" for b in bands))
        if twice := [key for key in light if key in found]:
            raise CatalogueError(
                f"{name}: column {found[twice[0]]!r}, but the source is a picture, which says that itself",
                hint="remove the column, or leave out --sources",
            )
    elif missing := [band for band in bands if f"mag_{band}" not in found]:
        raise CatalogueError(
            f"{name}: no magnitude of the source in band {missing[0]!r}",
            hint=f"name the column mag_{missing[0]}",
        )
    if more := next((column for column in columns if _DEEP_OTHER.match(column)), ""):
        raise CatalogueError(
            f"{name}: column {more!r}: one lens and one source of one profile each are painted"
        )
    return found


def _candidates(bands: Sequence[str]) -> list[tuple[str, str]]:
    """Every name that is understood: what it is, and the column."""
    out = [(key, key) for key in (*LENS, *SOURCE, *REDSHIFTS)]
    out += [(f"mag_{band}", f"mag_{band}") for band in bands]
    for lens, source in _PREFIXES:
        out += [(key, lens + said) for key, said in _LENS_NAMES.items()]
        out += [(key, source + said) for key, said in _SOURCE_NAMES.items()]
    out += list(_REDSHIFT_NAMES.items())
    # The shape is the same in all bands, and stands in the columns of each.
    mass, shear = _DEEP_LENS
    for key, said in _LENS_NAMES.items():
        out.append((key, f"{shear if key.startswith('gamma') else mass}{said}-{bands[0]}"))
    out += [(key, f"{_DEEP_SOURCE}{said}-{bands[0]}") for key, said in _SOURCE_NAMES.items()]
    return out + [(f"mag_{band}", f"{_DEEP_SOURCE}magnitude-{band}") for band in bands]


def ellipse(e1: Float, e2: Float) -> tuple[Float, Float]:
    """Axis ratio and angle (deg from x) of lenstronomy's ellipticities, `|e| = (1 - q) / (1 + q)`."""
    size = np.hypot(e1, e2)
    q = np.where(size < 1.0, (1.0 - size) / (1.0 + size), np.nan)
    return q, np.degrees(0.5 * np.arctan2(e2, e1))


def _number(columns: pa.Table, column: str, name: str) -> Float:
    if not is_number(columns.schema.field(column).type):
        raise CatalogueError(f"{name}: column {column!r} has no numbers")
    return np.asarray(columns[column].to_numpy(zero_copy_only=False), np.float64)


def _refusals(values: dict[str, Float], mags: Float, bands: Sequence[str]) -> list[str]:
    """Why each row cannot be painted: the first value that is out of bounds."""
    out = [""] * len(mags)
    bounds = {key: (low, high) for key, (low, high, _) in (LENS | SOURCE).items()}
    every = {key: (values[key], *bounds[key]) for key in bounds}
    every |= {f"mag_{band}": (mags[:, k], *MAGNITUDE) for k, band in enumerate(bands)}
    for key, (column, low, high) in every.items():
        for k in np.flatnonzero(~((column >= low) & (column <= high))):
            out[k] = out[k] or f"{key} is {column[k]:.6g}, not from {low:g} to {high:g}"
    for k in np.flatnonzero(values["z_source"] <= values["z_lens"]):  # false where either is unknown
        out[k] = out[k] or "z_source is not beyond z_lens"
    return out


def _ids(columns: pa.Table, name: str) -> dict[str, int] | None:
    """Row of each id, when the file has them.

    Raises
    ------
    CatalogueError
        An id twice, none, or as a number that is not whole.
    """
    if "id" not in columns.column_names:
        return None
    column = columns["id"]
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
        raise CatalogueError(f"{name}: column 'id' must hold whole numbers or text")
    ids = [str(v) for v in column.to_pylist()]
    rows = {value: k for k, value in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(value for k, value in enumerate(ids) if rows[value] != k)
        raise CatalogueError(f"{name}: id {twice} is there twice", hint="give one lens for each cutout")
    return rows
