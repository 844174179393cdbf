"""Pixel origin and world coordinates in the headers that afw writes: TAN and TAN-SIP."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.errors import Reason, UnreadableError
from ripple.rubin.formats.fits import Hdu
from ripple.sky.geometry import Tan

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SipTan:
    """TAN projection after a SIP distortion of the pixels, PARENT frame.

    Parameters
    ----------
    tan
        The projection.
    a, b
        `(n, n)` coefficients: u' = u + sum a[p, q] u^p v^q in x, likewise b in y, u and v counted from the
        reference pixel (Shupe et al. 2005, ASP Conf. 347, 491).
    """

    tan: Tan
    a: Float
    b: Float

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Float, Float]:
        """Sky positions of pixels, deg ICRS."""
        # Pixels from the reference pixel, CRPIX.
        u, v = np.asarray(x, float) - self.tan.x0, np.asarray(y, float) - self.tan.y0
        f = np.polynomial.polynomial.polyval2d(u, v, self.a)
        g = np.polynomial.polynomial.polyval2d(u, v, self.b)
        return self.tan.pixel_to_sky(self.tan.x0 + u + f, self.tan.y0 + v + g)


def read_origin(hdu: Hdu, *, name: str) -> tuple[int, int]:
    """First pixel `(x0, y0)` of a plane in the PARENT frame.

    `CRVAL1A`, `CRVAL2A` at the reference pixel `CRPIX1A` = 1; `LTV1`, `LTV2` are their negatives. When both
    are there they must agree; with neither the origin is (0, 0), as in afw.
    """
    found: list[tuple[float, float]] = []
    if "CRVAL1A" in hdu.header and "CRVAL2A" in hdu.header:
        if hdu.number("CRPIX1A", 1.0) != 1.0 or hdu.number("CRPIX2A", 1.0) != 1.0:
            raise _wrong_wcs(f"{name}: the pixel origin of {hdu.label} is not given at pixel 1")
        found.append((hdu.number("CRVAL1A"), hdu.number("CRVAL2A")))
    if "LTV1" in hdu.header and "LTV2" in hdu.header:
        found.append((-hdu.number("LTV1"), -hdu.number("LTV2")))
    if not found:
        return 0, 0
    # Both forms name the same pixel in all files that afw writes: one that differs is damaged.
    x, y = found[0]
    if any(other != (x, y) for other in found) or not (x.is_integer() and y.is_integer()):
        raise _wrong_wcs(f"{name}: contradictory pixel origins of {hdu.label}: {found}")
    # No tract is as large; a damaged card would otherwise overflow the arithmetic of boxes.
    if max(abs(x), abs(y)) > 1e8:
        raise _wrong_wcs(f"{name}: the pixel origin of {hdu.label} is {found[0]}")
    return int(x), int(y)


def read_projection(hdu: Hdu, *, name: str) -> Tan:
    """Projection of a tract, PARENT frame; `UnreadableError` (`wrong_wcs`) when it is another one."""
    wcs = read_wcs(hdu, name=name)
    if isinstance(wcs, SipTan):
        raise _wrong_wcs(f"{name}: the projection is TAN-SIP, as of a detector; coadds have TAN")
    return wcs


def read_wcs(hdu: Hdu, *, name: str) -> Tan | SipTan:
    """World coordinates of a plane, PARENT frame.

    Raises
    ------
    UnreadableError
        With reason `wrong_wcs`, when they are not TAN or TAN-SIP in ICRS, or are damaged.
    """
    kinds = hdu.text("CTYPE1"), hdu.text("CTYPE2")
    if kinds not in (("RA---TAN", "DEC--TAN"), ("RA---TAN-SIP", "DEC--TAN-SIP")):
        raise _wrong_wcs(f"{name}: the projection is {kinds[0]!r}, {kinds[1]!r}; RIPPLe needs TAN")
    frame = hdu.text("RADESYS", "ICRS").upper()
    if frame != "ICRS":
        raise _wrong_wcs(f"{name}: sky positions are in {frame}; RIPPLe needs ICRS")
    # `Tan` knows no other rotation to the native pole.
    if hdu.number("LONPOLE", 180.0) != 180.0:
        raise _wrong_wcs(f"{name}: LONPOLE is {hdu.number('LONPOLE')}, not 180")
    x0, y0 = read_origin(hdu, name=name)
    tan = Tan(
        hdu.number("CRVAL1"),
        hdu.number("CRVAL2"),
        hdu.number("CRPIX1") - 1 + x0,
        hdu.number("CRPIX2") - 1 + y0,
        _cd_matrix(hdu),
    )
    a, b, c, d = tan.cd
    # A determinant of 1e-20 deg² would be pixels of 0.4 µas: a CD matrix that cannot be inverted.
    numbers = np.array([tan.ra0, tan.dec0, tan.x0, tan.y0, *tan.cd])
    if not np.isfinite(numbers).all() or abs(tan.dec0) > 90 or abs(a * d - b * c) < 1e-20:
        raise _wrong_wcs(f"{name}: damaged TAN projection {numbers.tolist()}")
    if kinds[0] == "RA---TAN":
        return tan
    return SipTan(tan, _sip_coefficients(hdu, "A", name), _sip_coefficients(hdu, "B", name))


def _cd_matrix(hdu: Hdu) -> tuple[float, float, float, float]:
    """CD matrix, or PC and CDELT multiplied."""
    keys = ("1_1", "1_2", "2_1", "2_2")
    if any(f"CD{k}" in hdu.header for k in keys):
        cd = [hdu.number(f"CD{k}", 0.0) for k in keys]  # absent elements are 0 beside others
    else:
        scale = hdu.number("CDELT1"), hdu.number("CDELT2")
        unit = (1.0, 0.0, 0.0, 1.0)
        cd = [hdu.number(f"PC{k}", u) * scale[int(k[0]) - 1] for k, u in zip(keys, unit, strict=True)]
    return cd[0], cd[1], cd[2], cd[3]


def _sip_coefficients(hdu: Hdu, axis: str, name: str) -> Float:
    """Coefficients `[p, q]` of one axis."""
    order = hdu.integer(f"{axis}_ORDER")
    # One digit per power: `A_p_q` has room for no more.
    if not 0 <= order <= 9:
        raise _wrong_wcs(f"{name}: damaged, SIP order {order}")
    out = np.zeros((order + 1, order + 1))
    for key in hdu.header:
        match = re.fullmatch(rf"{axis}_(\d)_(\d)", key)
        if match and int(match[1]) + int(match[2]) <= order:
            out[int(match[1]), int(match[2])] = hdu.number(key)
    return out


def _wrong_wcs(message: str) -> UnreadableError:
    return UnreadableError(message, reason=Reason.WRONG_WCS)
