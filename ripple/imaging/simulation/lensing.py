"""Gravitational lensing by a singular isothermal ellipsoid, or an elliptical power law, in external shear.

Angles on the sky are in any one unit (pixels in the simulation); the position angle is in radians from the
x axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

#: (c / 1 km/s), and arcsec in a radian.
LIGHT_SPEED = 299792.458
ARCSEC = 180.0 * 3600.0 / np.pi


@dataclass(frozen=True, slots=True)
class Deflector:
    """Elliptical power law, isothermal unless said otherwise, plus external shear, centred on the origin.

    Parameters
    ----------
    theta_e
        Einstein radius, the mean convergence within the ellipse of that (product-averaged) radius is 1.
    q
        Axis ratio of the mass, 0 < q <= 1.
    angle
        Position angle of the major axis, radians from x.
    gamma1, gamma2
        External shear.
    slope
        Of the mass density, `rho ~ r^-slope`, between 1 and 3; 2 is isothermal.
    """

    theta_e: float
    q: float
    angle: float
    gamma1: float = 0.0
    gamma2: float = 0.0
    slope: float = 2.0

    def numbers(self) -> tuple[float, ...]:
        """What the compiled loops take: the angle as cosine and sine."""
        turn = float(np.cos(self.angle)), float(np.sin(self.angle))
        return self.theta_e, self.q, *turn, self.gamma1, self.gamma2, self.slope


#: Terms of the series of a power law: they fall like ((1 - q) / (1 + q))^n, to 1e-9 at q = 0.2.
TERMS = 50


def deflect(lens: Deflector, x: Array, y: Array) -> tuple[Array, Array]:
    """Deflection angles at image positions.

    Parameters
    ----------
    lens
        The mass model.
    x, y
        Image-plane positions, same unit as `lens.theta_e`.

    Returns
    -------
    ax, ay
        Deflection; the source position is `(x - ax, y - ay)`.

    Notes
    -----
    Kormann, Schneider & Bartelmann 1994, A&A 284, 285, in the form of Keeton 2001, astro-ph/0102341,
    equation 35; convergence `theta_e / (2 sqrt(q x² + y² / q))` as in lenstronomy's `SIE`. Other slopes:
    Tessore & Metcalf 2015, A&A 580, A79, as in lenstronomy's `EPL`.
    """
    cos, sin = np.cos(lens.angle), np.sin(lens.angle)
    # Frame of the ellipse; the deflection is turned back below.
    u, v = cos * x + sin * y, -sin * x + cos * y
    au, av = _isothermal(lens, u, v) if lens.slope == 2.0 else _power_law(lens, u, v)
    ax = cos * au - sin * av + lens.gamma1 * x + lens.gamma2 * y
    ay = sin * au + cos * av + lens.gamma2 * x - lens.gamma1 * y
    return ax, ay


def _isothermal(lens: Deflector, u: Array, v: Array) -> tuple[Array, Array]:
    """Deflection in the frame of the ellipse."""
    # A round lens is the limit of the formulas below; stay clear of 0 / 0.
    q = min(lens.q, 1.0 - 1e-5)
    f = np.sqrt(1.0 - q * q)
    # 1e-9: no division by zero at the very centre.
    psi = np.sqrt(q * q * u * u + v * v) + 1e-9
    scale = lens.theta_e * np.sqrt(q) / f
    return scale * np.arctan(f * u / psi), scale * np.arctanh(f * v / psi)


def _power_law(lens: Deflector, u: Array, v: Array) -> tuple[Array, Array]:
    """Deflection in the frame of the ellipse: the series of equation 23, summed term by term."""
    q, t = lens.q, lens.slope - 1.0
    z = q * u + 1j * v
    radius = np.maximum(np.abs(z), 1e-9)  # as above
    turn = -(1.0 - q) / (1.0 + q) * (z / radius) ** 2
    term = z / radius
    total = term.copy()
    for n in range(1, TERMS):
        term = term * turn * ((2 * n - 2 + t) / (2 * n + 2 - t))
        total += term
    b = lens.theta_e * np.sqrt(q)
    alpha = 2.0 / (1.0 + q) * b * (b / radius) ** (t - 1.0) * total
    return alpha.real, alpha.imag


#: Points along the side of the grid on which images are sought; even, so that none is at the centre.
IMAGE_GRID = 64


def image_count(lens: Deflector, x: float, y: float) -> int:
    """Number of images of a point of the source plane, without the one that a singular centre swallows.

    Parameters
    ----------
    lens
        The mass model.
    x, y
        Position in the source plane, from the centre of the lens.

    Notes
    -----
    Triangles of the image plane whose image in the source plane holds the point, as in every solver of the
    lens equation; Newton's method from each of them, as near the singular centre several triangles find one
    image. Two images closer than 1/10 of the Einstein radius, on both sides of a critical curve, may
    be missed.
    """
    from ripple.imaging.simulation import rays  # loads numba

    return int(rays.images(lens.numbers(), x, y, IMAGE_GRID))


def einstein_radius(sigma_v: Array, z_lens: Array, z_source: Array) -> Array:
    """Einstein radius in arcsec of an isothermal sphere.

    Parameters
    ----------
    sigma_v
        `(N,)` velocity dispersion, km/s.
    z_lens, z_source
        `(N,)` redshifts.

    Returns
    -------
    theta_e
        `(N,)` arcsec, 0 where the source lies in front: `4 pi (sigma / c)² D_ls / D_s`.
    """
    c_l, c_s = comoving_distance(z_lens), comoving_distance(z_source)
    return 4.0 * np.pi * (sigma_v / LIGHT_SPEED) ** 2 * np.clip(1.0 - c_l / c_s, 0.0, None) * ARCSEC


def comoving_distance(z: Array) -> Array:
    """Comoving distance in Mpc: flat LCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3, for 0 < z < 6.

    Trapezoidal sum over a grid of 3000 steps, good to 1e-6.
    """
    grid = np.linspace(0.0, 6.0, 3001)
    inverse = 1.0 / np.sqrt(0.3 * (1.0 + grid) ** 3 + 0.7)
    steps = (inverse[1:] + inverse[:-1]) * 0.5 * (grid[1] - grid[0])
    total = np.concatenate([[0.0], np.cumsum(steps)]) * LIGHT_SPEED / 70.0
    return np.asarray(np.interp(z, grid, total))
