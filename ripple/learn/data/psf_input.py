"""How wide the PSF is, as planes that a network sees beside the bands (`ripple train --psf-input width`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import DataError
from ripple.learn.config import PsfInput

#: PSFs wider or narrower than those of the training rows by up to this are still like them.
TOLERANCE = 1.05


def psf_widths(columns: Mapping[str, NDArray[Any]], bands: tuple[str, ...]) -> NDArray[np.float32]:
    """FWHM of the PSFs that tensors have, arcsec, `(N, B)`: of a matched one, that which it was matched to.

    0 in bands without a PSF, as those that a row lacks: no real PSF comes near it.

    Parameters
    ----------
    columns
        Of the tensors: `psf_fwhm_<band>` from before the matching, and `psf_sharpening_<band>`, the ratio of
        the two where there was one.
    bands
        The B bands.

    Raises
    ------
    DataError
        The tensors do not say how wide their PSFs are.
    """
    found = []
    for band in bands:
        name = f"psf_fwhm_{band}"
        if name not in columns:
            raise DataError(
                f"the tensors have no column {name!r}, which a network with --psf-input width takes",
                hint="tensors of `ripple preprocess` have it when their cutouts have PSFs",
            )
        width = np.asarray(columns[name], np.float32)
        if (ratio := columns.get(f"psf_sharpening_{band}")) is not None:
            width = width / np.asarray(ratio, np.float32)
        found.append(np.where(np.isfinite(width), width, np.float32(0)))
    return np.stack(found, axis=1)


def seen_widths(width: NDArray[np.float32]) -> tuple[tuple[float, float], ...]:
    """The narrowest and the widest PSF of each of B bands, arcsec, among those shown to a network, `(N, B)`.

    `TOLERANCE` on either side; 0, 0 in a band without a PSF.
    """
    found = []
    for band in width.T:
        known = band[band > 0].astype(np.float64)
        low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
        found.append((round(float(low) / TOLERANCE, 4), round(float(high) * TOLERANCE, 4)))
    return tuple(found)


def widths_told(
    columns: Mapping[str, NDArray[Any]], bands: tuple[str, ...], psf_input: PsfInput
) -> Tensor | None:
    """`psf_widths` for a network that is told of them; None for others."""
    return None if psf_input == "none" else torch.from_numpy(psf_widths(columns, bands))


def broadened(width: Tensor, seeing: Tensor | float) -> Tensor:
    """FWHM `(n, B)` arcsec of PSFs of `width` broadened by `seeing`, arcsec, as widths of Gaussians add.

    `seeing` is a number, or `(n, 1)`; where there is no PSF the width stays 0.
    """
    return torch.where(width > 0, torch.hypot(width, torch.as_tensor(seeing).to(width)), 0.0)


def beyond_seen(width: NDArray[np.float32], seen: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """How far PSFs `(N, B)` arcsec lie beyond those of `seen_widths`: `(N,)`, above 1 if too wide or narrow.

    Infinite for a row without any PSF, and for a PSF in a band where no training row had one.
    """
    low, high = np.array(seen, np.float64).T
    real = np.where(width > 0, width, np.nan).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a band without PSFs has no range
        ratio = np.fmax(real / high, low / real)
    return np.asarray(np.nan_to_num(np.fmax.reduce(ratio, axis=1), nan=np.inf, posinf=np.inf))


def with_widths(image: Tensor, width: Tensor | None) -> Tensor:
    """`(n, 2 B, H, W)`: images `(n, B, H, W)`, and planes of the widths `(n, B)` of their PSFs, arcsec.

    The images alone for a network that is not told of them.
    """
    if width is None:
        return image
    planes = width.to(image)[:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([image, planes], 1)
