"""The layouts that `ripple export` writes. Every function yields how many rows it has just written.

Equal rows give equal bytes: no file contains a time, an owner or a path.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError
from ripple.report.cards import csv_bytes
from ripple.sky.geometry import Tan
from ripple.sky.splits import sky_cells
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.fits_names import fits_names
from ripple.stages.formats.fits_units import NJY_ZERO_POINT
from ripple.stages.formats.rows import Part, Source, splits
from ripple.stages.formats.tensor_errors import inverse_variance
from ripple.stages.formats.webdataset import CHECKSUM, checksum
from ripple.storage.files import write_new

#: HEALPix side of the cells of the Multimodal Universe: order 6, nested.
MMU_NSIDE = 64

#: Value of a FITS card.
Card = str | int | float

# Index columns about RIPPLe's own files, which mean nothing outside.
_OURS = ("shard", "row", "status", "reason", "detail", "bands")


def deeplense(source: Source, config: ExportConfig, directory: Path) -> Iterator[int]:
    """`{split}_{lenses,nonlenses}/0000000.npy` for lens finding, `{split}/{class}/...` for other classes."""
    labels = source.column("label", -1).astype(np.int64)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise DataError(
            f"{config.source}: row {row} has no label",
            hint="deeplense folders are classes, so fetch targets with labels",
        )
    # The lens-finding sets and those of substructure classes have different folders.
    lens_finding = source.class_map in ({"0": "nonlens", "1": "lens"}, {}) and labels.max(initial=0) <= 1
    split = splits(source, config)
    folders = []
    for label, part in zip(labels.tolist(), split.tolist(), strict=True):
        kind = ("nonlenses", "lenses")[label] if lens_finding else _safe(source.class_map, label)
        folders.append((f"{part}_{kind}" if part else kind) if lens_finding else f"{part}/{kind}".lstrip("/"))
    # All folders first: images are written in the order of shards.
    for folder in sorted(set(folders)):
        (directory / folder).mkdir(parents=True)
    names = [f"{folder}/{k:07d}.npy" for k, folder in enumerate(folders)]
    for part in source.parts():
        for k, image in zip(part.numbers.tolist(), part.image, strict=True):
            write_new(directory / names[k], npy_bytes(np.nan_to_num(image, nan=0.0)))
        yield len(part.numbers)
    _catalogue(source, directory, names)


def _safe(class_map: dict[str, str], label: int) -> str:
    """A class name as a folder name; `class<number>` when it has anything but letters, digits and _."""
    name = class_map.get(str(label), "")
    return name if name.isascii() and name.replace("_", "").isalnum() else f"class{label}"


def _catalogue(source: Source, directory: Path, files: list[str]) -> None:
    """Write `catalog.csv`: the file of each row, and the columns of the index that CSV can hold."""
    columns = {name: source.table[name] for name in source.table.column_names if name not in _OURS}
    flat = {name: c for name, c in columns.items() if not pa.types.is_nested(c.type)}
    write_new(directory / "catalog.csv", csv_bytes(pa.table({"file": pa.array(files), **flat})))


def multimodal_universe(source: Source, config: ExportConfig, directory: Path) -> Iterator[int]:
    """`healpix=CELL/001-of-001.hdf5`, nested HEALPix of order 6, one file per cell."""
    ra, dec = (source.column(name, np.nan).astype(float) for name in ("ra", "dec"))
    cells = sky_cells(ra, dec, MMU_NSIDE)
    if (cells < 0).any():
        raise DataError(
            f"{config.source}: {int((cells < 0).sum())} rows have no position, which mmu files need"
        )
    for cell in np.unique(cells):
        # A cell (0.8 square degrees) fits into memory; its rows may come from many shards.
        parts = list(source.parts(np.flatnonzero(cells == cell)))
        folder = directory / f"healpix={cell}"
        folder.mkdir()
        write_new(folder / "001-of-001.hdf5", _mmu_file(source, parts, int(cell)))
        yield sum(len(part.numbers) for part in parts)


def _mmu_file(source: Source, parts: list[Part], cell: int) -> bytes:
    """One cell as the bytes of an HDF5 file."""
    n = sum(len(part.numbers) for part in parts)
    bands = np.array([band.encode() for band in source.bands])
    arrays: dict[str, NDArray[Any]] = {
        "image_array": np.concatenate([np.nan_to_num(p.image, nan=0.0) for p in parts]),
        "image_psf_fwhm": np.concatenate([p.psf_fwhm for p in parts]),
        "image_scale": np.full((n, len(bands)), source.pixel_scale, np.float32),
        "image_band": np.broadcast_to(bands, (n, len(bands))),
        "healpix": np.full(n, cell, np.int64),
    }
    # NaN is written as 0, so the mask must say which pixels are missing.
    missing = [np.isnan(p.image) for p in parts]
    if all(p.variance is not None or p.tensors is not None for p in parts):
        arrays["image_ivar"] = np.concatenate([_ivar(p) for p in parts])
    if all(p.bad is not None for p in parts):  # true is flagged, as in the HSC files
        arrays["image_mask"] = np.concatenate([p.bad | m for p, m in zip(parts, missing, strict=True)])
    numbers = np.concatenate([p.numbers for p in parts])
    for name in source.table.column_names:
        values = source.column(name, None)[numbers]
        if name not in _OURS and name not in arrays:
            key = "object_id" if name == "id" else name
            arrays[key] = values if values.dtype.kind in "iufb" else _text(values)
    # In memory, to be written whole by `write_new`; libver fixes the format, whatever HDF5 is installed.
    with h5py.File("mmu", "w", driver="core", backing_store=False, libver=("earliest", "v108")) as file:
        for name, values in sorted(arrays.items()):
            file.create_dataset(name, data=values, track_times=False)  # times would change the bytes
        file.attrs["unit"] = source.unit
        file.attrs["class_map"] = json.dumps(source.class_map, sort_keys=True)
        file.attrs["image_mask"] = "true where a pixel is flagged"
        file.flush()
        data: bytes = file.id.get_file_image()
    return data


def _ivar(part: Part) -> NDArray[np.float32]:
    """Inverse variance; 0 where there is no measurement, as their files say it."""
    if part.tensors is not None:
        return inverse_variance(part.tensors)
    variance = np.asarray(part.variance, np.float32)
    good = np.isfinite(part.image) & np.isfinite(variance) & (variance > 0)
    return np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0).astype(np.float32)


def _text(values: NDArray[Any]) -> NDArray[np.bytes_]:
    """Text as UTF-8 of fixed width, the strings that HDF5 reads everywhere."""
    encoded = [("" if v is None else str(v)).encode() for v in values]
    return np.array(encoded, f"S{max([1, *map(len, encoded)])}")


def webdataset(source: Source, config: ExportConfig, directory: Path) -> Iterator[int]:
    """`000000.tar` with arrays as `KEY.image.npy`, `KEY.json` and `KEY.cls` (the label) per row."""
    # Files have equal numbers of rows, parts have not: a file may end in the middle of a part.
    tar: tarfile.TarFile | None = None
    done = 0
    shared = Shared()
    # Hugging Face `datasets` wants the same members in all rows.
    labelled = bool((source.column("label", -1).astype(np.int64) >= 0).any())
    try:
        for part in source.parts():
            shared.add(part)
            for k, number in enumerate(part.numbers.tolist()):
                if done % config.rows_per_file == 0:
                    if tar is not None:
                        tar.close()
                    path = directory / f"{done // config.rows_per_file:06d}.tar"
                    # USTAR has no extended headers, and every tar reader knows it.
                    tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
                assert tar is not None
                _add_row(tar, f"{number:09d}", part, k, labelled=labelled)
                done += 1
            yield len(part.numbers)
    finally:
        if tar is not None:
            tar.close()
    note = {**shared.header(source), "rows": done}
    write_new(directory / "dataset.json", json.dumps(note, indent=1, sort_keys=True).encode() + b"\n")


def _add_row(tar: tarfile.TarFile, key: str, part: Part, k: int, *, labelled: bool) -> None:
    """Add row `k` of a part; members with one key are one sample for webdataset."""
    facts = {name: _json(values[k]) for name, values in part.catalog.items() if values.ndim == 1}
    members = {f"{name}.npy": npy_bytes(plane) for name, plane in _row_planes(part, k).items()}
    if labelled:
        members["cls"] = str(int(facts.get("label", -1))).encode()
    # Neither tar nor npy has a checksum of its contents.
    facts[CHECKSUM] = checksum(facts, members)
    members["json"] = json.dumps(facts, sort_keys=True).encode()
    for suffix, data in sorted(members.items()):
        entry = tarfile.TarInfo(f"{key}.{suffix}")  # time 0, owner 0: equal rows give equal bytes
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def _row_planes(part: Part, k: int) -> dict[str, NDArray[Any]]:
    """The arrays of a row. `image` is finite, as networks need it; `missing` says where there is no pixel."""
    planes: dict[str, NDArray[Any]] = {
        "image": np.nan_to_num(part.image[k], nan=0.0),
        "missing": np.isnan(part.image[k]).astype(np.uint8),
    }
    if part.bad is not None:
        planes["valid"] = _valid(part)[k]
    # NaN throughout means that there is no variance, and no kernel.
    if part.variance is not None:
        planes["variance"] = part.variance[k]
    if part.mask is not None:
        planes["mask"] = part.mask[k]
    if part.psf is not None and part.psf_index is not None and len(part.psf):
        planes["psf"] = _kernels(part, part.psf.shape[-1])[k]
    return planes


def _valid(part: Part) -> NDArray[np.uint8]:
    """`(n, B, H, W)`, 1 where `ripple preprocess` would use the pixel."""
    return (~np.asarray(part.bad) & np.isfinite(part.image)).astype(np.uint8)


def _kernels(part: Part, side: int) -> NDArray[np.float32]:
    """`(n, B, side, side)` PSF of each row and band, NaN where there is none; zeros around smaller ones."""
    assert part.psf is not None
    assert part.psf_index is not None
    pad = (side - part.psf.shape[-1]) // 2
    around = np.pad(part.psf, ((0, 1), (pad, pad), (pad, pad)))
    around[-1] = np.nan  # which index -1 then picks
    return np.asarray(around[part.psf_index], np.float32)


@dataclass(slots=True)
class Shared:
    """What the header of an export says about all rows, collected part by part.

    Attributes
    ----------
    wcs
        Projection by tract, PARENT frame.
    mask_planes
        Name of each bit; empty for tensors.
    """

    wcs: dict[int, Tan] = field(default_factory=dict)
    mask_planes: tuple[str, ...] = ()

    def add(self, part: Part) -> None:
        """Take over what a part says; `DataError` when its mask has other planes than those before."""
        self.wcs |= part.wcs
        if self.mask_planes and part.mask_planes != self.mask_planes:
            raise DataError("the shards have different mask planes", hint="export to fits, which names them")
        self.mask_planes = part.mask_planes

    def header(self, source: Source) -> dict[str, Any]:
        """The header as JSON values; `ripple.stages.formats.exported` reads it."""
        return {
            "bands": list(source.bands),
            "pixel_scale": source.pixel_scale,
            "unit": source.unit,
            "class_map": source.class_map,
            "mask_planes": list(self.mask_planes),
            "wcs": {
                str(tract): [tan.ra0, tan.dec0, tan.x0, tan.y0, *tan.cd]
                for tract, tan in sorted(self.wcs.items())
            },
        }


def _json(value: Any) -> Any:
    """A value for Python's JSON, which has NaN: null in the first rows would hide that it is a number."""
    plain = value.item() if isinstance(value, np.generic) else value
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain


#: Names of the axes of each array, which xarray needs; those of a PSF are not those of the image.
_AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("image", "variance", "mask", "valid"), ("row", "band", "y", "x")),
    "psf": ("row", "band", "psf_y", "psf_x"),
}


def zarr_v3(source: Source, config: ExportConfig, directory: Path) -> Iterator[int]:
    """`data.zarr`, Zarr format 3: `image`, `variance`, `mask`, `valid`, `psf`, `catalog/<column>`."""
    try:
        import zarr
        from zarr.codecs import ZstdCodec
    except ModuleNotFoundError:
        raise ConfigError("zarr is not installed", hint="pip install 'ripple-lsst[export]'") from None
    # Loaded here because it is an extra, and only this layout needs it.
    root = zarr.create_group(store=str(directory / "data.zarr"), zarr_format=3)
    # By default chunks of zeros are left out, and then a lost chunk cannot be told from them.
    safe: dict[str, Any] = {
        "compressors": ZstdCodec(level=0, checksum=True),
        "config": {"write_empty_chunks": True},
    }
    arrays: dict[str, Any] = {}
    side, shared, places = _kernel_side(source), Shared(), _Places()
    for part in source.parts():
        shared.add(part)
        places.add(part)
        for name, values in _part_planes(part, side).items():
            if name not in arrays:
                shape = (source.rows, *values.shape[1:])
                # Whole cutouts in a chunk: they are read by row, all bands at once.
                chunks = (min(config.rows_per_file, source.rows), *values.shape[1:])
                arrays[name] = root.create_array(
                    name, shape=shape, chunks=chunks, dtype=values.dtype, dimension_names=_AXES[name], **safe
                )
            # Rows of a part are consecutive: exports are sorted by shard.
            arrays[name][int(part.numbers[0]) : int(part.numbers[-1]) + 1] = values
        yield len(part.numbers)
    catalog = root.create_group("catalog")
    columns = {n: source.column(n, None) for n in source.table.column_names if n not in _OURS}
    for name, values in {**places.columns(), **columns}.items():
        data = values if values.dtype.kind in "iufb" else np.array([str(v or "") for v in values], np.str_)
        axes = ("row", *(f"{name}_{k}" for k in range(1, data.ndim)))
        catalog.create_array(name, data=np.ascontiguousarray(data), dimension_names=axes, **safe)
    root.attrs.update(shared.header(source))
    # All metadata in one file: xarray opens the group with one read. Not in the specification of version 3
    # yet, as zarr warns; other readers pass over it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(root.store)


def _part_planes(part: Part, side: int) -> dict[str, NDArray[Any]]:
    """The arrays of a part that it has; kernels of `side` pixels, none when that is 0."""
    planes: dict[str, NDArray[Any]] = {"image": part.image}
    if part.variance is not None:
        planes["variance"] = part.variance
    if part.mask is not None:
        planes["mask"] = part.mask
    if part.bad is not None:
        planes["valid"] = _valid(part)
    if side:
        planes["psf"] = _kernels(part, side)
    return planes


def _kernel_side(source: Source) -> int:
    """Side of the largest PSF kernel of all shards, px; 0 when there is none."""
    if source.kind != "cutouts":
        return 0
    side = 0
    for k in np.unique(source.table["shard"].to_numpy()).tolist():
        # Only the shape: a damaged shard is named when its rows are read and verified.
        with suppress(OSError, KeyError), h5py.File(source.artefact.shard_path(k), "r") as file:
            count, _, width = file["psf"].shape
            side = max(side, width if count else 0)
    return side


@dataclass(slots=True)
class _Places:
    """The columns of shards that say where on the grid of its tract a cutout lies; the index has no such."""

    parts: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        names = ("tract", "x0", "y0")
        self.parts.append({name: part.catalog[name] for name in names if name in part.catalog})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Those that every part has, in the order of the rows."""
        common = [name for name in self.parts[0] if all(name in part for part in self.parts)]
        return {name: np.concatenate([part[name] for part in self.parts]) for name in common}


def fits_cutouts(source: Source, config: ExportConfig, directory: Path) -> Iterator[int]:
    """`<id>.fits`: IMAGE, VARIANCE, MASK and PSF of each band, with the WCS of the tract.

    MASK names its bits as afw does: card `MP_<plane>` is the number of the bit.
    """
    if source.kind != "cutouts":
        raise DataError(
            f"{config.source} contains {source.kind}", hint="FITS files can only be written from cutouts"
        )
    names = fits_names([str(i) for i in source.column("id", "").tolist()], source.bands)
    for part in source.parts():
        for k, number in enumerate(part.numbers.tolist()):
            write_new(directory / names[number], _fits_file(part, k, source))
        yield len(part.numbers)
    _catalogue(source, directory, names)


def _fits_file(part: Part, k: int, source: Source) -> bytes:
    """One row as the bytes of a FITS file; a band without data has NaN in its IMAGE."""
    row = {name: values[k] for name, values in part.catalog.items() if values.ndim == 1}
    cards = _wcs_cards(part.wcs.get(int(row.get("tract", -1))), row, source.class_map)
    primary = fits.PrimaryHDU()
    primary.header["BANDS"] = (",".join(source.bands), "in the order of the HDUs")
    primary.header["PIXSCALE"] = (source.pixel_scale, "arcsec per pixel")
    primary.header["ORIGIN"] = "RIPPLe"
    primary.header["OBJECT"] = cards["OBJID"]
    hdus: list[fits.PrimaryHDU | fits.ImageHDU] = [primary]
    for b, band in enumerate(source.bands):
        planes: list[tuple[str, Any, str]] = [("IMAGE", part.image[k, b], "nJy")]
        if part.variance is not None and np.isfinite(part.variance[k, b]).any():
            planes.append(("VARIANCE", part.variance[k, b], "nJy**2"))
        if part.mask is not None:
            # FITS integers are signed: bit 31 needs the next larger type.
            planes.append(
                ("MASK", part.mask[k, b].astype(np.int32 if len(part.mask_planes) < 32 else np.int64), "")
            )
        for name, data, unit in planes:
            more: dict[str, Card] = {"BUNIT": unit} if unit else dict(_bits(part.mask_planes))
            if name == "IMAGE":
                more |= {"MAGZERO": NJY_ZERO_POINT, "OBJECT": cards["OBJID"]}
            hdus.append(_image_hdu(name, band, data, {**cards, **more}))
        if part.psf is not None and part.psf_index is not None and part.psf_index[k, b] >= 0:
            hdus.append(_image_hdu("PSF", band, part.psf[part.psf_index[k, b]], {}))
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out)
    return out.getvalue()


def _bits(planes: tuple[str, ...]) -> dict[str, int]:
    """Cards that name the bits of a mask."""
    # `MP_` and more than five letters exceed the eight of a FITS keyword, and need the HIERARCH convention.
    return {f"HIERARCH MP_{name}" if len(name) > 5 else f"MP_{name}": bit for bit, name in enumerate(planes)}


def _image_hdu(name: str, band: str, data: NDArray[Any], cards: Mapping[str, Card]) -> fits.ImageHDU:
    hdu = fits.ImageHDU(data, name=f"{name}_{band}")
    hdu.header["BAND"] = band
    hdu.header["FILTER"] = band  # the card that most other software reads
    hdu.header.update(cards)
    return hdu


def _wcs_cards(tan: Tan | None, row: Mapping[str, Any], class_map: Mapping[str, str]) -> dict[str, Card]:
    """Cards with id, position, label and WCS of a cutout: FITS pixel (1, 1) is PARENT pixel `(x0, y0)`."""
    cards: dict[str, Card] = {"ORIGIN": "RIPPLe", "OBJID": _escaped(str(row.get("id", "")))}
    for name, card in (("ra", "OBJ_RA"), ("dec", "OBJ_DEC")):
        if np.isfinite(float(row.get(name, np.nan))):  # FITS cards cannot hold NaN
            cards[card] = float(row[name])
    if int(row.get("label", -1)) >= 0:
        cards["LABEL"] = int(row["label"])
    names = [class_map.get(str(k)) for k in range(len(class_map))]
    if names and all(names):
        cards["CLASSES"] = json.dumps(names)  # by label; ASCII, as FITS demands
    if tan is None:
        return cards
    x0, y0 = int(row["x0"]), int(row["y0"])
    cutout = Tan(tan.ra0, tan.dec0, tan.x0 - x0, tan.y0 - y0, tan.cd)
    return cards | cutout.cards() | {"TRACT": int(row["tract"]), "X0": x0, "Y0": y0}


def _escaped(text: str) -> str:
    """Text for a card: printable ASCII, of which FITS drops blanks and takes `&` for a sign at the end."""
    plain = text.encode("unicode_escape").decode()
    return f"{plain[:-1]}\\x{ord(plain[-1]):02x}" if plain.endswith((" ", "&")) else plain


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as a `.npy` file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
