"""Which format a folder or file has, by what its files are; where two fit, or none, it has to be said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import h5py

from ripple.errors import ConfigError
from ripple.stages.formats.config import Format
from ripple.stages.formats.fits_cutouts import SUFFIXES
from ripple.stages.formats.foreign_cutout import DAMAGE, one_line

_HDF5 = (".h5", ".hdf5")


def guess_format(source: Path) -> tuple[Format, str]:
    """The one format that `source` can be, and the file that says so.

    Raises
    ------
    ConfigError
        No format, or more than one; names them.
    """
    found: dict[Format, str] = {}
    for kind, path in _signs(source):
        found.setdefault(kind, str(path))
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        both = " and ".join(f"{kind} ({path})" for kind, path in sorted(found.items()))
        raise ConfigError(f"{source} can be {both}", hint="say which with --format")
    raise ConfigError(
        f"{source}: its files do not say which format it is",
        hint=f"name it with --format: one of {', '.join(get_args(Format))}",
    )


def _signs(source: Path) -> Iterator[tuple[Format, Path]]:
    """Format and path of each file that belongs to one."""
    if source.is_file():
        if source.suffix == ".npz" or (source.suffix in _HDF5 and not _is_mmu(source)):
            yield "arrays", source
        elif source.suffix in _HDF5:
            yield "mmu", source
        elif source.name.lower().endswith(SUFFIXES):
            yield "fits", source
        return
    for folder, below, names in os.walk(source):
        place = Path(folder)
        if "zarr.json" in names:
            yield "zarr", place
            below.clear()  # its chunks are no files of their own
            continue
        for name in sorted(names):
            if name.endswith(".npy"):
                yield "deeplense", place / name
            elif name.lower().endswith(SUFFIXES):
                yield "fits", place / name
            elif name.endswith(".tar"):
                yield "webdataset", place / name
            elif name.endswith(_HDF5) and place.name.startswith("healpix="):
                yield "mmu", place / name


def _is_mmu(path: Path) -> bool:
    """Whether an HDF5 file has the arrays of the Multimodal Universe."""
    try:
        with h5py.File(path, "r") as file:
            return "image_array" in file and "object_id" in file
    except DAMAGE as err:
        raise ConfigError(f"{path}: cannot be read: {one_line(err)}", hint="it may be damaged") from None
