"""`ripple locate`: sky positions to tract, patch and pixel, one or a million."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.rubin.repository import open_repository
from ripple.rubin.skymap import resolve_skymap
from ripple.runtime.summary import plain
from ripple.sky.coverage import boxes_around, touched
from ripple.sky.geometry import Box
from ripple.sky.skymap import Float, Int, SkyMap, known
from ripple.stages.locate.config import LocateConfig
from ripple.stages.plan.config import side_of
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import Columns, Targets, from_table
from ripple.storage.parquet import parquet_bytes


class Holder(TypedDict):
    """A patch whose outer box contains a position, and the position in its tract, PARENT pixels."""

    tract: int
    patch: int
    x: float
    y: float


class CutBox(TypedDict):
    """The box that `fetch` cuts, `[x0, y0, x1, y1]` half open, in PARENT and LOCAL pixels."""

    parent: list[int]
    local: list[int]
    inside_patch: bool


class Place(TypedDict):
    """Where a position (deg) lies; outside all tracts the patch is -1 and there are no pixels."""

    ra: float
    dec: float
    skymap: str
    tract: int
    patch: int
    patch_x: NotRequired[int]
    patch_y: NotRequired[int]
    x: NotRequired[float]
    y: NotRequired[float]
    local: NotRequired[list[float]]
    inner: NotRequired[list[int]]
    outer: NotRequired[list[int]]
    box: NotRequired[CutBox]


class Location(Place):
    """A place, and every other patch of any tract whose outer box contains the position."""

    others: list[Holder]


def locate_one(config: LocateConfig) -> Location:
    """Where one position lies, as JSON values.

    Returns
    -------
    dict
        `ra dec skymap tract patch patch_x patch_y x y` (PARENT pixels), `inner` and `outer` boxes
        `[x0, y0, x1, y1]` half open, `local` `[x, y]` in the outer box, `others` (every other patch of any
        tract whose outer box contains it), and `box` with `parent` and `local` when a size is given.

    Raises
    ------
    ConfigError, CatalogueError, SkyMapError
        Only one coordinate is given, the position is not on the sphere, or the sky map is not known.
    """
    if config.ra is None or config.dec is None:
        raise ConfigError("locate: no position", hint="give RA and DEC, or --targets FILE")
    # As a table of one row, so that `locate` reads positions exactly as `fetch` reads its targets.
    columns = {"ra": _number(config.ra), "dec": _number(config.dec)}
    table = UserTable(pa.table({k: [v] for k, v in columns.items()}), {}, "")
    # On the command line, a bare number means degrees: nobody types a right ascension in decimal hours.
    one = from_table(
        table,
        Columns(ra_unit=config.ra_unit or (None if isinstance(columns["ra"], str) else "deg")),
        source={"name": "position"},
    )
    return describe(_skymap(config, one.ra, one.dec), float(one.ra[0]), float(one.dec[0]), config.size)


def _number(text: str) -> float | str:
    """A number where the text is one; sexagesimal text stays as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def describe(skymap: SkyMap, ra: float, dec: float, size: str | None = None) -> Location:
    """`locate_one` for a given sky map; `ra` and `dec` in deg."""
    found_in = skymap.locate(ra, dec)
    tract, patch, x, y = (
        int(found_in[0][0]),
        int(found_in[1][0]),
        float(found_in[2][0]),
        float(found_in[3][0]),
    )
    tan = skymap.tan(tract)
    found: Place = {"ra": ra, "dec": dec, "skymap": skymap.name, "tract": tract, "patch": patch}
    if patch >= 0:  # else the position lies outside all tracts
        i, j = (int(v) for v in skymap.patch_xy(tract, patch))
        inner, outer = skymap.patch_inner(tract, patch), skymap.patch_outer(tract, patch)
        found |= {"patch_x": i, "patch_y": j, "x": x, "y": y, "local": [x - outer.x0, y - outer.y0]}
        found |= {"inner": _corners(inner), "outer": _corners(outer)}
        if size is not None:
            box = Box.around(x, y, side_of(size, tan.pixel_scale))
            local = Box(box.x0 - outer.x0, box.y0 - outer.y0, box.x1 - outer.x0, box.y1 - outer.y0)
            # `fetch` cuts this box; LOCAL pixels are those of the patch's file.
            found["box"] = {
                "parent": _corners(box),
                "local": _corners(local),
                "inside_patch": outer.contains(box),
            }
    others = [o for o in _holders(skymap, ra, dec) if (o["tract"], o["patch"]) != (tract, patch)]
    return {**found, "others": others}


def _corners(box: Box) -> list[int]:
    return [box.x0, box.y0, box.x1, box.y1]


def _holders(skymap: SkyMap, ra: float, dec: float) -> list[Holder]:
    """All patches of all tracts whose outer boxes contain a position."""
    row, tract = skymap.all_tracts(ra, dec)
    x, y = skymap.sky_to_pixel(tract, np.full(len(row), ra), np.full(len(row), dec))
    # A box of one pixel: an outer box contains the position if it contains its pixel.
    at, patch = touched(skymap, tract, boxes_around(x, y, np.ones(len(row), np.int32)))
    return [
        {"tract": int(tract[k]), "patch": int(p), "x": float(x[k]), "y": float(y[k])}
        for k, p in zip(at, patch, strict=True)
    ]


def locate_table(config: LocateConfig) -> pa.Table:
    """Where the rows of a table lie.

    Returns
    -------
    pyarrow.Table
        `id, ra, dec, tract, patch, patch_x, patch_y, x, y`, and `x0, y0, x1, y1` when a size is given; one
        row per row of the input. Outside all tracts the ids are -1 and the pixels NaN.

    Raises
    ------
    ConfigError, CatalogueError, SkyMapError
        As for `ripple.stages.plan.targets.from_table`.
    """
    assert config.targets is not None
    path = Path(config.targets)
    columns = Columns(config.id_column, config.ra_column, config.dec_column, ra_unit=config.ra_unit)
    # Radius 0, as two rows at one position need not be told apart here.
    table = read_table(path, id_column=config.id_column, hdu=config.hdu)
    targets = from_table(
        table, columns, source={"name": path.name}, select=config.select, duplicate_radius=0.0
    )
    return located(_skymap(config, targets.ra, targets.dec), targets, config.size)


def located(skymap: SkyMap, targets: Targets, size: str | None = None) -> pa.Table:
    """`locate_table` for a given sky map and targets."""
    tract, patch, x, y = skymap.locate(targets.ra, targets.dec)
    held = patch >= 0
    # Any valid patch of any tract where there is none.
    i, j = skymap.patch_xy(np.where(tract >= 0, tract, skymap.table.ids[0]), np.maximum(patch, 0))
    columns: dict[str, NDArray[Any]] = {
        "id": targets.id,
        "ra": targets.ra,
        "dec": targets.dec,
        "tract": _or(held, tract),
        "patch": patch,
        "patch_x": _or(held, i),
        "patch_y": _or(held, j),
        "x": np.where(held, x, np.nan),
        "y": np.where(held, y, np.nan),
    }
    if size is not None:
        # All tracts of a sky map have the same pixel scale.
        scale = skymap.tan(int(skymap.table.ids[0])).pixel_scale
        side = np.full(len(x), side_of(size, scale), np.int32)
        boxes = boxes_around(np.nan_to_num(x), np.nan_to_num(y), side)
        columns |= {name: _or(held, boxes[:, k]) for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    return pa.table(columns)


def _or(held: NDArray[np.bool_], values: Int) -> Int:
    """The values, -1 where the position lies outside all tracts."""
    return np.where(held, values, -1)


def _skymap(config: LocateConfig, ra: Float, dec: Float) -> SkyMap:
    if not config.repo:
        if config.skymap is None:
            raise ConfigError(
                "locate: no sky map", hint="name one: --skymap lsst_cells_v2 is that of DP2, or give --repo"
            )
        return known(config.skymap)  # without a repository: the sky maps that RIPPLe has built in

    with open_repository(config.repo, config.collections) as repository:
        dataset_type = repository.coadd_type(config.dataset_type)
        name = repository.skymap_name(dataset_type, config.skymap)
        return resolve_skymap(repository, name, dataset_type)[0]


def as_bytes(table: pa.Table, path: Path) -> bytes:
    """A table as CSV or Parquet, by the name of the file it is for.

    Raises
    ------
    ConfigError
        The name has another suffix.
    """
    if path.suffix == ".csv":
        sink = io.BytesIO()
        for k, column in enumerate(table.columns):
            if pa.types.is_string(column.type):  # text that a spreadsheet would run as a formula
                safe = pc.replace_substring_regex(column, "^([=+@\t\r\n-])", r"'\1")
                table = table.set_column(k, table.column_names[k], safe)
        pyarrow.csv.write_csv(table, sink)
        return sink.getvalue()
    if path.suffix == ".parquet":
        return parquet_bytes(table)
    raise ConfigError(
        f"locate: cannot tell the format of {path.name!r}", hint="give a name that ends in .csv or .parquet"
    )


def printable(table: pa.Table) -> pa.Table:
    """The table for a terminal: control characters in text columns are escaped, as in messages."""
    for k, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            shown = pa.array([None if v is None else plain(v) for v in column.to_pylist()], pa.string())
            table = table.set_column(k, table.column_names[k], shown)
    return table


def as_json(table: pa.Table) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist())
