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
Complex = NDArray[np.complex128]

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
IMAGE_GRID = 100


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
    image. Two images closer than 1/20 of the Einstein radius, on both sides of a critical curve, may
    be missed.
    """
    half = 2.5 * lens.theta_e + 1.5 * float(np.hypot(x, y))
    axis = np.linspace(-half, half, IMAGE_GRID)
    at = axis[None, :] + 1j * axis[:, None]
    p = _miss(lens, at, complex(x, y))
    a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]
    hit = _holds_origin(a, b, c) | _holds_origin(a, c, d)
    start = at[:-1, :-1][hit] + (axis[1] - axis[0]) * (0.5 + 0.5j)
    # Faint images close to the centre lie between the points of the grid.
    ring = np.outer([0.03, 0.08, 0.15], np.exp(2j * np.pi * np.arange(8) / 8)).ravel() * lens.theta_e
    start = np.concatenate([start, ring])
    found: list[complex] = []
    for image in _solved(lens, start, complex(x, y)).tolist():
        if all(abs(image - other) > 1e-3 * lens.theta_e for other in found):
            found.append(image)
    return len(found)


def _miss(lens: Deflector, at: Complex, source: complex) -> Complex:
    """By how much rays from image positions miss a source; complex numbers are x + iy."""
    ax, ay = deflect(lens, at.real, at.imag)
    return np.asarray(at - ax - 1j * ay - source)


def _solved(lens: Deflector, at: Complex, source: complex) -> Complex:
    """Images that Newton's method finds from these positions: those that converge, away from the centre."""
    step = 1e-6 * lens.theta_e
    for _ in range(12):
        miss = _miss(lens, at, source)
        by_x, by_y = ((_miss(lens, at + s, source) - miss) / step for s in (step, 1j * step))
        det = by_x.real * by_y.imag - by_x.imag * by_y.real
        det = np.where(np.abs(det) < 1e-9, 1e-9, det)
        move_x = (by_y.imag * miss.real - by_y.real * miss.imag) / det
        move_y = (by_x.real * miss.imag - by_x.imag * miss.real) / det
        move = move_x + 1j * move_y
        # Near critical curves a full step would leave the image far behind.
        at = at - move * np.minimum(1.0, 0.2 * lens.theta_e / np.maximum(np.abs(move), 1e-300))
    good = (np.abs(_miss(lens, at, source)) < 1e-6 * lens.theta_e) & (np.abs(at) > 1e-4 * lens.theta_e)
    return at[good]


def _holds_origin(a: Complex, b: Complex, c: Complex) -> NDArray[np.bool_]:
    """Whether triangles of complex corners hold 0."""
    turns = [(np.conj(p) * q).imag > 0 for p, q in ((a, b), (b, c), (c, a))]
    same: NDArray[np.bool_] = (turns[0] == turns[1]) & (turns[1] == turns[2])
    return same


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
