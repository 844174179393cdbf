"""Flux within a circle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Points along each side of a pixel: the share of a pixel inside the circle is right to about a per cent, and
#: the area of a circle of 5 px to 1e-3.
_POINTS = 10


def circle(shape: tuple[int, int], x: float, y: float, radius: float) -> NDArray[np.float64]:
    """Share of each pixel that lies inside a circle.

    Parameters
    ----------
    shape
        `(H, W)`.
    x, y
        Centre in pixels; pixel centres are integers.
    radius
        Pixels.

    Returns
    -------
    `(H, W)` between 0 and 1.
    """
    # Centres of the points relative to the centre of their pixel.
    step = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    dx = (np.arange(shape[1])[:, None] + step - x).reshape(-1)
    dy = (np.arange(shape[0])[:, None] + step - y).reshape(-1)
    inside = (dy[:, None] ** 2 + dx[None, :] ** 2) <= radius**2
    return inside.reshape(shape[0], _POINTS, shape[1], _POINTS).mean(axis=(1, 3))


def circle_flux(
    image: NDArray[np.floating], variance: NDArray[np.floating], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum over a circle, and its error.

    Parameters
    ----------
    image, variance
        `(B, H, W)` in one unit and its square; NaN where there is no pixel.
    weight
        `(H, W)` from `circle`.

    Returns
    -------
    flux, error
        `(B,)` in the unit of the image; NaN for a band that lacks a pixel of the circle. The error takes
        pixels for independent: in coadds, whose pixels share noise, it is too small.
    """
    used = weight > 0
    w = weight[used]
    flux = image[:, used].astype(np.float64) @ w
    error = np.sqrt(variance[:, used].astype(np.float64) @ w**2)
    return flux, error
