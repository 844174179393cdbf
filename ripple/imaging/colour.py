"""Colour pictures: multi-band pixels to RGB, and RGB to PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Bands from blue to red.
WAVELENGTH_ORDER = "ugrizy"
#: Weight of red, green and blue. Galaxies are brighter in redder bands: these make a flat spectrum blue-white
#: and an old galaxy at z = 0.5 orange.
WEIGHTS = (0.7, 1.0, 1.6)


def rgb_bands(bands: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Which bands make red, green and blue: i, r, g where they exist, else three spread over the bands.

    Parameters
    ----------
    bands
        Names of the bands; unknown names keep their place after the known ones.

    Returns
    -------
    Positions in `bands` whose mean is the channel. Two bands give green as their mean, one band gives grey.
    """
    names = list(bands)
    if all(name in names for name in "gri"):
        return (names.index("i"),), (names.index("r"),), (names.index("g"),)
    order = sorted(range(len(names)), key=lambda k: (WAVELENGTH_ORDER + names[k]).index(names[k]))
    blue, red = order[0], order[-1]
    green = (order[len(order) // 2],) if len(order) > 2 else (blue, red)
    return (red,), green, (blue,)


def lupton_rgb(
    image: NDArray[np.floating], bands: Sequence[str], *, stretch: float, q: float = 8.0, minimum: float = 0.0
) -> NDArray[np.uint8]:
    """Colour images that keep the colour of bright pixels.

    Parameters
    ----------
    image
        `(N, B, H, W)` in one linear unit (nJy); NaN is drawn as 0.
    bands
        Names of the B bands.
    stretch
        Intensity range of the linear part, same unit; a few times the sky noise shows faint arcs.
    q
        Softening: larger is more logarithmic.
    minimum
        Intensity that becomes black.

    Returns
    -------
    `(N, H, W, 3)` uint8, row 0 at the bottom of the sky (north up when drawn flipped).

    Notes
    -----
    Lupton et al. 2004, PASP 116, 133, equations 1 to 3, with the asinh stretch of the paper.
    """
    channels = [np.nan_to_num(image[:, list(k)].astype(np.float32)).mean(axis=1) for k in rgb_bands(bands)]
    if image.shape[1] > 1:
        channels = [w * c for w, c in zip(WEIGHTS, channels, strict=True)]
    rgb = np.stack(channels, axis=-1) - np.float32(minimum)  # (N, H, W, 3)
    intensity = rgb.mean(axis=-1)
    # f(I) = asinh(Q I / stretch) / Q, and every channel is scaled by f(I) / I.
    safe = np.where(intensity > 0, intensity, 1.0)
    factor = np.where(intensity > 0, np.arcsinh(q * safe / stretch) / (q * safe), 0.0)
    rgb = np.clip(rgb * factor[..., None], 0.0, None)
    peak = rgb.max(axis=-1, keepdims=True)
    rgb = np.where(peak > 1.0, rgb / np.maximum(peak, 1.0), rgb)  # too bright: keep the ratio of the channels
    out: NDArray[np.uint8] = (rgb * 255.0 + 0.5).astype(np.uint8)
    return out


def sky_noise(image: NDArray[np.floating], bands: Sequence[str]) -> float:
    """Robust scatter of the weighted intensity over all pixels, for choosing `stretch`; at least 1e-6."""
    channels = [image[:, list(k)].astype(np.float32).mean(axis=1) for k in rgb_bands(bands)]
    weights = WEIGHTS if image.shape[1] > 1 else (1.0, 1.0, 1.0)
    intensity = sum(w * c for w, c in zip(weights, channels, strict=True)) / 3.0
    values = np.asarray(intensity)[np.isfinite(intensity)]
    if values.size == 0:
        return 1.0
    low = values[values <= np.median(values)]  # the faint half: galaxies do not count as noise
    return max(float(1.4826 * np.median(np.abs(low - np.median(values)))), 1e-6)


def png(rgb: NDArray[np.uint8]) -> bytes:
    """PNG file of an `(H, W, 3)` uint8 image; equal images give equal bytes.

    Row 0 is drawn at the bottom, as astronomers do.
    """
    from PIL import Image  # pages and pictures only

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb[::-1])).save(file, "PNG", compress_level=3)
    return file.getvalue()
