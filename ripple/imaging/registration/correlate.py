"""Cross-correlation of planes, and the eight orientations of a square image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Float = NDArray[np.float32]

#: What was done to a band, relative to the reference: counter-clockwise turns as `numpy.rot90` makes them.
TRANSFORMS: tuple[str, ...] = (
    "identity", "rot90", "rot180", "rot270", "mirror_x", "mirror_y", "transpose", "antitranspose",
)  # fmt: skip

#: Orientations that keep width and height, also of images that are not square.
UPRIGHT: tuple[str, ...] = ("identity", "rot180", "mirror_x", "mirror_y")


SMOOTH = 1.2  # px, Gaussian; about the seeing, so that noise beyond it is not correlated


def orientations(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of `TRANSFORMS` that keep the shape."""
    return TRANSFORMS if shape[0] == shape[1] else tuple(t for t in TRANSFORMS if t in UPRIGHT)


def undo(plane: Float, name: str) -> Float:
    """Turn a plane `(..., H, W)` back that was turned or mirrored as `name` says.

    Raises
    ------
    ValueError
        When `name` is not one of `TRANSFORMS`.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"{name} is not one of {', '.join(TRANSFORMS)}")
    if name.startswith("rot"):
        return np.rot90(plane, -int(name[3:]) // 90, axes=(-2, -1))
    flip = {"mirror_x": -1, "mirror_y": -2}
    if name in flip:
        return np.flip(plane, axis=flip[name])
    if name == "identity":
        return plane
    swapped = np.swapaxes(plane, -1, -2)
    return np.flip(swapped, axis=(-2, -1)) if name == "antitranspose" else swapped


def blocks(planes: Float) -> Float:
    """Sums of 4 x 4 pixels, about as wide as the seeing."""
    h, w = planes.shape[2] // 4 * 4, planes.shape[3] // 4 * 4
    rows = sum((planes[:, :, k:h:4, :w] for k in range(1, 4)), planes[:, :, 0:h:4, :w])
    return np.asarray(sum((rows[..., k::4] for k in range(1, 4)), rows[..., ::4]))


def halved(planes: Float) -> Float:
    """Sums of 2 x 2 pixels."""
    h, w = planes.shape[1] // 2 * 2, planes.shape[2] // 2 * 2
    rows = planes[:, :h:2, :w] + planes[:, 1:h:2, :w]
    return np.asarray(rows[:, :, ::2] + rows[:, :, 1::2])


def taper(size: int) -> NDArray[np.float64]:
    """A window that falls to 0 over an eighth of the width on each side (Tukey)."""
    x = (np.arange(size) + 0.5) / size
    edge = np.minimum(np.minimum(x, 1 - x) / 0.125, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * edge))


@dataclass(frozen=True, slots=True)
class Pair:
    """Cross-correlation of one band (m rows) with its reference, and what noise alone does to it."""

    cross: NDArray[np.complex64]  # its spectrum, smoothed
    scale: NDArray[np.float64]  # (m,) correlation of a perfect match
    noise: NDArray[np.float64]  # (m,) one sigma of the correlation
    shift_error: NDArray[np.float64]  # (m,) px


def beam(h: int, w: int, block: int = 1) -> Float:
    """What smoothing both images multiplies their correlation by: the transform of the Gaussian squared.

    Of planes of sums of `block` x `block` pixels: these smooth too, with a variance of (block² - 1) / 12 px².
    """
    sigma2 = (SMOOTH**2 - (block**2 - 1) / 12) / block**2
    ky, kx = 2 * np.pi * scipy.fft.fftfreq(h)[:, None], 2 * np.pi * scipy.fft.rfftfreq(w)
    return np.asarray(np.exp(-sigma2 * (kx**2 + ky**2)), np.float32)


def pair(
    a: NDArray[np.complex64],
    b: NDArray[np.complex64],
    beam: Float,
    taper: Float,
    shape: tuple[int, int] | None = None,
) -> Pair:
    """Formulas: the notes of `check_registration`; sums run over the half plane that rfft2 keeps.

    `shape` is that of the planes, where it is not that of the taper: summed blocks have the same noise power.
    """
    from ripple.imaging import loops

    h, w = shape or taper.shape
    cross = np.empty(a.shape, np.complex64)
    sums = np.empty((len(a), 3, 3))
    white = float((taper**2).sum())  # power per mode of noise 1 per pixel
    loops.correlate(a, b, beam, w, white, cross, sums)
    # Of the first signal, the second, and the variance: in all, and weighted by ky² and kx².
    one, two, fluctuation = np.maximum(sums, 1e-12).transpose(1, 2, 0)
    error = (fluctuation[1:] / (one[1:] * two[1:])).sum(axis=0)
    return Pair(cross, np.sqrt(one[0] * two[0]) / (h * w), np.sqrt(fluctuation[0]) / (h * w), np.sqrt(error))


def peak(cross: Float, limit: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Highest value `(m,)` of each correlation map within `limit` px of no shift, and its shift y, x in px.

    The peak between pixels comes from the quadratic through its 3 x 3 neighbours.
    """
    m = len(cross)
    window = np.roll(cross, (limit + 1, limit + 1), axis=(1, 2))[:, : 2 * limit + 3, : 2 * limit + 3]
    inner = window[:, 1:-1, 1:-1].reshape(m, -1)
    y, x = np.divmod(inner.argmax(axis=1), 2 * limit + 1)
    rows = np.arange(m)
    c = {(j, i): window[rows, y + 1 + j, x + 1 + i].astype(float) for j in (-1, 0, 1) for i in (-1, 0, 1)}
    gx, gy = (c[0, 1] - c[0, -1]) / 2, (c[1, 0] - c[-1, 0]) / 2
    xx, yy = c[0, 1] + c[0, -1] - 2 * c[0, 0], c[1, 0] + c[-1, 0] - 2 * c[0, 0]
    xy = (c[1, 1] + c[-1, -1] - c[1, -1] - c[-1, 1]) / 4
    det = xx * yy - xy**2
    curved = det > 1e-6 * (xx * yy + 1e-30)
    det = np.where(curved, det, 1.0)
    dx = np.where(curved, np.clip((xy * gy - yy * gx) / det, -1, 1), 0.0)
    dy = np.where(curved, np.clip((xy * gx - xx * gy) / det, -1, 1), 0.0)
    return c[0, 0] + (gx * dx + gy * dy) / 2, y - limit + dy, x - limit + dx
