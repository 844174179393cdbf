"""`--theta-from`: Einstein radii of the masses of the hosts.

The velocity dispersion is that of a column, one number for all, or follows from the light of the host
(`faber-jackson`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import suggest
from ripple.errors import CatalogueError
from ripple.imaging.simulation.lensing import comoving_distance, einstein_radius
from ripple.imaging.simulation.population import source_redshifts
from ripple.runtime.extras import require
from ripple.stages.inject import spectra
from ripple.stages.inject.config import FABER_JACKSON, InjectConfig
from ripple.stages.plan.tables import is_number

Float = NDArray[np.float64]
#: Lenses beyond are none of galaxies, and distances end at a redshift of 6.
MOST_DISTANT = 3.0
#: log10 of the velocity dispersion in km/s over the absolute magnitude in r, from its highest power:
#: early-type galaxies of SDSS, Hyde & Bernardi 2009, MNRAS 394, 1978, as in LensPop (Collett 2015, ApJ 811,
#: 20).
HYDE_BERNARDI = (-0.006, -0.37, -2.97)
#: Absolute magnitudes of the galaxies that it was fitted to.
LUMINOSITIES = (-24.5, -19.0)
#: The spectrum of early-type galaxies, for the K correction.
EARLY_TYPE = "CWW_E_ext"


def require_masses(config: InjectConfig, index: pa.Table) -> None:
    """Refuse `theta_from` where the cutouts lack its columns or have text there, or packages are missing.

    Raises
    ------
    CatalogueError
        Names the column.
    ConfigError
        Names the package.
    """
    if not config.theta_from:
        return
    needed = [config.lens_redshift]
    if config.theta_from == FABER_JACKSON:
        require("sed")
        needed.append(config.host_mag)
    elif config.fixed_sigma is None:
        needed.append(config.theta_from)
    names = index.column_names
    for name in needed:
        if name in names and not is_number(index.schema.field(name).type):
            raise CatalogueError(f"--theta-from: column {name!r} of the cutouts has no numbers")
        if name not in names:
            raise CatalogueError(
                f"--theta-from: the cutouts have no column {name!r}{suggest(name, list(names))}",
                hint="fetch with a catalogue that has redshifts, and velocity dispersions or magnitudes",
            )


def velocity_dispersions(catalog: dict[str, NDArray[Any]], config: InjectConfig) -> Float:
    """Velocity dispersion of each host, `(N,)` km/s, without scatter; NaN where it is not known."""
    z = np.asarray(catalog[config.lens_redshift], np.float64)
    if config.fixed_sigma is not None:
        return np.full(len(z), config.fixed_sigma)
    if config.theta_from != FABER_JACKSON:
        sigma = np.asarray(catalog[config.theta_from], np.float64)
        return np.where(np.isfinite(sigma) & (sigma > 0), sigma, np.nan)
    good = (z > 0) & (z < MOST_DISTANT)
    absolute = absolute_r(
        np.asarray(catalog[config.host_mag], np.float64), np.where(good, z, np.nan), config.host_band
    )
    sigma = 10.0 ** np.polyval(HYDE_BERNARDI, absolute)
    return np.where((absolute >= LUMINOSITIES[0]) & (absolute <= LUMINOSITIES[1]), sigma, np.nan)


def absolute_r(mag: Float, z: Float, band: str) -> Float:
    """Absolute AB magnitude in r at rest of early-type galaxies with these magnitudes in a band, `(N,)`.

    The K correction is that of `EARLY_TYPE`; evolution is not corrected for.
    """
    modulus = 5.0 * np.log10(comoving_distance(z) * (1.0 + z) * 1e5)
    spectrum = spectra.read_spectrum(spectra.spectrum_file(EARLY_TYPE))
    seen = spectra.ab_magnitudes(spectrum, z, (band,))[:, 0] + 2.5 * np.log10(1.0 + z)
    at_rest = spectra.ab_magnitudes(spectrum, np.zeros(1), ("r",))[0, 0]
    return np.asarray(mag - modulus - (seen - at_rest))


def radius_of_mass(
    sigma: float, z: float, z_source: float, config: InjectConfig, rng: np.random.Generator
) -> tuple[float, float, float, str]:
    """Einstein radius (arcsec), redshift of the source, velocity dispersion; and why there are none.

    Parameters
    ----------
    sigma, z
        Of the host.
    z_source
        Of the source; NaN: drawn, as far behind as those of `ripple simulate`.
    config
        The limits of the Einstein radius, and the scatter.
    rng
        Random generator.
    """
    none = np.nan, np.nan, np.nan
    light = config.theta_from == FABER_JACKSON
    if not light and not np.isfinite(sigma):
        return *none, f"no velocity dispersion in {config.theta_from}"
    if not 0 < z < MOST_DISTANT:
        return *none, f"no redshift of a lens in {config.lens_redshift}"
    if not np.isfinite(sigma):
        return *none, f"not as bright as galaxies of the relation, by {config.host_mag}"
    if config.sigma_scatter:
        sigma *= 10.0 ** (config.sigma_scatter * float(rng.standard_normal()))
    behind = np.array([z_source]) if np.isfinite(z_source) else source_redshifts(rng, np.array([z]))
    theta = float(einstein_radius(np.array([sigma]), np.array([z]), behind)[0])
    if not config.theta_min <= theta <= config.theta_max:
        return *none, "its Einstein radius is outside theta_min and theta_max"
    return theta, float(behind[0]), sigma, ""
