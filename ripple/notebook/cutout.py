"""One cutout in a notebook: its pixels, what it looks like, and the forms that other software takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import astropy.units as u
import numpy as np
from astropy.io.fits import Header
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.errors import ConfigError, InputError
from ripple.imaging.aperture import circle, circle_flux
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.psf.shape import fwhm
from ripple.imaging.quality.measure import usable
from ripple.notebook import drawing, html
from ripple.notebook.cutout_panels import draw_bands, draw_mask, draw_noise, draw_patches, draw_psfs
from ripple.notebook.files import fits_file
from ripple.notebook.positions import arcsec_of
from ripple.sky.geometry import Box, Tan
from ripple.storage.outcomes import Outcome

Kind = Literal["rgb", "bands", "psf", "mask", "variance", "seams"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, repr=False, eq=False)
class Cutout:
    """One target in all bands.

    Parameters
    ----------
    bands
        Names of the B bands, in order.
    image, variance
        `(B, H, W)` float32, nJy and nJy²; NaN where there is no pixel.
    mask
        `(B, H, W)` uint32; bit k is `mask_planes[k]`.
    mask_planes
        Names of the bits, lowest first.
    psf
        `(B, K, K)` float32, sum 1; NaN for a band without a PSF.
    box
        Pixels in the tract (PARENT frame).
    projection
        Projection of the tract; None for a cutout from elsewhere without one.
    tract, patch
        Where the position lies.
    outcome
        `ok` or `partial`, and why.
    seams
        `(H, W)` int32 patch of each pixel, -1 for none; valid where all bands have the same patches. None for
        cutouts of an artefact, which does not say it.
    id
        Identifier of the target.
    ra, dec
        Position of the target, deg ICRS.
    pixel_scale
        Arcsec per pixel.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint32]
    mask_planes: tuple[str, ...]
    psf: NDArray[np.float32]
    box: Box
    projection: Tan | None
    tract: int
    patch: int
    outcome: Outcome
    seams: NDArray[np.int32] | None
    id: int | str
    ra: float
    dec: float
    pixel_scale: float

    @property
    def wcs(self) -> WCS:
        """The projection of the array (LOCAL pixels) as an `astropy.wcs.WCS`.

        Raises
        ------
        InputError
            The cutout has no projection.
        """
        if self.projection is None:
            raise InputError(f"cutout {self.id} came without a projection: there is no WCS")
        # From PARENT to LOCAL pixels: the first pixel of the array becomes (0, 0).
        local = replace(
            self.projection, x0=self.projection.x0 - self.box.x0, y0=self.projection.y0 - self.box.y0
        )
        return WCS(Header(local.cards()))

    @property
    def centre(self) -> tuple[float, float]:
        """Pixel `(x, y)` of the target in the array, zero-based."""
        height, width = self.image.shape[1:]
        if self.projection is None:
            return width // 2, height // 2
        x, y = self.projection.sky_to_pixel(self.ra, self.dec)
        return float(x) - self.box.x0, float(y) - self.box.y0

    @cached_property
    def psf_fwhm(self) -> dict[str, float]:
        """Band -> FWHM of its PSF in arcsec, NaN for a band without one."""
        known = np.isfinite(self.psf).all(axis=(1, 2))
        width = np.full(len(self.bands), np.nan)
        width[known] = fwhm(self.psf[known]) * self.pixel_scale
        return dict(zip(self.bands, width.tolist(), strict=True))

    @property
    def good(self) -> NDArray[np.bool_]:
        """`(B, H, W)` pixels that `ripple preprocess` would use."""
        return np.asarray(usable(self.batch())[0])

    def batch(self) -> CutoutBatch:
        """The cutout as a batch of one row, which all functions on arrays take."""
        known = np.isfinite(self.psf).all(axis=(1, 2))
        x, y = self.centre
        width, height = self.box.width, self.box.height
        columns: dict[str, Any] = {
            "index": np.int64(0), "id": self.id, "ra": self.ra, "dec": self.dec,
            "tract": np.int32(self.tract), "patch": np.int32(self.patch),
            "x0": np.int32(self.box.x0), "y0": np.int32(self.box.y0),
            "dx": np.float32(x - width // 2), "dy": np.float32(y - height // 2),
            "band_mask": np.uint32(sum(1 << b for b in range(len(self.bands)) if self._has_data(b))),
        }  # fmt: skip
        return CutoutBatch(
            bands=self.bands,
            image=self.image[None],
            variance=self.variance[None],
            mask=self.mask[None],
            mask_planes=self.mask_planes,
            psf=self.psf[known],
            psf_index=np.where(known, np.cumsum(known) - 1, -1)[None].astype(np.int32),
            catalog={name: np.array([value]) for name, value in columns.items()},
            wcs={} if self.projection is None else {self.tract: self.projection},
            pixel_scale=self.pixel_scale,
        )

    def _has_data(self, band: int) -> bool:
        return bool(np.isfinite(self.image[band]).any())

    # ---- pictures

    def __repr__(self) -> str:
        height, width = self.image.shape[1:]
        verdict = self.outcome.status if self.outcome.reason is None else f"partial: {self.outcome.reason}"
        return (
            f"<Cutout {self.id}: {_names(self.bands)}, {width} x {height} px "
            f"({width * self.pixel_scale:.1f} arcsec), ra {self.ra:.5f} dec {self.dec:.5f}, {verdict}>"
        )

    def _repr_html_(self) -> str:
        figure = self.plot()
        height, width = self.image.shape[1:]
        widths = ", ".join(f"{band} {value:.2f}" for band, value in self.psf_fwhm.items())
        facts = {
            "position": f"{self.ra:.6f}, {self.dec:.6f} deg",
            "size": f"{width} x {height} px, {width * self.pixel_scale:.1f} arcsec",
            "bands": " ".join(self.bands),
            "PSF FWHM": f"{widths} arcsec",
            "usable pixels": ", ".join(
                f"{band} {share:.1%}" for band, share in zip(self.bands, self._usable(), strict=True)
            ),
            "tract, patch": f"{self.tract}, {self.patch}",
            "status": " ".join(filter(None, (self.outcome.status, self.outcome.reason, self.outcome.detail))),
        }
        alt = f"Colour picture of cutout {self.id} in {' '.join(self.bands)}"
        return html.page(f"Cutout {self.id}", facts, drawing.png_of(figure), alt)

    def _usable(self) -> list[float]:
        shares: list[float] = self.good.mean(axis=(1, 2)).tolist()
        return shares

    def plot(
        self, what: Kind = "rgb", *, bands: Sequence[str] | None = None, ax: Any = None, stretch: float = 8.0
    ) -> Figure:
        """Draw the cutout.

        Parameters
        ----------
        what
            `rgb`: colours with scale bar and compass; `bands`: each band on one asinh scale; `psf`,
            `variance` (as noise, nJy) and `mask`: one panel per band; `seams`: the patches it was put
            together from.
        bands
            Bands to draw, `"gri"` or a list; all by default. For `rgb` the reddest is red.
        ax
            Matplotlib axes, as many as panels; a new figure by default.
        stretch
            Linear range of `rgb` in units of the sky noise.

        Returns
        -------
        The matplotlib figure; `.savefig("cutout.png")` writes it.

        Raises
        ------
        ConfigError
            There is no such plot, no such band, or the axes are not as many as the panels.
        InputError
            The cutout does not say what its seams are.
        """
        if what not in KINDS:
            raise ConfigError(
                f"no plot {what!r}; there are {', '.join(KINDS)}",
                hint=".plot().savefig('cutout.png') writes a file",
            )
        names = drawing.chosen_bands(bands, self.bands)
        if what in ("rgb", "seams"):
            figure, (axis,) = drawing.panels(ax, 1, columns=1, inches=3.6)
            self._draw_one(axis, what, names, stretch)
            return figure
        figure, axes = drawing.panels(ax, len(names), columns=len(names))
        rows = [self.bands.index(name) for name in names]
        match what:
            case "bands":
                draw_bands(axes, names, self.image[rows], self.variance[rows], self.pixel_scale)
            case "psf":
                widths = [self.psf_fwhm[name] for name in names]
                draw_psfs(axes, names, self.psf[rows], widths, self.pixel_scale)
            case "mask":
                draw_mask(axes, names, self.mask[rows], self.mask_planes)
            case _:
                draw_noise(axes, names, self.variance[rows])
        for axis in axes:
            axis.set_axis_off()
        return figure

    def _draw_one(self, axis: Axes, what: Kind, names: Sequence[str], stretch: float) -> None:
        """Colours, or the patches, with scale bar and compass."""
        if what == "rgb":
            drawn = drawing.composite(self.image[None], self.bands, rgb=names, stretch=stretch)
            drawing.show(axis, drawn.rgb[0], drawn.legend)
        elif self.seams is None:
            raise InputError(f"cutout {self.id} does not say which patches it was put together from")
        else:
            draw_patches(axis, self.seams)
        drawing.scale_bar(axis, self.box.width, self.pixel_scale)
        if self.projection is not None:
            drawing.compass(axis, self.box, self.projection)

    # ---- other forms

    def flux(self, radius: Any) -> QTable:
        """Flux in a circle around the target.

        Parameters
        ----------
        radius
            Arcsec, or an astropy angle.

        Returns
        -------
        table
            A row per band: `band`, `flux` and `error` in nJy; NaN for a band that lacks a pixel of the
            circle. The error takes pixels for independent; those of coadds share noise, so it is a lower
            limit. The sky is not subtracted: coadds have none left.

        Raises
        ------
        ConfigError
            The circle is not within the cutout.
        """
        pixels = arcsec_of(radius) / self.pixel_scale
        (x, y), (height, width) = self.centre, self.image.shape[1:]
        if not 0 < pixels <= min(x, y, width - 1 - x, height - 1 - y) + 0.5:
            raise ConfigError(
                f"a circle of {pixels * self.pixel_scale:g} arcsec around {self.id} is not within its cutout",
                hint="give a smaller radius, or make a larger cutout",
            )
        flux, error = circle_flux(self.image, self.variance, circle((height, width), x, y, pixels))
        return QTable({"band": list(self.bands), "flux": flux * u.nJy, "error": error * u.nJy})

    def to_nddata(self) -> dict[str, CCDData]:
        """Band -> `astropy.nddata.CCDData` in nJy, with WCS, variance, PSF, and a mask of unusable pixels.

        `meta["MASK"]` has the bits of each pixel and `meta["PLANES"]` their names, lowest first.
        """
        wcs, bad = (None if self.projection is None else self.wcs), ~self.good
        return {
            band: CCDData(
                self.image[k],
                unit=u.nJy,
                uncertainty=VarianceUncertainty(self.variance[k], unit=u.nJy**2),
                mask=bad[k],
                wcs=wcs,
                psf=self.psf[k] if np.isfinite(self.psf[k]).all() else None,
                meta={
                    "OBJECT": str(self.id),
                    "FILTER": band,
                    "MASK": self.mask[k],
                    "PLANES": list(self.mask_planes),
                },
            )
            for k, band in enumerate(self.bands)
        }

    def to_lsst(self) -> dict[str, Any]:
        """Band -> `lsst.images.MaskedImage` in nJy, on the pixels of the tract, with planes and WCS."""
        from ripple.rubin.masked_image import masked_image

        return {
            band: masked_image(
                self.image[k], self.variance[k], self.mask[k], self.mask_planes, self.box, self.projection
            )
            for k, band in enumerate(self.bands)
        }

    def to_fits(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a FITS file, as `ripple export --format fits`: IMAGE, VARIANCE, MASK and PSF of each band.

        Parameters
        ----------
        path
            File to write.
        overwrite
            Replace a file that is there.

        Returns
        -------
        The path.

        Raises
        ------
        ConfigError
            The file exists.
        """
        return fits_file(self.batch(), Path(path), overwrite=overwrite)


def _names(bands: Sequence[str]) -> str:
    """`gri`, or `VIS, Y, J` where names are longer."""
    return "".join(bands) if all(len(band) == 1 for band in bands) else ", ".join(bands)
