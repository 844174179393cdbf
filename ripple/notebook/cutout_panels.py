"""The plots of one cutout: each function draws arrays on axes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ripple.notebook.drawing import scale_bar

Float = NDArray[np.float32]


def draw_bands(
    axes: Sequence[Axes], names: Sequence[str], image: Float, variance: Float, pixel_scale: float
) -> None:
    """Bands `(B, H, W)` in grey, all on one asinh scale."""
    known = variance[np.isfinite(variance)]
    # Cutouts from elsewhere may have no variance: then the scatter of the pixels.
    noise = float(np.sqrt(np.median(known))) if known.size else _scatter(image)
    for axis, name, plane in zip(axes, names, image, strict=True):
        # Linear up to about twice the noise, logarithmic above; the same for all bands.
        axis.imshow(np.arcsinh(plane / (2 * noise)), origin="lower", cmap="gray", vmin=-1, vmax=5)
        axis.set_title(name, fontsize=8)
        scale_bar(axis, image.shape[2], pixel_scale)


def _scatter(image: Float) -> float:
    values = image[np.isfinite(image)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else 1.0


def draw_psfs(
    axes: Sequence[Axes], names: Sequence[str], psf: Float, widths: Sequence[float], pixel_scale: float
) -> None:
    """PSFs `(B, K, K)` with their wings, and their FWHM in arcsec."""
    for axis, name, kernel, width in zip(axes, names, psf, widths, strict=True):
        if np.isfinite(kernel).all():
            # Wings of a thousandth of the peak are what matching has to get right.
            axis.imshow(np.arcsinh(1e3 * kernel / kernel.max()), origin="lower", cmap="gray")
            scale_bar(axis, kernel.shape[1], pixel_scale)
        axis.set_title(f"{name}  {width:.2f}″" if np.isfinite(width) else f"{name}  no PSF", fontsize=8)


def draw_noise(axes: Sequence[Axes], names: Sequence[str], variance: Float) -> None:
    """Square root of the variance `(B, H, W)`, nJy, all on one scale."""
    noise = np.sqrt(np.where(np.isfinite(variance), variance, np.nan))
    known = np.isfinite(noise).any()
    low, high = (np.nanpercentile(noise, p) for p in (1, 99)) if known else (0.0, 1.0)
    for axis, name, plane in zip(axes, names, noise, strict=True):
        axis.imshow(plane, origin="lower", cmap="viridis", vmin=low, vmax=high)
        said = f"{np.nanmedian(plane):.3g} nJy" if np.isfinite(plane).any() else "unknown"
        axis.set_title(f"{name}  noise {said}", fontsize=8)


def draw_mask(
    axes: Sequence[Axes], names: Sequence[str], mask: NDArray[np.uint32], planes: Sequence[str]
) -> None:
    """Mask planes that occur in `(B, H, W)`, as colours with a legend."""
    occurring = int(np.bitwise_or.reduce(mask, axis=None))
    bits = [k for k in range(len(planes)) if occurring >> k & 1]
    # DETECTED covers every object: what else is known of a pixel is drawn over it.
    bits.sort(key=lambda k: not planes[k].startswith("DETECTED"))
    for axis, name, plane in zip(axes, names, mask, strict=True):
        shown = np.full(plane.shape, -1)
        for k in bits:
            shown[plane >> np.uint32(k) & 1 == 1] = k
        _classes(axis, shown, {k: planes[k] for k in bits}, legend=axis is axes[-1])
        axis.set_title(name, fontsize=8)


def draw_patches(axis: Axes, patch: NDArray[np.int32]) -> None:
    """The patch of each pixel `(H, W)`, -1 for none."""
    _classes(axis, patch, {p: f"patch {p}" for p in np.unique(patch).tolist() if p >= 0}, legend=True)
    axis.set_axis_off()
    axis.set_title("patches", fontsize=8)


def _classes(axis: Axes, value: NDArray[np.integer], names: dict[int, str], *, legend: bool) -> None:
    """Numbers as colours; those without a name are white."""
    maps = ("tab10", "Set3", "Dark2")
    table = np.concatenate([matplotlib.colormaps[name](np.arange(8))[:, :3] for name in maps])
    colours = {number: tuple(table[k % len(table)].tolist()) for k, number in enumerate(names)}
    picture = np.ones((*value.shape, 3))
    for number, colour in colours.items():
        picture[value == number] = colour
    axis.imshow(picture, origin="lower", interpolation="nearest")
    if legend and names:
        handles = [Patch(color=colours[number], label=name) for number, name in names.items()]
        axis.legend(handles=handles, fontsize=6, loc="upper left", framealpha=0.8)
