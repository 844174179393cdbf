"""Small CellCoadd files written by `lsst.images` itself, for the tests of the reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: First pixel, cells and pixels per cell of the files made here.
X0, Y0, CELLS, CELL, KERNEL = 14600, 12800, 3, 50, 15
MISSING = (0, 2)


#: Changes the arrays `image`, `variance`, `mask`, `psf` before they go into the file.
Edit = Callable[[dict[str, Any]], None]


def write_cell_coadd(path: Path, *, seed: int = 1, lossy: bool = False, **options: Any) -> Any:
    """Write a CellCoadd with one missing cell to `path`; gives the object. Options: `make_cell_coadd`."""
    from lsst.images.fits import FitsCompressionOptions, write

    coadd = make_cell_coadd(seed=seed, **options)
    lossy_planes = dict.fromkeys(("image", "variance"), FitsCompressionOptions.LOSSY)
    write(coadd, path, compression_options=lossy_planes if lossy else None, compression_seed=seed)
    return coadd


def make_cell_coadd(
    *, seed: int = 1, unit: str = "nJy", noise: int = 0, planes: int = 9, edit: Edit | None = None, **wcs: Any
) -> Any:
    """A CellCoadd of 3x3 cells of 50 px, noise and a gradient; cell (0, 2) is missing. `wcs`: cards."""
    import astropy.units as u
    from lsst.images import (
        YX,
        Image,
        Interval,
        Mask,
        MaskPlane,
        MaskSchema,
        get_legacy_deep_coadd_mask_planes,
    )
    from lsst.images import Box as LsstBox
    from lsst.images.cells import CellCoadd, CellGrid, CellGridBounds, CellIJ, CellPointSpreadFunction

    rng = np.random.default_rng(seed)
    size = CELLS * CELL
    box = LsstBox(y=Interval(start=Y0, stop=Y0 + size), x=Interval(start=X0, stop=X0 + size))
    hole = (
        slice(MISSING[0] * CELL, (MISSING[0] + 1) * CELL),
        slice(MISSING[1] * CELL, (MISSING[1] + 1) * CELL),
    )
    image = (rng.normal(0, 10, (size, size)) + np.arange(size)).astype("f4")
    variance = rng.uniform(90, 110, (size, size)).astype("f4")
    image[5:8, 5:8] = np.nan
    image[hole], variance[hole] = 0, np.inf
    known = list({plane.name: plane for plane in get_legacy_deep_coadd_mask_planes().values()}.values())
    schema = MaskSchema(
        [*known[:planes], *(MaskPlane(f"EXTRA{k:02d}", "") for k in range(planes - len(known)))]
    )
    bits = rng.integers(0, 256, (size, size, schema.mask_size), dtype=np.uint8)
    bits[..., -1] &= (1 << (len(schema) - 8 * (schema.mask_size - 1))) - 1
    psf = rng.uniform(0, 1, (CELLS, CELLS, KERNEL, KERNEL))
    psf /= psf.sum(axis=(2, 3), keepdims=True)
    psf[MISSING] = np.nan
    if edit is not None:
        arrays = {"image": image, "variance": variance, "mask": bits, "psf": psf}
        edit(arrays)
        image, variance, bits, psf = arrays.values()
    grid = CellGrid(bbox=box, cell_shape=YX(y=CELL, x=CELL))
    gone = frozenset({CellIJ(i=MISSING[0], j=MISSING[1])})
    return CellCoadd(
        Image(image, bbox=box, unit=u.Unit(unit)),
        mask=Mask(bits, schema=schema, yx0=YX(y=Y0, x=X0)),
        variance=Image(variance, bbox=box, unit=u.Unit(unit) ** 2),
        noise_realizations=[Image(image, bbox=box)] * noise,
        sky_projection=projection(**wcs),
        band="r",
        psf=CellPointSpreadFunction(psf, CellGridBounds(grid=grid, bbox=box, missing=gone)),
    )


def projection(**changes: Any) -> Any:
    """TAN projection of a tract of 27600 px at 0.2 arcsec, some of its cards changed."""
    import astropy.wcs
    from astropy.io.fits import Header
    from lsst.images import Box as LsstBox
    from lsst.images import Interval, SkyProjection, TractFrame

    whole = LsstBox(y=Interval(start=0, stop=27600), x=Interval(start=0, stop=27600))
    scale = 0.2 / 3600
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
        "CRVAL1": 56.649746192893, "CRVAL2": -36.446280991736, "CRPIX1": 13800.0, "CRPIX2": 13800.0,
        "CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale,
    }  # fmt: skip
    return SkyProjection.from_fits_wcs(
        astropy.wcs.WCS(Header(cards | changes)),
        TractFrame(skymap="test", tract=1, bbox=whole),
        pixel_bounds=whole,
    )
