"""Reader of what `ripple export --format webdataset` writes: tar files of rows, and `dataset.json`.

The members of a row are `KEY.image.npy` and the like, with KEY the number of the row, and `KEY.json` with its
columns and a checksum of all its members.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.stages.formats.exported import PLANES, exported_cutout, read_header
from ripple.stages.formats.foreign_cutout import DAMAGE, ForeignCutout, Listing, Unreadable, one_line
from ripple.stages.formats.source_files import SourceFiles
from ripple.storage.labels import read_labels

#: Column of `KEY.json` with the checksum of the row.
CHECKSUM = "_crc32"
# Tar file, offset and bytes of the members of a row, by suffix.
_Members = dict[str, tuple[Path, int, int]]


def checksum(facts: Mapping[str, Any], members: Mapping[str, bytes]) -> int:
    """CRC-32 of the columns of a row, as JSON with sorted keys, and of its other members by name."""
    total = zlib.crc32(json.dumps(dict(facts), sort_keys=True).encode())
    for _, data in sorted(members.items()):
        total = zlib.crc32(data, total)
    return total


def webdataset(root: Path, bands: tuple[str, ...] = (), classes: tuple[str, ...] = ()) -> Listing:
    """The rows of a webdataset export.

    Parameters
    ----------
    root
        Folder with `dataset.json` and the tar files.
    bands
        Bands to import, in order; all by default.
    classes
        Class names by label value, where the export has none.

    Returns
    -------
    listing
        A row that is cut short, damaged or missing in the tar files is an `Unreadable`.

    Raises
    ------
    DataError
        No or no valid `dataset.json`, a row that is there twice, or more rows than it says.
    ConfigError
        A band is not in the export.
    """
    files = SourceFiles()
    header_path = root / "dataset.json"
    facts = _header(header_path, files)
    header = read_header(facts, bands, classes, str(header_path))
    rows = facts.get("rows")
    if not isinstance(rows, int) or rows < 1:
        raise DataError(f"{header_path}: rows is {rows!r}")
    paths = tuple(sorted(root.glob("*.tar")))
    members: dict[str, _Members] = {}
    for path in paths:
        files.pin(path)
        _collect(path, members)
    if surplus := [key for key in members if not (key.isascii() and key.isdigit() and int(key) < rows)]:
        raise DataError(
            f"{root}: {header_path.name} says {rows} rows, but there is {sorted(surplus)[-1][:40]!r}",
            hint="a folder holds the tar files of one export",
        )
    names = classes or header.classes

    def read(row: int) -> ForeignCutout | Unreadable:
        key = f"{row:09d}"
        try:
            mine = members.get(key)
            if mine is None or "json" not in mine:
                raise ValueError("none of the tar files has it whole; one is missing, cut short or damaged")
            got = {suffix: _bytes(*place) for suffix, place in mine.items()}
            columns = _columns(got)
            (label,), _ = read_labels(np.array([columns.get("label", -1)], object), names, "label")
            planes = {name: _npy(got[f"{name}.npy"]) for name in PLANES if f"{name}.npy" in got}
            return exported_cutout(header, planes, columns, int(label), mine["json"][0].name)
        except (*DAMAGE, DataError) as err:
            return Unreadable(f"row {row}", f"row {row}: {one_line(err)}")

    return Listing(
        rows, header.bands, header.pixel_scale, names, read, (header_path, *paths), files, header.notes
    )


def _header(path: Path, files: SourceFiles) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent}: no {path.name}", hint="give the folder that `ripple export` wrote")
    try:
        facts = json.loads(files.read(path))
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: damaged JSON: {one_line(err)}") from None
    if not isinstance(facts, dict):
        raise DataError(f"{path}: the header is a {type(facts).__name__}, not an object")
    return facts


def _collect(path: Path, members: dict[str, _Members]) -> None:
    """Add the members of a tar file; what comes after a damaged header cannot be found and is left out."""
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                # Links and devices would lead out of the file.
                if not entry.isreg():
                    continue
                place = members.setdefault(key, {})
                if suffix in place:
                    raise DataError(
                        f"{path}: row {key[:40]} is also in {place[suffix][0].name}",
                        hint="a folder holds the tar files of one export",
                    )
                place[suffix] = (path, entry.offset_data, entry.size)
    except (tarfile.TarError, OSError, ValueError):
        # The rows that are lost are missing in `members`, and each is reported when it is read.
        return


def _bytes(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path.name} is cut short")
    return data


def _columns(got: Mapping[str, bytes]) -> dict[str, Any]:
    """The columns of a row whose checksum is right."""
    columns = json.loads(got["json"])
    if not isinstance(columns, dict):
        raise ValueError("its JSON is not an object")
    said = columns.pop(CHECKSUM, None)
    if said != checksum(columns, {name: data for name, data in got.items() if name != "json"}):
        raise ValueError("damaged: its checksum is another")
    return columns


def _npy(data: bytes) -> NDArray[Any]:
    # Without pickles, which could run any code.
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "iufb":
        raise ValueError(f"an array of dtype {array.dtype} is not an image")
    return array
