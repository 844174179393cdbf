"""Reader of what `ripple export --format zarr` writes: a Zarr v3 group of arrays with one row per cutout.

Every chunk is there and ends with a checksum, so that neither a missing nor a damaged one reads as zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError
from ripple.stages.formats.exported import PLANES, exported_cutout, read_header
from ripple.stages.formats.foreign_cutout import DAMAGE, ForeignCutout, Listing, Unreadable, one_line
from ripple.stages.formats.source_files import SourceFiles
from ripple.storage.labels import read_labels
from ripple.storage.python_tables import exact_ids

# Rows of one chunk of each plane, or why they cannot be read.
_Block = dict[str, NDArray[Any]] | str


def zarr_cutouts(root: Path, bands: tuple[str, ...] = (), classes: tuple[str, ...] = ()) -> Listing:
    """The rows of a zarr export.

    Parameters
    ----------
    root
        Folder with `data.zarr`, or that group itself.
    bands
        Bands to import, in order; all by default.
    classes
        Class names by label value, where the export has none.

    Returns
    -------
    listing
        Rows of a chunk that is missing or damaged are `Unreadable`.

    Raises
    ------
    DataError
        No such group, no `image` and `catalog/id`, or a damaged header or catalogue.
    ConfigError
        zarr is not installed, or a band is not in the export.
    """
    try:
        import zarr
    except ModuleNotFoundError:
        raise ConfigError("zarr is not installed", hint="pip install 'ripple-lsst[export]'") from None
    # Loaded here because it is an extra, and only this format needs it.
    store = root if (root / "zarr.json").is_file() else root / "data.zarr"
    if not (store / "zarr.json").is_file():
        raise DataError(f"{root}: no data.zarr there", hint="give the folder that `ripple export` wrote")
    files = SourceFiles()
    paths = tuple(sorted(path for path in store.rglob("*") if path.is_file()))
    # Before zarr opens them: it may read any of them from here on.
    for path in paths:
        files.pin(path)
    try:
        group = zarr.open_group(str(store), mode="r", zarr_format=3)
        facts = dict(group.attrs)
        arrays = dict(group.arrays())
        planes = {name: arrays[name] for name in PLANES if name in arrays}
        listed = group["catalog"]
        if not isinstance(listed, zarr.Group):
            raise ValueError("catalog is an array")
        columns = dict(listed.arrays())
    except DAMAGE as err:
        raise DataError(f"{store}: cannot be read: {one_line(err)}", hint="it may be damaged") from None
    header = read_header(facts, bands, classes, str(store))
    rows, step = _rows_and_step(planes, store)
    catalog = {name: _column(array, rows, name, store, frozenset(paths)) for name, array in columns.items()}
    if "id" not in catalog:
        raise DataError(f"{store}: no catalog/id")
    catalog["id"] = exact_ids(catalog["id"], f"{store}: catalog/id")
    unknown = np.full(rows, -1, np.int64)
    labels, names = read_labels(
        catalog.get("label", unknown), classes or header.classes, f"{store}: catalog/label"
    )
    block = _reader(planes, store, frozenset(paths), step)

    def read(row: int) -> ForeignCutout | Unreadable:
        facts = {name: _plain(values[row]) for name, values in catalog.items()}
        try:
            found = block(row // step)
            if isinstance(found, str):
                raise ValueError(found)
            mine = {name: plane[row % step] for name, plane in found.items()}
            return exported_cutout(header, mine, facts, int(labels[row]), store.name)
        except DAMAGE as err:
            return Unreadable(str(facts["id"]), one_line(err))

    return Listing(rows, header.bands, header.pixel_scale, names, read, paths, files, header.notes)


def _rows_and_step(planes: Mapping[str, Any], store: Path) -> tuple[int, int]:
    """Rows, and rows in a chunk; `DataError` when the planes are not arrays of whole cutouts."""
    if "image" not in planes:
        raise DataError(f"{store}: no array image")
    rows, step = planes["image"].shape[0], planes["image"].chunks[0]
    for name, array in planes.items():
        whole = (step, *array.shape[1:])
        if (
            array.ndim != 4
            or array.shape[0] != rows
            or array.chunks != whole
            or array.dtype.kind not in "iufb"
        ):
            raise DataError(
                f"{store}: {name} has shape {array.shape} of {array.dtype} in chunks {array.chunks}",
                hint=f"expected ({rows}, bands, height, width) in chunks of whole cutouts",
            )
    return rows, step


def _column(array: Any, rows: int, name: str, store: Path, there: frozenset[Path]) -> NDArray[Any]:
    """One column of the catalogue."""
    try:
        if array.shape != (rows,):
            raise ValueError(f"shape {array.shape} for {rows} rows")
        for chunk in itertools.product(
            *(range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))
        ):
            _require(array, store / "catalog" / name, chunk, there)
        return np.asarray(array[:])
    except DAMAGE as err:
        raise DataError(f"{store}: catalog/{name}: {one_line(err)}", hint="it may be damaged") from None


def _require(array: Any, folder: Path, chunk: tuple[int, ...], there: frozenset[Path]) -> None:
    """Raise `ValueError` unless a chunk has its file: zarr reads a chunk without one as zeros."""
    if folder / array.metadata.encode_chunk_key(chunk) not in there:
        raise ValueError(f"chunk {folder.name}/{array.metadata.encode_chunk_key(chunk)} is missing")


def _reader(
    planes: Mapping[str, Any], store: Path, there: frozenset[Path], step: int
) -> Callable[[int], _Block]:
    """Number of a chunk -> its rows of every plane; the last one is kept, since rows are read in order."""

    @lru_cache(maxsize=1)
    def block(chunk: int) -> _Block:
        try:
            for name, array in planes.items():
                _require(array, store / name, (chunk, 0, 0, 0), there)
            return {
                name: np.asarray(array[chunk * step : (chunk + 1) * step]) for name, array in planes.items()
            }
        except DAMAGE as err:
            # Kept as well: a damaged chunk is decoded once, not once for each of its rows.
            return one_line(err)

    return block


def _plain(value: Any) -> float | int | str | None:
    """A value of an array as one of Python; NaN is no value."""
    plain: float | int | str = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and np.isnan(plain) else plain
