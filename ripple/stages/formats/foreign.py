"""Readers of foreign cutouts: DeepLense folders, arrays in `.npz` and HDF5, Multimodal Universe files.

A reader lists its rows without reading pixels, then reads one row at a time. A row that cannot be read is an
`Unreadable`, never an exception: one damaged file does not stop an import. FITS is in `fits_cutouts`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.stages.formats.foreign_cutout import (
    DAMAGE,
    HSC_SCALE,
    Float,
    ForeignCutout,
    Keys,
    Listing,
    Unreadable,
    one_line,
)
from ripple.stages.formats.mask_meaning import planes_of_mask
from ripple.stages.formats.source_files import SourceFiles
from ripple.storage.labels import KNOWN_MAPS, known_map, plain_class, read_labels
from ripple.storage.python_tables import exact_ids

# DeepLense -----------------------------------------------------------

# As in `train_lenses`, `testing-no`, or the folder `validation` itself.
_SPLIT = re.compile(r"^(train|test|validation|valid|val)(?:ing|ation)?(?:[_\-]|$)")


def folder_meaning(name: str) -> tuple[str, str]:
    """Split and class that a folder name means, each empty when the name does not say.

    `train_lenses` -> `("train", "lens")`, `test_nonlenses` -> `("test", "nonlens")`, `sphere` ->
    `("", "sphere")`.
    """
    low = name.lower()
    found = _SPLIT.match(low)
    split = ""
    if found:
        split = "validation" if found[1].startswith("val") else found[1]
        low = low[found.end() :]
    return split, plain_class(low) if low else ""


def deeplense(root: Path, bands: tuple[str, ...], classes: tuple[str, ...]) -> Listing:
    """Folders of `.npy` files, one `(B, H, W)` or `(H, W)` image each; folder names say class and split.

    A folder is a class when `classes` names it or, without `classes`, when it is one of `KNOWN_MAPS`.

    Raises
    ------
    DataError
        No `.npy` file is below `root`, an image lies in no folder of `classes`, or the folders belong to
        several of the known sets.
    """
    paths = tuple(sorted(root.rglob("*.npy"))) if root.is_dir() else ()
    if not paths:
        raise DataError(f"{root}: no .npy file there", hint="give the folder that contains the class folders")
    usual = {name for names in KNOWN_MAPS for name in names}
    meanings = [_meaning(path.relative_to(root), set(map(plain_class, classes)) or usual) for path in paths]
    found = {kind for _, kind in meanings if kind}
    order = classes or known_map(found)
    if found and not order:
        raise DataError(
            f"{root}: the folders {', '.join(sorted(found))} belong to no set of classes that is known",
            hint="name the classes in the order of their labels with --classes",
        )
    nameless = [path for path, (_, kind) in zip(paths, meanings, strict=True) if not kind]
    if classes and (elsewhere := [p for p in nameless if p.parent != root]):
        raise DataError(
            f"{root}: {len(elsewhere)} images lie in no folder of a class, as "
            f"{elsewhere[0].relative_to(root)}",
            hint=f"--classes only names {', '.join(order)}",
        )
    labels = {plain_class(kind): k for k, kind in enumerate(order)}
    files = SourceFiles()
    # The first image that can be read tells the number of bands of all.
    peeked = (_peek(files.read(path)) for path in paths[:100])
    first = next((image for image in peeked if image is not None), None)
    if first is None:
        raise DataError(
            f"{root}: none of the first .npy files contains an image",
            hint=f"{paths[0].name} is not an array of numbers (H, W), (B, H, W) or (H, W, B)",
        )
    count = len(first)
    # The lens-finding sets have three bands, g, r and i of HSC; the simulated ones have one without name.
    known = bands or (("g", "r", "i") if count == 3 else ("mono",) if count == 1 else ())

    def read(row: int) -> ForeignCutout | Unreadable:
        path, (split, kind) = paths[row], meanings[row]
        name = path.relative_to(root).with_suffix("").as_posix()
        try:
            image = _image(_npy(files.read(path)), len(known))
        except DAMAGE as err:
            return Unreadable(name, one_line(err))
        return ForeignCutout(
            name, image, label=labels.get(kind, -1), columns={"split": split} if split else {}
        )

    # Simulated sets have no pixel scale in the files: the user gives one.
    scale = HSC_SCALE if count == 3 else None
    notes = []
    if count == 3 and not bands:
        notes.append(
            f"three bands without names were taken for g, r, i at {HSC_SCALE} arcsec per pixel, as in the "
            "DeepLense sets of HSC; --bands and --pixel-scale say otherwise"
        )
    if nameless:
        notes.append(
            f"{len(nameless):,} images lie in no folder that is a class and have no label, as "
            f"{nameless[0].relative_to(root)}; --classes names classes"
        )
    return Listing(len(paths), known, scale, order if found else (), read, paths, files, tuple(notes))


def _meaning(path: Path, classes: set[str]) -> tuple[str, str]:
    """Split and class of a file: of the innermost folder that says one of these classes."""
    split = kind = ""
    for part in reversed(path.parts[:-1]):
        a, b = folder_meaning(part)
        split, kind = split or a, kind or (b if b in classes else "")
    return split, kind


def _npy(data: bytes) -> NDArray[Any]:
    # Without pickles, which could run any code.
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _peek(data: bytes) -> Float | None:
    """The image of a file to learn the number of bands from, or None when it cannot be read."""
    try:
        return _image(_npy(data), 0)
    except DAMAGE:
        return None


def _image(array: NDArray[Any], bands: int) -> Float:
    """`(B, H, W)` float32 of an array that may be `(H, W)` or `(H, W, B)`."""
    if array.dtype.kind not in "iufb":
        raise ValueError(f"an array of dtype {array.dtype} is not an image")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ValueError(f"an array of shape {array.shape} is not an image")
    # Without names: at most six bands (ugrizy), and no image is that small.
    last = array.shape[2] == bands != array.shape[0] if bands else array.shape[2] <= 6 < array.shape[0]
    if last:
        array = np.moveaxis(array, 2, 0)
    if bands and array.shape[0] != bands:
        raise ValueError(f"the image has shape {array.shape}, expected {bands} bands")
    return np.ascontiguousarray(array, np.float32)


# Arrays --------------------------------------------------------------


def arrays(
    path: Path,
    bands: tuple[str, ...],
    keys: Keys,
    *,
    mask: str,
    mask_bits: Mapping[str, int],
    classes: tuple[str, ...] = (),
) -> Listing:
    """A `.npz` or HDF5 file with an `(N, B, H, W)`, `(N, H, W)` or `(N, H, W, B)` array.

    Parameters
    ----------
    path
        The file.
    bands
        Names of the bands; their number tells `(N, H, W, B)` from `(N, B, H, W)`.
    keys
        Names of the arrays in it. One-dimensional arrays of length N under other names become columns.
    mask
        What 1 means in a mask of 0 and 1: `bad`, `good` or `ignore`.
    mask_bits
        Mask plane -> bit, for integer masks.
    classes
        Class names by label value.

    Raises
    ------
    DataError
        The file cannot be read, or has no such array; a label or an id is not understood.
    """
    files = SourceFiles()
    table = _open_arrays(path, files)
    image_key = keys.image if keys.image in table else _only_image(path, table, keys.image)
    shape = table[image_key].shape
    if len(shape) not in (3, 4):
        raise DataError(f"{path}: {image_key!r} has shape {shape}, expected (N, B, H, W)")
    rows, count = shape[0], len(bands)
    # As in `_image`: by the number of named bands, or by which axis is short enough to be bands.
    channels_last = len(shape) == 4 and (shape[3] == count != shape[1] if count else shape[3] <= 6 < shape[1])
    found = 1 if len(shape) == 3 else shape[3] if channels_last else shape[1]
    if count and found != count:
        raise DataError(f"{path}: {image_key!r} has {found} bands, but {count} are named")
    planes = {k: getattr(keys, k) for k in ("variance", "mask", "psf") if getattr(keys, k) in table}
    columns = _columns(table, rows, keys, {image_key, *planes.values(), keys.label})
    labels, classes = _labels(table, keys.label, rows, classes, str(path))
    if "id" in columns:
        columns["id"] = exact_ids(columns["id"], f"{path}: {keys.id}")
    for name, key in (("ra", keys.ra), ("dec", keys.dec)):
        if name in columns and columns[name].dtype.kind not in "iuf":
            raise DataError(
                f"{path}: {key!r} is of type {columns[name].dtype}", hint="give numbers in deg ICRS"
            )

    def read(row: int) -> ForeignCutout | Unreadable:
        try:
            got = {name: np.asarray(table[key][row]) for name, key in planes.items()}
            image = _planes(np.asarray(table[image_key][row]), channels_last)
            bits = _planes(got["mask"], channels_last) if "mask" in got and mask != "ignore" else None
            if bits is not None:
                bits = planes_of_mask(bits, mask_bits, meaning=mask, where=f"row {row} of {keys.mask}")
        except DAMAGE as err:
            return Unreadable(str(row), one_line(err))
        # Columns that RIPPLe knows are taken out below; what is left are the user's own.
        facts = {name: _plain(values[row]) for name, values in columns.items()}
        return ForeignCutout(
            id=str(facts.pop("id", row)),
            image=image.astype(np.float32),
            variance=_some(_planes(got["variance"], channels_last)) if "variance" in got else None,
            mask=bits,
            psf=_psf(got["psf"], found) if "psf" in got else None,
            ra=float(facts.pop("ra", "nan")),
            dec=float(facts.pop("dec", "nan")),
            label=int(labels[row]),
            columns=facts,
        )

    return Listing(rows, bands, None, classes, read, (path,), files)


def _labels(
    table: Mapping[str, Any], key: str, rows: int, classes: tuple[str, ...], name: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels `(N,)` of a file and the class names; -1 everywhere when it has none."""
    if key not in table:
        return np.full(rows, -1, np.int64), classes
    values = np.asarray(table[key][:])
    if len(values) != rows:
        raise DataError(f"{name}: {len(values)} values of {key!r} for {rows} images")
    return read_labels(values, classes, f"{name}: {key}")


def _open_arrays(path: Path, files: SourceFiles) -> Mapping[str, Any]:
    """Name -> array with a shape and access by row; HDF5 data sets stay in the file."""
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(files.read(path)), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        # Before it is opened: HDF5 may read any part of it from here on.
        files.pin(path)
        file = h5py.File(path, "r")
        found: dict[str, Any] = {}
        # visititems does not follow soft or external links.
        file.visititems(lambda name, item: _keep(found, name, item))
    except DAMAGE as err:
        raise DataError(f"{path}: cannot be read: {one_line(err)}") from None
    return found


def _keep(found: dict[str, Any], name: str, item: Any) -> None:
    """Add a data set that lies in this file: external and virtual ones could read any other."""
    if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual and item.ndim:
        found[name] = item


def _only_image(path: Path, table: Mapping[str, Any], wanted: str) -> str:
    """The one array that can be images, when none has the name that is given or expected."""
    images = [name for name, array in table.items() if len(array.shape) in (3, 4)]
    if len(images) != 1:
        names = ", ".join(sorted(table)) or "nothing"
        raise DataError(
            f"{path}: no array {wanted!r}", hint=f"name it with --set image_key=NAME; the file has {names}"
        )
    return images[0]


def _columns(table: Mapping[str, Any], rows: int, keys: Keys, used: set[str]) -> dict[str, NDArray[Any]]:
    """Arrays with one value per row, under the names that RIPPLe uses."""
    ours = {getattr(keys, name): name for name in ("id", "ra", "dec")}
    out = {}
    for key, array in table.items():
        # `(N, 1)` is how some programs write a column.
        flat = len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)
        if key not in used and flat and array.shape[0] == rows and array.dtype.kind in "iufbSUO":
            out[ours.get(key, key.replace("/", "_"))] = np.asarray(array[:]).reshape(rows)
    return out


def _plain(value: Any) -> float | int | str:
    """A value of numpy or HDF5 as one of Python."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    plain: float | int | str = value.item() if isinstance(value, np.generic) else value
    return plain


def _planes(array: NDArray[Any], channels_last: bool) -> NDArray[Any]:
    """One row as `(B, H, W)`."""
    if array.ndim == 2:
        return array[None]
    return np.moveaxis(array, 2, 0) if channels_last else array


def _some(array: NDArray[Any]) -> Float | None:
    """Variance, or None when it is empty or all zero, which no measurement is."""
    values = np.asarray(array, np.float32)
    return values if values.size and np.nanmax(np.abs(values), initial=0.0) > 0 else None


def _psf(array: NDArray[Any], bands: int) -> tuple[Float, ...]:
    """One PSF image per band; a single one serves all bands."""
    values = np.asarray(array, np.float32)
    return (values,) * bands if values.ndim == 2 else tuple(values)


# Multimodal Universe -------------------------------------------------


def multimodal_universe(
    root: Path, bands: tuple[str, ...], *, mask: str, classes: tuple[str, ...] = ()
) -> Listing:
    """Files `healpix=*/*.hdf5` of the Multimodal Universe, or one such file.

    Parameters
    ----------
    root
        Folder or file.
    bands
        Names of the bands; by default the last part of those in the file (`hsc-g` -> `g`).
    mask
        What true means in `image_mask`: `bad` (HSC), `good` (JWST) or `ignore`.
    classes
        Class names by label value; by default as the files say.

    Raises
    ------
    DataError
        There is no such file, or it lacks arrays.
    """
    paths = (root,) if root.is_file() else tuple(sorted([*root.rglob("*.hdf5"), *root.rglob("*.h5")]))
    if not paths:
        raise DataError(f"{root}: no .hdf5 file there")
    files = SourceFiles()
    tables = [_open_arrays(path, files) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if "image_array" not in table or "object_id" not in table:
            raise DataError(
                f"{path}: no image_array and object_id", hint="check that it is a Multimodal Universe file"
            )
    # First row of each file in the numbering of all.
    starts = np.cumsum([0, *(table["image_array"].shape[0] for table in tables)])
    # All rows of an artefact have one unit and one set of classes.
    facts = [_mmu_facts(path) for path in paths]
    if len(set(facts)) > 1:
        raise DataError(f"{root}: the files have different units or classes", hint="import them one by one")
    (unit, said), first = facts[0], tables[0]
    read_all = [
        _labels(table, "label", table["image_array"].shape[0], classes or said, str(path))
        for path, table in zip(paths, tables, strict=True)
    ]
    # Files without labels, or with numbers, bring no names along.
    named_by = {names for _, names in read_all if names}
    if len(named_by) > 1:
        raise DataError(f"{root}: the labels of the files name different classes", hint="use --classes")
    labels = np.concatenate([values for values, _ in read_all])
    ids = [
        exact_ids(np.asarray(table["object_id"][:]), f"{path}: object_id")
        for path, table in zip(paths, tables, strict=True)
    ]
    count = first["image_array"].shape[1]
    try:
        named = bands or _band_names(first, count)
        scale = float(np.asarray(first["image_scale"][0]).flat[0]) if "image_scale" in first else None
    except DAMAGE as err:
        raise DataError(f"{paths[0]}: cannot be read: {one_line(err)}", hint="it may be damaged") from None

    def read(row: int) -> ForeignCutout | Unreadable:
        k = int(np.searchsorted(starts, row, side="right")) - 1
        try:
            at = row - int(starts[k])
            found = _mmu_row(tables[k], at, named, mask)
            to_njy = np.ones(len(named)) if unit else None
            return replace(found, id=str(_plain(ids[k][at])), label=int(labels[row]), to_njy=to_njy)
        except DAMAGE as err:
            return Unreadable(f"{paths[k].name}:{row - starts[k]}", one_line(err))

    return Listing(int(starts[-1]), named, scale, next(iter(named_by), classes or said), read, paths, files)


def _mmu_facts(path: Path) -> tuple[str, tuple[str, ...]]:
    """`nJy` when the file says so, and its class names by label; files of `ripple export` have both."""
    try:
        with h5py.File(path, "r") as file:
            said = {
                name: str(_plain(file.attrs[name])) for name in ("unit", "class_map") if name in file.attrs
            }
    except DAMAGE as err:
        raise DataError(f"{path}: cannot be read: {one_line(err)}", hint="it may be damaged") from None
    try:
        names = json.loads(said.get("class_map", "{}"))
        classes = tuple(str(names[str(k)]) for k in range(len(names)))
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: class_map does not map labels 0, 1, ... to names") from None
    return "nJy" if said.get("unit") == "nJy" else "", classes


def _band_names(table: Mapping[str, Any], count: int) -> tuple[str, ...]:
    if "image_band" not in table:
        return ()
    names = [str(_plain(v)).replace("_", "-").split("-")[-1] for v in np.asarray(table["image_band"][0]).flat]
    return tuple(names) if len(set(names)) == count else ()


_IMAGES = ("image_array", "image_ivar", "image_mask", "image_psf_fwhm", "image_scale", "image_band")


def _mmu_row(table: Mapping[str, Any], row: int, bands: Sequence[str], mask: str) -> ForeignCutout:
    """One row of a file; `mask` says what true means in its mask."""
    image = np.asarray(table["image_array"][row], np.float32)
    rows = table["image_array"].shape[0]
    variance = bad = None
    if "image_ivar" in table:
        ivar = np.asarray(table["image_ivar"][row], np.float32)
        # Weight 0 means no measurement; the inner `where` avoids the division by it.
        variance = np.where(ivar > 0, 1.0 / np.where(ivar > 0, ivar, 1.0), np.nan).astype(np.float32)
        bad = ~(ivar > 0)
    if "image_mask" in table and mask != "ignore":
        flagged = np.asarray(table["image_mask"][row]) != 0
        flagged = ~flagged if mask == "good" else flagged
        bad = flagged if bad is None else bad | flagged
    # One-dimensional arrays of the file: the catalogue.
    columns = {
        name: _plain(array[row])
        for name, array in table.items()
        if name not in _IMAGES and array.shape == (rows,)
    }
    # In arcsec; --gaussian-psf makes kernels of these widths.
    if "image_psf_fwhm" in table:
        widths = np.asarray(table["image_psf_fwhm"][row], float)
        columns |= {f"psf_fwhm_{band}": float(w) for band, w in zip(bands, widths, strict=True)}
    columns.pop("label", None)
    return ForeignCutout(
        id=str(columns.pop("object_id")),
        image=image,
        variance=variance,
        bad=bad,
        ra=float(columns.pop("ra", "nan")),
        dec=float(columns.pop("dec", "nan")),
        columns=columns,
    )
