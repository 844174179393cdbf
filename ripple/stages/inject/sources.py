"""`--sources FILE`: pictures of real galaxies, lensed instead of smooth profiles.

A FITS file with an image `(N, H, W)`, the same in all bands, or `(N, B, H, W)` with the bands in the header
card `BANDS` (`g,r,i`), and a table of N rows: `pixel_scale` (arcsec), `mag_<band>` (AB, in each band of the
cutouts) and `psf_fwhm` (arcsec), or instead of that an image `PSF`, `(K, K)` or `(N, K, K)`, on the same
pixels. The PSF is not taken out of the pictures: the lens magnifies it too, so a wide one is refused.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import CatalogueError
from ripple.imaging.psf.shape import fwhm
from ripple.imaging.simulation.lensed import Picture

Float = NDArray[np.float64]
#: Smallest and largest pixel, arcsec, and the widest PSF of a source: wider ones would show in the arcs.
PIXEL, WIDEST = (0.005, 0.5), 0.3
MAGNITUDE = (10.0, 40.0)


@dataclass(frozen=True)
class Sources:
    """Pictures of a file.

    Parameters
    ----------
    planes
        `(N, P, H, W)` float32; P is 1 or the number of bands of the cutouts. Each of those that can be
        painted has sum 1.
    pixel_scale, width
        `(N,)` arcsec: of its pixels, and the FWHM of its PSF.
    mags
        `(N, B)` AB magnitudes before lensing, in the bands of the cutouts.
    refused
        N texts: why a source cannot be painted; empty where it can.
    sha256
        Of the file.
    """

    planes: NDArray[np.float32]
    pixel_scale: Float
    width: Float
    mags: Float
    refused: tuple[str, ...]
    sha256: str

    def usable(self) -> NDArray[np.int64]:
        """Rows that can be painted."""
        return np.array([k for k, why in enumerate(self.refused) if not why], np.int64)

    def picture(self, row: int, pixel_scale: float, angle: float, dx: float, dy: float) -> Picture:
        """A source on the pixels of the cutouts."""
        return Picture(self.planes[row], pixel_scale / float(self.pixel_scale[row]), angle, dx, dy)


@functools.lru_cache(maxsize=1)
def read_sources(path: Path, bands: tuple[str, ...]) -> Sources:
    """Read pictures; a process that paints several shards reads them once.

    Raises
    ------
    CatalogueError
        It is no such file, lacks something, or no source can be painted.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise CatalogueError(f"{path}: cannot be read: {err.strerror or err}") from None
    images, columns, said = _parts(data, path)
    cube = images.pop("", None)
    if cube is None or columns is None:
        what = "an image (N, H, W) or (N, B, H, W)" if cube is None else "a table with a row for each picture"
        raise CatalogueError(f"{path}: there is no HDU with {what}")
    if len(cube) != len(columns):
        raise CatalogueError(f"{path}: {len(cube):,} pictures, but {len(columns):,} rows in the table")
    planes = _planes(cube, said, bands, path)
    mags = np.stack([_column(columns, f"mag_{band}", path) for band in bands], axis=1)
    scale = _column(columns, "pixel_scale", path)
    width = _widths(columns, images.get("PSF"), scale, path)
    refused = _refusals(planes, scale, width, mags, bands)
    if not refused or all(refused):
        raise CatalogueError(
            f"{path}: no source of it can be painted" + (f": the first one: {refused[0]}" if refused else "")
        )
    good = np.array([not why for why in refused])
    planes[good] /= planes[good].sum(axis=(2, 3), dtype=np.float64, keepdims=True).astype(np.float32)
    return Sources(planes, scale, width, mags, tuple(refused), hashlib.sha256(data).hexdigest())


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
    except (OSError, ValueError, TypeError, KeyError, IndexError) as err:
        raise CatalogueError(
            f"{path}: no FITS file of pictures: {' '.join(str(err).split())[:200]}"
        ) from None
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
    planes: NDArray[np.float32], scale: Float, width: Float, mags: Float, bands: tuple[str, ...]
) -> list[str]:
    """Why each source cannot be painted."""
    out = [""] * len(planes)
    bounds: dict[str, tuple[Float, float, float]] = {
        "pixel_scale": (scale, *PIXEL), "the FWHM of its PSF, arcsec,": (width, 0.0, WIDEST)
    }  # fmt: skip
    bounds |= {f"mag_{band}": (mags[:, k], *MAGNITUDE) for k, band in enumerate(bands)}
    for name, (column, low, high) in bounds.items():
        for k in np.flatnonzero(~((column >= low) & (column <= high))):
            out[k] = out[k] or f"{name} is {column[k]:.6g}, not from {low:g} to {high:g}"
    known = np.isfinite(planes).all(axis=(1, 2, 3))
    light = np.where(known[:, None], planes.sum(axis=(2, 3), dtype=np.float64), np.nan)
    for k in np.flatnonzero(~(light > 0).all(axis=1)):
        out[k] = out[k] or (
            "its picture has no light" if known[k] else "its picture has pixels without a value"
        )
    return out
