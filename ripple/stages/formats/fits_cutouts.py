"""FITS stamps of any make: one file per band, cubes, several HDUs, with or without variance and mask.

The role of an HDU is read from its name (`VARIANCE`, `RMS`, `WHT`, `MASK`, `PSF`, ...); everything else is an
image. Bands come from a `BAND` or `FILTER` card, the HDU name, the file name, or the order.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io.fits.verify import VerifyError
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.imaging.batch import MASK_PLANES
from ripple.sky.geometry import Tan
from ripple.stages.formats.foreign import _one_line
from ripple.stages.formats.source_files import SourceFiles
from ripple.stages.formats.stamp import BANDS, DAMAGE, Float, Listing, Stamp, Unreadable

Role = Literal["image", "variance", "rms", "ivar", "mask", "psf"]
#: Bytes of a file of stamps when it is unpacked.
MAX_STAMP = 1 << 32
SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz")
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"INVVAR|IVAR|INVERSE|WHT|WEIGHT", "ivar"),
    (r"VAR", "variance"),
    (r"RMS|ERR|SIGMA|STD|NOISE", "rms"),
    (r"MASK|FLAG|^DQ|BPM", "mask"),
    (r"PSF", "psf"),
)
_NANOJANSKY = {"njy": 1.0, "nanojansky": 1.0, "ujy": 1e3, "mjy": 1e6, "jy": 1e9, "nanomaggy": 10**3.56}


@dataclass(frozen=True, slots=True)
class Plane:
    """One image HDU: its role, the band it names (empty when it names none), pixels and header."""

    role: Role
    band: str
    data: NDArray[Any]
    header: Any


def fits_stamps(root: Path, bands: tuple[str, ...], *, convert: bool = True) -> Listing:
    """A folder of FITS stamps, or one file.

    Files named `<id>_<band>` (or with `-` or `.`) are joined to one row when `bands` names the band; other
    files are one row each.

    Parameters
    ----------
    root
        Folder or file.
    bands
        Names of the bands in order; default as the first file says.
    convert
        Bring fluxes to nJy by `BUNIT` where it names a flux unit; leave them when zero points are given.

    Raises
    ------
    DataError
        No FITS file, or the bands cannot be told.
    """
    paths = (root,) if root.is_file() else tuple(sorted(p for p in root.rglob("*") if _is_fits(p)))
    if not paths:
        raise DataError(f"{root}: no FITS file below it")
    groups = _grouped(root, paths, bands)
    sources, scale, named = SourceFiles(), None, bands
    for _, files in groups[:100]:
        try:
            planes = [p for path in files.values() for p in _planes_of(sources.read(path))]
            named = bands or _named(planes)
            scale = _scale_of([p for p in planes if p.role == "image"])
            break
        except (*DAMAGE, VerifyError) as err:
            first_error = _one_line(err)
    else:
        raise DataError(f"{root}: none of its first files can be read: {first_error}")
    if not named:
        raise DataError(f"{root}: its files do not name their bands", hint="name them with --bands")

    def read(row: int) -> Stamp | Unreadable:
        name, files = groups[row]
        try:
            held = {band: sources.read(path) for band, path in files.items()}
            return _stamp(name, held, named, convert)
        except (*DAMAGE, VerifyError) as err:
            return Unreadable(name, _one_line(err))

    return Listing(len(groups), named, scale, (), read, paths, sources)


def _is_fits(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def _bare(path: Path, root: Path) -> str:
    """Name below `root` without the FITS suffix."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    return re.sub(r"\.(fits|fit)(\.gz|\.fz)?$", "", name, flags=re.IGNORECASE)


def _grouped(root: Path, paths: Sequence[Path], bands: tuple[str, ...]) -> list[tuple[str, dict[str, Path]]]:
    """Rows as (name, band -> file); the band is empty when one file holds all."""
    choice = "|".join(re.escape(b) for b in sorted(bands or BANDS, key=len, reverse=True))
    pattern = re.compile(rf"(.+)[_\-.](?:HSC-)?({choice})", re.IGNORECASE)
    names = {path: _bare(path, root) for path in paths}
    found = {path: pattern.fullmatch(name) for path, name in names.items()}
    rows: dict[str, dict[str, Path]] = {}
    # Without --bands, files are joined only when all of them look like it.
    join = bool(bands) or all(found.values())
    for path in paths:
        hit = found[path] if join else None
        if hit:
            band = next((b for b in (bands or BANDS) if b.lower() == hit[2].lower()), hit[2])
            rows.setdefault(hit[1], {})[band] = path
        else:
            rows[names[path]] = {"": path}
    return sorted(rows.items())


def _planes_of(data: bytes) -> list[Plane]:
    """Image HDUs with pixels; an empty HDU is none, not zeros."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
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
    """Without gzip around it, which astropy takes off files only."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_STAMP + 1)
    if len(plain) > MAX_STAMP:
        raise ValueError(f"more than {MAX_STAMP} bytes when unpacked")
    return plain


def _native(data: NDArray[Any]) -> NDArray[Any]:
    squeezed = (
        data.reshape(data.shape[-3:]) if data.ndim > 3 and data.size == np.prod(data.shape[-3:]) else data
    )
    if squeezed.ndim > 3:
        raise ValueError(f"an HDU of shape {data.shape} is no image")
    return np.ascontiguousarray(squeezed, squeezed.dtype.newbyteorder("="))


def _role(name: str) -> Role:
    upper = name.upper()
    return next((role for pattern, role in _ROLES if re.search(pattern, upper)), "image")


def _band(header: Any, name: str) -> str:
    for card in ("BAND", "FILTER", "FILTNAM", "FILTER1"):
        if isinstance(header.get(card), str) and header[card].strip():
            return _short(header[card].strip())
    parts = re.split(r"[_\-. ]", name)
    return next((p.lower() for p in parts if p and p.lower() in BANDS), "")


def _short(name: str) -> str:
    """`HSC-G`, `i_sim_1.4` and `g DECam` are g, i and g; other names stay."""
    for part in (re.split(r"[\-]", name)[-1], re.split(r"[_ ]", name)[0]):
        if part.lower() in BANDS and len(part) == 1:
            return part.lower()
    return name


def _named(planes: Sequence[Plane]) -> tuple[str, ...]:
    """Bands that the image planes of one row name, when all do and differ."""
    images = [p for p in planes if p.role == "image"]
    names = [p.band for p in images]
    if len(images) == 1 and images[0].data.ndim == 3:
        listed = images[0].header.get("BANDS", "")
        parts = tuple(str(listed).replace(",", " ").split()) or tuple(str(listed))
        return parts if len(parts) == len(images[0].data) else ()
    whole = all(names) and len(set(names)) == len(names)
    return tuple(sorted(names, key=lambda b: (BANDS + b).index(b))) if whole else ()


def _stamp(name: str, files: dict[str, bytes], bands: tuple[str, ...], convert: bool) -> Stamp:
    planes: list[Plane] = []
    for band, data in files.items():
        mine = _planes_of(data)
        planes += [replace(p, band=band) for p in mine] if band else mine
    by_role: dict[str, dict[str, Plane]] = {}
    for role in ("image", "variance", "rms", "ivar", "mask", "psf"):
        by_role[role] = _by_band([p for p in planes if p.role == role], bands)
    images = by_role["image"]
    if not images:
        raise ValueError("no image in any named band")
    shapes = {p.data.shape for p in images.values()}
    if len(shapes) > 1:
        raise ValueError(f"bands of different sizes {sorted(shapes)}")
    shape = next(iter(shapes))
    blank = np.full(shape, np.nan, np.float32)
    factors = {band: _unit_factor(p.header) for band, p in images.items()}
    known = convert and None not in factors.values()
    to_njy = {band: (factor if known and factor else 1.0) for band, factor in factors.items()}
    image = np.stack(
        [images[b].data.astype(np.float32) * np.float32(to_njy[b]) if b in images else blank for b in bands]
    )
    first = next(iter(images.values())).header
    wcs = _projection(first)
    ra, dec = _position(first, wcs, shape)
    return Stamp(
        id=_identity(first, name),
        image=image,
        variance=_variance(by_role, bands, shape, to_njy),
        mask=_mask(by_role["mask"], bands, shape),
        psf=_kernels(by_role["psf"], bands),
        ra=ra,
        dec=dec,
        label=int(first.get("LABEL", -1)),
        wcs=wcs,
        place=_place(first),
        unit="nJy" if known else "",
    )


def _by_band(planes: Sequence[Plane], bands: tuple[str, ...]) -> dict[str, Plane]:
    """Band -> 2-d plane: from a cube, by name, or in order when names do not tell them apart."""
    if len(planes) == 1 and planes[0].data.ndim == 3:
        cube = planes[0]
        if len(cube.data) != len(bands):
            raise ValueError(f"a cube of {len(cube.data)} planes, {len(bands)} bands are named")
        return {b: replace(cube, band=b, data=cube.data[k]) for k, b in enumerate(bands)}
    flat = [p for p in planes if p.data.ndim == 2]
    named = [p for p in flat if p.band in bands]
    if named and len({p.band for p in named}) == len(named):
        return {p.band: p for p in named}
    if flat and len(flat) != len(bands):
        raise ValueError(f"{len(flat)} planes of one kind that do not name their band, {len(bands)} bands")
    return dict(zip(bands, flat, strict=False))


def _unit_factor(header: Any) -> float | None:
    """Nanojansky per unit of a header that names a flux unit, else None (counts need a zero point)."""
    unit = str(header.get("BUNIT", "")).strip().lower().replace("µ", "u")
    return _NANOJANSKY.get(unit)


def _variance(
    roles: dict[str, dict[str, Plane]],
    bands: tuple[str, ...],
    shape: tuple[int, ...],
    to_njy: dict[str, float],
) -> Float | None:
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
                continue  # all zero: nobody measured it
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values**2 if role == "rms" else 1 / values if role == "ivar" else values
            # Infinite is how a pixel without weight is written; anything else that is no variance is unknown.
            values = np.where(values >= 0, values, np.nan)
            out[k] = values * to_njy.get(band, 1.0) ** 2
    return out if np.isfinite(out).any() else None


def _mask(
    planes: dict[str, Plane], bands: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray[np.uint32] | None:
    """Bits of `MASK_PLANES`: by name where `MP_<plane>` cards tell, as afw writes them; else all is BAD."""
    if not planes:
        return None
    out = np.zeros((len(bands), *shape), np.uint32)
    for k, band in enumerate(bands):
        if band not in planes:
            continue
        values, named = planes[band].data.astype(np.int64), 0
        if values.shape != shape:
            raise ValueError(f"mask of {band} has shape {values.shape}, the image {shape}")
        for bit, name in enumerate(MASK_PLANES):
            theirs = planes[band].header.get(f"MP_{name}", -1)
            if isinstance(theirs, int) and 0 <= theirs < 62:
                out[k] |= ((values >> theirs) & 1).astype(np.uint32) << np.uint32(bit)
                named |= 1 << theirs
        out[k][(values & ~named) != 0] |= np.uint32(1 << MASK_PLANES.index("BAD"))
    return out


def _kernels(planes: dict[str, Plane], bands: tuple[str, ...]) -> Float | None:
    if set(planes) != set(bands):
        return None
    kernels = [planes[b].data.astype(np.float32) for b in bands]
    side = max(max(k.shape) for k in kernels)
    side += 1 - side % 2
    out = np.zeros((len(bands), side, side), np.float32)
    for k, kernel in enumerate(kernels):
        if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ValueError(f"PSF of {bands[k]} has an even side {kernel.shape}")
        y, x = (side - kernel.shape[0]) // 2, (side - kernel.shape[1]) // 2
        out[k, y : y + kernel.shape[0], x : x + kernel.shape[1]] = kernel
    return out


def _projection(header: Any) -> Tan | None:
    """The TAN projection of a header in ICRS (or FK5 J2000, within 0.03 arcsec), else None."""
    from astropy.wcs import WCS, FITSFixedWarning

    if "TAN" not in str(header.get("CTYPE1", "")) or "DEC" in str(header.get("CTYPE1", "")):
        return None
    if str(header.get("RADESYS", "ICRS")).strip() not in ("ICRS", "FK5", "FK5 "):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        celestial = WCS(header).celestial
    if celestial.sip is not None:
        return None
    (a, b), (c, d) = celestial.pixel_scale_matrix
    (ra, dec), (x, y) = celestial.wcs.crval, celestial.wcs.crpix
    return Tan(
        float(ra), float(dec), float(x) - 1.0, float(y) - 1.0, (float(a), float(b), float(c), float(d))
    )


def _scale_of(images: Sequence[Plane]) -> float | None:
    for plane in images:
        wcs = _projection(plane.header)
        if wcs is not None:
            return wcs.pixel_scale
    return None


def _position(header: Any, wcs: Tan | None, shape: tuple[int, ...]) -> tuple[float, float]:
    """Of the object: its own cards, else the middle pixel `(W // 2, H // 2)`."""
    for ra, dec in (("OBJ_RA", "OBJ_DEC"), ("RA_OBJ", "DEC_OBJ"), ("RA_TARG", "DEC_TARG")):
        if isinstance(header.get(ra), float | int) and isinstance(header.get(dec), float | int):
            return float(header[ra]), float(header[dec])
    if wcs is None:
        return float("nan"), float("nan")
    x, y = wcs.pixel_to_sky(shape[-1] // 2, shape[-2] // 2)
    return float(x), float(y)


def _identity(header: Any, name: str) -> str:
    """The object's own card, else the file name; our files escape what FITS text cannot hold."""
    value = str(header.get("OBJID", header.get("OBJECTID", name)))
    return value.encode("ascii").decode("unicode_escape") if header.get("ORIGIN") == "RIPPLe" else value


def _place(header: Any) -> tuple[int, int, int] | None:
    """Tract and first pixel, when we wrote the file."""
    cards = [header.get(name) for name in ("TRACT", "X0", "Y0")]
    return (int(cards[0]), int(cards[1]), int(cards[2])) if all(isinstance(c, int) for c in cards) else None
