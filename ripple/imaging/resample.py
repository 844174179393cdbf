"""Pixels of another tract brought onto this tract's grid, for boxes that leave their tract.

Lanczos-3 interpolation with weights normalised to one at each output pixel (Duchon 1979, J. Appl. Meteorol.
18, 1016), variance by the squared weights, flux per pixel corrected for the change of pixel area. Within a
tract nothing is ever resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.sky.geometry import Box, Float, Tan

#: Taps on each side of a position.
REACH = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the pixels of a box lie on another grid.

    Parameters
    ----------
    x, y
        `(H, W)` pixels on the other grid; NaN where it has none.
    area
        `(H, W)` solid angle of a pixel of this grid over that of the other.
    """

    x: Float
    y: Float
    area: Float

    def box(self, wanted: NDArray[np.bool_]) -> Box:
        """Pixels of the other grid that the wanted pixels are interpolated from."""
        # Taps run from floor - REACH + 1 to floor + REACH, and the end of a box is exclusive.
        x, y = self.x[wanted], self.y[wanted]
        return Box(
            int(np.floor(np.nanmin(x))) - REACH + 1,
            int(np.floor(np.nanmin(y))) - REACH + 1,
            int(np.floor(np.nanmax(x))) + REACH + 1,
            int(np.floor(np.nanmax(y))) + REACH + 1,
        )


def locate(cutout: Box, own: Tan, other: Tan) -> Sources:
    """Positions of the pixels of `cutout`, a box of grid `own`, on grid `other`."""
    y, x = np.mgrid[cutout.y0 : cutout.y1, cutout.x0 : cutout.x1].astype(np.float64)
    ra, dec = own.pixel_to_sky(x, y)
    ox, oy = other.sky_to_pixel(ra, dec)
    return Sources(ox, oy, _pixel_area(own, x, y) / _pixel_area(other, ox, oy))


def _pixel_area(tan: Tan, x: Float, y: Float) -> Float:
    """Solid angle of a pixel over that at the tangent point: cos³ of the distance from it."""
    a, b, c, d = tan.cd
    px, py = x - tan.x0, y - tan.y0
    r2 = np.radians(a * px + b * py) ** 2 + np.radians(c * px + d * py) ** 2
    return np.asarray((1.0 + r2) ** -1.5)


def lanczos(offset: Float) -> Float:
    """Weights of the `2 * REACH` taps around a position, normalised to sum one.

    Parameters
    ----------
    offset
        `(P,)` position minus its floor, in [0, 1).

    Returns
    -------
    weights
        `(P, 2 * REACH)`; tap k is the pixel `floor + k - REACH + 1`.
    """
    d = offset[:, None] - np.arange(1 - REACH, REACH + 1)  # (P, 2 REACH)
    w = np.sinc(d) * np.sinc(d / REACH)
    # Unnormalised Lanczos weights do not quite sum to one: a flat sky would ripple.
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def resample(
    planes: dict[str, NDArray[Any]], box: Box, sources: Sources, wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
    """Interpolate the wanted pixels.

    Parameters
    ----------
    planes
        `image`, `variance` (float32) and `mask` (uint32) over `box` of the other grid.
    box
        Pixels that `planes` cover.
    sources
        Where the pixels of the cutout lie on the other grid.
    wanted
        `(H, W)` bool.

    Returns
    -------
    done
        `(H, W)` bool: wanted pixels whose taps all lie in `box`.
    values
        Planes of the `done` pixels, `(P,)` each. A NaN under a tap gives NaN; mask bits of the four nearest
        pixels are joined.
    """
    i, j = np.floor(sources.x), np.floor(sources.y)
    done = wanted & (i - REACH + 1 >= box.x0) & (i + REACH < box.x1)
    done &= (j - REACH + 1 >= box.y0) & (j + REACH < box.y1)
    x, y, area = sources.x[done], sources.y[done], sources.area[done]
    left, low = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    taps = np.arange(1 - REACH, REACH + 1)
    columns, rows = left[:, None] + taps - box.x0, low[:, None] + taps - box.y0
    weights = lanczos(y - low)[:, :, None] * lanczos(x - left)[:, None, :]  # (P, 2 REACH, 2 REACH)
    at = (rows[:, :, None], columns[:, None, :])
    two = slice(REACH - 1, REACH + 1)  # the two taps next to the position
    bits = planes["mask"][rows[:, two, None], columns[:, None, two]]
    return done, {
        "image": ((planes["image"][at] * weights).sum(axis=(1, 2)) * area).astype(np.float32),
        "variance": ((planes["variance"][at] * weights**2).sum(axis=(1, 2)) * area**2).astype(np.float32),
        "mask": bits[:, 0, 0] | bits[:, 0, 1] | bits[:, 1, 0] | bits[:, 1, 1],
    }
