"""Pictures for graders, made when they are asked for; every stretch is fixed over all objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.colour import lupton_rgb, png, sky_noise
from ripple.imaging.lens_light import subtracted
from ripple.report.band_colours import Channels, Noise, channels, measured_noise, pictures

#: Views of every object; after them one per band.
VIEWS = ("default", "brighter", "bluer", "inverted", "residual")
#: The view of the surroundings, before those of the bands, if the session has them.
WIDE = "wide"
# As the composites of Space Warps: "brighter" has about twice the gain and is clipped to white on purpose;
# "bluer" has 1.5 times the blue and a little more gain.
_BRIGHTER, _BLUER, _MORE_BLUE = 2.2, 1.3, 1.5
#: Rows that give the noise of all.
_MEASURED = 400


@dataclass(frozen=True)
class Wide:
    """The surroundings of the objects.

    Parameters
    ----------
    pixels
        `(N, B, H, W)` float32 nJy, maybe mapped from a file, in the bands of the objects; NaN where there are
        none.
    there
        `(N,)` objects that have any.
    pixel_scale
        Arcsec per pixel.
    """

    pixels: NDArray[np.float32]
    there: NDArray[np.bool_]
    pixel_scale: float


@dataclass(frozen=True)
class Pictures:
    """The objects of a session, ready to be drawn.

    Parameters
    ----------
    pixels
        `(N, B, H, W)` float32 fluxes, maybe mapped from a file; NaN where there is none.
    bands
        Names of the B bands.
    width
        `(B,)` FWHM of the PSFs, arcsec; NaN where unknown.
    pixel_scale
        Arcsec per pixel.
    stretch, softening
        Linear range in units of the sky noise of all objects, and Q of the asinh.
    wide
        The surroundings; None without that view.
    """

    pixels: NDArray[np.float32]
    bands: tuple[str, ...]
    width: NDArray[np.float64]
    pixel_scale: float
    stretch: float = 8.0
    softening: float = 8.0
    wide: Wide | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views."""
        own = VIEWS if self.wide is None else (*VIEWS, WIDE)
        return (*own, *self.bands) if len(self.bands) > 1 else own

    @cached_property
    def colours(self) -> Channels:
        """Which bands are which colours."""
        return channels(self.bands, self.width)

    @cached_property
    def noise(self) -> Noise:
        """Sky noise of the colour pictures."""
        return measured_noise(np.asarray(self.pixels[:_MEASURED]), self.colours)

    @cached_property
    def wide_noise(self) -> Noise:
        """Sky noise of the wide fields, whose pixels may have another size or unit.

        Measured on the sky of the objects' own pictures: where the pixels are the same, so is the stretch.
        """
        assert self.wide is not None
        some = np.flatnonzero(self.wide.there)[:_MEASURED]
        zoom = self.pixel_scale / self.wide.pixel_scale
        inner = [_middle(self.wide.pixels.shape[k], round(self.pixels.shape[k] * zoom)) for k in (2, 3)]
        view = self.wide.pixels[:, :, inner[0], inner[1]]  # of a file: only these pixels are read
        return measured_noise(np.asarray(view[some]), self.colours)

    @cached_property
    def band_noise(self) -> tuple[float, ...]:
        """Sky noise of each band."""
        some = np.asarray(self.pixels[:_MEASURED])
        return tuple(sky_noise(some[:, [b]], ("grey",)) for b in range(len(self.bands)))

    @cached_property
    def mean_noise(self) -> float:
        """Sky noise of the mean of the bands."""
        some = np.nan_to_num(np.asarray(self.pixels[:_MEASURED]))
        return sky_noise(some.mean(axis=1, keepdims=True), ("grey",))

    def png(self, k: int, view: str) -> bytes:
        """Object `k` as a PNG file."""
        return png(self.rgb(k, view))

    def rgb(self, k: int, view: str) -> NDArray[np.uint8]:
        """Object `k` as `(H, W', 3)`, row 0 at the bottom; colours may have a grey picture on their right."""
        image = np.asarray(self.pixels[k : k + 1])
        match view:
            case "default":
                return self._colour(image, 1.0)
            case "brighter":
                return self._colour(image, _BRIGHTER)
            case "bluer":
                return self._colour(self._bluer(image), _BLUER)
            case "inverted":
                mean = np.nan_to_num(image).mean(axis=1, keepdims=True)
                return np.asarray(255 - self._grey(mean, self.mean_noise, _BRIGHTER), np.uint8)
            case "residual":
                return self._colour(self._without_lens(image), _BRIGHTER)
            case "wide" if self.wide is not None:
                return self._colour(np.asarray(self.wide.pixels[k : k + 1]), 1.0, self.wide_noise)
            case _:
                b = self.bands.index(view)
                return self._grey(image[:, [b]], self.band_noise[b], 1.0)

    def _colour(
        self, image: NDArray[np.float32], gain: float, noise: Noise | None = None
    ) -> NDArray[np.uint8]:
        stretch, noise = self.stretch / gain, noise or self.noise
        drawn = pictures(image, self.colours, noise, stretch=stretch, softening=self.softening)
        return np.asarray(drawn[0])

    def _without_lens(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The image without lens light, in the bands that are drawn."""
        out, c = image.copy(), self.colours
        drawn = sorted({*c.red, *c.green, *c.blue, *(() if c.grey is None else (c.grey,))})
        out[:, drawn] = subtracted(image[:, drawn])
        return out

    def _bluer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.colours.red == self.colours.blue:  # one band has no colour
            return image
        more = np.ones((len(self.bands), 1, 1), np.float32)
        more[list(self.colours.blue)] = _MORE_BLUE
        return image * more

    def _grey(self, plane: NDArray[np.float32], noise: float, gain: float) -> NDArray[np.uint8]:
        drawn = lupton_rgb(plane, ("grey",), stretch=self.stretch / gain * noise, q=self.softening)
        return np.asarray(drawn[0])


def _middle(length: int, side: int) -> slice:
    """The `side` pixels in the middle of a row; all of them if there are fewer."""
    low = max(length - side, 0) // 2
    return slice(low, low + max(side, 1))
