"""Cutouts on another pixel grid: Lanczos-3 interpolation as one sparse matrix per pair of grids.

The weights are normalised to one at each output pixel (Duchon 1979, J. Appl. Meteorol. 18, 1016), and
corrected so that a linear slope stays in its place. Towards
larger pixels the kernel is stretched by the ratio of the pixels, so that nothing is aliased. Fluxes are per
pixel, and grow with its area; the variance takes the squared weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.sky.geometry import Float

REACH = 3
# Below this a tap counts for nothing: on a pixel of the old grid only that pixel is needed, up to the edge.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True)
class Regrid:
    """How pixels of an old grid become those of a new one.

    Parameters
    ----------
    weights
        Sparse `(P, H * W)` float64, P pixels of the new grid; rows sum to 1.
    inside
        `(P,)` bool: all taps lie on the old grid.
    nearest
        `(P, 4)` the nearest pixels of the old grid, clipped to it.
    area
        Solid angle of the new pixels over that of the old ones, `(P,)` or one for all.
    shape
        `(H', W')` of the new grid.
    """

    weights: scipy.sparse.csr_array
    inside: NDArray[np.bool_]
    nearest: NDArray[np.int64]
    area: Float | float
    shape: tuple[int, int]

    def image(self, planes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Fluxes `(..., H, W)` on the new grid, float32; NaN where a tap is NaN or missing."""
        return self._apply(planes, self.weights, self.area)

    def variance(self, planes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Variances, like `image`."""
        return self._apply(planes, self.weights.power(2), self.area**2)

    def mask(self, planes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Mask bits `(..., H, W)`: those of the four nearest pixels joined; 0 outside the old grid."""
        flat = planes.reshape(-1, planes.shape[-2] * planes.shape[-1])
        out = np.bitwise_or.reduce(flat[:, self.nearest], axis=2)
        out[:, ~self.inside] = 0
        return np.asarray(out.reshape(*planes.shape[:-2], *self.shape))

    def _apply(
        self, planes: NDArray[np.floating], weights: scipy.sparse.csr_array, factor: Float | float
    ) -> NDArray[np.float32]:
        flat = planes.reshape(-1, planes.shape[-2] * planes.shape[-1]).astype(np.float64)
        bad = ~np.isfinite(flat)
        out = (weights @ np.where(bad, 0.0, flat).T).T * factor
        out[:, ~self.inside] = np.nan
        holed = bad.any(axis=1)
        if holed.any():
            touched = (abs(self.weights) @ bad[holed].T.astype(np.float64)).T > NEGLIGIBLE
            out[holed] = np.where(touched, np.nan, out[holed])
        return np.asarray(out, np.float32).reshape(*planes.shape[:-2], *self.shape)


def regrid(x: Float, y: Float, shape: tuple[int, int], ratio: float = 1.0) -> Regrid:
    """The interpolation from a grid of `shape` to pixels at given places of it.

    Parameters
    ----------
    x, y
        `(H', W')` places of the new pixels on the old grid, in pixels from zero; NaN where it has none.
    shape
        `(H, W)` of the old grid.
    ratio
        Side of a new pixel over that of an old one: how far the kernel is stretched.
    """
    stretch = max(1.0, ratio)
    dy, dx = (np.gradient(v) for v in (y, x))
    area = np.abs(dx[1] * dy[0] - dx[0] * dy[1]).ravel()
    (left, wx), (low, wy) = (_taps(np.nan_to_num(v.ravel(), nan=-1e6), stretch) for v in (x, y))
    columns, rows = left[:, None, :], low[:, :, None]
    weight = wy[:, :, None] * wx[:, None, :]
    weight = np.where(np.abs(weight) < NEGLIGIBLE, 0.0, weight)
    on_grid = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
    inside = (on_grid | (weight == 0)).all(axis=(1, 2))
    used = on_grid & (weight != 0) & inside[:, None, None]
    place, _, _ = np.nonzero(used)
    column = (rows * shape[1] + columns)[used]
    matrix = scipy.sparse.csr_array(
        (weight[used], (place, column)), shape=(x.size, shape[0] * shape[1]), dtype=np.float64
    )
    return Regrid(matrix, inside, _nearest(x, y, shape), area, (x.shape[0], x.shape[1]))


def _taps(position: Float, stretch: float) -> tuple[NDArray[np.int64], Float]:
    """Pixels `(P, T)` under the kernel at each position, and their weights, which sum to one."""
    reach = int(np.ceil(REACH * stretch))
    first = np.floor(position).astype(np.int64) - reach + 1
    pixels = first[:, None] + np.arange(2 * reach)
    d = (position[:, None] - pixels) / stretch
    weights = np.where(np.abs(d) < REACH, np.sinc(d) * np.sinc(d / REACH), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    # Lanczos weights move a linear slope by up to 0.02 px; the two taps next to the position put it right.
    moved = (weights * pixels).sum(axis=1) - position
    weights[:, reach - 1] += moved
    weights[:, reach] -= moved
    return pixels, np.asarray(weights)


def _nearest(x: Float, y: Float, shape: tuple[int, int]) -> NDArray[np.int64]:
    """The four pixels around each position `(P, 4)`, as places in a flat grid."""
    fx, fy = (np.nan_to_num(v.ravel()) for v in (x, y))
    columns = np.clip(np.stack([np.floor(fx), np.ceil(fx)]), 0, shape[1] - 1).astype(np.int64)
    rows = np.clip(np.stack([np.floor(fy), np.ceil(fy)]), 0, shape[0] - 1).astype(np.int64)
    return np.stack([rows[j] * shape[1] + columns[i] for j in (0, 1) for i in (0, 1)], axis=1)


def regrid_psf(psf: NDArray[np.floating], jacobian: Float) -> NDArray[np.float32]:
    """PSFs on another pixel grid.

    Parameters
    ----------
    psf
        `(M, K, K)`, K odd.
    jacobian
        `(2, 2)`: pixels of the old grid `(x, y)` per pixel `(x, y)` of the new one.

    Returns
    -------
    psf
        `(M, K', K')` float32 of sum 1, K' odd, as wide on the sky.
    """
    side = psf.shape[-1]
    ratio = float(np.sqrt(abs(np.linalg.det(jacobian))))
    half = max(1, int(np.ceil(side / 2 / ratio)))
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    # With a rim of zeros, as wide as the kernel reaches: a PSF ends where its image does.
    rim = int(np.ceil(REACH * max(1.0, ratio))) + int(np.ceil(half * ratio * 1.5)) + 2
    wide = np.pad(np.asarray(psf, np.float64), ((0, 0), (rim, rim), (rim, rim)))
    centre = wide.shape[-1] // 2
    x = jacobian[0, 0] * dx + jacobian[0, 1] * dy + centre
    y = jacobian[1, 0] * dx + jacobian[1, 1] * dy + centre
    out = regrid(x, y, wide.shape[1:], ratio).image(wide)
    return np.asarray(out / out.sum(axis=(1, 2), keepdims=True), np.float32)


def scale_about_centre(shape: tuple[int, int], ratio: float, size: tuple[int, int]) -> Regrid:
    """Larger or smaller pixels about the centre of pixel `(H // 2, W // 2)`, which keeps its place.

    Parameters
    ----------
    shape, size
        `(H, W)` before and after; pixels beyond the old grid are NaN.
    ratio
        Side of a new pixel over that of an old one.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return regrid(
        shape[1] // 2 + (x - size[1] // 2) * ratio, shape[0] // 2 + (y - size[0] // 2) * ratio, shape, ratio
    )
