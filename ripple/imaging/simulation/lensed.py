"""Transforms of lensed sources, fast: rays only where there is light, as many as the source is compact.

`profiles.transform` samples the whole stamp evenly. The simulated survey keeps it, so that a seed gives the
same bytes as ever; what is here agrees with it to 0.3 % of the flux of a disk, is nearer the truth for cusps,
and takes a tenth of the time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging.simulation.lensing import Deflector
from ripple.imaging.simulation.profiles import (
    KNOT_SIZE,
    Complex,
    Lensed,
    Sersic,
    extent,
    frequencies,
    sersic_b,
    sersic_flux,
)

#: Entries of the table of a profile, and the root of the radius at its end: 400 half-light radii.
ENTRIES, REACH = 4096, 20.0
#: Beyond the radius where a profile has fallen to this share of its centre it is smooth over two pixels,
#: unless within so many pixels of the centre.
SMOOTH, CLOSE = 1e-6, 4.0
#: Fine pixels per native one, for sources whose smallest length is above or below so many native pixels.
COARSE, FINE, COMPACT = 2, 4, 0.25


def light(shape: Lensed, size: int, dx: float, dy: float) -> Complex:
    """Transform of a lensed source whose lens is at `(S // 2 + dx, S // 2 + dy)`.

    Parameters
    ----------
    shape
        The lens and its source, unit flux before lensing.
    size
        Stamp size S in pixels, even.
    dx, dy
        Pixels.

    Returns
    -------
    half_plane
        `(S, S // 2 + 1)` complex64; element [0, 0] is the magnification.
    """
    image, over = _fine_image(shape, size, dx, dy)
    return native(image, size, over)


def magnification(shape: Lensed) -> float:
    """Lensed over unlensed flux of a source, within the radius that is painted."""
    size = 2 * int(np.ceil(extent(shape, 1.0, 1.0)))
    image, over = _fine_image(shape, size, 0.0, 0.0)
    return float(image.sum(dtype=np.float64)) / over**2


def _fine_image(shape: Lensed, size: int, dx: float, dy: float) -> tuple[NDArray[np.float32], int]:
    """Mean brightness in fine pixels, per native pixel; and the number of these along a native pixel."""
    from ripple.imaging.simulation import rays  # loads numba

    s = shape.source
    parts = [_part(s, shape.smooth)]
    for knot in shape.knots:
        small = Sersic(s.n, KNOT_SIZE * s.re, dx=s.dx + knot.dx, dy=s.dy + knot.dy)
        parts.append(_part(small, knot.share))
    smallest = min(part[3] * part[4] for part in parts)
    over = COARSE if smallest > COMPACT else FINE
    tables = np.array([_table(s.n) / (part[3] ** 2 * part[4]) for part in parts])
    image = np.zeros((size * over, size * over), np.float32)
    lens = tuple(float(value) for value in shape.lens.numbers())
    rays.shine(lens, np.array(parts), tables, (ENTRIES - 1) / REACH, float(dx), float(dy), over, image)
    return image, over


@dataclass(frozen=True, slots=True)
class Picture:
    """A source as it was seen.

    Parameters
    ----------
    planes
        `(P, h, w)` float32, each of sum 1; one for all bands, or one per band.
    scale
        Its pixels per native pixel.
    angle
        By which it is turned, radians from x to y.
    dx, dy
        Where its centre would be seen without the lens, from it, native pixels.
    """

    planes: NDArray[np.float32]
    scale: float
    angle: float
    dx: float
    dy: float

    @property
    def radius(self) -> float:
        """Half of its diagonal, native pixels."""
        return 0.5 * float(np.hypot(*self.planes.shape[1:])) / self.scale

    @property
    def half_light(self) -> float:
        """Radius around its brightness-weighted centre that holds half of its light, native pixels."""
        light = self.planes.mean(axis=0, dtype=np.float64)
        y, x = np.indices(light.shape)
        total = light.sum()
        r = np.hypot(y - (y * light).sum() / total, x - (x * light).sum() / total).ravel()
        order = np.argsort(r, kind="stable")
        inside = np.cumsum(light.ravel()[order])
        return float(r[order][np.searchsorted(inside, 0.5 * inside[-1])]) / self.scale


def picture_light(lens: Deflector, picture: Picture, size: int, dx: float, dy: float) -> Complex:
    """Transform of a lensed picture, `(P, S, S // 2 + 1)`; otherwise as `light`."""
    from ripple.imaging.simulation import rays  # loads numba

    place = picture.dx, picture.dy, float(np.cos(picture.angle)), float(np.sin(picture.angle)), picture.scale
    image = np.zeros((len(picture.planes), size * COARSE, size * COARSE), np.float32)
    planes = np.ascontiguousarray(picture.planes, np.float32)
    rays.project(lens.numbers(), planes, place, float(dx), float(dy), COARSE, image)
    return np.stack([native(plane, size, COARSE) for plane in image])


def _part(s: Sersic, share: float) -> list[float]:
    """A component of the source as `rays` takes it."""
    edge = (-np.log(SMOOTH) / sersic_b(s.n)) ** s.n
    turn = float(np.cos(s.angle)), float(np.sin(s.angle))
    return [share, s.dx, s.dy, s.re, s.q, *turn, s.n, max(float(edge), CLOSE / s.re)]


@functools.lru_cache(maxsize=64)
def _table(n: float) -> NDArray[np.float64]:
    """Brightness of a round profile of unit flux and half-light radius, over the root of the radius."""
    root = np.linspace(0.0, REACH, ENTRIES)
    return np.asarray(np.exp(-sersic_b(n) * (root ** (2.0 / n) - 1.0)) / sersic_flux(n, 1.0, 1.0))


def native(image: NDArray[np.float32], size: int, over: int) -> Complex:
    """Transform of the mean brightness in fine pixels, `over` to a native one; the blur is taken out."""
    full = scipy.fft.rfft2(image)
    half = size // 2
    # Frequencies above the native ones are dropped: the PSF leaves hardly any light there.
    out: Any = np.concatenate([full[:half, : half + 1], full[-half:, : half + 1]])
    out *= _sharpen(size, over)
    return np.asarray(out)


@functools.lru_cache(maxsize=64)
def _sharpen(size: int, over: int) -> NDArray[np.float32]:
    """One over the transform of a fine pixel, and over their number in a native one."""
    u, v = frequencies(size)
    return (1.0 / (np.sinc(u / over) * np.sinc(v / over) * over**2)).astype(np.float32)
