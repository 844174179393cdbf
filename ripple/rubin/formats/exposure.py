"""afw `ExposureF` files (DP1, DP0.2, HSC coadds) without afw.

Layout, as `lsst.afw.image.ExposureFitsReader` reads it: an empty primary HDU, then IMAGE, MASK and VARIANCE
(by EXTNAME or EXTTYPE), plain or tile-compressed, then an archive of binary tables. The pixel origin is in
the `A` world coordinates, mask bits are named by `MP_` cards, counts become nJy through the PhotoCalib of the
archive.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.imaging.bands import canonical, wavelength
from ripple.rubin.coadd import Coadd, NoPsf, PsfCells, naming
from ripple.rubin.formats.afw_archive import Archive, PhotoCalib, calib_from_zero_point, text
from ripple.rubin.formats.afw_psf import read_psf
from ripple.rubin.formats.afw_wcs import read_origin, read_projection
from ripple.rubin.formats.decode import Image, open_image
from ripple.rubin.formats.fits import Hdu, Memory, walk
from ripple.sky.geometry import Box

#: The planes that every ExposureF has.
PLANES = frozenset({"IMAGE", "MASK", "VARIANCE"})
_MOST_PIXELS = 1 << 27  # px; a patch has 18 million, more is a damaged header
_COUNT_UNITS = frozenset({"", "adu", "count", "counts", "ct", "dn"})
# Files often leave the unit of the variance out; it is then that of the image, squared.
_VARIANCE_UNITS = frozenset({"", "njy2", "njy^2", "njy**2"})
_NEGATIVE_SHARE = 0.01  # of the pixels: with more negative variances than this the file is at fault


def open_exposure(data: bytes | memoryview, *, name: str) -> Coadd:
    """Open an ExposureF file that lies in memory.

    Parameters
    ----------
    data
        The whole file.
    name
        File, for messages.

    Returns
    -------
    coadd
        Planes are decoded when first read; damage inside them shows then. Pixels for which the file
        gives no calibration are NaN. A few negative variances become NaN.

    Raises
    ------
    UnreadableError
        With reason `wrong_unit` when the pixels cannot be brought to nJy, `wrong_wcs` when the grid is not
        that of a tract, `bad_psf`, or `unreadable_source` when the file is damaged or not an ExposureF.
    """
    view = memoryview(data).cast("B")
    with naming(name):
        return _Exposure(view, walk(view, name=name), name).coadd()


@dataclass(frozen=True)
class _Exposure:
    """The parts of one file; each property is read once, when it is first used."""

    view: memoryview
    hdus: Sequence[Hdu]
    name: str

    def coadd(self) -> Coadd:
        box, archive, calib = self.box, self.archive, self.calib
        psf: PsfCells | NoPsf = NoPsf("the file has no archive, where a PSF would be")
        if archive is not None:
            psf = read_psf(archive, self.component("PSF"), box, name=self.name)
        notes: tuple[str, ...] = ()
        if calib.field is not None:
            notes = ("counts were converted to nJy by a calibration that varies over the image",)
        # A plane that is shifted against the image would be silently sliced in the wrong place.
        for kind in ("MASK", "VARIANCE"):
            origin = read_origin(self.hdu(kind), name=self.name)
            if self.plane(kind).shape != box.shape or origin != (box.x0, box.y0):
                raise UnreadableError(f"{self.name}: {kind} does not cover the same pixels as IMAGE")

        def read(boxes: Iterable[Box] | None) -> PsfCells | NoPsf:
            del boxes  # one kernel for all
            return psf

        return Coadd(
            name=self.name,
            box=box,
            projection=read_projection(self.hdu("IMAGE"), name=self.name),
            band=self.band,
            mask_planes=self.mask_planes,
            read_image=self.image,
            read_variance=self.variance,
            read_mask=self.mask,
            read_psf=read,
            read_digest=lambda: self.digest,
            bytes_read=lambda: len(self.view),
            notes=notes,
        )

    def hdu(self, kind: str) -> Hdu:
        """The plane of this kind, by EXTNAME or EXTTYPE."""
        found = [hdu for hdu in self.hdus[1:] if kind in hdu.kinds]
        # Whichever came first would be a guess.
        if len(found) != 1:
            raise UnreadableError(
                f"{self.name}: {len(found) or 'no'} extension{'s' * (len(found) > 1)} {kind}"
            )
        claimed = found[0].kinds & PLANES
        if len(claimed) > 1:
            raise UnreadableError(
                f"{self.name}: one extension is called {' and '.join(sorted(claimed))}",
                hint="EXTNAME and EXTTYPE must agree",
            )
        return found[0]

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        return hashlib.sha256(self.view).hexdigest()

    @cached_property
    def box(self) -> Box:
        """Pixels of the image, PARENT."""
        height, width = self.plane("IMAGE").shape
        x0, y0 = read_origin(self.hdu("IMAGE"), name=self.name)
        return Box(x0, y0, x0 + width, y0 + height)

    def plane(self, kind: str) -> Image:
        """Pixels of a plane, as in the file."""
        image = open_image(self.hdu(kind), Memory(self.view, self.name), name=f"{self.name} {kind}")
        if len(image.shape) != 2 or image.shape[0] * image.shape[1] > _MOST_PIXELS:
            raise UnreadableError(
                f"{self.name}: {kind} has shape {image.shape}, which is not that of a coadd"
            )
        # Masks are integers, image and variance floats.
        if (image.dtype.kind == "f") == (kind == "MASK"):
            raise UnreadableError(f"{self.name}: {kind} has pixels of type {image.dtype}")
        return image

    @cached_property
    def image_pixels(self) -> NDArray[np.generic]:
        """Counts or nJy; refused when no pixel is finite."""
        pixels = self.plane("IMAGE").all()
        check_image(pixels, self.name)
        return pixels

    @cached_property
    def variance_pixels(self) -> NDArray[np.generic]:
        """Counts² or nJy²; refused when it cannot be a variance."""
        return check_variance(self.plane("VARIANCE").all(), self.name)

    @cached_property
    def mask_pixels(self) -> NDArray[np.generic]:
        """Mask in the bits of this file."""
        return self.plane("MASK").all()

    @cached_property
    def mask_planes(self) -> dict[str, int]:
        """Bit of each plane by the `MP_` cards; the numbers differ between files."""
        header = self.hdu("MASK").header
        bits = {key[3:]: self.hdu("MASK").integer(key) for key in header if key.startswith("MP_")}
        # Two planes on one bit, or bits that a mask of 32 cannot have, are damage.
        if not all(0 <= bit < 32 for bit in bits.values()) or len(set(bits.values())) != len(bits):
            raise UnreadableError(f"{self.name}: the MP_ cards of MASK do not name distinct bits")
        return dict(sorted(bits.items()))

    def component(self, kind: str) -> int:
        """Archive id of a component, 0 when there is none."""
        primary = self.hdus[0]
        # Versions of afw write either name.
        for key in (f"ARCHIVE_ID_{kind}", f"{kind}_ID"):
            if key in primary.header:
                return primary.integer(key)
        return 0

    @cached_property
    def archive(self) -> Archive | None:
        """The archive, if the file has one."""
        if "AR_HDU" not in self.hdus[0].header:
            return None
        return Archive(self.view, self.hdus, self.hdus[0].integer("AR_HDU") - 1, name=self.name)

    @cached_property
    def band(self) -> str | None:
        """Band of the data ID that the Butler wrote, of the FilterLabel, or of the older FILTER card."""
        label = self.hdus[0].text("LSST BUTLER DATAID BAND")
        # The card is cheaper than the archive, and only files that the Butler wrote have it.
        if label:
            return label
        key = self.component("FILTER")
        if self.archive is None or key == 0:
            # Version 2 moved the filter into the archive; a card may also say NONE or _unknown_.
            band = canonical(self.hdus[0].text("FILTER"))
            return band if math.isfinite(wavelength(band)) else None
        row = self.archive.single(key)
        if "band" not in (row.dtype.names or ()):
            return None
        return text(row["band"]) or None

    @cached_property
    def calib(self) -> PhotoCalib:
        """Nanojansky per unit of the image."""
        image, unit = self.hdu("IMAGE"), self.hdu("IMAGE").text("BUNIT")
        found = self._stored_calib()
        if unit.lower() == "njy":
            noise = self.hdu("VARIANCE").text("BUNIT")
            if noise.lower().replace(" ", "") not in _VARIANCE_UNITS:
                raise _wrong_unit(f"{self.name}: the image is in nJy and its variance in {noise}")
            # 1e-6: a calibrated image has a PhotoCalib of exactly 1, up to rounding.
            if found is not None and (found.field is not None or abs(found.mean - 1) > 1e-6):
                raise _wrong_unit(
                    f"{self.name}: the image is in nJy and has a calibration of {found.mean} nJy per count"
                )
            return PhotoCalib(1.0)
        if unit.lower() not in _COUNT_UNITS:
            raise _wrong_unit(f"{self.name}: the image is in {unit}; RIPPLe needs nJy or counts")
        if found is None:
            raise _wrong_unit(f"{self.name}: {image.label} has neither a unit nor a calibration to nJy")
        return found

    def _stored_calib(self) -> PhotoCalib | None:
        """PhotoCalib of the archive; FLUXMAG0 of the header before persistence version 1."""
        key = self.component("PHOTOCALIB")
        if self.archive is not None and key != 0:
            try:
                return self.archive.photo_calib(key)
            except UnreadableError as error:
                raise _wrong_unit(error.message, error.hint) from None
        primary, image = self.hdus[0], self.hdu("IMAGE")
        # From version 1 on afw reads the calibration from the archive alone.
        if primary.integer("EXPINFO_V", 0) > 0:
            return None
        # INHERIT: the cards of the primary header hold for the image (FITS 4.0, section 4.4.2.6).
        for hdu in (image, primary) if "INHERIT" not in image.header else (primary,):
            if "FLUXMAG0" in hdu.header:
                return calib_from_zero_point(hdu.number("FLUXMAG0"), name=self.name)
        return None

    def image(self, box: Box) -> NDArray[np.float32]:
        """Pixels of a box, nJy."""
        return _scaled(self.image_pixels[self.box.slices(box)], self.calib.at(box), 1)

    def variance(self, box: Box) -> NDArray[np.float32]:
        """Pixels of a box, nJy²."""
        return _scaled(self.variance_pixels[self.box.slices(box)], self.calib.at(box), 2)

    def mask(self, box: Box) -> NDArray[np.generic]:
        """Pixels of a box, bits of this file."""
        return self.mask_pixels[self.box.slices(box)]


def check_image(pixels: NDArray[np.generic], name: str) -> None:
    """Raise `UnreadableError` when no pixel of an image plane is finite."""
    if not np.isfinite(pixels).any():
        raise UnreadableError(f"{name}: IMAGE has no finite pixel")


def check_variance(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """A variance plane with its few negative pixels as NaN; `UnreadableError` when they are not few."""
    known = np.count_nonzero(~np.isnan(pixels))
    negative = np.count_nonzero(pixels < 0)  # NaN compares false
    if known == 0 or negative > _NEGATIVE_SHARE * known:
        fault = f"{negative} negative pixels" if negative else "no finite pixel"
        raise UnreadableError(f"{name}: VARIANCE has {fault}")
    return np.where(pixels < 0, np.float32(np.nan), pixels) if negative else pixels


def _scaled(
    pixels: NDArray[np.generic], factor: NDArray[np.float64] | float, power: int
) -> NDArray[np.float32]:
    """Pixels times a calibration, float32, a new array; bit-equal where the calibration is 1."""
    # Overflow to inf and NaN times a factor are what the pixels say; quality control sees them.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(pixels.astype(np.float64) * np.asarray(factor) ** power, np.float32)


def _wrong_unit(message: str, hint: str | None = None) -> UnreadableError:
    return UnreadableError(message, hint=hint, reason=Reason.WRONG_UNIT)
