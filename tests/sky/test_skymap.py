"""Sky maps against answers of lsst.skymap, and against geometry itself."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skymaps import square_tracts

from ripple.errors import SkyMapError
from ripple.sky.coverage import boxes_around, cover, touched
from ripple.sky.geometry import Box
from ripple.sky.skymap import KNOWN, CellPatches, LegacyPatches, RingsSkyMap, known

DATA = Path(__file__).parents[3] / "shared" / "data" / "skymap"
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="answers of lsst.skymap are not beside the checkout"
)


def answers(name: str) -> dict[str, list[str]]:
    with gzip.open(DATA / f"skymap_{name}.csv.gz", "rt") as stream:
        rows = list(csv.DictReader(stream))
    return {key: [row[key] for row in rows] for key in rows[0]}


def numbers(table: dict[str, list[str]], *names: str) -> np.ndarray:
    return np.array([table[n] for n in names], float)


@needs_data
@pytest.mark.parametrize("name", ["lsst_cells_v1", "hsc_rings_v1"])
def test_positions_as_lsst_skymap_has_them(name: str) -> None:
    table, skymap = answers(name), known(name)
    ra, dec = numbers(table, "ra_deg", "dec_deg")
    tract = skymap.find_tract(ra, dec)
    np.testing.assert_array_equal(tract, numbers(table, "tract")[0])
    x, y = skymap.sky_to_pixel(tract, ra, dec)
    np.testing.assert_allclose(np.stack([x, y]), numbers(table, "pixel_x", "pixel_y"), rtol=0, atol=1e-6)
    patch = skymap.find_patch(tract, x, y)
    np.testing.assert_array_equal(patch, numbers(table, "patch")[0])
    np.testing.assert_array_equal(
        np.stack(skymap.patch_xy(tract, patch)), numbers(table, "patch_x", "patch_y")
    )


@needs_data
@pytest.mark.parametrize("name", ["lsst_cells_v1", "hsc_rings_v1"])
def test_boxes_and_overlapping_tracts_as_lsst_skymap_has_them(name: str) -> None:
    table, skymap = answers(name), known(name)
    tract, patch = numbers(table, "tract", "patch").astype(int)
    for kind, box_of in (("inner", skymap.patch_inner), ("outer", skymap.patch_outer)):
        boxes = [box_of(int(t), int(p)) for t, p in zip(tract, patch, strict=True)]
        found = np.array([[b.x0, b.y0, b.x1 - 1, b.y1 - 1] for b in boxes]).T
        wanted = numbers(table, *(f"{kind}_{edge}" for edge in ("x0", "y0", "x1", "y1")))
        np.testing.assert_array_equal(found, wanted)
    row, held = skymap.all_tracts(*numbers(table, "ra_deg", "dec_deg"))
    lists = [";".join(map(str, held[row == k])) for k in range(len(tract))]
    assert lists == table["all_tracts"]


@needs_data
@pytest.mark.parametrize("name", ["lsst_cells_v1", "lsst_cells_v2", "hsc_rings_v1", "DC2", "DC2_cells_v1"])
def test_configuration_hash_and_sample_tracts(name: str) -> None:
    truth, skymap = yaml.safe_load((DATA / f"skymap_{name}.yaml").read_text()), known(name)
    assert skymap.sha1().hex() == truth["sha1"]
    assert len(skymap.table.ids) == truth["num_tracts"]
    for sample in truth["tract_samples"]:
        tan, box = skymap.tan(sample["tract"]), skymap.tract_box(sample["tract"])
        assert [box.x0, box.y0, box.x1 - 1, box.y1 - 1] == sample["bbox_inclusive"]
        assert [tan.x0, tan.y0] == pytest.approx(sample["wcs"]["crpix_zero_based"], abs=1e-9)
        assert [tan.ra0, tan.dec0] == pytest.approx(sample["wcs"]["crval_deg"], abs=1e-12)
        edges = tan.pixel_to_sky([-0.5, box.x1 - 0.5], [-0.5, box.y1 - 0.5])
        inset = np.radians(tan.pixel_scale / 3600.0) * 0.1  # lsst.skymap shrinks vertices by 0.001 px
        vertices = np.array(sample["vertices_radec_deg"])[[0, 2]].T
        gap = np.hypot((edges[0] - vertices[0] + 180) % 360 - 180, edges[1] - vertices[1])
        assert (gap * np.cos(np.radians(vertices[1])) < np.degrees(inset)).all()


ra_dec = st.tuples(
    st.floats(0, 360, exclude_max=True), st.floats(-1, 1).map(lambda s: float(np.degrees(np.arcsin(s))))
)


@given(position=ra_dec, which=st.sampled_from(KNOWN))
def test_sky_to_pixel_to_sky_closes(position: tuple[float, float], which: RingsSkyMap) -> None:
    ra, dec = position
    tract = int(which.find_tract(ra, dec))
    x, y = which.sky_to_pixel(tract, ra, dec)
    tan = which.tan(tract)
    np.testing.assert_allclose([x, y], tan.sky_to_pixel(ra, dec), rtol=0, atol=1e-9)
    back = tan.pixel_to_sky(x, y)
    gap = np.hypot(((back[0] - ra + 180) % 360 - 180) * np.cos(np.radians(dec)), back[1] - dec)
    assert gap < 1e-10


@given(position=ra_dec, which=st.sampled_from(KNOWN))
def test_one_inner_tract_and_one_inner_patch_hold_a_position(
    position: tuple[float, float], which: RingsSkyMap
) -> None:
    ra, dec = position
    tract = int(which.find_tract(ra, dec))
    x, y = (float(v) for v in which.sky_to_pixel(tract, ra, dec))
    patch = int(which.find_patch(tract, x, y))
    assert patch >= 0
    pixel = Box.around(x, y, 1)
    column, row = (int(v) for v in which.patch_xy(tract, patch))
    near = [
        (row + b) * int(which.table.nx[tract]) + column + a
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
        if 0 <= column + a < which.table.nx[tract] and 0 <= row + b < which.table.ny[tract]
    ]
    assert [p for p in near if which.patch_inner(tract, p).contains(pixel)] == [patch]
    assert which.patch_outer(tract, patch).contains(which.patch_inner(tract, patch)) or which.patches.clip
    assert tract in which.all_tracts(ra, dec)[1]


@settings(max_examples=50)
@example(rings=16, start=118.0, position=(0.0, 31.694543659096595), layout=LegacyPatches(500, 853, 0))
@given(
    rings=st.integers(3, 60), start=st.floats(0, 359), position=ra_dec,
    layout=st.one_of(
        st.builds(LegacyPatches, st.integers(500, 4000), st.integers(500, 4000), st.integers(0, 200)),
        st.builds(CellPatches, st.integers(50, 200), st.integers(0, 50), st.integers(5, 20), st.just(1)),
    ),
)  # fmt: skip
def test_any_ring_map_covers_the_sphere(
    rings: int, start: float, position: tuple[float, float], layout: LegacyPatches | CellPatches
) -> None:
    # Many small rings make large tracts: a coarse scale keeps their tangent planes sane.
    skymap = RingsSkyMap("any", layout, rings=rings, pixel_scale=5.0, ra_start=start)
    tract = int(skymap.find_tract(*position))
    x, y = skymap.sky_to_pixel(tract, *position)
    if int(skymap.find_patch(tract, x, y)) >= 0:
        return
    # Tracts are as large as their corners and the overlap ask for, as those of lsst.skymap. The parallel
    # between two corners lies beyond them, by W²/8 tan(dec) of a tract W wide: hundreds of arcsec here.
    box, width = skymap.tract_box(tract), np.pi / rings
    beyond = 5.0 * max(-x - 0.5, x + 0.5 - box.x1, -y - 0.5, y + 0.5 - box.y1)
    bulge = np.degrees(width**2 / 8 * np.tan(np.radians(abs(position[1])))) * 3600
    assert beyond < 1.3 * bulge


@pytest.mark.parametrize(
    ("ra", "dec", "tract"),
    [(0, -90, 0), (123, -90, 0), (0, 90, 18937), (359.9999999, -89.5, 0), (360, 0, None)],
)
def test_poles_and_the_seam(ra: float, dec: float, tract: int | None) -> None:
    skymap = known("lsst_cells_v2")
    assert int(skymap.find_tract(ra, dec)) == (int(skymap.find_tract(0, dec)) if tract is None else tract)


def test_the_north_cap_is_turned_as_fits_has_it() -> None:
    from astropy.wcs import WCS

    tan = known("lsst_cells_v2").tan(18937)
    astropy = WCS(header=tan.cards())
    x, y = tan.sky_to_pixel([30.0, 200.0], [89.9, 89.5])
    np.testing.assert_allclose(
        np.stack([x, y]), astropy.all_world2pix([30.0, 200.0], [89.9, 89.5], 0), atol=1e-7
    )


def test_unknown_names_and_ids_are_refused_with_help() -> None:
    with pytest.raises(SkyMapError, match=r"lsst_cells_v3.*did you mean 'lsst_cells_v[12]'"):
        known("lsst_cells_v3")
    with pytest.raises(SkyMapError, match="no tract 18938"):
        known("DC2").tan(18938)
    with pytest.raises(SkyMapError, match="patches are 0 to 48"):
        known("DC2").patch_outer(5, 49)


def test_an_observed_map_takes_the_nearest_centre() -> None:
    skymap = square_tracts(LegacyPatches(100, 100, 10), (359.9, 0.1), (10.0, 10.0), 0.2)
    tract = skymap.find_tract([359.95, 0.05], [10.0, 10.0])
    np.testing.assert_array_equal(tract, [0, 1])
    row, held = skymap.all_tracts([0.0, 200.0], [10.0, 10.0])
    np.testing.assert_array_equal(row, [0, 0])
    np.testing.assert_array_equal(held, [0, 1])
    assert skymap.tract_box(0).width >= 2 * 0.2 * 3600 / 0.2


@given(
    x0=st.integers(-400, 3000), y0=st.integers(-400, 3000), size=st.integers(1, 900),
    clip=st.booleans(), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_coverage_agrees_with_painting_pixels(
    x0: int, y0: int, size: int, clip: bool, data: st.DataObject
) -> None:
    layout = LegacyPatches(600, 500, 70) if clip else CellPatches(100, 20, 6, 1)
    skymap = square_tracts(layout, (10.0,), (0.0,), 0.08)
    nx, ny = int(skymap.table.nx[0]), int(skymap.table.ny[0])
    have = {
        (0, p): data.draw(st.integers(0, 3), label=f"patch {p}")
        for p in range(nx * ny)
    }  # fmt: skip
    box = Box(x0, y0, x0 + size, y0 + size)
    area = Box(-500, -500, 5000, 5000)
    painted = np.zeros((2, area.height, area.width), bool)
    for (_, p), bits in have.items():
        for band in (0, 1):
            painted[band][area.slices(skymap.patch_outer(0, p))] |= bool(bits >> band & 1)
    x, y = np.array([x0 + size // 2], float), np.array([y0 + size // 2], float)
    boxes = boxes_around(x, y, np.array([size], np.int32))
    assert boxes.tolist() == [[box.x0, box.y0, box.x1, box.y1]]
    found = cover(skymap, np.array([0]), boxes, x, y, have, 3)
    at = area.slices(Box(int(x[0]), int(y[0]), int(x[0]) + 1, int(y[0]) + 1))
    centre = sum(int(painted[b][at].all()) << b for b in (0, 1))
    assert int(found.centre[0]) == centre
    if centre:
        whole = sum(int(painted[b][area.slices(box)].all()) << b for b in (0, 1))
        assert int(found.whole[0]) & centre == whole & centre
    near = {p for p in range(nx * ny) if not (skymap.patch_outer(0, p) & box).empty}
    assert set(touched(skymap, np.array([0]), boxes)[1].tolist()) == near
