"""Regions of the sky and grids of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skymaps import square_tracts

from ripple.errors import RegionError
from ripple.rubin.regions import grid, parse_region, tracts_near
from ripple.sky.skymap import LegacyPatches, RingsSkyMap, known


def separation(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Deg, by the haversine formula."""
    r, d, r0, d0 = (np.radians(v) for v in (ra, dec, ra0, dec0))
    h = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin((r - r0) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(h)))


def sphere(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


@settings(max_examples=40, deadline=None)
@given(ra=st.floats(0, 359.99), dec=st.floats(-90, 90), radius=st.floats(0.5, 60))
def test_circle_is_a_circle_everywhere(ra: float, dec: float, radius: float) -> None:
    where = sphere(2000)
    region = parse_region(f"CIRCLE {ra} {dec} {radius}")
    apart = separation(*where, ra, dec)
    sure = np.abs(apart - radius) > 1e-6
    np.testing.assert_array_equal(region.contains(*where)[sure], (apart < radius)[sure])


def test_range_across_right_ascension_zero_and_open_sides() -> None:
    ra, dec = sphere(5000)
    inside = parse_region("RANGE 350 10 -20 20").contains(ra, dec)
    np.testing.assert_array_equal(inside, ((ra > 350) | (ra < 10)) & (np.abs(dec) < 20))
    cap = parse_region("RANGE -Inf +Inf 85 90").contains(ra, dec)
    np.testing.assert_array_equal(cap, dec > 85)


def test_polygon_around_the_pole_and_across_zero() -> None:
    region = parse_region("POLYGON 0 89 90 89 180 89 270 89")
    assert region.contains([12.0, 200.0, 0.0], [89.9, 90.0, 88.0]).tolist() == [True, True, False]
    across = parse_region("POLYGON 359 -1 1 -1 1 1 359 1")
    assert across.contains([0.0, 359.5, 2.0], [0.0, 0.5, 0.0]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "", "SQUARE 1 2 3", "CIRCLE 1 2", "CIRCLE 1 2 x", "CIRCLE 1 2 0", "CIRCLE nan 2 1", "CIRCLE 400 2 1",
        "CIRCLE 10 -91 1", "RANGE 1 2 5 4", "RANGE 1 1 4 5", "POLYGON 1 1 2 2", "POLYGON 0 0 1 0 2 0",
        "POLYGON 0 0 4 0 4 4 2 1", "POLYGON 0 0 1 0 1 1 0",
    ],
)  # fmt: skip
def test_what_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(RegionError):
        parse_region(text)


@pytest.mark.parametrize("position", [(53.1, -27.8), (0.0, 0.0), (12.0, 89.8), (200.0, -89.9)])
def test_tracts_near_misses_none(position: tuple[float, float]) -> None:
    skymap, region = known("lsst_cells_v2"), parse_region("CIRCLE {} {} 1.5".format(*position))
    ra, dec = sphere(400_000, 3)
    keep = separation(ra, dec, *position) < 1.5
    ra, dec = ra[keep], dec[keep]
    assert len(ra) > 10
    assert set(skymap.all_tracts(ra, dec)[1].tolist()) <= set(tracts_near(skymap, region).tolist())


def test_windows_cover_each_position_once() -> None:
    """Within a tract exactly, across tracts but for the seam where pixel grids do not match."""
    skymap = RingsSkyMap("coarse", LegacyPatches(500, 500, 20), pixel_scale=4.0)
    region = parse_region("CIRCLE 0.3 -1.5 0.9")
    step = 20.0
    tract, column, row, ra, dec = grid(skymap, step, region=region)
    assert len(np.unique(tract)) > 2
    assert len({*zip(tract.tolist(), column.tolist(), row.tolist(), strict=True)}) == len(tract)
    assert region.contains(ra, dec).all()
    np.testing.assert_array_equal(skymap.find_tract(ra, dec), tract)
    rng = np.random.default_rng(5)
    pr, pd = rng.uniform(-0.4, 1.0, 4000) % 360, rng.uniform(-2.1, -0.9, 4000)
    near = separation(pr, pd, 0.3, -1.5) < 0.85
    pr, pd = pr[near], pd[near]
    count = np.zeros(len(pr), int)
    for t in np.unique(tract):
        mine = tract == t
        x, y = skymap.tan(int(t)).sky_to_pixel(pr, pd)
        cells = {*zip(column[mine].tolist(), row[mine].tolist(), strict=True)}
        i, j = np.floor((x + 0.5) / step).astype(int), np.floor((y + 0.5) / step).astype(int)
        count += [(a, b) in cells for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    assert (count == 1).mean() > 0.95
    assert (count <= 2).all()
    own = skymap.find_tract(pr, pd)
    for t in np.unique(own):  # far from the seam there is exactly one
        tan = skymap.tan(int(t))
        x, y = tan.sky_to_pixel(pr, pd)
        r, d = tan.pixel_to_sky(
            np.stack([x - step, x + step, x - step, x + step]),
            np.stack([y - step, y - step, y + step, y + step]),
        )
        deep = (own == t) & (skymap.find_tract(r.ravel(), d.ravel()).reshape(r.shape) == t).all(axis=0)
        assert deep.any()
        assert (count[deep] == 1).all()


def test_grid_of_tracts_and_patches() -> None:
    skymap = square_tracts(LegacyPatches(100, 100, 10), (0.0,), (0.0,), 0.02)
    tract, column, row, _, _ = grid(skymap, 50.0, tracts=np.array([0]), patches=np.array([0]))
    assert tract.tolist() == [0] * 4
    assert sorted(zip(column.tolist(), row.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(RegionError, match="no window"):
        grid(skymap, 50.0, region=parse_region("CIRCLE 90 0 0.1"))
    with pytest.raises(RegionError, match="needs a region"):
        grid(skymap, 50.0)
    with pytest.raises(RegionError, match="more than"):
        grid(known("lsst_cells_v2"), 1.0, region=parse_region("CIRCLE 90 0 1"))
