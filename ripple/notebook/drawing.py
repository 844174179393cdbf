"""Pictures in notebooks, on matplotlib axes: colours with scale bar and compass, grids, single bands."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.imaging.bands import by_wavelength, match
from ripple.report.band_colours import channels, measured_noise, pictures
from ripple.sky.geometry import Box, Tan

#: Cutouts that a grid shows at most, so that it fits on a screen.
MOST = 25
#: Lengths of scale bars, arcsec.
_BARS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: Softening Q of the colour pictures, as on the report page.
_SOFTENING = 8.0
# A dark outline keeps white text readable on white galaxies.
_OUTLINE = [withStroke(linewidth=2, foreground="black")]


class NotebookFigure(Figure):
    """A figure that shows itself at the end of a cell; pyplot, which keeps every figure, does not know it."""

    def _repr_png_(self) -> bytes:
        return png_of(self)


def png_of(figure: Figure, dpi: int = 80) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def panels(ax: Any, count: int, *, columns: int, inches: float = 2.2) -> tuple[Figure, list[Axes]]:
    """The axes to draw on.

    Parameters
    ----------
    ax
        Axes, or a sequence of `count` of them; None makes a new figure.
    count
        Panels.
    columns
        Panels beside each other in a new figure.
    inches
        Side of a panel in a new figure.

    Raises
    ------
    ConfigError
        Too few or too many axes.
    """
    if ax is not None:
        given: list[Axes] = np.ravel(np.asarray(ax, dtype=object)).tolist()
        if len(given) != count:
            raise ConfigError(f"{count} panels are to be drawn, but ax has {len(given)} axes")
        figure = given[0].get_figure(root=True)
        assert figure is not None
        return figure, given
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = NotebookFigure(
        figsize=(inches * columns, (inches + 0.25) * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02),
    )
    made: list[Axes] = np.ravel(figure.subplots(rows, columns, squeeze=False)).tolist()
    for axis in made:
        axis.set_axis_off()
    return figure, made[:count]


@dataclass(frozen=True, slots=True)
class Composite:
    """Colour pictures `(N, H, W, 3)` uint8 of one stretch, and which band is which colour."""

    rgb: NDArray[np.uint8]
    legend: str


def composite(
    image: NDArray[np.floating], bands: Sequence[str], *, rgb: Sequence[str] | None = None, stretch: float
) -> Composite:
    """Colour pictures of cutouts.

    Parameters
    ----------
    image
        `(N, B, H, W)` in one linear unit.
    bands
        Names of the B bands.
    rgb
        Bands to use, in any order: the reddest is red. None chooses among all.
    stretch
        Linear range in units of the sky noise of all N.

    Raises
    ------
    ConfigError
        A band that is not there.
    """
    wanted = by_wavelength(chosen_bands(rgb, bands))
    planes = image[:, [list(bands).index(name) for name in wanted]]
    colours = channels(wanted)
    noise = measured_noise(planes, colours)
    drawn = pictures(planes, colours, noise, stretch=stretch, softening=_SOFTENING)
    return Composite(drawn, colours.text(wanted))


def chosen_bands(wanted: Sequence[str] | None, bands: Sequence[str]) -> tuple[str, ...]:
    """The bands named by `wanted` (`"gri"` or a list), under the names that they have in `bands`.

    Raises
    ------
    ConfigError
        A band that is not there.
    """
    if wanted is None:
        return tuple(bands)
    found = [match(name, bands) for name in wanted]
    if "" in found or not found:
        missing = list(wanted)[found.index("")] if found else ""
        raise ConfigError(f"no band {missing!r}", hint=f"there are {', '.join(bands)}")
    return tuple(found)


def show(axis: Axes, rgb: NDArray[np.uint8], title: str = "") -> None:
    """A colour picture, row 0 at the bottom as on the sky."""
    axis.imshow(rgb, origin="lower", interpolation="nearest")
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=8, pad=2)


def scale_bar(axis: Axes, width: int, pixel_scale: float) -> None:
    """A bar with its length in arcsec, lower left; `width` in pixels."""
    length = bar_length(width * pixel_scale)
    pixels, margin = length / pixel_scale, 0.05 * width
    style: dict[str, Any] = {"color": "white", "path_effects": _OUTLINE}
    axis.plot([margin, margin + pixels], [margin, margin], lw=2, solid_capstyle="butt", **style)
    text = f"{length:g}″" if length < 60 else f"{length / 60:g}′"
    axis.text(margin + pixels / 2, 1.6 * margin, text, ha="center", va="bottom", fontsize=8, **style)


def bar_length(width: float) -> float:
    """Length of a scale bar for a picture of `width` arcsec: a round number, at most a third of it."""
    return max((length for length in _BARS if length <= width / 3), default=_BARS[0])


def compass(axis: Axes, box: Box, tan: Tan) -> None:
    """Arrows to the north and east, lower right."""
    (ux, uy), (vx, vy) = directions(box, tan)
    length = 0.13 * box.width
    x = box.width * 0.87 - 0.5 * length * (ux + vx)
    y = box.height * 0.13 - 0.5 * length * (uy + vy)
    for letter, dx, dy in (("N", ux, uy), ("E", vx, vy)):
        tip = (x + length * dx, y + length * dy)
        arrow = {"arrowstyle": "-|>", "color": "white", "lw": 1, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", tip, (x, y), arrowprops=arrow)
        place = (x + 1.35 * length * dx, y + 1.35 * length * dy)
        axis.text(*place, letter, color="white", fontsize=8, ha="center", va="center", path_effects=_OUTLINE)


def directions(box: Box, tan: Tan) -> tuple[tuple[float, float], tuple[float, float]]:
    """Unit vectors in pixels to the north and to the east at the centre of a box."""
    x, y = box.x0 + box.width / 2, box.y0 + box.height / 2
    ra, dec = tan.pixel_to_sky(x, y)
    step = 1 / 3600
    north = tan.sky_to_pixel(ra, dec + step)
    east = tan.sky_to_pixel(ra + step / np.cos(np.radians(dec)), dec)
    return _unit(north[0] - x, north[1] - y), _unit(east[0] - x, east[1] - y)


def _unit(dx: Any, dy: Any) -> tuple[float, float]:
    length = math.hypot(float(dx), float(dy))
    return float(dx) / length, float(dy) / length
