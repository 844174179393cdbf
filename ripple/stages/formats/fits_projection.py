"""World coordinates of FITS headers as gnomonic projections in ICRS, and how far those are from the truth."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, WcsError

from ripple.sky.geometry import Float, Tan

#: A projection this near a gnomonic one over a cutout is that one, px.
MISFIT = 0.01
#: Pixels larger than this are no picture of a galaxy but a header without a scale, arcsec.
LARGEST_PIXEL = 120.0


@dataclass(frozen=True, slots=True)
class Projection:
    """Where a cutout lies on the sky.

    Parameters
    ----------
    tan
        Gnomonic projection in zero-based pixels of the cutout, ICRS.
    misfit
        Largest distance of the header's own projection from it over the cutout, px.
    text
        What the header says, for people: `TAN ICRS`, `TPV FK5`, ...
    wcs
        The header's own projection.
    """

    tan: Tan
    misfit: float
    text: str
    wcs: WCS

    def pixels(self, ra: Float, dec: Float) -> tuple[Float, Float]:
        """Pixels of the cutout, zero-based, of positions in deg ICRS, by the header's own projection."""
        from astropy.coordinates import SkyCoord  # slow to load, and most headers are gnomonic already

        x, y = self.wcs.world_to_pixel(SkyCoord(ra, dec, unit="deg", frame="icrs"))
        return np.asarray(x, float), np.asarray(y, float)


def projection_of(header: fits.Header, shape: tuple[int, ...]) -> Projection | None:
    """The projection of a cutout of `shape` `(H, W)`; None when the header has none, or a placeholder.

    Raises
    ------
    ValueError
        The cards contradict each other, or mean nothing.
    """
    if not any(str(header.get(f"CTYPE{k}", "")).strip() for k in (1, 2)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            full = WCS(header)
            if not full.has_celestial:
                return None
            wcs = full.celestial
            wcs.wcs.set()
        except (WcsError, ValueError, TypeError, KeyError) as err:
            raise ValueError(f"the projection cannot be used: {' '.join(str(err).split())[:150]}") from None
        if _is_placeholder(wcs, shape):
            return None
        return _fitted(wcs, header, shape)


def _is_placeholder(wcs: WCS, shape: tuple[int, ...]) -> bool:
    """Whether the cards only fill the header: no scale, or a cutout centred at RA 0, Dec 0."""
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600
    if not 0 < scale < LARGEST_PIXEL:
        return True
    x, y = wcs.wcs.crpix - 1
    inside = -1 <= x <= shape[-1] and -1 <= y <= shape[-2]
    return bool(inside and not np.any(wcs.wcs.crval))


def _fitted(wcs: WCS, header: fits.Header, shape: tuple[int, ...]) -> Projection:
    text = f"{str(header.get('CTYPE1', ''))[5:].strip(' -')} {_frame_of(wcs)}"
    plain = _plain(wcs, header)
    if plain is not None:
        return Projection(plain, 0.0, text, wcs)
    x, y = (v.ravel() for v in np.meshgrid(*(np.linspace(-0.5, n - 0.5, 7) for n in (shape[-1], shape[-2]))))
    ra, dec = _sky(wcs, x, y)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        raise ValueError("the projection gives no sky position for some of its pixels")
    # About the header's own reference first: a gnomonic projection in another frame is one in ICRS, exactly,
    # and all cutouts of one grid then share it.
    found: list[tuple[float, Tan]] = []
    for about in (_reference(wcs), (float(ra[len(ra) // 2]), float(dec[len(dec) // 2]))):
        tan = _nearest(about, x, y, ra, dec)
        px, py = tan.sky_to_pixel(ra, dec)
        found.append((float(np.nan_to_num(np.hypot(px - x, py - y), nan=np.inf).max()), tan))
        if found[-1][0] <= MISFIT:
            break
    misfit, tan = min(found, key=lambda pair: pair[0])
    return Projection(tan, misfit, text, wcs)


def _plain(wcs: WCS, header: fits.Header) -> Tan | None:
    """The projection, when it is gnomonic in ICRS as it stands: no other frame, pole or distortion."""
    w = wcs.wcs
    north = 180.0 if w.crval[1] < 90 else 0.0
    # Of the header, not of wcslib, which calls TPV a TAN with a distortion.
    kinds = [str(header.get(f"CTYPE{k}", "")).strip() for k in (1, 2)]
    if kinds != ["RA---TAN", "DEC--TAN"] or _frame_of(wcs) != "ICRS":
        return None
    distorted = wcs.sip is not None or wcs.has_distortion or any(card.startswith("PV") for card in header)
    if distorted or not np.isclose(w.lonpole, north):
        return None
    (a, b), (c, d) = wcs.pixel_scale_matrix
    (ra, dec), (x, y) = w.crval, w.crpix
    # FITS counts pixels from 1.
    return Tan(
        float(ra), float(dec), float(x) - 1.0, float(y) - 1.0, (float(a), float(b), float(c), float(d))
    )


def _frame_of(wcs: WCS) -> str:
    """ICRS, FK5 2000, FK4 1950, GALACTIC, ..."""
    from astropy.wcs.utils import wcs_to_celestial_frame  # brings all of astropy.coordinates with it

    frame = wcs_to_celestial_frame(wcs)
    name = str(frame.name).upper()
    if name not in ("FK4", "FK5"):
        return name
    year = frame.equinox.byear if name == "FK4" else frame.equinox.jyear
    return f"{name} {year:.0f}"


def _sky(wcs: WCS, x: Float, y: Float) -> tuple[Float, Float]:
    """Deg ICRS of pixels, zero-based."""
    sky = wcs.pixel_to_world(x, y).icrs
    return np.asarray(sky.ra.deg), np.asarray(sky.dec.deg)


def _reference(wcs: WCS) -> tuple[float, float]:
    """Deg ICRS of the reference value CRVAL."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import wcs_to_celestial_frame

    lng, lat = wcs.wcs.crval[wcs.wcs.lng], wcs.wcs.crval[wcs.wcs.lat]
    point = SkyCoord(lng, lat, unit="deg", frame=wcs_to_celestial_frame(wcs)).icrs
    return float(point.ra.deg), float(point.dec.deg)


def _nearest(about: tuple[float, float], x: Float, y: Float, ra: Float, dec: Float) -> Tan:
    """The gnomonic projection about a point that fits pixels to positions best."""
    plane = Tan(*about, 0.0, 0.0, (1.0, 0.0, 0.0, 1.0))
    xi, eta = plane.sky_to_pixel(ra, dec)  # deg on the tangent plane
    middle = x.mean(), y.mean()
    design = np.stack([x - middle[0], y - middle[1], np.ones_like(x)], axis=1)
    (a, c), (b, d), (u, v) = np.linalg.lstsq(design, np.stack([xi, eta], axis=1), rcond=None)[0]
    # The pixel of the tangent point solves cd (p - middle) = -(u, v).
    dx, dy = np.linalg.solve(np.array([[a, b], [c, d]]), [-u, -v])
    return Tan(*about, float(middle[0] + dx), float(middle[1] + dy), (float(a), float(b), float(c), float(d)))
