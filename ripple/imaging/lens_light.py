"""The light of a lens galaxy: a model of the central object, so that faint arcs around it can be seen.

The model has one centre and one ellipse for all bands, and a profile in each. Inside `CORE`, where galaxies
are bright and the PSF shapes them, the profile is the median of the pixels in elliptical annuli. Outside it
is a Sersic profile with a softened centre, fitted to the medians of all annuli with a loss that lets the
annuli stand out in which there are arcs. Of arcs up to a third of a circle four fifths and more are left; of
an even ring around the galaxy less than half, as in each annulus it looks like the galaxy itself.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

Float = NDArray[np.float64]

#: Standard deviation, in pixels, of the Gaussian that the moments are weighted with: a wider one sees arcs,
#: and with 3.5 half of an arc at 1.4 arcsec is lost.
WINDOW = 2.0
ROUNDS = 12
#: Axis ratios of models; a flatter image is no galaxy that lenses.
FLATTEST = 0.3
#: Radius in pixels within which the profile is the median, and outside of which it is the Sersic profile.
CORE = (3.0, 5.0)
#: Width of an annulus in pixels: at least this, and a share of its radius.
NARROWEST, SHARE = 0.7, 0.07


def subtracted(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Cutouts without the light of their central objects.

    Parameters
    ----------
    image
        `(N, B, H, W)` in one linear unit, the sky near 0; NaN stays NaN.

    Returns
    -------
    `(N, B, H, W)` float32.
    """
    out = np.array(image, np.float32)
    for k in range(len(out)):
        out[k] -= lens_light(out[k])
    return out


def lens_light(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Model `(B, H, W)` of the object at the centre of one cutout `(B, H, W)`."""
    planes = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    # Bands by their signal-to-noise, so that a deep band says more about the shape than a shallow one.
    weight = [1.0 / max(_scatter(plane), 1e-12) for plane in planes]
    radius = elliptical_radius(np.einsum("b,bhw->hw", weight, planes))
    return np.stack([_of_profile(plane, radius) for plane in planes]).astype(np.float32)


def _scatter(plane: Float) -> float:
    """Robust scatter of the fainter half of the pixels: that of the sky."""
    middle = np.median(plane)
    return float(1.4826 * np.median(np.abs(plane[plane <= middle] - middle)))


def elliptical_radius(plane: Float) -> Float:
    """Radius `(H, W)` in pixels on the ellipses of the central object: that of the circle of equal area.

    Notes
    -----
    Moments with a Gaussian weight of the object's own shape, iterated; then the ellipse of the weighted light
    is that of the object (Bernstein & Jarvis 2002, section 3.1).
    """
    height, width = plane.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    centre, shape = np.array([width // 2, height // 2], np.float64), np.eye(2)
    light = np.clip(plane, 0.0, None)
    for _ in range(ROUNDS):
        u, v = x - centre[0], y - centre[1]
        w = light * np.exp(-0.5 * _squared(u, v, shape) / WINDOW**2)
        total = float(w.sum())
        if total <= 0.0:
            break
        wu, wv = w * u, w * v
        # A Gaussian weight halves the shift of the centre that the light shows.
        step = 2.0 * np.array([wu.sum(), wv.sum()]) / total
        centre = np.clip(centre + np.clip(step, -1.0, 1.0), [0.0, 0.0], [width - 1.0, height - 1.0])
        xy = float(np.vdot(wu, v))
        shape = _of_unit_area(np.array([[np.vdot(wu, u), xy], [xy, np.vdot(wv, v)]]) / total)
    return np.asarray(np.sqrt(_squared(x - centre[0], y - centre[1], shape)))


def _squared(u: Float, v: Float, shape: Float) -> Float:
    """Square of the radius on ellipses of this shape."""
    (a, b), (_, c) = np.linalg.inv(shape)
    return np.asarray(a * u * u + 2 * b * u * v + c * v * v)


def _of_unit_area(moments: Float) -> Float:
    """The matrix of the same ellipse with determinant 1, not flatter than `FLATTEST`."""
    values, axes = np.linalg.eigh(moments)
    ratio = float(np.sqrt(np.clip(values[0] / max(values[1], 1e-12), FLATTEST**2, 1.0)))
    return np.asarray((axes * np.array([ratio, 1.0 / ratio])) @ axes.T)


def _of_profile(plane: Float, radius: Float) -> Float:
    """The profile as an image."""
    sigma = max(_scatter(plane), 1e-12)
    at, value, error = _annuli(plane, radius, sigma)
    # Never rising outwards, and the sky is not light of the galaxy.
    inner = np.interp(radius, at, np.minimum.accumulate(np.maximum(value, 0.0)))
    if value[0] < 3 * error[0]:
        return np.where(radius < CORE[1], inner, 0.0)
    outer = _sersic(_fitted(at, value, error), radius)
    share = np.clip((radius - CORE[0]) / (CORE[1] - CORE[0]), 0.0, 1.0)
    return np.asarray((1 - share) * inner + share * outer)


def _annuli(plane: Float, radius: Float, sigma: float) -> tuple[Float, Float, Float]:
    """Radius, clipped median and its error in each annulus, from inside to outside."""
    edges = [0.0, 0.6]
    while edges[-1] < radius.max():
        edges.append(edges[-1] + max(NARROWEST, SHARE * edges[-1]))
    order = np.argsort(radius, axis=None, kind="stable")
    # Each annulus is one run of the pixels sorted by radius.
    distance, light = radius.ravel()[order], plane.ravel()[order]
    ends, rows = np.searchsorted(distance, edges[1:]), []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        values = np.sort(light[first:end])
        count = len(values)
        if not count:
            continue
        middle = _middle(values, count)
        for _ in range(3 if count > 12 else 0):  # arcs are brighter than the rest of their annulus
            kept = int(np.searchsorted(values, middle + 2.0 * sigma))
            middle = _middle(values, kept) if kept > count // 3 else middle
        rows.append((_middle(distance[first:end], count), middle, 1.25 * sigma / np.sqrt(count)))
    at, value, error = np.array(rows).T
    return at, value, error


def _middle(ascending: Float, count: int) -> float:
    """The median of the first `count` of ascending values."""
    return float(ascending[(count - 1) // 2] + ascending[count // 2]) / 2


def _sersic(of: Float, radius: Float) -> Float:
    """`exp(of[0]) exp(-(R / scale)^(1/n))`, R softened: of log amplitude, log scale, n, log softening."""
    softened = np.hypot(radius, np.exp(of[3]))
    return np.asarray(np.exp(of[0] - (softened / np.exp(of[1])) ** (1.0 / of[2])))


def _fitted(at: Float, value: Float, error: Float) -> Float:
    """Parameters of `_sersic`, from the annuli outside the innermost."""
    # A profile is no exact Sersic one: each annulus may be off by a few per cent.
    tolerance = np.hypot(error, 0.03 * np.maximum(value, 0.0))

    def misfit(of: Float) -> Float:
        return np.asarray((value - _sersic(of, at)) / tolerance)

    def slope(of: Float) -> Float:
        # Derivatives of `_sersic` in closed form: half the time of differences.
        light, soft = _sersic(of, at), np.exp(2 * of[3])
        ratio = np.hypot(at, np.exp(of[3])) / np.exp(of[1])
        bend = light * ratio ** (1.0 / of[2]) / of[2]
        columns = (light, bend, bend * np.log(ratio) / of[2], -bend * soft / (at**2 + soft))
        return np.asarray(-np.stack(columns, axis=1) / tolerance[:, None])

    top = np.log(value[0])
    low, high = [top - 3, -3.0, 0.5, -3.0], [top + 12, 4.0, 6.0, 1.8]
    start = np.array([top + 0.5, 0.5, 1.5, 0.3])
    found = scipy.optimize.least_squares(
        misfit, start, slope, bounds=(low, high), loss="cauchy", max_nfev=30, ftol=2e-3
    )
    return np.asarray(found.x)
