"""`--sources FILE`: pictures of real galaxies, lensed instead of smooth profiles.

A FITS file with an image `(N, H, W)`, the same in all bands, or `(N, B, H, W)` with the bands in the header
card `BANDS` (`g,r,i`), and a table of N rows: `pixel_scale` (arcsec), `mag_<band>` (AB, in each band of the
cutouts) and `psf_fwhm` (arcsec), or instead of that an image `PSF`, `(K, K)` or `(N, K, K)`, on the same
pixels; or a catalogue whose pictures are in files of their own (`stamps`). The PSF is not taken out of the
pictures: the lens magnifies it too, so a wide one is refused.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import CatalogueError, ConfigError
from ripple.imaging.psf.shape import fwhm
from ripple.imaging.simulation.lensed import Picture
from ripple.stages.formats.foreign_cutout import one_line
from ripple.stages.inject import spectra, stamps
from ripple.stages.inject.stamps import Stamps

Float = NDArray[np.float64]
#: Smallest and largest pixel, arcsec, and the widest PSF of a source: wider ones would show in the arcs.
PIXEL, WIDEST = (0.005, 0.5), 0.3
MAGNITUDE = (10.0, 40.0)
#: Row of an id that several sources have.
TWICE = -2
#: Redshifts of a spectrum.
REDSHIFT = (0.001, 10.0)


@dataclass(frozen=True)
class Sources:
    """Pictures of a file.

    Parameters
    ----------
    planes
        `(N, P, H, W)` float32, or by row `(1, h, w)`; P is 1 or the number of bands of the cutouts. Each of
        those that can be painted has sum 1.
    pixel_scale
        `(N,)` arcsec.
    mags
        `(N, B)` AB magnitudes before lensing, in the bands of the cutouts.
    z
        `(N,)` redshifts, NaN unknown.
    weight
        `(N,)` how often each is drawn; None: equally often.
    ids
        Id -> row; `TWICE` for several.
    refused
        N texts: why a source cannot be painted; empty where it can, as far as is known before it is read.
    sha256
        Of the file, and of what else says magnitudes and redshifts; not of the files with the pictures.
    """

    planes: NDArray[np.float32] | Stamps
    pixel_scale: Float
    mags: Float
    z: Float
    weight: Float | None
    ids: dict[str, int]
    refused: tuple[str, ...]
    sha256: str

    @functools.cached_property
    def usable(self) -> NDArray[np.int64]:
        """Rows that can be painted."""
        # Once: among tens of thousands, each draw would take longer than to paint it.
        return np.array([k for k, why in enumerate(self.refused) if not why], np.int64)

    def draw(self, rng: np.random.Generator, beyond: float = np.nan) -> int:
        """A row that can be painted, -1 for none; with a redshift, of those known to lie beyond it."""
        rows = self.usable
        if np.isfinite(beyond):
            rows = rows[self.z[rows] > beyond]
        if not len(rows):
            return -1
        if self.weight is None:
            return int(rng.choice(rows))
        share = self.weight[rows]
        return int(rng.choice(rows, p=share / share.sum()))

    def picture(self, row: int, pixel_scale: float, angle: float, dx: float, dy: float) -> Picture:
        """A source on the pixels of the cutouts.

        Raises
        ------
        CatalogueError
            Its picture cannot be read or painted.
        """
        return Picture(self.planes[row], pixel_scale / float(self.pixel_scale[row]), angle, dx, dy)

    def files(self) -> tuple[Path, ...]:
        """Files beside it that hold pictures."""
        return self.planes.files(self.usable) if isinstance(self.planes, Stamps) else ()


@functools.lru_cache(maxsize=1)
def read_sources(path: Path, bands: tuple[str, ...], sed: str = "") -> Sources:
    """Read pictures; a process that paints several shards reads them once.

    Parameters
    ----------
    path
        A FITS file.
    bands
        Of the cutouts.
    sed
        Spectrum of all sources of a catalogue, a file or one of GalSim's; empty: as the catalogue says.

    Raises
    ------
    CatalogueError
        It is no such file, lacks something, or no source can be painted.
    ConfigError
        There is no such spectrum, or the file does not need one.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise CatalogueError(f"{path}: cannot be read: {err.strerror or err}") from None
    images, columns, said = _parts(data, path)
    cube = images.pop("", None)
    digest = hashlib.sha256(data)
    if cube is None and stamps.is_catalogue(columns):
        found = _catalogue(stamps.small_letters(columns, path), path, bands, sed, digest)
    elif cube is None or columns is None:
        what = "an image (N, H, W) or (N, B, H, W)" if cube is None else "a table with a row for each picture"
        raise CatalogueError(f"{path}: there is no HDU with {what}")
    elif sed:
        raise ConfigError(
            "inject: --source-sed is for catalogues of GalSim's layout",
            hint=f"the table of {path} has magnitudes in each band",
        )
    else:
        found = _cube(cube, said, columns, images.get("PSF"), path, bands, digest.hexdigest())
    if not found.refused or all(found.refused):
        first = f": the first one: {found.refused[0]}" if found.refused else ""
        raise CatalogueError(f"{path}: no source of it can be painted{first}")
    return found


def _cube(
    cube: NDArray[Any],
    said: str,
    columns: Any,
    psf: NDArray[Any] | None,
    path: Path,
    bands: tuple[str, ...],
    sha256: str,
) -> Sources:
    """Pictures of one size, in the file itself."""
    if len(cube) != len(columns):
        raise CatalogueError(f"{path}: {len(cube):,} pictures, but {len(columns):,} rows in the table")
    planes = _planes(cube, said, bands, path)
    mags = np.stack([_column(columns, f"mag_{band}", path) for band in bands], axis=1)
    scale = _column(columns, "pixel_scale", path)
    width = _widths(columns, psf, scale, path)
    refused = _refusals({"the FWHM of its PSF, arcsec,": (width, 0.0, WIDEST)}, scale, mags, bands)
    known = np.isfinite(planes).all(axis=(1, 2, 3))
    light = np.where(known[:, None], planes.sum(axis=(2, 3), dtype=np.float64), np.nan)
    for k in np.flatnonzero(~(light > 0).all(axis=1)):
        refused[k] = refused[k] or (
            "its picture has no light" if known[k] else "its picture has pixels without a value"
        )
    good = np.array([not why for why in refused], bool)
    planes[good] /= planes[good].sum(axis=(2, 3), dtype=np.float64, keepdims=True).astype(np.float32)
    names = columns.dtype.names
    z = _column(columns, "z", path) if "z" in names else np.full(len(columns), np.nan)
    # Without ids a source is called by its row, as in the index.
    ids = stamps.texts(columns["id"]) if "id" in names else [str(k) for k in range(len(columns))]
    return Sources(planes, scale, mags, z, None, _ids(ids), tuple(refused), sha256)


def _catalogue(
    columns: dict[str, NDArray[Any]], path: Path, bands: tuple[str, ...], sed: str, digest: Any
) -> Sources:
    """Pictures in files of their own, in one band, with the colours of a spectrum."""
    found, refused = stamps.stamps_of(columns, path, WIDEST)
    z, beside = stamps.redshifts(columns, path)
    if beside is not None:
        digest.update(beside.read_bytes())
    mags = _colours(columns, path, bands, sed, z, digest)
    for k, why in enumerate(_refusals({}, found.pixel_scale, mags, bands)):
        refused[k] = refused[k] or why
    weight = None
    if "weight" in columns:
        weight = stamps.numbers(columns, "weight", path)
        for k in np.flatnonzero(~(np.isfinite(weight) & (weight > 0))).tolist():
            refused[k] = refused[k] or f"weight is {weight[k]:g}"
    ids = _ids(stamps.texts(columns["ident"]))
    return Sources(found, found.pixel_scale, mags, z, weight, ids, tuple(refused), digest.hexdigest())


def _colours(
    columns: dict[str, NDArray[Any]], path: Path, bands: tuple[str, ...], sed: str, z: Float, digest: Any
) -> Float:
    """Magnitudes `(N, B)`: those of the catalogue, or of spectra scaled to its magnitude in its band."""
    mine = [band for band in bands if f"mag_{band}" in columns]
    ways = [f"column mag_{band}" for band in mine[:1]] + ["a column sed"] * ("sed" in columns)
    ways += ["--source-sed"] * bool(sed)
    if len(ways) > 1:
        raise CatalogueError(f"{path}: {ways[0]} and {ways[1]} both say the colours", hint="keep one of them")
    if not ways:
        raise CatalogueError(
            f"{path}: nothing says the colours of its galaxies in {', '.join(bands)}",
            hint="give --source-sed, such as CWW_Scd_ext, or a column sed or mag_<band>",
        )
    if mine:
        if missing := [band for band in bands if f"mag_{band}" not in columns]:
            raise CatalogueError(f"{path}: no column 'mag_{missing[0]}'")
        return np.stack([stamps.numbers(columns, f"mag_{band}", path) for band in bands], axis=1)
    if not np.isfinite(z).any():
        raise CatalogueError(
            f"{path}: nothing says the redshifts of its galaxies, which their colours depend on",
            hint="add a column z, or the table of fits, NAME_fits.fits with ident and zphot, beside it",
        )
    names = [sed] * len(z) if sed else stamps.texts(columns["sed"])
    known, measured = stamps.texts(columns["band"]), stamps.numbers(columns, "mag", path)
    mags = np.full((len(z), len(bands)), np.nan)
    seen = np.where((z >= REDSHIFT[0]) & (z <= REDSHIFT[1]), z, np.nan)
    for name, band in sorted(set(zip(names, known, strict=True))):
        rows = np.array([n == name and b == band for n, b in zip(names, known, strict=True)])
        file = spectra.spectrum_file(name)
        digest.update(file.read_bytes())
        found = spectra.ab_magnitudes(spectra.read_spectrum(file), seen[rows], (*bands, band))
        mags[rows] = found[:, :-1] - found[:, -1:] + measured[rows, None]
    return mags


def _ids(names: list[str]) -> dict[str, int]:
    """Row of each id; `TWICE` where several have it, which matters only to lenses that name it."""
    counts = Counter(names)
    return {name: k if counts[name] == 1 else TWICE for k, name in enumerate(names)}


def _parts(data: bytes, path: Path) -> tuple[dict[str, NDArray[Any]], Any, str]:
    """Images, the pictures under the name "" and the PSF; the table; and the card `BANDS` of the pictures."""
    from astropy.io import fits

    images: dict[str, NDArray[Any]] = {}
    table, said = None, ""
    try:
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            for hdu in hdus:
                if isinstance(hdu, fits.BinTableHDU) and table is None:
                    table = np.array(hdu.data)
                elif hdu.is_image and hdu.name == "PSF" and hdu.data is not None:
                    images["PSF"] = np.asarray(hdu.data, np.float32)
                elif hdu.is_image and hdu.data is not None and "" not in images and hdu.data.ndim in (3, 4):
                    images[""], said = np.asarray(hdu.data, np.float32), str(hdu.header.get("BANDS", ""))
    except stamps.FAULTS as err:
        raise CatalogueError(f"{path}: cannot be read as a FITS file of pictures: {one_line(err)}") from None
    return images, table, said


def _planes(cube: NDArray[Any], said: str, bands: tuple[str, ...], path: Path) -> NDArray[np.float32]:
    """`(N, P, H, W)`: one plane, or those of the bands of the cutouts."""
    if cube.ndim == 3:
        return np.array(cube[:, None], np.float32)
    names = [name.strip() for name in said.split(",") if name.strip()]
    if len(names) != cube.shape[1]:
        raise CatalogueError(
            f"{path}: pictures in {cube.shape[1]} bands, but the card BANDS is {said!r}",
            hint="write the bands in order, BANDS = 'g,r,i'",
        )
    if missing := [band for band in bands if band not in names]:
        raise CatalogueError(f"{path}: no pictures in band {missing[0]!r} of the cutouts")
    return np.array(cube[:, [names.index(band) for band in bands]], np.float32)


def _column(columns: Any, name: str, path: Path) -> Float:
    if name not in columns.dtype.names:
        raise CatalogueError(f"{path}: its table has no column {name!r}")
    if columns[name].ndim != 1 or columns[name].dtype.kind not in "iuf":
        raise CatalogueError(f"{path}: column {name!r} has no numbers")
    return np.asarray(columns[name], np.float64)


def _widths(columns: Any, psf: NDArray[Any] | None, scale: Float, path: Path) -> Float:
    """FWHM of the PSF of each picture, arcsec."""
    if "psf_fwhm" in columns.dtype.names:
        return _column(columns, "psf_fwhm", path)
    if psf is None:
        raise CatalogueError(
            f"{path}: nothing says how sharp the pictures are",
            hint="add a column psf_fwhm (arcsec), or an image PSF",
        )
    stamps = psf[None] if psf.ndim == 2 else psf
    if stamps.ndim != 3 or len(stamps) not in (1, len(columns)):
        raise CatalogueError(f"{path}: PSF has shape {psf.shape}, not (K, K) or ({len(columns)}, K, K)")
    return np.asarray(fwhm(stamps) * scale)


def _refusals(
    more: dict[str, tuple[Float, float, float]], scale: Float, mags: Float, bands: tuple[str, ...]
) -> list[str]:
    """Why each source cannot be painted, by its numbers."""
    out = [""] * len(scale)
    bounds = {"pixel_scale": (scale, *PIXEL)} | more
    bounds |= {f"mag_{band}": (mags[:, k], *MAGNITUDE) for k, band in enumerate(bands)}
    for name, (column, low, high) in bounds.items():
        for k in np.flatnonzero(~((column >= low) & (column <= high))):
            out[k] = out[k] or f"{name} is {column[k]:.6g}, not from {low:g} to {high:g}"
    return out
