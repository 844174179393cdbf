"""Which bands of any survey make a colour picture, and which one is shown in grey beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.bands import by_wavelength, canonical
from ripple.imaging.colour import lupton_rgb, sky_noise

#: FWHM in arcsec where nobody says it: Euclid VIS, HST and JWST, and the ground.
_NOMINAL = {"VIS": 0.16, "F": 0.1, "": 0.7}
#: A band is shown in grey beside the colours when its PSF is narrower than this share of the others' median.
_MUCH_SHARPER = 0.6
_LINE = 90  # grey level of the line between the two pictures
# Names that `lupton_rgb` takes for blue, green and red, in this order.
_BLUE_GREEN_RED = ("g", "r", "i")


@dataclass(frozen=True, slots=True)
class Channels:
    """Positions of bands whose mean is a colour, and of the one shown in grey beside the colours, or None."""

    red: tuple[int, ...]
    green: tuple[int, ...]
    blue: tuple[int, ...]
    grey: int | None = None

    def text(self, bands: Sequence[str]) -> str:
        """The legend, as in `Red i, green r, blue g; beside it VIS in grey.`"""
        if self.red == self.green == self.blue:
            return f"{bands[self.red[0]]} in grey."
        red, green, blue = (
            " + ".join(bands[k] for k in which) for which in (self.red, self.green, self.blue)
        )
        beside = "" if self.grey is None else f"; beside it {bands[self.grey]} in grey"
        return f"Red {red}, green {green}, blue {blue}{beside}."


def channels(bands: Sequence[str], width: NDArray[np.floating] | None = None) -> Channels:
    """Colours in the order of the wavelengths.

    Parameters
    ----------
    bands
        Names of the B bands, of any survey; unknown ones count as the reddest.
    width
        `(B,)` FWHM of their PSFs in arcsec, NaN where unknown; None when nothing is known.

    Returns
    -------
    channels
        i, r, g where these filters exist, else the reddest, middle and bluest band. One of less than three
        bands, or one that is much sharper than the others, is grey beside them; a single band is grey itself.
    """
    order = [list(bands).index(name) for name in by_wavelength(bands)]
    fwhm = _widths(bands, width)
    sharpest = min(order[::-1], key=lambda k: fwhm[k])  # of equally sharp ones the reddest
    if len(order) < 3:
        blue, red = order[0], order[-1]
        green = (blue, red) if blue != red else (red,)
        return Channels((red,), green, (blue,), None if blue == red else sharpest)
    others = [k for k in order if k != sharpest]
    grey = sharpest if fwhm[sharpest] < _MUCH_SHARPER * np.median(fwhm[others]) else None
    # The band in grey leaves its colour to the others, if they are enough for three.
    coloured = others if grey is not None and len(others) >= 3 else order
    filters = [canonical(bands[k]) for k in coloured]
    if all(name in filters for name in _BLUE_GREEN_RED):
        b, g, r = (coloured[filters.index(name)] for name in _BLUE_GREEN_RED)
    else:
        b, g, r = coloured[0], coloured[len(coloured) // 2], coloured[-1]
    return Channels((r,), (g,), (b,), grey)


def _widths(bands: Sequence[str], width: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """FWHM of every band, the usual one where it is not known."""
    usual = [
        _NOMINAL["VIS" if name == "VIS" else "F" if name[:1] == "F" and name[1:4].isdigit() else ""]
        for name in map(canonical, bands)
    ]
    known = np.full(len(bands), np.nan) if width is None else np.asarray(width, np.float64)
    return np.where(np.isfinite(known) & (known > 0), known, usual)


def pictures(
    image: NDArray[np.floating], chosen: Channels, noise: Noise, *, stretch: float, softening: float
) -> NDArray[np.uint8]:
    """Pictures of rows.

    Parameters
    ----------
    image
        `(N, B, H, W)` in one linear unit; NaN is black.
    chosen
        From `channels`.
    noise
        From `measured_noise`, in the unit of `image`.
    stretch
        Linear range in units of the noise.
    softening
        Q of the asinh.

    Returns
    -------
    `(N, H, W, 3)` uint8, or `(N, H, 2 W + 2, 3)` with the grey picture on the right.
    """
    colour = lupton_rgb(*_three(image, chosen), stretch=stretch * noise.colour, q=softening)
    if chosen.grey is None:
        return colour
    plane = image[:, [chosen.grey]]
    grey = lupton_rgb(plane, ("grey",), stretch=stretch * noise.grey, q=softening)
    gap = np.full((*colour.shape[:2], 2, 3), _LINE, np.uint8)
    return np.concatenate([colour, gap, grey], axis=2)


@dataclass(frozen=True, slots=True)
class Noise:
    """Sky noise of the colour picture and of the grey one."""

    colour: float
    grey: float


def measured_noise(image: NDArray[np.floating], chosen: Channels) -> Noise:
    """Noise of rows `(N, B, H, W)`, so that all pictures have one stretch."""
    grey = 1.0 if chosen.grey is None else sky_noise(image[:, [chosen.grey]], ("grey",))
    return Noise(sky_noise(*_three(image, chosen)), grey)


def _three(image: NDArray[np.floating], chosen: Channels) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    """`(N, 3, H, W)` blue, green and red with the names that `lupton_rgb` expects; one plane for grey."""
    if chosen.red == chosen.green == chosen.blue:
        return image[:, list(chosen.red)], ("grey",)
    planes = [image[:, list(k)].mean(axis=1) for k in (chosen.blue, chosen.green, chosen.red)]
    return np.stack(planes, axis=1), _BLUE_GREEN_RED
