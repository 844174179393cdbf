"""Neighbours on the sky against astropy's separations."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from ripple.sky.neighbours import earlier_neighbours, repeated


@pytest.mark.parametrize("place", [(0.0, 0.0), (359.9999, -45.0), (120.0, 89.999), (10.0, -90.0)])
def test_pairs_are_those_of_astropy(place: tuple[float, float]) -> None:
    """Also across RA 0 and at the poles: who has an earlier row within the radius, which, and how far."""
    rng = np.random.default_rng(1)
    offsets = rng.uniform(-20, 20, (300, 2)) * u.arcsec
    centre = SkyCoord(*place, unit="deg")
    coords = centre.spherical_offsets_by(*offsets.T)
    ra, dec = coords.ra.deg, coords.dec.deg
    apart = coords[:, None].separation(coords[None, :]).arcsec
    radius = 1.5
    near = np.tril(apart < radius, -1)  # row, earlier row
    found = {row: (earlier, gap) for row, earlier, gap in earlier_neighbours(ra, dec, radius)}
    assert sorted(found) == np.flatnonzero(near.any(axis=1)).tolist()
    assert len(found) > 20
    for row, (earlier, gap) in found.items():
        assert earlier == np.flatnonzero(near[row])[0]
        assert gap == pytest.approx(apart[row, earlier], abs=1e-6)
    np.testing.assert_array_equal(repeated(ra, dec, radius), near.any(axis=1))


def test_rows_without_a_position_repeat_nothing() -> None:
    assert repeated([1.0, np.nan, 1.0, np.nan], [2.0, 2.0, 2.0, 2.0], 1.0).tolist() == [
        False, False, True, False,
    ]  # fmt: skip
