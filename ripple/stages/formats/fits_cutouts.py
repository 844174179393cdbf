"""FITS cutouts of any origin: one file per band or one for all, cubes, with or without noise, mask and PSF.

What a file says is used, what two places say differently is refused, and nothing follows from the order of
HDUs or files. `fits_hdus` tells role and band of each picture, `fits_units` its unit, `fits_projection` its
place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from ripple.errors import DataError, Reason
from ripple.imaging.bands import by_wavelength, canonical, is_known, match
from ripple.stages.formats.fits_cards import (
    classes_of,
    identity_of,
    label_of,
    own_bands,
    place_of,
    position_of,
    scale_of,
)
from ripple.stages.formats.fits_grids import SAME_SCALE, Allowed, Grids
from ripple.stages.formats.fits_hdus import FileName, Plane, Role, band_of, file_name, planes_of
from ripple.stages.formats.fits_noise import mask_planes, variances
from ripple.stages.formats.fits_projection import Projection, projection_of
from ripple.stages.formats.fits_units import Flux, WrongUnitError, flux_of
from ripple.stages.formats.foreign_cutout import (
    DAMAGE,
    Float,
    ForeignCutout,
    Listing,
    Understood,
    Unreadable,
    one_line,
)
from ripple.stages.formats.source_files import SourceFiles

SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")
#: So many rows are tried to learn bands, scale and classes, before damaged files are given up.
TRIED = 100

#: Role -> band -> picture.
Table = dict[Role, dict[str, Plane]]


@dataclass(frozen=True, slots=True)
class FitsOptions:
    """What the user says about FITS cutouts.

    Parameters
    ----------
    bands
        Names in order; empty when the files say them.
    classes
        Class names by label value; by default as the card `CLASSES` of the first file says.
    pixel_scale
        Arcsec per pixel of all rows; None when the files say it.
    allowed
        What may be resampled.
    mask
        What 1 means in a mask of 0 and 1: bad, good or ignore.
    mask_bits
        Mask plane -> bit, for integer masks whose cards do not name their bits.
    ignored
        Cards to read as if they were not there.
    """

    bands: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    pixel_scale: float | None = None
    allowed: Allowed = field(default_factory=Allowed)
    mask: str = "bad"
    mask_bits: Mapping[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def fits_cutouts(root: Path, options: FitsOptions) -> Listing:
    """A folder of FITS cutouts, or one file.

    Files named `<id>_<band>`, `<id>_<role>_<band>` or the like (with `-`, `_` or `.`) become one row when
    `bands` names the band, or when the names of all files end in a band; other files are one row each.

    Raises
    ------
    DataError
        No FITS file is found, or the bands are not known.
    """
    paths = (root,) if root.is_file() else tuple(sorted(p for p in root.rglob("*") if _is_fits(p)))
    if not paths:
        raise DataError(f"{root}: no FITS file there")
    rows = _grouped({path: _bare(path, root) for path in paths}, options.bands)
    names = sorted(rows)  # the order of rows, and so of shards, does not depend on the file system
    sources = SourceFiles()
    common = _common_facts([rows[name] for name in names[:TRIED]], sources, options)
    if not common.bands:
        why = f": {common.error}" if common.error else " do not name their bands"
        raise DataError(f"{root}: the files{why}", hint="name the bands with --bands, or --ignore-cards")
    chosen = replace(
        options,
        bands=common.bands,
        classes=options.classes or common.classes,
        pixel_scale=options.pixel_scale or common.scale,
    )

    def read(row: int) -> ForeignCutout | Unreadable:
        name = names[row]
        try:
            planes = _planes(rows[name], sources, chosen, named=bool(options.bands))
            return _cutout(name, planes, chosen, named=bool(options.bands))
        except WrongUnitError as err:
            return Unreadable(name, one_line(err), Reason.WRONG_UNIT)
        except (*DAMAGE, VerifyError) as err:
            return Unreadable(name, one_line(err))

    return Listing(len(names), chosen.bands, chosen.pixel_scale, chosen.classes, read, paths, sources)


def _is_fits(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def _bare(path: Path, root: Path) -> str:
    """Path relative to `root`, without the FITS suffix."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    return re.sub(r"\.(fits|fit)(\.gz|\.fz)?$", "", name, flags=re.IGNORECASE)


Files = Sequence[tuple[Path, FileName]]


def _grouped(names: Mapping[Path, str], bands: tuple[str, ...]) -> dict[str, list[tuple[Path, FileName]]]:
    """Row -> its files, and what the name of each says."""
    said = {path: file_name(name, bands) for path, name in names.items()}
    # Without --bands, files are only joined when all names end in a band: `gal-01-i` may be an id.
    join = bool(bands) or all(name.band for name in said.values())
    rows: dict[str, list[tuple[Path, FileName]]] = {}
    for path, name in said.items():
        known = name if join and (name.band or name.role) else FileName(names[path])
        rows.setdefault(known.row, []).append((path, known))
    return rows


@dataclass(frozen=True, slots=True)
class _Common:
    """What the first rows say: bands, arcsec per pixel, classes; and why none could be read."""

    bands: tuple[str, ...]
    scale: float | None
    classes: tuple[str, ...]
    error: str


def _common_facts(rows: Sequence[Files], sources: SourceFiles, options: FitsOptions) -> _Common:
    found: tuple[str, ...] = options.bands
    classes: tuple[str, ...] = ()
    exported: tuple[str, ...] = ()
    scale, error = None, ""
    for files in rows:
        try:
            images = _images(_planes(files, sources, options, named=bool(options.bands)))
            if not options.bands:
                found = tuple(dict.fromkeys((*found, *_bands_of(images))))
                exported = exported or next((own_bands(p.header) for p in images), ())
            for plane in sorted(images, key=lambda p: found.index(_band(p)) if _band(p) in found else 99):
                own = projection_of(plane.header, plane.data.shape[-2:])
                scale = scale or (own.tan.pixel_scale if own is not None else scale_of(plane.header))
                classes = classes or classes_of(plane.header)
            if found and scale is not None:
                break
        except (*DAMAGE, VerifyError) as err:
            error = error or one_line(err)
    return _Common(options.bands or exported or by_wavelength(found), scale, classes, error)


def _planes(files: Files, sources: SourceFiles, options: FitsOptions, *, named: bool) -> list[Plane]:
    """The pictures of a row; `said` has the band of each alone. `named`: the user names the bands."""
    out = []
    for path, name in files:
        planes = planes_of(sources.read(path), name, path.name, options.ignored)
        mine = [band_of(plane, options.bands) for plane in planes]
        # A file in one band is in that band throughout; the option names the one that nobody else does.
        only = {band for band in mine if band} or set(options.bands if named else ())
        fill = only.pop() if len(only) == 1 else ""
        for plane, band in zip(planes, mine, strict=True):
            known = band or (fill if plane.data.ndim == 2 else "")
            out.append(replace(plane, said=(("", known),) if known else ()))
    return out


def _band(plane: Plane) -> str:
    return plane.said[0][1] if plane.said else ""


def _images(planes: Sequence[Plane]) -> list[Plane]:
    """Pictures that are images, or of which nothing says what they are when none is."""
    return [p for p in planes if p.role == "image"] or [p for p in planes if p.role == ""]


def _bands_of(images: Sequence[Plane]) -> tuple[str, ...]:
    """Bands that the images of one row name, from blue to red; empty unless each names one."""
    if len(images) == 1 and images[0].data.ndim == 3:
        return _cube_bands(images[0])
    names = {_band(p) for p in images}
    return () if "" in names else by_wavelength(sorted(names))


def _cube_bands(cube: Plane) -> tuple[str, ...]:
    """Bands of the planes of a cube, by its card `BANDS`: `g,r,i` or `gri`; empty without one."""
    text = str(cube.header.get("BANDS", "")).strip()
    parts = text.replace(",", " ").split()
    names = parts if len(parts) == len(cube.data) else list(text)
    return tuple(names) if len(names) == len(cube.data) else ()


# Rows ----------------------------------------------------------------


def _cutout(name: str, planes: Sequence[Plane], options: FitsOptions, *, named: bool) -> ForeignCutout:
    """One row from all pictures of its files; `named`: the user names the bands, in order."""
    bands = options.bands
    table = _by_role_and_band([part for p in planes for part in _parts(p, bands, named)], bands)
    images = table["image"]
    if not images:
        others = sorted({_band(p) for p in _images(planes)} - {""})
        has = f"; its images are in {', '.join(others)}" if others else ""
        raise ValueError(f"no image in any of the bands {', '.join(bands)}{has}")
    cards = next(iter(images.values())).header
    grids = Grids.of(images, bands, options.pixel_scale, options.allowed)
    _check_scale(cards, grids.scale(next(iter(images))) or options.pixel_scale)
    fluxes = {band: flux_of(p.header, p.where, grids.scale(band)) for band, p in images.items()}
    noise, noise_from = variances(table, images, fluxes)
    masks = {} if options.mask == "ignore" else table.get("mask", {})
    bits = {band: mask_planes(plane, options.mask, options.mask_bits) for band, plane in masks.items()}
    factors = [fluxes[band].factor if band in fluxes else 1.0 for band in bands]
    ra, dec = position_of(cards) or grids.centre
    return ForeignCutout(
        id=identity_of(cards, name),
        image=grids.stacked({band: plane.data.astype(np.float32) for band, plane in images.items()}),
        variance=grids.stacked(noise, squared=True) if noise else None,
        mask=grids.joined(bits) if bits else None,
        psf=_kernels(table.get("psf", {}), grids, bands),
        ra=ra,
        dec=dec,
        label=label_of(cards, options.classes),
        wcs=grids.tan,
        place=None if grids.moved else place_of(cards),
        to_njy=np.array([np.nan if factor is None else factor for factor in factors]),
        columns=_columns(images, grids),
        remarks=grids.remarks,
        understood=_understood(table, fluxes, grids, noise_from, planes),
    )


def _check_scale(cards: fits.Header, known: float | None) -> None:
    said = scale_of(cards)
    if said is not None and known is not None and abs(said / known - 1) > SAME_SCALE:
        raise ValueError(
            f"PIXSCALE says {said:g} arcsec, its projection or --pixel-scale {known:g}; "
            "--ignore-cards PIXSCALE leaves it out"
        )


def _by_role_and_band(planes: Sequence[Plane], bands: tuple[str, ...]) -> Table:
    """Role -> band -> picture; those of other bands are left out, and those that are of no use.

    Raises
    ------
    ValueError
        Two pictures have one role and band, or one does not say its band.
    """
    nameless = [p for p in planes if not _band(p) and p.role != "other"]
    if nameless:
        raise ValueError(f"{nameless[0].where} does not say which of the bands {', '.join(bands)} it is")
    table: Table = {"image": {}}
    mine = [p for p in planes if _band(p) in bands and p.role != "other"]
    for plane in (p for p in mine if p.role):
        _keep(table.setdefault(plane.role, {}), plane, plane.role)
    # A picture of which nothing is said is the image, where no other one is.
    images = table["image"]
    guessed: dict[str, Plane] = {}
    for plane in mine:
        # A picture with a name of its own is something else than the image that another one says it is.
        if not plane.role and (_band(plane) not in images or not plane.named):
            _keep(guessed if _band(plane) not in images else images, plane, "image")
    table["image"] = {band: (images | guessed)[band] for band in bands if band in images | guessed}
    return table


def _keep(held: dict[str, Plane], plane: Plane, role: str) -> None:
    band = _band(plane)
    if band in held:
        raise ValueError(f"two pictures are the {role} of {band}: {held[band].where} and {plane.where}")
    held[band] = plane


def _parts(plane: Plane, bands: tuple[str, ...], named: bool) -> list[Plane]:
    """A cube as pictures of one band each; other planes as they are."""
    if plane.data.ndim == 2:
        return [plane]
    names = [match(band, bands) or canonical(band) for band in _cube_bands(plane)]
    if not names and is_known(_band(plane)):
        raise ValueError(f"{plane.where} has {len(plane.data)} planes and says that it is in {_band(plane)}")
    if not names and not (named and len(plane.data) == len(bands)):
        raise ValueError(
            f"{plane.where} is a cube of {len(plane.data)} planes without a card BANDS; {len(bands)} bands "
            f"are {'named' if named else 'known from other files'}"
        )
    pairs = zip(plane.data, names or bands, strict=True)
    return [replace(plane, data=data, said=(("BANDS", band),)) for data, band in pairs]


def _kernels(
    planes: Mapping[str, Plane], grids: Grids, bands: tuple[str, ...]
) -> tuple[Float | None, ...] | None:
    """The PSF image of each band as it is, or on the common grid; None where there is none."""
    if not planes:
        return None
    return tuple(grids.kernel(b, planes[b].data.astype(np.float32)) if b in planes else None for b in bands)


def _columns(images: Mapping[str, Plane], grids: Grids) -> dict[str, float | int | str]:
    """Columns of the index: gain of each band, and the share of resampled bands."""
    out: dict[str, float | int | str] = {}
    for band, plane in images.items():
        gain = plane.header.get("GAIN")
        if isinstance(gain, int | float) and not isinstance(gain, bool):
            out[f"gain_{band}"] = float(gain)
    if grids.moved:
        out["resampled"] = len(grids.moves) / len(images)
    return out


# For --dry-run -------------------------------------------------------


def _understood(
    table: Table,
    fluxes: Mapping[str, Flux],
    grids: Grids,
    noise_from: Mapping[str, str],
    planes: Sequence[Plane],
) -> tuple[Understood, ...]:
    """What each picture was taken for."""
    facts: dict[Role, Callable[[str, Plane], str]] = {
        "image": lambda band, _: _image_facts(fluxes[band], grids.own.get(band)),
        "mask": lambda _, plane: "bits named by MP_ cards" if _names_bits(plane.header) else "bits as given",
        "psf": lambda _, plane: f"{plane.data.shape[-1]} x {plane.data.shape[-2]} px",
    }
    out, used = [], set()
    for role, held in table.items():
        for band, plane in held.items():
            used.add(plane.where)
            noise = "noise of the image" if noise_from.get(band) == role else "not used"
            text = facts[role](band, plane) if role in facts else noise
            out.append(Understood(plane.file, plane.hdu, role, band, text))
    rest = (p for p in planes if p.where not in used)
    return (*out, *(Understood(p.file, p.hdu, "not used", _band(p), "") for p in rest))


def _names_bits(header: fits.Header) -> bool:
    return any(card.startswith("MP_") for card in header)


def _image_facts(flux: Flux, own: Projection | None) -> str:
    unit = f"{flux.text}: x {flux.factor:.6g} to nJy" if flux.factor is not None else flux.text
    if own is None:
        return f"{unit}; no projection"
    off = f", {own.misfit:.2g} px from gnomonic" if own.misfit else ""
    return f"{unit}; {own.tan.pixel_scale:.4g} arcsec, {own.text}{off}"
