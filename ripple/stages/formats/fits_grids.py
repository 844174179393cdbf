"""The pixel grids of the bands of one row, and the common one that the row gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.psf.square import odd_square
from ripple.imaging.regrid import Regrid, regrid, regrid_psf
from ripple.sky.geometry import Box, Tan
from ripple.stages.formats.fits_hdus import Plane
from ripple.stages.formats.fits_projection import MISFIT, Projection, projection_of
from ripple.stages.formats.foreign_cutout import Float

#: Bands whose pixels lie nearer than this are on one grid, px; scales that differ by less are one scale.
SAME_GRID, SAME_SCALE = 0.05, 1e-3


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be resampled: bands and rows of other grids (`align`), and other projections (`resample`)."""

    align: bool = False
    resample: bool = True


@dataclass(frozen=True, slots=True)
class Grids:
    """The pixel grids of the bands of a row, and the one that the row gets.

    Parameters
    ----------
    bands
        Of the artefact.
    tan, shape
        Projection and `(H, W)` of the row; None without one.
    own
        Band -> what its header says; bands without a projection are left out.
    moves
        Band -> the interpolation onto the grid of the row; bands that stay are left out.
    remarks
        What was done, for the index.
    centre
        Deg ICRS of the central pixel `(H // 2, W // 2)` of the first band; NaN without a projection.
    """

    bands: tuple[str, ...]
    tan: Tan | None
    shape: tuple[int, int]
    own: Mapping[str, Projection]
    moves: Mapping[str, Regrid]
    remarks: tuple[str, ...]
    centre: tuple[float, float]

    @classmethod
    def of(
        cls, images: Mapping[str, Plane], bands: tuple[str, ...], scale: float | None, allowed: Allowed
    ) -> Grids:
        """The grids of a row.

        Parameters
        ----------
        images
            Band -> image of the row.
        bands
            Of the artefact.
        scale
            Arcsec per pixel of the artefact; None when no row says one.
        allowed
            What may be resampled.

        Raises
        ------
        ValueError
            Bands lie on different grids and may not be resampled.
        """
        own = {}
        for band, plane in images.items():
            found = projection_of(plane.header, plane.data.shape)
            if found is not None:
                own[band] = found
        first = next((band for band in images if band in own), next(iter(images)))
        shape = images[first].data.shape
        if first not in own:
            if len({p.data.shape for p in images.values()}) > 1:
                raise ValueError(f"the bands have sizes {_sizes(images)} and no projection to align them by")
            return cls(bands, None, shape, own, {}, (), (float("nan"), float("nan")))
        centre = own[first].tan.pixel_to_sky(shape[1] // 2, shape[0] // 2)
        tan, shape, why = _common(own[first], shape, scale, allowed)
        moves: dict[str, Regrid] = {}
        for band, plane in images.items():
            apart, reason = _apart(own.get(band), plane.data.shape, tan, shape)
            if not reason and not why:
                continue
            if reason and not why and not allowed.align:
                raise ValueError(
                    f"{band} lies on another pixel grid than {first}: {reason}; --align resamples it"
                )
            if band not in own:
                raise ValueError(f"{band} has no projection to align it with {first}")
            moves[band] = _onto(own[band], plane.data.shape, tan, shape)
            why = why or f"{band} was resampled onto the grid of {first}, {apart:.3g} px away"
        place = float(centre[0]), float(centre[1])
        return cls(bands, tan, shape, own, moves, (why,) if why else (), place)

    @property
    def moved(self) -> bool:
        """Whether any pixel was resampled."""
        return bool(self.moves)

    def scale(self, band: str) -> float | None:
        """Arcsec per pixel of a band as it came."""
        return self.own[band].tan.pixel_scale if band in self.own else None

    def stacked(self, planes: Mapping[str, NDArray[np.floating]], *, squared: bool = False) -> Float:
        """`(B, H, W)` float32 of images, or variances, on the grid of the row; NaN in bands without one."""
        out = np.full((len(self.bands), *self.shape), np.nan, np.float32)
        for k, band in enumerate(self.bands):
            if band in planes and band in self.moves:
                move = self.moves[band]
                out[k] = move.variance(planes[band]) if squared else move.image(planes[band])
            elif band in planes:
                out[k] = planes[band]
        return out

    def joined(self, masks: Mapping[str, NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """`(B, H, W)` mask bits on the grid of the row."""
        out = np.zeros((len(self.bands), *self.shape), np.uint32)
        for k, band in enumerate(self.bands):
            if band in masks:
                mask = self.moves[band].mask(masks[band]) if band in self.moves else masks[band]
                if mask.shape != self.shape:
                    raise ValueError(f"the mask of {band} has shape {mask.shape}, the image {self.shape}")
                out[k] = mask
        return out

    def kernel(self, band: str, psf: Float) -> Float:
        """A PSF on the grid of the row."""
        # Without projection, or on its own grid, it stays as the file has it.
        if band not in self.moves or self.tan is None or not np.isfinite(psf).all() or not psf.sum() > 0:
            return psf
        moved = regrid_psf(odd_square(psf)[None], _jacobian(self.own[band].tan, self.tan, self.shape))
        return np.asarray(moved[0])


def _sizes(images: Mapping[str, Plane]) -> str:
    return ", ".join(f"{band} {p.data.shape[1]} x {p.data.shape[0]}" for band, p in images.items())


def _common(
    first: Projection, shape: tuple[int, int], wanted: float | None, allowed: Allowed
) -> tuple[Tan, tuple[int, int], str]:
    """Projection, shape and, if it is not that of the first band itself, the reason for it."""
    tan, why = first.tan, ""
    if first.misfit > MISFIT:
        why = f"resampled onto a gnomonic projection: {first.text} is {first.misfit:.3g} px off"
        if not allowed.resample:
            raise ValueError(f"it would have to be {why}")
    if wanted is not None and abs(tan.pixel_scale / wanted - 1) > SAME_SCALE:
        said = f"its pixels are {tan.pixel_scale:.4g} arcsec, not {wanted:.4g}"
        if not allowed.align:
            raise ValueError(f"{said}; --align resamples it")
        why = f"resampled: {said}"
        ratio = wanted / tan.pixel_scale
        shape = round(shape[0] / ratio), round(shape[1] / ratio)
        tan = _rescaled(tan, ratio)
    return tan, shape, why


def _rescaled(tan: Tan, ratio: float) -> Tan:
    """`tan` with pixels larger by `ratio`; the outer edge of the first pixel, at -0.5, keeps its place."""
    a, b, c, d = (v * ratio for v in tan.cd)
    return Tan(tan.ra0, tan.dec0, (tan.x0 + 0.5) / ratio - 0.5, (tan.y0 + 0.5) / ratio - 0.5, (a, b, c, d))


def _apart(
    own: Projection | None, shape: tuple[int, ...], tan: Tan, wanted: tuple[int, int]
) -> tuple[float, str]:
    """How far a band lies from the grid of the row, px, and that in words; empty when it lies on it."""
    if own is None:
        return 0.0, "" if shape == wanted else f"it has {shape[1]} x {shape[0]} pixels and no projection"
    ratio = own.tan.pixel_scale / tan.pixel_scale
    gap = tan.separation(own.tan, Box(0, 0, wanted[1], wanted[0]))
    if abs(ratio - 1) > SAME_SCALE:
        return gap, f"pixels of {own.tan.pixel_scale:.4g} and {tan.pixel_scale:.4g} arcsec"
    if gap > SAME_GRID:
        return gap, f"they are {gap:.3g} px apart"
    return gap, "" if shape == wanted else f"sizes {shape[1]} x {shape[0]} and {wanted[1]} x {wanted[0]}"


def _onto(own: Projection, shape: tuple[int, int], tan: Tan, wanted: tuple[int, int]) -> Regrid:
    """The interpolation of a band onto the grid of the row, by the header's own projection."""
    y, x = np.mgrid[: wanted[0], : wanted[1]].astype(np.float64)
    ra, dec = tan.pixel_to_sky(x, y)
    px, py = own.pixels(ra, dec) if own.misfit > MISFIT else own.tan.sky_to_pixel(ra, dec)
    return regrid(px, py, shape, tan.pixel_scale / own.tan.pixel_scale)


def _jacobian(own: Tan, tan: Tan, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Pixels `(x, y)` of the old grid per pixel of the new one at the centre of the cutout."""
    x, y = shape[1] / 2 + np.array([-0.5, 0.5, 0, 0]), shape[0] / 2 + np.array([0, 0, -0.5, 0.5])
    px, py = own.sky_to_pixel(*tan.pixel_to_sky(x, y))
    return np.array([[px[1] - px[0], px[3] - px[2]], [py[1] - py[0], py[3] - py[2]]])
