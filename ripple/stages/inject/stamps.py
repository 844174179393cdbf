"""Catalogues of real galaxies in the layout of GalSim's `RealGalaxyCatalog`.

A table with a row for each galaxy says in which file beside it, and in which HDU of that, its picture and its
PSF are. Its columns, in small or capital letters: `ident`, `mag` in the band `band`, `gal_filename`,
`gal_hdu`, `PSF_filename`, `PSF_hdu`, `pixel_scale` (arcsec), `noise_variance`, and, if it has it, `weight`.
Redshifts: a column `z`, `redshift` or `zphot`, or `zphot` in the table of fits beside it, `NAME_fits.fits`,
by `ident`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from astropy.io import fits
from numpy.typing import NDArray

from ripple.errors import CatalogueError
from ripple.imaging.psf.shape import fwhm
from ripple.stages.formats.foreign_cutout import DAMAGE, one_line

Float = NDArray[np.float64]
#: Columns that a catalogue must have, in small letters.
NEEDED = (
    "ident", "mag", "band", "gal_filename", "gal_hdu", "psf_filename", "psf_hdu", "pixel_scale",
    "noise_variance",
)  # fmt: skip
REDSHIFTS = ("z", "redshift", "zphot")
#: The galaxy is what stands out by so many sigma after smoothing with a Gaussian of so many pixels, and is
#: connected with the centre; so many pixels around it are kept as well.
SIGMAS, SMOOTH, AROUND = 3.0, 2.0, 3
#: What astropy raises for damaged files.
FAULTS = (*DAMAGE, fits.VerifyError, AttributeError)
#: Files that are kept open.
OPEN = 128


@dataclass(frozen=True)
class Stamps:
    """Pictures that are read when they are painted: there may be gigabytes of them.

    Parameters
    ----------
    folder
        Of the catalogue and its files.
    picture, psf
        File and HDU of each galaxy.
    pixel_scale, sigma
        `(N,)` arcsec; noise of a pixel.
    widest
        FWHM of a PSF at most, arcsec.
    """

    folder: Path
    picture: tuple[tuple[str, int], ...]
    psf: tuple[tuple[str, int], ...]
    pixel_scale: Float
    sigma: Float
    widest: float
    handles: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        """The picture `(1, h, w)`, of sum 1 and zero outside the galaxy.

        Raises
        ------
        CatalogueError
            It cannot be read or painted; the message goes to the index.
        """
        width = float(fwhm(self._read(*self.psf[row])[None])[0] * self.pixel_scale[row])
        if not 0.0 <= width <= self.widest:
            raise CatalogueError(
                f"the FWHM of its PSF, arcsec, is {width:.6g}, not from 0 to {self.widest:g}"
            )
        image = self._read(*self.picture[row])
        if not np.isfinite(image).all():
            raise CatalogueError("its picture has pixels without a value")
        alone = isolated(image, float(self.sigma[row]))
        if not alone.sum() > 0:
            raise CatalogueError("its picture has no light above its noise at the centre")
        return np.asarray(alone / alone.sum(), np.float32)[None]

    def files(self, rows: NDArray[np.int64]) -> tuple[Path, ...]:
        """The files that hold these rows."""
        names = {part[k][0] for part in (self.picture, self.psf) for k in rows.tolist()}
        return tuple(self.folder / name for name in sorted(names))

    def _read(self, name: str, hdu: int) -> Float:
        try:
            if name not in self.handles:
                if len(self.handles) >= OPEN:
                    self.close()
                self.handles[name] = fits.open(self.folder / name, memmap=True)
            data = self.handles[name][hdu].data
            if data is None or data.ndim != 2:
                raise CatalogueError(f"HDU {hdu} of {name} has no image")
            return np.array(data, np.float64)
        except FAULTS as err:
            raise CatalogueError(f"HDU {hdu} of {name} cannot be read: {one_line(err)}") from None

    def close(self) -> None:
        """Close the files."""
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()


def isolated(image: Float, sigma: float) -> Float:
    """The galaxy at the centre of a picture `(h, w)`, zero around it: the lens would magnify the noise."""
    # White noise after the smoothing; that of drizzled images is correlated, and about half of SIGMAS.
    noise = sigma / (2.0 * np.sqrt(np.pi) * SMOOTH)
    bright = scipy.ndimage.gaussian_filter(image, SMOOTH, mode="constant") > SIGMAS * noise
    parts, _ = scipy.ndimage.label(bright)
    y, x = image.shape[0] // 2, image.shape[1] // 2
    # Of the central 5 x 5 pixels: the centre of a galaxy may be dusty.
    middle = parts[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    found = np.unique(middle[middle > 0])
    if not len(found):
        return np.zeros_like(image)
    galaxy = scipy.ndimage.binary_fill_holes(np.isin(parts, found))
    return np.where(scipy.ndimage.binary_dilation(galaxy, iterations=AROUND), image, 0.0)


def is_catalogue(columns: Any) -> bool:
    """Whether a table says in which files its pictures are."""
    return columns is not None and "gal_filename" in {name.lower() for name in columns.dtype.names}


def small_letters(columns: Any, path: Path) -> dict[str, NDArray[Any]]:
    """Columns by their names in small letters.

    Raises
    ------
    CatalogueError
        Two differ only by that, or one is missing.
    """
    names = [name.lower() for name in columns.dtype.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CatalogueError(f"{path}: two columns {twice[0]!r}", hint="keep one of them")
    if missing := [name for name in NEEDED if name not in names]:
        raise CatalogueError(
            f"{path}: no column {missing[0]!r}", hint="GalSim's layout has " + ", ".join(NEEDED)
        )
    return {name.lower(): columns[name] for name in columns.dtype.names}


def texts(column: NDArray[Any]) -> list[str]:
    """Values as text, without the blanks that FITS files fill up with."""
    return [v.decode("ascii", "replace").strip() if isinstance(v, bytes) else str(v).strip() for v in column]


def numbers(columns: dict[str, NDArray[Any]], name: str, path: Path) -> Float:
    """A column of numbers."""
    if columns[name].ndim != 1 or columns[name].dtype.kind not in "iuf":
        raise CatalogueError(f"{path}: column {name!r} has no numbers")
    return np.asarray(columns[name], np.float64)


def stamps_of(columns: dict[str, NDArray[Any]], path: Path, widest: float) -> tuple[Stamps, list[str]]:
    """The pictures, and why each cannot be read (empty where nothing is known against it)."""
    refused = [""] * len(columns["ident"])
    places: list[tuple[tuple[str, int], ...]] = []
    for kind in ("gal", "psf"):
        hdus = numbers(columns, f"{kind}_hdu", path)
        names = texts(columns[f"{kind}_filename"])
        there = {name: _plain(name) and (path.parent / name).is_file() for name in set(names)}
        for k, name in enumerate(names):
            if not there[name]:
                refused[k] = refused[k] or f"its file {name!r} is not beside the catalogue"
            elif not (hdus[k] >= 0 and hdus[k] == int(hdus[k])):
                refused[k] = refused[k] or f"{kind}_hdu is {hdus[k]:g}"
        places.append(tuple(zip(names, np.nan_to_num(hdus).astype(int).tolist(), strict=True)))
    variance = numbers(columns, "noise_variance", path)
    for k in np.flatnonzero(~(np.isfinite(variance) & (variance >= 0))).tolist():
        refused[k] = refused[k] or f"noise_variance is {variance[k]:g}"
    sigma = np.sqrt(np.where(variance >= 0, variance, np.nan))
    scale = numbers(columns, "pixel_scale", path)
    return Stamps(path.parent, places[0], places[1], scale, sigma, widest), refused


def _plain(name: str) -> bool:
    """Whether a file is beside the catalogue or below it: a table must not name others."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def redshifts(columns: dict[str, NDArray[Any]], path: Path) -> tuple[Float, Path | None]:
    """Redshift of each galaxy, NaN unknown, and the table of fits that it comes from.

    Raises
    ------
    CatalogueError
        Two columns of redshifts, or a table of fits that cannot be read.
    """
    mine = [name for name in REDSHIFTS if name in columns]
    if len(mine) > 1:
        raise CatalogueError(f"{path}: columns {mine[0]!r} and {mine[1]!r} say the same", hint="keep one")
    if mine:
        return numbers(columns, mine[0], path), None
    beside = path.with_name(f"{path.name.removesuffix('.fits')}_fits.fits")
    if not beside.is_file():
        return np.full(len(columns["ident"]), np.nan), None
    try:
        table = fits.getdata(beside, 1)
        known = {name.lower(): np.asarray(table[name]) for name in table.dtype.names}
        ids, z = texts(known["ident"]), numbers(known, "zphot", beside)
    except FAULTS as err:
        raise CatalogueError(f"{beside}: ident and zphot cannot be read: {one_line(err)}") from None
    of = dict(zip(ids, z.tolist(), strict=True))
    return np.array([of.get(name, np.nan) for name in texts(columns["ident"])]), beside
