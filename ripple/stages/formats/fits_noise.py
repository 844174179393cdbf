"""Masks and noise of FITS cutouts: what their bits mean, and a variance from whichever plane there is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ripple.stages.formats.fits_hdus import Plane
from ripple.stages.formats.fits_units import Flux, variance_factor
from ripple.stages.formats.mask_meaning import planes_of_mask


def variances(
    roles: Mapping[str, Mapping[str, Plane]], images: Mapping[str, Plane], fluxes: Mapping[str, Flux]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """Noise of the images.

    Parameters
    ----------
    roles
        Role -> band -> picture.
    images, fluxes
        Band -> image, and its unit.

    Returns
    -------
    variance, source
        Band -> `(H, W)` in the unit of the image squared, NaN where it is unknown; band -> its role.

    Raises
    ------
    ValueError
        Shape or unit do not fit the image, or two planes say different noise.
    """
    found: dict[str, NDArray[np.float64]] = {}
    source: dict[str, str] = {}
    for band, image in images.items():
        for role in ("variance", "rms", "ivar"):
            plane = roles.get(role, {}).get(band)
            if plane is None or not np.any(plane.data):
                continue  # all zero: a placeholder, not a measurement
            if plane.data.shape != image.data.shape:
                raise ValueError(f"{plane.where} has shape {plane.data.shape}, the image {image.data.shape}")
            values = _as_variance(
                plane.data * variance_factor(plane.header, plane.where, fluxes[band], role), role
            )
            if band in found and not _alike(values, found[band]):
                raise ValueError(f"{source[band]} and {role} of {band} say different noise")
            found.setdefault(band, values)
            source.setdefault(band, role)
    return found, source


def _as_variance(values: NDArray[np.floating], role: str) -> NDArray[np.float64]:
    """A variance from itself, an rms or an inverse variance; NaN where it is unknown."""
    v = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        v = v**2 if role == "rms" else 1 / v if role == "ivar" else v
    # Infinity means a pixel without weight; a negative variance is unknown.
    return np.where(v >= 0, v, np.nan)


def _alike(one: NDArray[np.float64], two: NDArray[np.float64]) -> bool:
    both = np.isfinite(one) & np.isfinite(two) & (two > 0)
    return not both.any() or bool(abs(np.median(one[both] / two[both]) - 1) < 0.01)


def mask_planes(plane: Plane, meaning: str, bits: Mapping[str, int]) -> NDArray[np.uint32]:
    """A mask in bits of `MASK_PLANES`: by its cards `MP_<plane>`, which afw writes, else by the user's
    `bits`.

    Parameters and errors as for `planes_of_mask`.
    """
    said = {
        card[3:]: bit
        for card, bit in plane.header.items()
        if card.startswith("MP_") and isinstance(bit, int) and 0 <= bit < 64
    }
    # afw names every bit that it uses; a user names those that matter.
    return planes_of_mask(plane.data, said or bits, meaning=meaning, where=plane.where, complete=bool(said))
