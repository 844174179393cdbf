"""Arrays to artefacts: the public way into RIPPLe for pixels that come from elsewhere.

ripple.write_cutouts("cutouts", image, "gri", {"label": y}, variance=v, pixel_scale=0.2)
ripple.write_tensors("tensors", x, "gri", {"label": y}, class_map={0: "nonlens", 1: "lens"})
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Config
from ripple.errors import DataError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch, TensorBatch, unsigned_bits
from ripple.sky.geometry import Tan, off_sky
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.labels import checked_map, read_labels
from ripple.storage.python_tables import ANGLES, ID_NAMES, PlainColumn, exact_ids, known_name, plain_table
from ripple.storage.shard_writer import pack_cutouts, pack_tensors
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Flux units in nJy.
NANOJANSKY = {"nJy": 1.0, "uJy": 1e3, "µJy": 1e3, "mJy": 1e6, "Jy": 1e9}
# Bytes of image in a shard, and rows when images are tiny: a shard is read and verified as a whole.
_SHARD_BYTES = 1 << 27
_MAX_ROWS = 4096


class WriteConfig(Config):
    """What the bytes depend on besides the arrays."""

    verb: ClassVar[str] = "write"
    bands: tuple[str, ...]
    size: tuple[int, int]
    pixel_scale: float
    unit: str
    rows_per_shard: int
    facts: dict[str, Any]


def write_cutouts(
    directory: Path | str,
    image: Any,
    bands: Sequence[str],
    catalog: Any = None,
    *,
    variance: Any = None,
    mask: Any = None,
    mask_planes: Sequence[str] = (),
    psf: Any = None,
    psf_index: Any = None,
    psf_cells: NDArray[np.int32] | None = None,
    pixel_scale: float = 0.2,
    class_map: Mapping[Any, str] | None = None,
    unit: str = "nJy",
    wcs: Tan | Mapping[int, Tan] | None = None,
    margin: int = 0,
    rows_per_shard: int | None = None,
) -> Artefact:
    """Write a cutout set from arrays, with the guarantees of `ripple fetch`: atomic, resumable, verified.

    Parameters
    ----------
    directory
        New, empty, or begun by the same call; one that is complete is returned as it is.
    image
        `(N, B, H, W)` flux; NaN or infinite where there is no pixel. Read shard by shard, so an `np.memmap`
        or an HDF5 data set need not fit into memory.
    bands
        B names, e.g. `"gri"` or `["g", "r", "i"]`.
    catalog
        N rows by column: a mapping, a structured array, a pyarrow, pandas or astropy table. `id`, `ra`, `dec`
        (ICRS, in their unit, else deg), sky coordinates and `label` have their usual meaning; missing ones
        are filled with row numbers and NaN. Masked positions are NaN, masked labels -1.
    variance
        Like `image`, in the square of its unit; without it all NaN, which means "unknown".
    mask, mask_planes
        Integers like `image` and the name of each bit. NO_DATA is set where there is no pixel.
    psf, psf_index
        `(K, K)` one for all, `(B, K, K)` one per band, `(N, B, K, K)` one per row and band, or `(M, K, K)`
        with `psf_index` `(N, B)`, -1 for none. K odd, centre pixel `K // 2`; scaled to sum 1.
    psf_cells
        `(L, 7)` parts of cutouts with another PSF, as in `ripple.imaging.batch.CutoutBatch`.
    pixel_scale
        Arcsec per pixel.
    class_map
        Label value -> class name; labels that are names are numbered by it.
    unit
        nJy, uJy, mJy or Jy; stored as nJy.
    wcs
        A projection for all rows, or one per value of the catalog's `tract`. Rows then need `x0`, `y0`.
    margin
        Pixels on each side that only the matching of PSFs is to use; `preprocess` cuts them off.
    rows_per_shard
        By default as many as make about 128 MiB of image.

    Raises
    ------
    DataError
        A shape, unit or value is wrong; the message names the argument and the first row.
    ConfigError
        The directory was written from different arrays or with different options.
    WriteError
        The directory cannot be written.
    """
    shape, names = _shape(image, bands)
    scale = _scale(unit)
    for name, array in (("variance", variance), ("mask", mask)):
        if array is not None and tuple(array.shape) != shape:
            raise DataError(f"{name} has shape {tuple(array.shape)}, but image has {shape}")
    if not 0 <= 2 * margin < min(shape[2:]):
        raise DataError(f"a margin of {margin} px leaves nothing of {shape[3]} x {shape[2]} px")
    planes = _planes(mask, mask_planes)
    kernels, which = _kernels(psf, psf_index, shape)
    cells = _cells(psf_cells, shape, len(kernels))
    columns, classes = _catalog(catalog, shape, class_map)
    # One projection for all rows belongs to the tract of the first.
    projections = wcs if isinstance(wcs, Mapping) else {} if wcs is None else {int(columns["tract"][0]): wcs}

    def batch(rows: slice) -> CutoutBatch:
        flux = _flux(image[rows], scale)
        return CutoutBatch(
            bands=names,
            image=flux,
            variance=_variance(variance, rows, flux, scale),
            mask=_mask(mask, rows, flux, planes),
            mask_planes=planes,
            psf=kernels,
            psf_index=which[rows],
            psf_cells=_cells_of(cells, rows),
            catalog=_rows_of(columns, rows, flux),
            wcs=dict(projections),
            pixel_scale=pixel_scale,
        )

    facts = {
        "mask_planes": list(planes),
        "wcs": {str(t): tan.cards() for t, tan in projections.items()},
        "class_map": classes,
        # Absent without one, so that calls without it keep their digests.
        **({"margin": margin} if margin else {}),
    }
    config = _config(shape, names, pixel_scale, unit, rows_per_shard, facts)
    arrays = {
        "image": image,
        "variance": variance,
        "mask": mask,
        "psf": kernels,
        "psf_index": which,
        # Absent without parts, so that calls without them keep their checksums.
        "psf_cells": cells if len(cells) else None,
        **columns,
    }
    return _write(Path(directory), "cutouts", config, arrays, columns, batch, pack_cutouts)


def write_tensors(
    directory: Path | str,
    image: Any,
    bands: Sequence[str],
    catalog: Any = None,
    *,
    valid: Any = None,
    pixel_scale: float = 0.2,
    psf_fwhm: float = float("nan"),
    normalization: Mapping[str, Any] | None = None,
    class_map: Mapping[Any, str] | None = None,
    unit: str = "nJy",
    dtype: Literal["float16", "float32"] = "float32",
    rows_per_shard: int | None = None,
) -> Artefact:
    """Write a tensor set from arrays that are ready for a network.

    Parameters
    ----------
    directory, bands, catalog, pixel_scale, rows_per_shard
        As in `write_cutouts`.
    image
        `(N, B, H, W)`, normalised, finite everywhere.
    valid
        Like `image`, true where the pixel is a measurement; by default everywhere.
    psf_fwhm
        FWHM of the common PSF in arcsec; NaN when there is none.
    normalization
        How `image` was normalised, as JSON values; a model trained on it requires the same.
    class_map
        As in `write_cutouts`.
    unit
        Unit before normalisation.
    dtype
        Type on disk.

    Raises
    ------
    DataError, ConfigError, WriteError
        As in `write_cutouts`; also when a value is not finite.
    """
    shape, names = _shape(image, bands)
    if valid is not None and tuple(valid.shape) != shape:
        raise DataError(f"valid has shape {tuple(valid.shape)}, but image has {shape}")
    columns, classes = _catalog(catalog, shape, class_map)
    # The columns of `ripple preprocess`: without quality measures every row is accepted.
    columns.setdefault("accept", np.ones(shape[0], np.uint8))
    columns.setdefault("qc", np.zeros(shape[0], np.uint64))
    method = dict(normalization or {"method": "none"})

    def batch(rows: slice) -> TensorBatch:
        pixels = _finite(np.asarray(image[rows]), rows.start, dtype)
        good = np.ones(pixels.shape, bool) if valid is None else np.asarray(valid[rows]) != 0
        return TensorBatch(
            bands=names,
            image=pixels,
            valid=good.astype(np.uint8),
            catalog=_rows_of(columns, rows, pixels),
            pixel_scale=pixel_scale,
            psf_fwhm=psf_fwhm,
            normalization=method,
            class_map=classes,
            unit=unit,
        )

    fwhm = None if np.isnan(psf_fwhm) else float(psf_fwhm)  # JSON has no NaN
    facts = {"dtype": dtype, "psf_fwhm": fwhm, "normalization": method, "class_map": classes}
    config = _config(shape, names, pixel_scale, unit, rows_per_shard, facts)
    arrays = {"image": image, "valid": valid, **columns}
    return _write(Path(directory), "tensors", config, arrays, columns, batch, pack_tensors)


# Common -------------------------------------------------------------


def _write(
    directory: Path,
    kind: str,
    config: WriteConfig,
    arrays: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]],
    batch: Callable[[slice], Any],
    pack: Callable[[Any, Any], bytes],
) -> Artefact:
    """Hash the arrays, then write and commit them shard by shard; returns the finished artefact."""
    n = len(columns["index"])
    slices = [slice(k, min(k + config.rows_per_shard, n)) for k in range(0, n, config.rows_per_shard)]
    # A first pass over all arrays: their checksums tell whether a directory is to be resumed or refused.
    inputs = {
        name: _digest(array, config.rows_per_shard)
        for name, array in sorted(arrays.items())
        if array is not None
    }
    opened = create(directory, kind=kind, config=config, inputs=inputs, units=len(slices))
    if isinstance(opened, Finished):
        return opened.artefact
    with opened as writer:
        present = np.zeros(n, np.uint32)
        for unit, rows in enumerate(slices):
            part = batch(rows)
            # Also of shards that are already there: the index needs the bands of every row.
            present[rows] = part.catalog["band_mask"]
            if writer.done(unit) is None:
                writer.commit(unit, pack(part, {}), len(part), {})
        _finish(writer, config, columns, present)
    return open_artefact(directory)


def _finish(
    writer: ArtefactWriter,
    config: WriteConfig,
    columns: Mapping[str, NDArray[Any]],
    present: NDArray[np.uint32],
) -> None:
    """Write the index and the manifest; `present` is `(N,)` bits of the bands that each row has."""
    n, full = len(present), (1 << len(config.bands)) - 1
    # Columns with more than one value per row stay in the shards.
    index = {
        name: column for name, column in columns.items() if column.ndim == 1 and name not in ("x0", "y0")
    }
    # PARENT pixels of the target: first pixel, central pixel (N // 2) and offset.
    index["x"] = columns["x0"] + config.size[1] // 2 + columns["dx"].astype(np.float64)
    index["y"] = columns["y0"] + config.size[0] // 2 + columns["dy"].astype(np.float64)
    # The words of `ripple fetch`: a row without any pixel is rejected, one that lacks a band is partial.
    index["status"] = np.where(present == full, "ok", np.where(present == 0, "rejected", "partial"))
    index["reason"] = np.where(present == full, "", np.where(present == 0, "no_dataset", "missing_band"))
    index["bands"] = np.array(
        ["".join(b for k, b in enumerate(config.bands) if bits >> k & 1) for bits in present.tolist()],
        np.str_,
    )
    # Shards are filled one after another, so the place of a row follows from its number.
    numbers = np.arange(n, dtype=np.int64)
    index["shard"] = (numbers // config.rows_per_shard).astype(np.int32)
    index["row"] = (numbers % config.rows_per_shard).astype(np.int32)
    table = pa.table({name: pa.array(column) for name, column in index.items()})
    margin = config.facts.get("margin", 0)
    attributes = {
        "bands": list(config.bands),
        "size": [side - 2 * margin for side in config.size],
        **({"margin": margin} if margin else {}),
        "pixel_scale": config.pixel_scale,
        "class_map": config.facts["class_map"],
    }
    writer.finish(table, {}, attributes, asked=n)


def _shape(image: Any, bands: Sequence[str]) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    shape, names = tuple(image.shape), tuple(bands)
    if len(shape) != 4 or min(shape[1:], default=0) == 0:
        raise DataError(f"image has shape {shape}, but must be (N, B, H, W)")
    if len(names) != shape[1] or len(set(names)) != len(names):
        raise DataError(f"bands: {len(names)} names for {shape[1]} distinct bands of image")
    if np.dtype(image.dtype).kind not in "fiu":
        raise DataError(f"image has dtype {image.dtype}, but must be numbers")
    return shape, names


def _config(
    shape: tuple[int, int, int, int],
    bands: tuple[str, ...],
    pixel_scale: float,
    unit: str,
    rows: int | None,
    facts: Mapping[str, object],
) -> WriteConfig:
    fit = max(1, min(_MAX_ROWS, _SHARD_BYTES // (4 * int(np.prod(shape[1:])))))
    values = {
        "bands": bands,
        "size": shape[2:],
        "pixel_scale": pixel_scale,
        "unit": unit,
        "facts": facts,
        "rows_per_shard": fit if rows is None else rows,
    }
    config = WriteConfig.make(values)
    if config.rows_per_shard < 1 or not config.pixel_scale > 0:
        raise DataError("rows_per_shard and pixel_scale must be positive")
    return config


def _digest(array: Any, rows: int) -> str:
    """SHA-256 of dtype, shape and values, `rows` at a time, so that nothing has to fit into memory."""
    kind = np.dtype(array.dtype)
    # Text by its characters: the same strings may come as objects or with another fixed width.
    digest = hashlib.sha256(f"{'text' if kind.kind in 'OU' else kind.str} {tuple(array.shape)}".encode())
    for start in range(0, array.shape[0], rows):
        part = np.asarray(array[start : start + rows])
        text = "\0".join(map(str, part.tolist())).encode() if kind.kind in "OU" else b""
        digest.update(text or np.ascontiguousarray(part).data)
    return digest.hexdigest()


# Catalog ------------------------------------------------------------


def _catalog(
    table: Any, shape: tuple[int, int, int, int], class_map: Mapping[Any, str] | None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The user's columns, with defaults for those that every shard has, and the class map."""
    n = shape[0]
    plain = plain_table(table)
    given = {name: _without_gaps(name, column) for name, column in plain.items()}
    for name, column in given.items():
        if column.ndim == 0 or len(column) != n:
            raise DataError(f"catalog column {name!r} has shape {column.shape}, but image has {n} rows")
        if column.dtype.kind not in "iufbSUO":
            raise DataError(
                f"catalog column {name!r} is of type {column.dtype}", hint="give numbers, booleans or text"
            )
    # Ids join artefacts with each other and with the user's tables.
    id_name = known_name(list(given), ID_NAMES)
    ids = given.pop(id_name) if id_name else np.arange(n, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iufSUO":
        raise DataError(f"catalog column {id_name!r} has shape {ids.shape} and type {ids.dtype}: no ids")
    ids = exact_ids(ids, f"catalog column {id_name!r}")
    if len(set(ids.tolist())) != n:
        raise DataError(
            f"catalog column {id_name!r}: the ids are not distinct", hint="give every row its own"
        )
    columns: dict[str, NDArray[Any]] = {"index": np.arange(n, dtype=np.int64), "id": ids}
    defaults = {
        "ra": (np.nan, np.float64),
        "dec": (np.nan, np.float64),
        "tract": (-1, np.int32),
        "patch": (-1, np.int32),
        "x0": (0, np.int32),
        "y0": (0, np.int32),
        "dx": (0, np.float32),
        "dy": (0, np.float32),
    }
    for name, (value, dtype) in defaults.items():
        if name in given and (given[name].ndim != 1 or given[name].dtype.kind not in "iufb"):
            found = given[name]
            raise DataError(
                f"catalog column {name!r} has shape {found.shape} and type {found.dtype}, "
                f"expected {n} numbers"
            )
        columns[name] = given[name].astype(dtype) if name in given else np.full(n, value, dtype)
    for name in ("ra", "dec"):
        columns[name] *= _degrees(name, plain[name].unit) if name in plain else 1.0
    _check_positions(columns["ra"], columns["dec"])
    classes = checked_map(class_map or {}, "class_map")
    if "label" in plain:
        names = tuple(classes.get(str(k), "") for k in range(max(map(int, classes), default=-1) + 1))
        columns["label"], names = read_labels(plain["label"].values, names, "catalog column 'label'")
        classes = classes or {str(k): name for k, name in enumerate(names)}
    # Columns that RIPPLe computes; those of the table are left out.
    reserved = {"index", "band_mask", "shard", "row", "status", "reason", "bands", "x", "y"}
    user = {name: column for name, column in given.items() if name not in {*columns, *reserved}}
    return {**columns, **user}, classes


def _without_gaps(name: str, column: PlainColumn) -> NDArray[Any]:
    """The values, with NaN, -1 or empty text where they are masked."""
    values = column.values
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if name.lower() in {k.lower() for k in ID_NAMES}:
        row = int(np.argmax(np.ma.getmaskarray(values)))
        raise DataError(f"catalog column {name!r} is masked in row {row}, counted from 0")
    data = values.data
    if data.dtype.kind in "iub":
        # Whole numbers with gaps stay whole; what does not fit is text.
        fits = data.dtype.kind != "u" or data.dtype.itemsize < 8 or int(data.max(initial=0)) < 2**63
        return (
            np.where(values.mask, -1, data.astype(np.int64))
            if fits
            else np.where(values.mask, "", data.astype(str))
        )
    return values.filled("" if data.dtype.kind in "SU" else np.nan)


def _check_positions(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> None:
    """Refuse positions that are not on the sky; both NaN is an unknown one."""
    wrong = off_sky(ra, dec)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise DataError(
            f"catalog: position ra {ra[k]}, dec {dec[k]} in row {k}, counted from 0, is not on the sky",
            hint="in deg ICRS; NaN for both where it is not known",
        )


def _degrees(name: str, unit: str) -> float:
    if unit and unit.lower() not in ANGLES:
        raise DataError(f"catalog column {name!r}: {unit!r} is not a unit of angle")
    return ANGLES[unit.lower()] if unit else 1.0


def _rows_of(
    columns: Mapping[str, NDArray[Any]], rows: slice, image: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The columns of these rows, with `band_mask`: one bit for each band that has a finite pixel."""
    part = {name: column[rows] for name, column in columns.items()}
    has = np.isfinite(image).any(axis=(2, 3))  # (n, B)
    part["band_mask"] = (has << np.arange(has.shape[1], dtype=np.uint32)).sum(axis=1).astype(np.uint32)
    return part


# Planes -------------------------------------------------------------


def _scale(unit: str) -> float:
    if unit not in NANOJANSKY:
        raise DataError(
            f"unit {unit!r} is not a flux unit",
            hint=f"give one of {', '.join(NANOJANSKY)}; convert counts with their zero point",
        )
    return NANOJANSKY[unit]


def _flux(part: Any, scale: float) -> NDArray[np.float32]:
    """Pixels in nJy, NaN where there is none; a copy, since the caller's array must not change."""
    flux: NDArray[np.float32] = np.asarray(part).astype(np.float32)
    if scale != 1.0:
        flux *= np.float32(scale)
    flux[~np.isfinite(flux)] = np.nan
    return flux


def _variance(variance: Any, rows: slice, flux: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Variance in nJy², NaN where there is no pixel."""
    if variance is None:
        return np.full(flux.shape, np.nan, np.float32)
    # In double precision, so that the factor (1e18 for Jy) costs no digits.
    part: NDArray[np.float32] = (np.asarray(variance[rows], np.float64) * scale**2).astype(np.float32)
    bad = np.flatnonzero((part < 0).any(axis=(1, 2, 3)))
    if len(bad):
        raise DataError(f"variance is negative in row {rows.start + bad[0]}")
    part[np.isnan(flux)] = np.nan
    return part


def _planes(mask: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Names of the bits, lowest first; NO_DATA is added when the caller's planes lack it."""
    planes = tuple(names) if mask is not None else MASK_PLANES
    if mask is not None and np.dtype(mask.dtype).kind not in "iub":
        raise DataError(f"mask has dtype {mask.dtype}, but must be integers")
    if mask is not None and not planes:
        raise DataError("mask_planes is empty", hint="give the name of each bit of mask, lowest first")
    # Every reader of cutouts looks for NO_DATA. 32 planes fill the bits of uint32.
    planes = planes if "NO_DATA" in planes else (*planes, "NO_DATA")
    if len(planes) > 32 or len(set(planes)) != len(planes):
        raise DataError(f"mask_planes has {len(planes)} names, but must have at most 32, all distinct")
    return planes


def _mask(mask: Any, rows: slice, flux: NDArray[np.float32], planes: tuple[str, ...]) -> NDArray[np.uint32]:
    """Mask bits, with NO_DATA where there is no pixel."""
    given = np.zeros(flux.shape, np.uint32) if mask is None else np.asarray(mask[rows])
    wide = unsigned_bits(given)
    # A bit without a name would mean nothing to any reader.
    unnamed = np.flatnonzero((wide >> np.uint64(len(planes))).any(axis=(1, 2, 3)))
    if len(unnamed):
        raise DataError(f"mask: row {rows.start + unnamed[0]} has bits beyond the {len(planes)} planes")
    bits = wide.astype(np.uint32)
    bits[np.isnan(flux)] |= np.uint32(1 << planes.index("NO_DATA"))
    return bits


def _kernels(
    psf: Any, psf_index: Any, shape: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Kernels `(M, K, K)` of sum 1, and which of them each row and band has, `(N, B)`."""
    n, b = shape[:2]
    if psf is None:
        return np.zeros((0, 1, 1), np.float32), np.full((n, b), -1, np.int32)
    kernels = np.asarray(psf, np.float64)
    if psf_index is not None:
        which = np.asarray(psf_index)
    elif kernels.ndim == 2:
        kernels, which = kernels[None], np.zeros((n, b))
    elif kernels.ndim == 3 and len(kernels) == b:
        # Without an index, B kernels are one per band, for all rows.
        which = np.tile(np.arange(b), (n, 1))
    else:
        which = np.arange(n * b).reshape(n, b)
        if kernels.shape[:2] != (n, b):
            raise DataError(
                f"psf has shape {kernels.shape}, which does not match the image", hint="see write_cutouts"
            )
    kernels = kernels.reshape(-1, *kernels.shape[-2:])
    if kernels.shape[1] != kernels.shape[2] or kernels.shape[1] % 2 == 0:
        raise DataError(f"psf has kernels of {kernels.shape[1:]}, but they must be square with an odd side")
    total = kernels.sum(axis=(1, 2))  # (M,)
    bad = np.flatnonzero(~(np.isfinite(total) & (total > 0)))
    if len(bad):
        raise DataError(f"psf: kernel {bad[0]} sums to {total[bad[0]]:g}, but must be positive and finite")
    if which.shape != (n, b) or which.min(initial=-1) < -1 or which.max(initial=-1) >= len(kernels):
        raise DataError(f"psf_index must have shape ({n}, {b}) and values from -1 to {len(kernels) - 1}")
    return (kernels / total[:, None, None]).astype(np.float32), which.astype(np.int32)


def _cells(given: Any, shape: tuple[int, int, int, int], kernels: int) -> NDArray[np.int32]:
    """Parts of cutouts with another PSF, `(L, 7)`, by row."""
    cells = np.empty((0, 7), np.int32) if given is None else np.asarray(given)
    if cells.ndim != 2 or cells.shape[1] != 7 or cells.dtype.kind not in "iu":
        raise DataError(f"psf_cells has shape {cells.shape} and type {cells.dtype}, expected (L, 7) integers")
    row, band, y0, y1, x0, x1, psf = cells.T
    n, b, h, w = shape
    limits = ((row, n), (band, b), (y0, y1), (y1, h + 1), (x0, x1), (x1, w + 1), (psf, kernels))
    if (
        not all(((column >= 0) & (column < limit)).all() for column, limit in limits)
        or (np.diff(row) < 0).any()
    ):
        raise DataError("psf_cells: rows not ascending, or parts outside the cutouts or psf")
    return cells.astype(np.int32)


def _cells_of(cells: NDArray[np.int32], rows: slice) -> NDArray[np.int32]:
    """The parts of some rows, which then count from 0."""
    first, last = np.searchsorted(cells[:, 0], (rows.start, rows.stop))
    part = cells[first:last].copy()
    part[:, 0] -= rows.start
    return part


def _finite(part: NDArray[Any], first: int, dtype: str) -> NDArray[Any]:
    """Pixels as `dtype`; raises when one of them is not finite, or does not fit into it."""
    # Beyond 65504, float16 becomes infinite, which is reported below.
    with np.errstate(over="ignore"):
        pixels = part.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2, 3)))
    if len(bad):
        raise DataError(
            f"image: row {first + bad[0]} is not finite in {dtype}", hint="fill or normalise it first"
        )
    return pixels
