"""A cutout as `lsst.images` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.sky.geometry import Box, Tan


def masked_image(
    image: NDArray[np.float32],
    variance: NDArray[np.float32],
    mask: NDArray[np.uint32],
    planes: Sequence[str],
    box: Box,
    tan: Tan | None,
) -> Any:
    """One band as `lsst.images.MaskedImage`.

    Parameters
    ----------
    image, variance
        `(H, W)` nJy and nJy².
    mask
        `(H, W)`; bit k is `planes[k]`.
    planes
        Names of the bits, lowest first.
    box
        Pixels in the tract (PARENT frame), which are the pixels of the result.
    tan
        Projection of the tract; None for none.
    """
    import astropy.units as u
    import astropy.wcs
    from astropy.io.fits import Header
    from lsst.images import (
        YX,
        GeneralFrame,
        Image,
        Mask,
        MaskedImage,
        MaskPlane,
        MaskSchema,
        SkyProjection,
        get_legacy_deep_coadd_mask_planes,
    )

    first = YX(y=box.y0, x=box.x0)
    # The descriptions of DP2; planes of afw files have none.
    said = {plane.name: plane.description for plane in get_legacy_deep_coadd_mask_planes().values()}
    schema = MaskSchema([MaskPlane(name, said.get(name, "")) for name in planes])
    # lsst.images keeps masks as bytes, eight planes in each.
    shifts = np.arange(schema.mask_size, dtype=np.uint32) * 8
    octets = ((mask[:, :, None] >> shifts) & 0xFF).astype(np.uint8)
    projection = None
    if tan is not None:
        projection = SkyProjection.from_fits_wcs(
            astropy.wcs.WCS(Header(tan.cards())), GeneralFrame(unit=u.pix)
        )
    return MaskedImage(
        Image(image, yx0=first, unit=u.nJy),
        mask=Mask(octets, schema=schema, yx0=first),
        variance=Image(variance, yx0=first, unit=u.nJy**2),
        sky_projection=projection,
    )
