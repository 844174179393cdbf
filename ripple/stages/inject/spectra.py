"""Magnitudes from spectra: a template at a redshift through LSST's bands and those of Hubble.

Throughputs and templates are files of GalSim's wheel (extra `sed`): `LSST_g.dat` and the like, the total of
atmosphere, mirrors, filter and detector; `ACS_wfc_F814W.dat`; and the galaxies of Coleman, Wu & Weedman 1980,
ApJS 43, 393, `CWW_E_ext`, `CWW_Sbc_ext`, `CWW_Scd_ext`, `CWW_Im_ext`.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ripple.errors import CatalogueError, ConfigError
from ripple.runtime.extras import require

Float = NDArray[np.float64]
#: Step of the integrals, nm; share of the largest throughput below which a band ends.
STEP, EDGE = 0.5, 1e-3
#: Rows integrated at a time, to bound memory.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A spectrum at rest.

    Parameters
    ----------
    wave
        `(W,)` nm, ascending.
    flux
        `(W,)` per wavelength, any unit.
    """

    wave: Float
    flux: Float


def _share(folder: str) -> Path:
    """A folder of GalSim's files; GalSim itself is not imported."""
    require("sed")
    spec = importlib.util.find_spec("galsim")
    places = spec.submodule_search_locations if spec is not None else None
    assert places  # `require` found the package
    return Path(next(iter(places))) / "share" / folder


def spectrum_file(name: str) -> Path:
    """The file that a name means: a file of the user, or else a template of GalSim.

    Raises
    ------
    ConfigError
        There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    folder = _share("SEDs")
    found = folder / (name if name.endswith(".sed") else f"{name}.sed")
    if Path(name).name != name or not found.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("CWW_*_ext.sed")))
        raise ConfigError(f"no spectrum {name!r}", hint=f"give a file, or one of {known}")
    return found


def read_spectrum(path: Path) -> Spectrum:
    """Read two columns of text, wavelength in Angstrom and flux per wavelength.

    Raises
    ------
    CatalogueError
        It cannot be read as such.
    """
    try:
        # `ndmin`: a file of one line is refused below, not by numpy.
        table = np.loadtxt(io.StringIO(path.read_text()), ndmin=2)
    except (OSError, ValueError, UnicodeError) as err:
        raise CatalogueError(
            f"{path}: cannot be read as a spectrum: {' '.join(str(err).split())[:200]}"
        ) from None
    if table.shape[1] != 2 or len(table) < 2:
        raise CatalogueError(f"{path}: a spectrum has two columns, wavelength (Angstrom) and flux")
    wave, flux = table.T / np.array([[10.0], [1.0]])
    if not (np.isfinite(table).all() and (np.diff(wave) > 0).all() and wave[0] > 0 and (flux >= 0).all()):
        raise CatalogueError(
            f"{path}: wavelengths of a spectrum must rise, and its fluxes must not be negative"
        )
    return Spectrum(wave, flux)


@functools.lru_cache(maxsize=32)
def throughput(band: str) -> tuple[Float, Float]:
    """Wavelengths in nm, `STEP` apart, and the share of photons that a band detects.

    Raises
    ------
    CatalogueError
        GalSim has no curve of the band.
    """
    folder = _share("bandpasses")
    names = {path.stem.rpartition("_")[2].upper(): path for path in sorted(folder.glob("*.dat"))}
    # Bands of LSST are in small letters, in the files and everywhere.
    path = folder / f"LSST_{band}.dat" if band in tuple("ugrizy") else names.get(band.strip().upper())
    if path is None or not path.is_file():
        raise CatalogueError(
            f"the throughput of band {band!r} is not known", hint=f"known are ugrizy and {', '.join(names)}"
        )
    wave, share = np.loadtxt(path).T
    inside = wave[share > EDGE * share.max()]
    grid = np.arange(inside[0], inside[-1] + STEP, STEP)
    return grid, np.interp(grid, wave, share, 0.0, 0.0)


def ab_magnitudes(spectrum: Spectrum, z: Float, bands: tuple[str, ...]) -> Float:
    """AB magnitudes `(N, B)` of a spectrum seen at redshifts `(N,)`, up to a constant for all of them.

    NaN where the spectrum does not cover the band. The factor `1 / (1 + z)` of the flux is left out.

    Notes
    -----
    For a detector that counts photons, `-2.5 log10(int f T w dw / int T / w dw)`, f per wavelength w:
    Fukugita et al. 1996, AJ 111, 1748. Nothing is absorbed between the galaxy and us.
    """
    out = np.full((len(z), len(bands)), np.nan)
    for b, band in enumerate(bands):
        wave, share = throughput(band)
        photons = share * wave
        for at in range(0, len(z), CHUNK):
            rest = wave / (1.0 + z[at : at + CHUNK, None])
            total = np.interp(rest, spectrum.wave, spectrum.flux, np.nan, np.nan) @ photons
            with np.errstate(divide="ignore"):
                out[at : at + CHUNK, b] = -2.5 * np.log10(total / (share / wave).sum())
    return np.where(np.isfinite(out), out, np.nan)
