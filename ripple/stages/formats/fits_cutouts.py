"""FITS cutouts of any origin: one file per band, cubes, several HDUs, with or without variance and mask.

The role of an HDU is read from its name (`VARIANCE`, `RMS`, `WHT`, `MASK`, `PSF`, ...); everything else is an
image. Bands come from a `BAND` or `FILTER` card, the HDU name, the file name, or the order.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.imaging.batch import MASK_PLANES, unsigned_bits
from ripple.sky.geometry import Tan
from ripple.stages.formats.foreign_cutout import (
    BANDS,
    DAMAGE,
    Float,
    ForeignCutout,
    Listing,
    Unreadable,
    one_line,
)
from ripple.stages.formats.source_files import SourceFiles
from ripple.storage.labels import plain_class, read_labels

Role = Literal["image", "variance", "rms", "ivar", "mask", "psf"]
#: Bytes of a gzipped file once unpacked; more is a damaged or hostile file.
MAX_UNPACKED = 1 << 32
SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")
# Searched in this order: INVVAR also contains VAR.
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"INVVAR|IVAR|INVERSE|WHT|WEIGHT", "ivar"),
    (r"VAR", "variance"),
    (r"RMS|ERR|SIGMA|STD|NOISE", "rms"),
    (r"MASK|FLAG|^DQ|BPM", "mask"),
    (r"PSF", "psf"),
)
# BUNIT in lower case -> nJy. A nanomaggy is the flux of AB magnitude 22.5: 10**((31.4 - 22.5) / 2.5) nJy.
_NANOJANSKY = {"njy": 1.0, "nanojansky": 1.0, "ujy": 1e3, "mjy": 1e6, "jy": 1e9, "nanomaggy": 10**3.56}


@dataclass(frozen=True, slots=True)
class Plane:
    """One image HDU: its role, the band it names (empty when it names none), pixels and header."""

    role: Role
    band: str
    data: NDArray[Any]
    header: fits.Header


def fits_cutouts(
    root: Path, bands: tuple[str, ...], *, convert: bool = True, classes: tuple[str, ...] = ()
) -> Listing:
    """A folder of FITS cutouts, or one file.

    Files named `<id>_<band>` (or with `-` or `.`) become one row when `bands` names the band; other files are
    one row each.

    Parameters
    ----------
    root
        Folder or file.
    bands
        Names of the bands in order; by default as the first file says.
    convert
        Convert fluxes to nJy where `BUNIT` names a flux unit. Off when the user gives zero points.
    classes
        Class names by label value; by default as the card `CLASSES` of the first file says.

    Raises
    ------
    DataError
        No FITS file is found, or the bands are not known.
    """
    paths = (root,) if root.is_file() else tuple(sorted(p for p in root.rglob("*") if _is_fits(p)))
    if not paths:
        raise DataError(f"{root}: no FITS file there")
    groups, twice = _grouped(root, paths, bands)
    sources, scale, named = SourceFiles(), None, bands
    # The first row that can be read tells bands and scale; a hundred damaged ones are enough to give up.
    for _, files in groups[:100]:
        try:
            planes = [p for path in files.values() for p in _planes_of(sources.read(path))]
            named = bands or _named(planes)
            classes = classes or _classes(
                next((p.header for p in planes if p.role == "image"), fits.Header())
            )
            scale = _scale_of([p for p in planes if p.role == "image"])
            break
        except (*DAMAGE, VerifyError) as err:
            first_error = one_line(err)
    else:
        raise DataError(f"{root}: none of the first files can be read: {first_error}")
    if not named:
        raise DataError(f"{root}: the files do not name their bands", hint="name them with --bands")

    def read(row: int) -> ForeignCutout | Unreadable:
        name, files = groups[row]
        if name in twice:
            return Unreadable(name, twice[name])
        try:
            held = {band: sources.read(path) for band, path in files.items()}
            return _cutout(name, held, named, convert, classes)
        except (*DAMAGE, VerifyError) as err:
            return Unreadable(name, one_line(err))

    return Listing(len(groups), named, scale, classes, read, paths, sources)


def _is_fits(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def _bare(path: Path, root: Path) -> str:
    """Path relative to `root`, without the FITS suffix."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    return re.sub(r"\.(fits|fit)(\.gz|\.fz)?$", "", name, flags=re.IGNORECASE)


def _grouped(
    root: Path, paths: Sequence[Path], bands: tuple[str, ...]
) -> tuple[list[tuple[str, dict[str, Path]]], dict[str, str]]:
    """Rows as (name, band -> file), and name -> why, of rows with two files of one band.

    The band is empty when one file holds all bands.
    """
    twice: dict[str, str] = {}
    # Longest first: the band `i2` must not be read as `i`.
    choice = "|".join(re.escape(b) for b in sorted(bands or BANDS, key=len, reverse=True))
    pattern = re.compile(rf"(.+)[_\-.](?:HSC-)?({choice})", re.IGNORECASE)
    names = {path: _bare(path, root) for path in paths}
    found = {path: pattern.fullmatch(name) for path, name in names.items()}
    rows: dict[str, dict[str, Path]] = {}
    # Without --bands, files are only joined when all names end in a band: `gal-01-i` may be an id.
    join = bool(bands) or all(found.values())
    for path in paths:
        hit = found[path] if join else None
        if hit:
            band = next((b for b in (bands or BANDS) if b.lower() == hit[2].lower()), hit[2])
            files = rows.setdefault(hit[1], {})
            if band in files:
                twice[hit[1]] = f"two files of the band {band}: {files[band].name} and {path.name}"
            files[band] = path
        else:
            rows[names[path]] = {"": path}
    # The order of rows, and so of shards, does not depend on the file system.
    return sorted(rows.items()), twice


def _planes_of(data: bytes) -> list[Plane]:
    """Image HDUs that have pixels; an HDU without pixels is a missing image, not zeros."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        # Without lazy loading: a truncated file must fail here, where the error is caught.
        with fits.open(
            io.BytesIO(_plain_fits(data)), memmap=False, lazy_load_hdus=False, ignore_missing_simple=False
        ) as hdus:
            out = []
            for hdu in hdus:
                if not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU):
                    continue
                pixels = hdu.data
                if pixels is None or pixels.size == 0 or pixels.ndim < 2:
                    continue
                out.append(
                    Plane(_role(hdu.name), _band(hdu.header, hdu.name), _native(pixels), hdu.header.copy())
                )
    return out


def _plain_fits(data: bytes) -> bytes:
    """The bytes without gzip, which astropy only removes from files on disk."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    # One byte more than allowed: a small file may unpack to any size.
    plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_UNPACKED + 1)
    if len(plain) > MAX_UNPACKED:
        raise ValueError(f"more than {MAX_UNPACKED} bytes when unpacked")
    return plain


def _native(data: NDArray[Any]) -> NDArray[Any]:
    """Two or three axes in the byte order of the machine; leading axes of length 1 are dropped."""
    squeezed = (
        data.reshape(data.shape[-3:]) if data.ndim > 3 and data.size == np.prod(data.shape[-3:]) else data
    )
    if squeezed.ndim > 3:
        raise ValueError(f"an HDU of shape {data.shape} is neither an image nor a cube")
    return np.ascontiguousarray(squeezed, squeezed.dtype.newbyteorder("="))


def _role(name: str) -> Role:
    upper = name.upper()
    return next((role for pattern, role in _ROLES if re.search(pattern, upper)), "image")


def _band(header: fits.Header, name: str) -> str:
    """The band that the header or else the name of an HDU says; empty when neither does."""
    # BAND first, which `ripple export` writes; the others are common in surveys.
    for card in ("BAND", "FILTER", "FILTNAM", "FILTER1"):
        if isinstance(header.get(card), str) and header[card].strip():
            return _short(header[card].strip())
    parts = re.split(r"[_\-. ]", name)
    return next((p.lower() for p in parts if p and p.lower() in BANDS), "")


def _short(name: str) -> str:
    """`HSC-G`, `i_sim_1.4` and `g DECam` are g, i and g; other names stay as they are."""
    for part in (re.split(r"[\-]", name)[-1], re.split(r"[_ ]", name)[0]):
        if part.lower() in BANDS and len(part) == 1:
            return part.lower()
    return name


def _named(planes: Sequence[Plane]) -> tuple[str, ...]:
    """Bands that the images of one row name; empty unless each names one and all differ."""
    images = [p for p in planes if p.role == "image"]
    names = [p.band for p in images]
    if len(images) == 1 and images[0].data.ndim == 3:
        # A cube: `BANDS = 'g,r,i'` or 'gri'.
        listed = images[0].header.get("BANDS", "")
        parts = tuple(str(listed).replace(",", " ").split()) or tuple(str(listed))
        return parts if len(parts) == len(images[0].data) else ()
    distinct = all(names) and len(set(names)) == len(names)
    # By wavelength; other names come after y.
    return tuple(sorted(names, key=lambda b: (BANDS + b).index(b))) if distinct else ()


def _cutout(
    name: str, files: dict[str, bytes], bands: tuple[str, ...], convert: bool, classes: tuple[str, ...]
) -> ForeignCutout:
    """One row from the bytes of its files (band -> file; band empty when one file has them all)."""
    planes: list[Plane] = []
    for band, data in files.items():
        mine = _planes_of(data)
        planes += [replace(p, band=band) for p in mine] if band else mine
    by_role: dict[str, dict[str, Plane]] = {}
    for role in ("image", "variance", "rms", "ivar", "mask", "psf"):
        by_role[role] = _by_band([p for p in planes if p.role == role], bands)
    images = by_role["image"]
    if not images:
        raise ValueError("no image in any of the bands")
    shapes = {p.data.shape for p in images.values()}
    if len(shapes) > 1:
        raise ValueError(f"the bands have different sizes {sorted(shapes)}")
    shape = next(iter(shapes))
    blank = np.full(shape, np.nan, np.float32)
    factors = {band: _unit_factor(p.header) for band, p in images.items()}
    # All bands or none: a row has one unit.
    known = convert and None not in factors.values()
    to_njy = {band: (factor if known and factor else 1.0) for band, factor in factors.items()}
    image = np.stack(
        [images[b].data.astype(np.float32) * np.float32(to_njy[b]) if b in images else blank for b in bands]
    )
    # Position, label and projection are those of the first band; all bands share one pixel grid.
    first = next(iter(images.values())).header
    wcs = _projection(first)
    ra, dec = _position(first, wcs, shape)
    return ForeignCutout(
        id=_identity(first, name),
        image=image,
        variance=_variance(by_role, bands, shape, to_njy),
        mask=_mask(by_role["mask"], bands, shape),
        psf=_kernels(by_role["psf"], bands),
        ra=ra,
        dec=dec,
        label=_label(first, classes),
        wcs=wcs,
        place=_place(first),
        unit="nJy" if known else "",
    )


def _classes(header: fits.Header) -> tuple[str, ...]:
    """Class names by label value of the card `CLASSES`, a JSON list; empty without one."""
    try:
        found = json.loads(str(header.get("CLASSES", "[]")))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ValueError("the card CLASSES is no JSON list of names")
    return tuple(found)


def _label(header: fits.Header, classes: tuple[str, ...]) -> int:
    """Label of the card `LABEL`, -1 without one."""
    value = header.get("LABEL")
    # A card without a value is `Undefined`, and unknown.
    if not isinstance(value, str | int | float):
        return -1
    said = _classes(header)
    if said and tuple(map(plain_class, said)) != tuple(map(plain_class, classes)):
        raise ValueError(f"its classes are {', '.join(said)}, not {', '.join(classes)}")
    try:
        labels, names = read_labels([value], classes, "LABEL")
    except DataError as err:
        raise ValueError(f"{err.message}; {err.hint}") from None
    if names and not classes:  # a name alone does not tell the classes of the whole folder
        raise ValueError(f"LABEL is {value!r}; name the classes with --classes")
    return int(labels[0])


def _by_band(planes: Sequence[Plane], bands: tuple[str, ...]) -> dict[str, Plane]:
    """Band -> 2-d plane: from a cube, by name, or in order when the names do not say."""
    if len(planes) == 1 and planes[0].data.ndim == 3:
        cube = planes[0]
        if len(cube.data) != len(bands):
            raise ValueError(f"a cube of {len(cube.data)} planes, expected {len(bands)} bands")
        return {b: replace(cube, band=b, data=cube.data[k]) for k, b in enumerate(bands)}
    flat = [p for p in planes if p.data.ndim == 2]
    named = [p for p in flat if p.band in bands]
    if named and len({p.band for p in named}) == len(named):
        return {p.band: p for p in named}
    # In order only when none can be missing.
    if flat and len(flat) != len(bands):
        raise ValueError(f"{len(flat)} HDUs that do not name their band, expected {len(bands)}")
    return dict(zip(bands, flat, strict=False))


def _unit_factor(header: fits.Header) -> float | None:
    """Nanojansky per unit when BUNIT names a flux unit, else None (counts need a zero point)."""
    unit = str(header.get("BUNIT", "")).strip().lower().replace("µ", "u")
    return _NANOJANSKY.get(unit)


def _variance(
    roles: dict[str, dict[str, Plane]],
    bands: tuple[str, ...],
    shape: tuple[int, ...],
    to_njy: dict[str, float],
) -> Float | None:
    """`(B, H, W)` variance in the unit of the image squared, from whichever plane the file has."""
    out = np.full((len(bands), *shape), np.nan, np.float32)
    for k, band in enumerate(bands):
        for role in ("variance", "rms", "ivar"):
            plane = roles[role].get(band)
            if plane is None:
                continue
            if plane.data.shape != shape:
                raise ValueError(f"{role} of {band} has shape {plane.data.shape}, the image {shape}")
            values = plane.data.astype(np.float64)
            if not np.any(values):
                continue  # all zero: a placeholder, not a measurement
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values**2 if role == "rms" else 1 / values if role == "ivar" else values
            # Infinity means a pixel without weight; a negative variance is unknown.
            values = np.where(values >= 0, values, np.nan)
            out[k] = values * to_njy.get(band, 1.0) ** 2
    return out if np.isfinite(out).any() else None


def _mask(
    planes: dict[str, Plane], bands: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray[np.uint32] | None:
    """Bits of `MASK_PLANES`, by the `MP_<plane>` cards that afw writes; any other bit means BAD."""
    if not planes:
        return None
    out = np.zeros((len(bands), *shape), np.uint32)
    for k, band in enumerate(bands):
        if band not in planes:
            continue
        data, named = planes[band].data, 0
        values = unsigned_bits(data)
        if values.shape != shape:
            raise ValueError(f"mask of {band} has shape {values.shape}, the image {shape}")
        # afw numbers its planes anew in each file.
        for bit, name in enumerate(MASK_PLANES):
            file_bit = planes[band].header.get(f"MP_{name}", -1)
            if isinstance(file_bit, int) and 0 <= file_bit < 64:
                out[k] |= ((values >> np.uint64(file_bit)) & np.uint64(1)).astype(np.uint32) << np.uint32(bit)
                named |= 1 << file_bit
        out[k][(values & ~np.uint64(named)) != 0] |= np.uint32(1 << MASK_PLANES.index("BAD"))
    return out


def _kernels(planes: dict[str, Plane], bands: tuple[str, ...]) -> Float | None:
    """`(B, K, K)` PSFs padded to one odd side, or None unless all bands have one."""
    if set(planes) != set(bands):
        return None
    kernels = [planes[b].data.astype(np.float32) for b in bands]
    side = max(max(k.shape) for k in kernels)
    side += 1 - side % 2  # odd: the centre is a pixel
    out = np.zeros((len(bands), side, side), np.float32)
    for k, kernel in enumerate(kernels):
        if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            # Its centre lies between pixels, which would shift the PSF by half a pixel.
            raise ValueError(f"the PSF of {bands[k]} has an even side {kernel.shape}")
        y, x = (side - kernel.shape[0]) // 2, (side - kernel.shape[1]) // 2
        out[k, y : y + kernel.shape[0], x : x + kernel.shape[1]] = kernel
    return out


def _projection(header: fits.Header) -> Tan | None:
    """The TAN projection of a header in ICRS (or FK5 J2000, within 0.03 arcsec), else None."""
    # CTYPE1 may be a declination, with the axes exchanged.
    if "TAN" not in str(header.get("CTYPE1", "")) or "DEC" in str(header.get("CTYPE1", "")):
        return None
    if str(header.get("RADESYS", "ICRS")).strip() not in ("ICRS", "FK5", "FK5 "):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        celestial = WCS(header).celestial
    if celestial.sip is not None:  # distorted: a Tan alone would put the object elsewhere
        return None
    (a, b), (c, d) = celestial.pixel_scale_matrix
    (ra, dec), (x, y) = celestial.wcs.crval, celestial.wcs.crpix
    # FITS counts pixels from 1.
    return Tan(
        float(ra), float(dec), float(x) - 1.0, float(y) - 1.0, (float(a), float(b), float(c), float(d))
    )


def _scale_of(images: Sequence[Plane]) -> float | None:
    for plane in images:
        wcs = _projection(plane.header)
        if wcs is not None:
            return wcs.pixel_scale
    return None


def _position(header: fits.Header, wcs: Tan | None, shape: tuple[int, ...]) -> tuple[float, float]:
    """Deg of the object: its own cards, else the central pixel `(W // 2, H // 2)`; NaN without projection."""
    for ra, dec in (("OBJ_RA", "OBJ_DEC"), ("RA_OBJ", "DEC_OBJ"), ("RA_TARG", "DEC_TARG")):
        if isinstance(header.get(ra), float | int) and isinstance(header.get(dec), float | int):
            return float(header[ra]), float(header[dec])
    if wcs is None:
        return float("nan"), float("nan")
    x, y = wcs.pixel_to_sky(shape[-1] // 2, shape[-2] // 2)
    return float(x), float(y)


def _identity(header: fits.Header, name: str) -> str:
    """The object's own card, else the file name. RIPPLe's own files escape what FITS text cannot hold."""
    value = str(header.get("OBJID", header.get("OBJECTID", name)))
    return value.encode("ascii").decode("unicode_escape") if header.get("ORIGIN") == "RIPPLe" else value


def _place(header: fits.Header) -> tuple[int, int, int] | None:
    """Tract and first pixel, which files of `ripple export` have."""
    cards = [header.get(name) for name in ("TRACT", "X0", "Y0")]
    return (int(cards[0]), int(cards[1]), int(cards[2])) if all(isinstance(c, int) for c in cards) else None
