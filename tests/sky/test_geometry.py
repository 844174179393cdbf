"""Boxes and the gnomonic projection against astropy's wcslib."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from ripple.sky.geometry import Box, Tan

SCALE = 0.2 / 3600


def tan(ra0: float, dec0: float) -> Tan:
    return Tan(ra0, dec0, 14999.5, 14999.5, (-SCALE, 0.0, 0.0, SCALE))


@given(
    ra0=st.floats(0, 360, exclude_max=True),
    dec0=st.floats(-90, 90),
    x=st.floats(0, 30000),
    y=st.floats(0, 30000),
)
def test_pixel_to_sky_and_back_closes(ra0: float, dec0: float, x: float, y: float) -> None:
    t = tan(ra0, dec0)
    ra, dec = t.pixel_to_sky(x, y)
    assert 0 <= ra < 360
    bx, by = t.sky_to_pixel(ra, dec)
    assert np.hypot(bx - x, by - y) < 1e-6


@pytest.mark.parametrize(
    ("ra0", "dec0"), [(53.1, -27.8), (0.0, 0.0), (359.99, 12.0), (10.0, 89.999), (0, -90)]
)
def test_agrees_with_wcslib(ra0: float, dec0: float) -> None:
    t = tan(ra0, dec0)
    header = fits.Header()
    header.update(t.cards())
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 30000, (2, 100))
    ra, dec = t.pixel_to_sky(x, y)
    ra_w, dec_w = WCS(header).wcs_pix2world(x, y, 0)
    gap = np.hypot((ra - ra_w + 180) % 360 - 180, 0) * np.cos(np.radians(dec))
    assert np.abs(gap).max() < 1e-10
    assert np.abs(dec - dec_w).max() < 1e-10
    xw, yw = WCS(header).wcs_world2pix(ra, dec, 0)
    px, py = t.sky_to_pixel(ra, dec)
    assert np.hypot(px - xw, py - yw).max() < 1e-5


def test_positions_behind_the_tangent_plane_are_nan() -> None:
    x, y = tan(10.0, 20.0).sky_to_pixel([190.0, 10.0], [-20.0, 20.0])
    assert np.isnan(x[0])
    assert np.isnan(y[0])
    assert abs(x[1] - 14999.5) < 1e-9


@given(x=st.floats(-1e5, 1e5), y=st.floats(-1e5, 1e5), size=st.integers(1, 300))
def test_a_position_falls_in_pixel_half_of_its_box(x: float, y: float, size: int) -> None:
    box = Box.around(x, y, size)
    assert box.shape == (size, size)
    assert -0.5 <= x - (box.x0 + size // 2) < 0.5 + 1e-9
    assert -0.5 <= y - (box.y0 + size // 2) < 0.5 + 1e-9


def test_separation_between_projections_is_in_pixels() -> None:
    a = tan(53.1, -27.8)
    b = Tan(a.ra0, a.dec0, a.x0 + 0.3, a.y0 - 0.4, a.cd)
    assert abs(a.separation(b, Box(0, 0, 3000, 3000)) - 0.5) < 1e-6
    assert a.separation(a, Box(0, 0, 3000, 3000)) < 1e-6
