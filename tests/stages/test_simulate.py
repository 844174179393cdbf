"""The simulated survey: physics of what is painted, and the repository it is put into."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.fft

from ripple.cli import run
from ripple.errors import ConfigError, IntegrityError, LockedError, WriteError
from ripple.imaging.simulation.defects import draw_defects
from ripple.imaging.simulation.lensing import Deflector, comoving_distance, deflect, einstein_radius
from ripple.imaging.simulation.observing import (
    BANDS,
    CELL,
    KERNEL,
    correlated_noise,
    draw_conditions,
    flux,
    moffat,
    noise_sigma,
)
from ripple.imaging.simulation.population import ORDINARY, draw_deflectors, draw_scene
from ripple.imaging.simulation.profiles import SERSIC_N, Knot, Lensed, Point, Sersic, gaussians, transform
from ripple.imaging.simulation.sources import LEAST, LIMIT
from ripple.sky.geometry import Box
from ripple.stages.simulate.config import SimulateConfig
from ripple.stages.simulate.simulate import choose_block, missing_band, simulate
from ripple.storage.lock import lock, unlock
from ripple.storage.manifest import identity_of, render

OPTIONS: dict[str, Any] = {"patches": 2, "bands": ("g", "i"), "targets": 16, "lens_fraction": 0.5, "seed": 3}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulateConfig]:
    """Two patches, two bands."""
    directory = tmp_path_factory.mktemp("sim") / "sky"
    config = SimulateConfig(output=str(directory), workers=0, **OPTIONS)
    simulate(config)
    return directory, config


def coadd(directory: Path, patch: int, band: str) -> Any:
    """One coadd, read by the Butler."""
    from lsst.daf.butler import Butler

    with Butler.from_config(str(directory / "repo"), collections="mini") as butler:
        return butler.get("deep_coadd", skymap="ripple_mini_v1", tract=5063, patch=patch, band=band)


# Physics ------------------------------------------------------------


@pytest.mark.parametrize(("q", "angle"), [(0.6, 0.4), (0.95, 2.0), (0.75, 3.0)])
def test_deflection_agrees_with_lenstronomy(q: float, angle: float) -> None:
    lens_model = pytest.importorskip("lenstronomy.LensModel.lens_model")
    util = pytest.importorskip("lenstronomy.Util.param_util")
    x, y = np.random.default_rng(0).uniform(-3, 3, (2, 500))
    e1, e2 = util.phi_q2_ellipticity(angle, q)
    sie = {"theta_E": 1.3, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0}
    reference = lens_model.LensModel(["SIE", "SHEAR"]).alpha(x, y, [sie, {"gamma1": 0.03, "gamma2": -0.04}])
    mine = deflect(Deflector(1.3, q, angle, 0.03, -0.04), x, y)
    np.testing.assert_allclose(mine, reference, atol=1e-6)


def test_lensed_light_agrees_with_lenstronomy() -> None:
    lens_model = pytest.importorskip("lenstronomy.LensModel.lens_model")
    util = pytest.importorskip("lenstronomy.Util.param_util")
    light = pytest.importorskip("lenstronomy.LightModel.light_model")
    lens, source = Deflector(7.0, 0.7, 0.5, 0.02, 0.01), Sersic(1.0, 1.8, 0.7, 0.3, 1.5, -0.8)
    size, fine = 64, 8
    axis = (np.arange(size * fine) - size * fine // 2) / fine
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    e1, e2 = util.phi_q2_ellipticity(lens.angle, lens.q)
    sie = {"theta_E": 7.0, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0}
    bx, by = lens_model.LensModel(["SIE", "SHEAR"]).ray_shooting(
        x, y, [sie, {"gamma1": 0.02, "gamma2": 0.01}]
    )
    s1, s2 = util.phi_q2_ellipticity(source.angle, source.q)
    # lenstronomy's radius is the product average, ours the major axis.
    kwargs = {
        "amp": 1.0, "R_sersic": source.re * np.sqrt(source.q), "n_sersic": 1.0, "e1": s1, "e2": s2,
        "center_x": source.dx, "center_y": source.dy,
    }  # fmt: skip
    model = light.LightModel(["SERSIC_ELLIPSE"])
    reference = (
        model.surface_brightness(bx, by, [kwargs]).sum() / fine**2 / model.total_flux([kwargs], norm=False)[0]
    )
    mine = transform(Lensed(lens, source), size)[0, 0].real
    assert mine == pytest.approx(reference, rel=5e-3)
    assert mine > 3.0


@pytest.mark.parametrize("knot", [0.0, 0.35])
@pytest.mark.parametrize("re", [0.4, 0.8])
def test_magnification_of_an_isothermal_sphere(re: float, knot: float) -> None:
    """A point at distance b within the Einstein radius is magnified 2 theta_E / b times in all."""
    theta, distance = 8.0, 5.0
    # The mean of 1 / b over a small round source: 1 / b (1 + <r²> / 4 b²), <r²> = 6 scale lengths squared.
    square = 6.0 * (re / 1.678) ** 2 * (1.0 - knot + knot * 0.3**2)
    expected = 2.0 * theta / distance * (1.0 + square / (4.0 * distance**2))
    rng = np.random.default_rng(1)
    for turn, dx, dy in zip(rng.uniform(0, 6.3, 12), *rng.uniform(-0.5, 0.5, (2, 12)), strict=True):
        source = Sersic(1.0, re, 1.0, 0.0, distance * np.cos(turn), distance * np.sin(turn))
        lensed = Lensed(Deflector(theta, 1.0, 0.0), source, (Knot(knot),))
        found = transform(lensed, 128, float(dx), float(dy))[0, 0].real
        # 3e-3: what the expansion leaves out. Sampled 4 times per pixel, the smallest knot was off by 10 %.
        assert found == pytest.approx(expected, rel=3e-3)


def test_einstein_radius_and_distance() -> None:
    # Cosmology of astropy's FlatLambdaCDM(70, 0.3): 1888.6 Mpc at z = 0.5, 3303.8 Mpc at z = 1.
    np.testing.assert_allclose(comoving_distance(np.array([0.5, 1.0])), [1888.63, 3303.83], rtol=1e-4)
    theta = einstein_radius(np.array([250.0]), np.array([0.5]), np.array([1.0]))
    assert theta[0] == pytest.approx(1.8016 * (1 - 1888.63 / 3303.83), rel=1e-3)


@pytest.mark.parametrize("n", SERSIC_N)
def test_gaussians_have_half_their_light_inside_the_half_light_radius(n: float) -> None:
    weights, sigmas = gaussians(n)
    assert (weights * (1.0 - np.exp(-0.5 / sigmas**2))).sum() == pytest.approx(0.5, abs=0.006)


@pytest.mark.parametrize(("n", "re", "tolerance"), [(1.0, 5.0, 1e-3), (2.0, 3.0, 1e-3), (4.0, 6.0, 8e-3)])
def test_convolved_sersic_agrees_with_galsim(n: float, re: float, tolerance: float) -> None:
    galsim = pytest.importorskip("galsim")
    size = 128
    psf = galsim.Moffat(beta=3.5, fwhm=5.5)
    kernel = np.zeros((size, size), np.float32)
    kernel[:127, :127] = psf.drawImage(nx=127, ny=127, scale=1, method="no_pixel").array
    kernel = np.roll(kernel, (-63, -63), (0, 1)) / kernel.sum()
    light = transform(Sersic(n, re, 0.6, 0.5), size, 0.3, -0.2)
    mine = scipy.fft.irfft2(light * scipy.fft.rfft2(kernel), s=(size, size))
    profile = galsim.Sersic(n, half_light_radius=re * np.sqrt(0.6)).shear(q=0.6, beta=0.5 * galsim.radians)
    drawn = galsim.Convolve(profile, psf).drawImage(
        nx=129, ny=129, scale=1, method="no_pixel", offset=(0.3, -0.2)
    )
    reference = drawn.array[:size, :size]
    assert np.abs(mine - reference).max() < tolerance * reference.max()


@pytest.mark.parametrize("band", BANDS)
def test_depth_of_the_noise(band: str) -> None:
    """PSF fluxes measured on blank correlated noise scatter by a fifth of the flux at the stated depth."""
    rng = np.random.default_rng(5)
    noise = noise_sigma(band) * correlated_noise(rng, (2050, 2050))
    psf = moffat(KERNEL, BANDS[band].fwhm / 0.2, 0.0, 0.0)
    stamps = noise.reshape(50, 41, 50, 41).transpose(0, 2, 1, 3).reshape(-1, 41, 41)
    measured = (stamps * psf).sum(axis=(1, 2)) / (psf**2).sum()
    depth = 31.4 - 2.5 * np.log10(5.0 * measured.std())
    # 2500 fluxes: the scatter is known to 1.4 %, 0.015 mag.
    assert depth == pytest.approx(BANDS[band].depth, abs=0.06)


def test_psf_widths_look_like_the_survey() -> None:
    c = draw_conditions(("g", "r", "i", "z"), Box(0, 0, 18 * CELL, 18 * CELL), 1)
    width = c.fwhm * 0.2
    assert width.min() > 0.9
    assert width.max() < 1.4
    assert np.median(width[0]) > np.median(width[2])
    assert (np.hypot(c.e1, c.e2) < 0.2).all()
    kernel = c.kernel(0, 3, 4)
    assert kernel.sum() == pytest.approx(1.0)
    # Half maximum where it should be: interpolate along x through the centre.
    row = kernel[KERNEL // 2, KERNEL // 2 :] / kernel.max()
    half = np.interp(-0.5, -row, np.arange(len(row)))
    assert 2 * half == pytest.approx(c.fwhm[0, 3, 4], rel=0.08)


# Population ------------------------------------------------------------


def test_lenses_and_look_alikes_share_one_population() -> None:
    from scipy.stats import ks_2samp

    patches = [Box(600 * k, 0, 600 * (k + 1), 600) for k in range(8)]
    t = draw_scene(patches, Box(0, 0, 4800, 600), per_patch=144, lens_fraction=0.3, seed=2).targets
    lens = t["kind"] == "lens"
    assert lens.sum() == round(0.3 * 8 * 144)
    for name in ("z_lens", "sigma_v", "re", "q", "n"):
        assert ks_2samp(t[name][lens], t[name][~lens]).pvalue > 0.01, name
    for band in range(6):
        assert ks_2samp(t["lens_mags"][lens, band], t["lens_mags"][~lens, band]).pvalue > 0.01
    assert np.nanmin(t["theta_E"]) > 0.6
    assert np.nanmax(t["theta_E"]) < 2.5
    assert np.isnan(t["theta_E"][~lens]).all()


def test_deflectors_are_red_and_sources_blue() -> None:
    from ripple.imaging.simulation.colours import blue_magnitudes

    rng = np.random.default_rng(0)
    red = draw_deflectors(rng, 500)["lens_mags"]
    blue = blue_magnitudes(rng, np.full(500, 24.0))
    assert np.median(red[:, 1] - red[:, 3]) > 2.0
    assert np.median(blue[:, 1] - blue[:, 3]) < 0.8


def test_ordinary_targets_are_as_many_and_as_bright_as_counts_say() -> None:
    patches = [Box(600 * k, 0, 600 * (k + 1), 600) for k in range(8)]
    how: dict[str, Any] = {"per_patch": 144, "lens_fraction": 0.1, "seed": 2}
    plain = draw_scene(patches, Box(0, 0, 4800, 600), **how)
    scene = draw_scene(patches, Box(0, 0, 4800, 600), **how, ordinary=0.75)
    t, kind = scene.targets, scene.targets["kind"]
    ordinary = np.isin(kind, list(ORDINARY))
    others = round(0.9 * 8 * 144)
    assert ordinary.sum() == round(0.75 * others)
    assert abs((kind == "disk").sum() / ordinary.sum() - ORDINARY["disk"]) < 0.01
    # Lenses, and the look-alikes that are left, are those of the same seed without ordinary targets.
    np.testing.assert_array_equal(kind[~ordinary], plain.targets["kind"][~ordinary])
    np.testing.assert_array_equal(t["lens_mags"][~ordinary], plain.targets["lens_mags"][~ordinary])
    assert np.isnan(t["z_lens"][ordinary]).all()
    # One magnitude fainter there are 10^0.31 times as many.
    i_mag = t["lens_mags"][ordinary, 3]
    assert i_mag.min() >= 18.5
    assert i_mag.max() <= 23.5
    counts = [((i_mag > m) & (i_mag <= m + 1)).sum() for m in (21.5, 22.5)]
    assert abs(np.log10(counts[1] / counts[0]) - 0.31) < 0.08
    # Red and blue galaxies as in the field, and a target in a disk has one: no deflector below it.
    colour = t["lens_mags"][:, 1] - t["lens_mags"][:, 3]
    assert np.median(colour[kind == "disk"]) < 0.9 < np.median(colour[kind == "early"])
    at = {(p.x, p.y): p for p in scene.painted}
    for k in np.flatnonzero(kind == "star")[:5]:
        assert isinstance(at[t["x"][k], t["y"][k]].parts[0][0], Point)
    assert len(scene.painted) == len({(p.x, p.y, p.row, p.parts) for p in scene.painted})


def test_stamps_seldom_collide() -> None:
    from scipy.spatial import cKDTree

    t = draw_scene(
        [Box(0, 0, 600, 600)], Box(0, 0, 600, 600), per_patch=144, lens_fraction=0.3, seed=1
    ).targets
    gap, _ = cKDTree(np.stack([t["x"], t["y"]], 1)).query(np.stack([t["x"], t["y"]], 1), k=2)
    assert gap[:, 1].min() > 32


@pytest.mark.slow
@pytest.mark.parametrize("sources", ["even", "survey"])
def test_the_centre_does_not_tell_a_lens(sources: str) -> None:
    """Logistic regression on the central 10 x 10 pixels stays below AUROC 0.65."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from ripple.imaging.simulation.render import StripTask, render_strip

    patches = [Box(600 * k, 0, 600 * (k + 1), 600) for k in range(5)]
    box = Box(-150, -150, 3150, 750)
    scene = draw_scene(patches, box, per_patch=144, lens_fraction=0.4, seed=9, sources=sources)
    c = draw_conditions(("g", "r", "i"), box, 9)
    light = render_strip(StripTask(scene.painted, c, box.y0, box.y1)).image
    rng = np.random.default_rng(0)
    light += c.sigma.mean(axis=(1, 2))[:, None, None] * rng.standard_normal(light.shape)
    x, y = (np.floor(scene.targets[k] + 0.5).astype(int) + 150 for k in ("x", "y"))
    centre = np.stack([light[:, b - 5 : b + 5, a - 5 : a + 5].ravel() for a, b in zip(x, y, strict=True)])
    label = scene.targets["kind"] == "lens"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    guess = cross_val_predict(model, np.arcsinh(centre / 30.0), label, cv=5, method="predict_proba")[:, 1]
    assert roc_auc_score(label, guess) < 0.65


# The repository ------------------------------------------------------------


def test_truth(survey: tuple[Path, SimulateConfig]) -> None:
    truth = pq.read_table(survey[0] / "truth.parquet")
    assert truth.num_rows == 32
    label, kind = truth["label"].to_numpy(), np.array(truth["class"].to_pylist())
    assert ((label == 1) == (kind == "lens")).all()
    assert label.sum() == 16
    lens = label == 1
    for name in ("theta_E", "arc_mag_g", "arc_mag_i", "arc_sb", "arc_snr", "magnification", "source_mag"):
        assert np.isfinite(truth[name].to_numpy()[lens]).all(), name
        assert np.isnan(truth[name].to_numpy()[~lens]).all(), name
    assert len(set(truth["objectId"].to_pylist())) == 32
    brighter = truth["source_mag"].to_numpy() - truth["arc_mag_i"].to_numpy()
    np.testing.assert_allclose(
        brighter[lens], 2.5 * np.log10(truth["magnification"].to_numpy()[lens]), atol=1e-6
    )
    assert (truth["magnification"].to_numpy()[lens] > 1.2).all()


def test_overlapping_patches_hold_identical_pixels(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    left, right = (coadd(directory, p, "g") for p in choose_block(config).patches)
    common = left.bbox.intersection(right.bbox)
    assert common.x.size == 300
    for plane in ("image", "variance", "mask"):
        a, b = (getattr(c, plane)[common].array for c in (left, right))
        np.testing.assert_array_equal(a, b)
    x, y = common.x.start + 70, common.y.start + 200
    kernels = [c.psf.compute_kernel_image(x=x, y=y).array for c in (left, right)]
    np.testing.assert_array_equal(*kernels)


def test_coadd_looks_like_dp2(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    block = choose_block(config)
    c = coadd(directory, block.patches[0], "g")
    box = block.skymap.patch_outer(5063, block.patches[0])
    assert (c.bbox.x.start, c.bbox.y.start, c.bbox.x.size, c.bbox.y.size) == (box.x0, box.y0, 900, 900)
    assert str(c.unit) == "nJy"
    assert [p.name for p in c.mask.schema] == [
        "NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED",
        "DETECTED", "INEXACT_PSF",
    ]  # fmt: skip
    assert (c.grid.cell_shape.y, c.grid.cell_shape.x) == (150, 150)
    assert c.patch.id == block.patches[0]
    assert c.band == "g"
    # The Butler knows how long each file is, so that one cut short is noticed before it is read.
    with sqlite3.connect(f"file:{directory / 'repo/gen3.sqlite3'}?mode=ro", uri=True) as registry:
        sizes = dict(registry.execute("SELECT path, file_size FROM file_datastore_records"))
    assert sizes == {path: (directory / "repo" / path).stat().st_size for path in sizes}


def test_projection_agrees_with_the_sky_map(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    block = choose_block(config)
    c = coadd(directory, block.patches[0], "g")
    x, y = np.random.default_rng(0).uniform(c.bbox.x.start, c.bbox.x.stop, (2, 50))
    y = y - c.bbox.x.start + c.bbox.y.start
    sky = c.sky_projection.pixel_to_sky(x=x, y=y)
    back = block.skymap.tan(5063).sky_to_pixel(sky.ra.deg, sky.dec.deg)
    np.testing.assert_allclose(back, (x, y), atol=1e-5)


def test_noise_matches_the_variance_plane(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    c = coadd(directory, choose_block(config).patches[0], "g")
    blank = (c.mask.array[..., 0] == 0) & (c.mask.array.sum(axis=-1) == 0)
    pull = c.image.array[blank] / np.sqrt(c.variance.array[blank])
    # A robust width: undetected faint galaxies are left in the wings.
    low, high = np.percentile(pull, [16, 50])
    assert high - low == pytest.approx(1.0, abs=0.06)


def test_defects_are_there(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    block = choose_block(config)
    absent = missing_band(config, block)
    assert absent == (block.patches[-1], "i")
    with pytest.raises(LookupError):
        coadd(directory, *absent)
    defects = draw_defects(2, block.box, config.seed)
    assert defects.missing_cell is not None
    i, j = defects.missing_cell
    x, y = block.box.x0 + j * CELL + 75, block.box.y0 + i * CELL + 75
    for patch in block.patches:
        c = coadd(directory, patch, "g")
        if not c.bbox.contains(x=x, y=y):
            continue
        assert not c.bounds.contains(x=x, y=y)
        at = (y - c.bbox.y.start, x - c.bbox.x.start)
        assert c.image.array[at] == 0
        assert np.isinf(c.variance.array[at])
        assert c.mask.get("NO_DATA")[at]
    seen: dict[str, int] = {}
    for patch, band in [(p, b) for p in block.patches for b in config.bands if (p, b) != absent]:
        c = coadd(directory, patch, band)
        for plane in c.mask.schema:
            seen[plane.name] = seen.get(plane.name, 0) + int(c.mask.get(plane.name).sum())
        seen["nan"] = seen.get("nan", 0) + int(np.isnan(c.image.array).sum())
    for name in ("NO_DATA", "COSMIC_RAY", "REJECTED", "DETECTED", "INEXACT_PSF", "DETECTION_EDGE", "nan"):
        assert seen[name] > 0, name


def test_stamp_flux_of_a_deflector(survey: tuple[Path, SimulateConfig]) -> None:
    """The light within the half-light radius of a plain elliptical is what the truth says."""
    directory, config = survey
    truth = pq.read_table(directory / "truth.parquet").to_pydict()
    block = choose_block(config)
    x, y = block.skymap.tan(5063).sky_to_pixel(truth["ra"], truth["dec"])
    ratios = []
    for k, kind in enumerate(truth["class"]):
        if kind != "elliptical" or truth["patch"][k] != block.patches[0]:
            continue
        c = coadd(directory, truth["patch"][k], "i")
        gy, gx = np.mgrid[c.bbox.y.start : c.bbox.y.stop, c.bbox.x.start : c.bbox.x.stop]
        inside = np.hypot(gx - x[k], gy - y[k]) < truth["lens_re"][k] / 0.2 * 1.0
        ratios.append(c.image.array[inside].sum() / flux(truth["lens_mag_i"][k]))
    # Half the light lies inside the half-light ellipse; the PSF takes some out, the circle some in.
    assert 0.25 < np.median(ratios) < 0.65


def test_object_table(survey: tuple[Path, SimulateConfig]) -> None:
    from lsst.daf.butler import Butler

    directory, _ = survey
    with Butler.from_config(str(directory / "repo"), collections="mini") as butler:
        table = butler.get("object", skymap="ripple_mini_v1", tract=5063)
    for name in (
        "objectId",
        "coord_ra",
        "coord_dec",
        "tract",
        "patch",
        "g_cModelFlux",
        "i_psfFlux",
        "refExtendedness",
    ):
        assert name in table.colnames
    truth = pq.read_table(directory / "truth.parquet").to_pydict()
    where = {v: k for k, v in enumerate(np.array(table["objectId"]).tolist())}
    rows = np.array([where[v] for v in truth["objectId"]])
    assert (np.abs(np.array(table["coord_dec"])[rows] - truth["dec"]) * 3600 < 0.5).all()
    plain = np.array([c == "elliptical" for c in truth["class"]])
    measured = np.array(table["i_cModelMag"])[rows][plain]
    np.testing.assert_allclose(measured, np.array(truth["lens_mag_i"])[plain], atol=0.1)


def test_same_seed_same_pixels_and_uuids(survey: tuple[Path, SimulateConfig], tmp_path: Path) -> None:
    from lsst.daf.butler import Butler

    directory, config = survey
    # Two workers instead of none: the split must not show.
    other = config.model_copy(update={"output": str(tmp_path / "again"), "workers": 2})
    simulate(other)
    patch = choose_block(config).patches[0]
    a, b = coadd(directory, patch, "i"), coadd(tmp_path / "again", patch, "i")
    for plane in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(a, plane).array, getattr(b, plane).array)
    assert (directory / "truth.parquet").read_bytes() == (tmp_path / "again" / "truth.parquet").read_bytes()
    ids = []
    for root in (directory, tmp_path / "again"):
        with Butler.from_config(str(root / "repo"), collections="mini") as butler:
            ids.append({str(r.id) for r in butler.registry.queryDatasets("deep_coadd")})
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3


# The verb ------------------------------------------------------------


def test_running_again_does_nothing(survey: tuple[Path, SimulateConfig]) -> None:
    directory, config = survey
    before = (directory / "truth.parquet").stat().st_mtime_ns
    assert simulate(config).done_before
    assert (directory / "truth.parquet").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"simulate\.seed: 3 -> 4"):
        simulate(config.model_copy(update={"seed": 4}))


def test_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WriteError, match="did not write"):
        simulate(SimulateConfig(output=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_writer_and_a_damaged_marker(tmp_path: Path) -> None:
    config = SimulateConfig(output=str(tmp_path / "s"), patches=1, bands=("r",), targets=4, workers=0)
    (tmp_path / "s").mkdir()
    handle = lock(tmp_path / "s")
    with pytest.raises(LockedError, match="is being written by"):
        simulate(config)
    unlock(handle)
    (tmp_path / "s" / "simulate.json").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"simulate\.json: damaged"):
        simulate(config)


def test_interrupted_survey_starts_again(tmp_path: Path) -> None:
    config = SimulateConfig(output=str(tmp_path / "s"), patches=1, bands=("r",), targets=4, workers=0)
    simulate(config)
    for name in ("manifest.json", "truth.parquet"):  # as after a kill before the end
        (tmp_path / "s" / name).unlink()
    wanted = identity_of("survey", "simulate", config.canonical(), {})
    (tmp_path / "s" / "simulate.json").write_bytes(render(wanted))
    assert not simulate(config).done_before
    assert (tmp_path / "s" / "truth.parquet").exists()


def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / "s")
    assert (
        run(
            [
                "simulate",
                where,
                "--patches",
                "1",
                "--bands",
                "g",
                "--targets",
                "4",
                "--workers",
                "0",
                "--json",
            ]
        )
        == 0
    )
    record = json.loads(capfd.readouterr().out)
    assert record["facts"]["targets"] == 4
    assert run(["simulate", where, "--bands", "gq"]) == 2
    assert "ugrizy" in capfd.readouterr().err
    assert run(["simulate"]) == 2


def test_sources_of_a_survey(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "s"
    small = ["--patches", "1", "--bands", "gi", "--targets", "9", "--workers", "0", "--seed", "2"]
    assert run(["simulate", str(where), *small, "--set", "sources=survey", "--set", "lens_fraction=0.6"]) == 0
    truth = pq.read_table(where / "truth.parquet")
    lens = truth["label"].to_numpy() == 1
    assert lens.sum() == 5
    # Painted, and not only foreseen: bright enough once lensed, and magnified.
    assert (truth["arc_mag_i"].to_numpy()[lens] < LIMIT + 0.02).all()
    assert (truth["magnification"].to_numpy()[lens] > LEAST - 0.02).all()
    assert (truth["arc_snr"].to_numpy()[lens] > 10).all()
    kind = np.array(truth["source_kind"].to_pylist())
    assert set(kind[lens]) <= {"blue", "clumpy", "red"}
    assert set(kind[~lens]) == {""}
    capfd.readouterr()
    assert run(["simulate", str(tmp_path / "t"), *small, "--set", "sources=all"]) == 2
    assert "survey" in capfd.readouterr().err


@pytest.mark.slow
def test_arcs_too_faint_for_anybody_have_no_label(
    survey: tuple[Path, SimulateConfig], tmp_path: Path
) -> None:
    directory, config = survey
    before = pq.read_table(directory / "truth.parquet")
    snr = np.nan_to_num(before["arc_snr"].to_numpy(), nan=0.0)
    least = float(np.median(snr[before["label"].to_numpy() == 1]))
    other = config.model_copy(update={"output": str(tmp_path / "sky"), "min_arc_snr": least})
    simulate(other)
    after = pq.read_table(tmp_path / "sky" / "truth.parquet")
    lens = before["label"].to_numpy() == 1
    expected = np.where(lens & (snr < least), -1, before["label"].to_numpy())
    np.testing.assert_array_equal(after["label"].to_numpy(), expected)
    for name in ("objectId", "theta_E", "arc_snr"):  # the sky is the same
        np.testing.assert_array_equal(before[name].to_numpy(), after[name].to_numpy())
