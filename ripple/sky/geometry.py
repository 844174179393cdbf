"""Integer boxes and gnomonic projections: the arithmetic of one tract's pixel grid.

Pixels are those of the tract (PARENT frame), zero-based, centres at integers. Boxes are half open:
`x0 <= x < x1`. Angles are degrees ICRS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open rectangle of pixels, `x0 <= x < x1` and `y0 <= y < y1`, PARENT frame."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Pixels in x (0 when empty)."""
        return max(0, self.x1 - self.x0)

    @property
    def height(self) -> int:
        """Pixels in y (0 when empty)."""
        return max(0, self.y1 - self.y0)

    @property
    def shape(self) -> tuple[int, int]:
        """Array shape `(height, width)`."""
        return self.height, self.width

    @property
    def empty(self) -> bool:
        """True when no pixel lies inside."""
        return self.x1 <= self.x0 or self.y1 <= self.y0

    def __and__(self, other: Box) -> Box:
        """Intersection; may be empty."""
        return Box(
            max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1)
        )

    def __or__(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1)
        )

    def contains(self, other: Box) -> bool:
        """Whether `other` lies wholly inside."""
        return other.x0 >= self.x0 and other.y0 >= self.y0 and other.x1 <= self.x1 and other.y1 <= self.y1

    def grown(self, by: int) -> Box:
        """The box with `by` more pixels on each side."""
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)

    def slices(self, inner: Box) -> tuple[slice, slice]:
        """Index `(y, x)` of `inner` in an array that covers this box."""
        return (slice(inner.y0 - self.y0, inner.y1 - self.y0), slice(inner.x0 - self.x0, inner.x1 - self.x0))

    @classmethod
    def around(cls, x: float, y: float, width: int, height: int | None = None) -> Self:
        """The box of a cutout: `x0 = floor(x + 0.5) - width // 2`, so (x, y) falls in pixel `width // 2`."""
        h = width if height is None else height
        x0 = int(np.floor(x + 0.5)) - width // 2  # pixel that holds x
        y0 = int(np.floor(y + 0.5)) - h // 2
        return cls(x0, y0, x0 + width, y0 + h)


@dataclass(frozen=True, slots=True)
class Tan:
    """Gnomonic (TAN) projection of one tract.

    Parameters
    ----------
    ra0, dec0
        Tangent point (CRVAL), deg ICRS.
    x0, y0
        Pixel of the tangent point, zero-based (FITS CRPIX - 1).
    cd
        `(cd11, cd12, cd21, cd22)` in deg per pixel; LSST tracts have `cd11 < 0`, `cd22 > 0`.

    Notes
    -----
    Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3. The rotation to the native pole is written with
    the tangent plane's east and north vectors, which keeps sub-nanodegree accuracy at the poles.
    """

    ra0: float
    dec0: float
    x0: float
    y0: float
    cd: tuple[float, float, float, float]

    @property
    def pixel_scale(self) -> float:
        """Arcsec per pixel (square root of the pixel area at the tangent point)."""
        a, b, c, d = self.cd
        return float(np.sqrt(abs(a * d - b * c)) * 3600.0)

    @property
    def _pole_sign(self) -> float:
        """-1 at the north pole: there FITS puts LONPOLE at 0 instead of 180 deg (op. cit. paper II, 2.2)."""
        return -1.0 if self.dec0 >= 90.0 else 1.0

    def sky_to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Float, Float]:
        """Pixels of sky positions.

        Parameters
        ----------
        ra, dec
            `(N,)` deg ICRS.

        Returns
        -------
        x, y
            `(N,)` float64 pixels; NaN for positions 90 deg or more from the tangent point.
        """
        r, d = np.broadcast_arrays(np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float)))
        cos_d, sin_d = np.cos(d), np.sin(d)
        # Angle differences from the tangent point, so that no digits are lost for small offsets.
        da = r - np.radians(self.ra0)
        c0, s0 = np.cos(np.radians(self.dec0)), np.sin(np.radians(self.dec0))
        cos_a = np.cos(da)
        # Cosine of the angle from the tangent point: zero or less is behind the plane.
        w = s0 * sin_d + c0 * cos_d * cos_a
        with np.errstate(divide="ignore", invalid="ignore"):
            xi = self._pole_sign * np.degrees(cos_d * np.sin(da) / w)
            eta = self._pole_sign * np.degrees((c0 * sin_d - s0 * cos_d * cos_a) / w)
        behind = ~(w > 0)
        a, b, c, e = self.cd
        # Cramer's rule on the 2 x 2 CD matrix.
        det = a * e - b * c
        x = np.where(behind, np.nan, self.x0 + (e * xi - b * eta) / det)
        y = np.where(behind, np.nan, self.y0 + (a * eta - c * xi) / det)
        return x, y

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Float, Float]:
        """Sky positions of pixels: `(N,)` deg ICRS, RA in [0, 360)."""
        px = np.asarray(x, float) - self.x0
        py = np.asarray(y, float) - self.y0
        a, b, c, e = self.cd
        # Tangent plane in radians: xi to the east, eta to the north.
        xi, eta = self._pole_sign * np.radians(a * px + b * py), self._pole_sign * np.radians(c * px + e * py)
        c0, s0 = np.cos(np.radians(self.dec0)), np.sin(np.radians(self.dec0))
        # The direction along the meridian of the tangent point; arctan2 and hypot stay exact at the poles.
        up = c0 - eta * s0
        ra = np.degrees(np.arctan2(xi, up)) + self.ra0
        dec = np.degrees(np.arctan2(s0 + eta * c0, np.hypot(xi, up)))
        ra = np.mod(ra, 360.0)
        # np.mod of a tiny negative number rounds to 360.
        return np.where(ra >= 360.0, 0.0, ra), dec

    def cards(self) -> dict[str, float | str]:
        """FITS header cards of this projection (one-based CRPIX), PARENT frame."""
        a, b, c, e = self.cd
        return {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "RADESYS": "ICRS",
            "CRVAL1": self.ra0,
            "CRVAL2": self.dec0,
            "CRPIX1": self.x0 + 1.0,
            "CRPIX2": self.y0 + 1.0,
            "CD1_1": a,
            "CD1_2": b,
            "CD2_1": c,
            "CD2_2": e,
        }

    def separation(self, other: Tan, box: Box) -> float:
        """Largest distance in pixels between two projections over the corners and centre of `box`."""
        # Two gnomonic projections differ most at corners, or, by an offset, everywhere.
        x = np.array([box.x0, box.x1, box.x0, box.x1, (box.x0 + box.x1) / 2], float)
        y = np.array([box.y0, box.y0, box.y1, box.y1, (box.y0 + box.y1) / 2], float)
        ox, oy = other.sky_to_pixel(*self.pixel_to_sky(x, y))
        gap = np.hypot(ox - x, oy - y)
        return float("inf") if np.isnan(gap).any() else float(gap.max())


def off_sky(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.bool_]:
    """Positions in deg that cannot be: outside -180 to 360 or -90 to 90, or one of two NaN.

    Both NaN is a position that nobody knows, which is none of these.
    """
    r, d = np.asarray(ra, float), np.asarray(dec, float)
    unknown = np.isnan(r) & np.isnan(d)
    return np.asarray(~unknown & ~((r >= -180) & (r <= 360) & (np.abs(d) <= 90)))  # NaN fails, too
