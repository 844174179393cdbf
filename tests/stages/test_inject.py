"""Lensed sources painted into cutouts: flux, PSF, noise, labels, and the artefact around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cutout_artefacts import write

from ripple import write_cutouts
from ripple.cli import run
from ripple.errors import CatalogueError, ConfigError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.simulation.lensing import Deflector, einstein_radius, image_count
from ripple.imaging.simulation.observing import BANDS, moffat, noise_sigma
from ripple.imaging.simulation.profiles import Knot, Lensed, Sersic
from ripple.imaging.simulation.sources import LEAST, LIMIT
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject, inject_batch
from ripple.stages.inject.paint import draw_lensed, light_shape, profile_spectrum, through_psf
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.shards import cutouts_of

BAND_NAMES = ("g", "r", "i")


def make_batch(n: int = 24, size: int = 64, *, sky: bool = True) -> CutoutBatch:
    """Blank sky (or nothing at all) with the PSFs and depths of the survey."""
    rng = np.random.default_rng(4)
    sigma = np.array([noise_sigma(b) for b in BAND_NAMES])[None, :, None, None]
    shape = (n, 3, size, size)
    image = (sigma * rng.standard_normal(shape) if sky else np.zeros(shape)).astype(np.float32)
    psf = np.stack([moffat(41, BANDS[b].fwhm / 0.2, 0.0, 0.0) for b in BAND_NAMES]).astype(np.float32)
    catalog: dict[str, np.ndarray[Any, Any]] = {
        "index": np.arange(n, dtype=np.int64), "id": np.arange(n), "ra": np.zeros(n), "dec": np.zeros(n),
        **{name: rng.uniform(-0.5, 0.5, n).astype(np.float32) for name in ("dx", "dy")},
    }  # fmt: skip
    variance = np.broadcast_to(sigma**2, shape).astype(np.float32)
    return CutoutBatch(
        BAND_NAMES, image, variance, np.zeros(shape, np.uint32),
        MASK_PLANES, psf, np.tile(np.arange(3, dtype=np.int32), (n, 1)), catalog,
    )  # fmt: skip


def render(lensed: Lensed, batch: CutoutBatch, k: int) -> tuple[np.ndarray[Any, Any], float]:
    """Arcs of a source of unit flux as row k sees them, and their flux."""
    spectrum = profile_spectrum(lensed, batch, k)
    return through_psf(spectrum, batch, k), float(spectrum[0, 0, 0].real)


def test_flux_is_conserved() -> None:
    """What the PSF spreads is neither lost nor gained: the sum is the magnification."""
    batch = make_batch(1)
    lensed = Lensed(Deflector(5.0, 0.8, 0.3), Sersic(1.0, 1.2, 0.7, 0.2, 1.0, 0.4), (Knot(0.2, 0.3, 0.1),))
    seen, magnification = render(lensed, batch, 0)
    np.testing.assert_allclose(seen.sum(axis=(1, 2)), magnification, rtol=2e-3)
    assert magnification > 2.0


@pytest.mark.parametrize(("re", "knot"), [(2.0, 0.0), (0.4, 0.35)])
def test_without_a_deflector_the_source_is_itself(re: float, knot: float) -> None:
    lensed = Lensed(Deflector(1e-6, 0.8, 0.3), Sersic(1.0, re, 0.7, 0.2), (Knot(knot),))
    batch = make_batch(1)
    seen, magnification = render(lensed, batch, 0)
    assert magnification == pytest.approx(1.0, rel=2e-3)
    y, x = np.mgrid[:64, :64]
    for plane in seen:
        centre = [(plane * a).sum() / plane.sum() - 32 for a in (x, y)]
        np.testing.assert_allclose(centre, [batch.catalog["dx"][0], batch.catalog["dy"][0]], atol=0.02)


def test_the_wider_psf_gives_the_wider_arc() -> None:
    batch = make_batch(1)
    seen, _ = render(Lensed(Deflector(5.0, 0.8, 0.3), Sersic(1.0, 1.0)), batch, 0)
    peaks = seen.max(axis=(1, 2))
    assert peaks[0] < peaks[1] < peaks[2]  # g has the widest PSF


def test_einstein_ring_lies_at_the_einstein_radius() -> None:
    batch = make_batch(1)
    batch.catalog["dx"][:] = batch.catalog["dy"][:] = 0.0
    seen, _ = render(Lensed(Deflector(8.0, 1.0, 0.0), Sersic(1.0, 1.0)), batch, 0)
    y, x = np.mgrid[:64, :64] - 32
    radius = np.hypot(x, y)
    profile = [seen[2][(radius >= r - 0.5) & (radius < r + 0.5)].mean() for r in range(3, 14)]
    assert abs(int(np.argmax(profile)) + 3 - 8) <= 1


def test_magnitudes_say_what_was_painted() -> None:
    config = InjectConfig(fraction=1.0, theta_max=1.2)
    batch = make_batch(12, sky=False)
    out = inject_batch(batch, config)
    assert out.catalog["injected"].all()
    for b, band in enumerate(BAND_NAMES):
        measured = out.image[:, b].sum(axis=(1, 2))
        expected = 10 ** (0.4 * (31.4 - out.catalog[f"arc_mag_{band}"]))
        photons = np.sqrt((out.variance[:, b] - batch.variance[:, b]).sum(axis=(1, 2)))
        assert (np.abs(measured - expected) < 4 * photons + 1e-3 * expected).all()
    brighter = out.catalog["source_mag"] - out.catalog["arc_mag_i"]
    np.testing.assert_allclose(brighter, 2.5 * np.log10(out.catalog["magnification"]), atol=0.02)


def test_photon_noise_matches_the_variance_it_adds() -> None:
    batch = make_batch(1, sky=False)
    config = InjectConfig(fraction=1.0, source_bright=20.0, source_faint=20.0)
    base = inject_batch(batch, config)
    added = base.variance[0] - batch.variance[0]
    # The same arcs without noise, by the ratio of variance to flux.
    gain = np.array([BANDS[b].njy_per_electron for b in BAND_NAMES])[:, None, None]
    bright = added > 0.05 * added.max(axis=(1, 2), keepdims=True)
    pull = ((base.image[0] - added / gain) / np.sqrt(np.where(added > 0, added, 1)))[bright]
    assert abs(pull.std() - 1.0) < 4.0 / np.sqrt(2 * len(pull)) + 0.02
    assert abs(pull.mean()) < 4.0 / np.sqrt(len(pull))


def test_pixels_without_data_stay_without_data() -> None:
    batch = make_batch(4)
    batch.image[:, 0, :20] = np.nan
    batch.variance[:, 0, :20] = np.nan
    batch.variance[:, 1, :, :20] = np.inf
    batch.image[:, 1, :, :20] = 0.0
    out = inject_batch(batch, InjectConfig(fraction=1.0))
    assert np.isnan(out.image[:, 0, :20]).all()
    assert (out.image[:, 1, :, :20] == 0).all()
    assert np.isinf(out.variance[:, 1, :, :20]).all()
    np.testing.assert_array_equal(out.mask, batch.mask)
    assert np.isfinite(out.catalog["arc_snr"]).all()


def test_rows_without_psf_are_not_chosen() -> None:
    batch = make_batch(6)
    batch.psf_index[:3, 1] = -1
    # Row 5 lacks the band altogether: no PSF is needed there.
    batch.psf_index[5, 0] = -1
    batch.image[5, 0] = batch.variance[5, 0] = np.nan
    out = inject_batch(batch, InjectConfig(fraction=1.0))
    np.testing.assert_array_equal(out.catalog["injected"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(out.image[:3], batch.image[:3])
    assert np.isnan(out.catalog["arc_mag_g"][5])


def test_a_row_gets_the_same_source_in_any_company() -> None:
    batch = make_batch(10)
    whole = inject_batch(batch, InjectConfig(fraction=0.5))
    assert 0 < whole.catalog["injected"].sum() < 10
    k = np.array([7, 2])
    np.testing.assert_array_equal(
        inject_batch(batch.take(k), InjectConfig(fraction=0.5)).image, whole.image[k]
    )


def test_labels() -> None:
    batch = make_batch(10)
    known = np.array([-1, 0, 1, 0, -1, 1, 0, 0, -1, 0])
    out = inject_batch(replace(batch, catalog={**batch.catalog, "label": known}), InjectConfig(fraction=0.5))
    chosen = out.catalog["injected"] == 1
    assert (out.catalog["label"][chosen] == 1).all()
    np.testing.assert_array_equal(out.catalog["label"][~chosen], known[~chosen])
    assert np.isnan(out.catalog["theta_E"][~chosen]).all()


def test_unsigned_labels_can_be_unknown() -> None:
    batch = make_batch(4)
    batch = replace(batch, catalog={**batch.catalog, "label": np.zeros(4, np.uint8)})
    out = inject_batch(batch, InjectConfig(fraction=1.0, min_arc_snr=1e6))
    assert out.catalog["label"].tolist() == [-1] * 4
    assert out.catalog["injected"].all()


def test_classes_in_which_1_is_no_lens_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batch = make_batch(2)
    write_cutouts(
        tmp_path / "in", batch.image, batch.bands, {"label": [0, 1]}, class_map={0: "lens", 1: "nonlens"}
    )
    assert run(["inject", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 2
    assert "painted lenses get label 1, but the classes are 0: lens, 1: nonlens" in capfd.readouterr().err


def test_mass_follows_light() -> None:
    y, x = np.mgrid[:64, :64] - 32.0
    angle = 0.7
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    image = np.exp(-0.5 * ((u / 3) ** 2 + (v / 1.5) ** 2))[None].astype(np.float32)
    q, found = light_shape(image, {"dx": np.zeros(1), "dy": np.zeros(1)}, 0)
    assert found == pytest.approx(angle, abs=0.02)
    assert 0.5 <= q < 0.8
    assert light_shape(np.full((1, 8, 8), np.nan, np.float32), {"dx": np.zeros(1), "dy": np.zeros(1)}, 0) == (
        1.0,
        0.0,
    )


def test_sources_are_imaged_more_than_once() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        lensed = draw_lensed(rng, 6.0, 0.8, 0.3, 0.2)
        assert np.hypot(lensed.source.dx, lensed.source.dy) < 0.85 * 6.0


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated survey, fetched."""
    root = tmp_path_factory.mktemp("inject")
    sky, out = str(root / "sky"), str(root / "cutouts")
    small = ["--patches", "1", "--bands", "gr", "--targets", "9", "--workers", "0"]
    assert run(["simulate", sky, *small]) == 0
    fetch = ["--repo", f"{sky}/repo", "--collections", "mini", "--targets", f"{sky}/truth.parquet"]
    assert run(["fetch", *fetch, "--bands", "gr", "--size", "64", "--workers", "0", "-o", out]) == 0
    return Path(out)


def test_artefact(cutouts: Path, tmp_path: Path) -> None:
    config = InjectConfig(cutouts=str(cutouts), output=str(tmp_path / "a"), fraction=0.6, workers=0)
    summary = inject(config)
    assert summary.facts["injected"] > 0
    before, after = (pq.read_table(d / "index.parquet") for d in (cutouts, tmp_path / "a"))
    assert before["id"].to_pylist() == after["id"].to_pylist()
    assert before["status"].to_pylist() == after["status"].to_pylist()
    injected = after["injected"].to_numpy() == 1
    assert (after["label"].to_numpy()[injected] == 1).all()
    assert injected.sum() == summary.facts["injected"]
    assert inject(config).done_before
    assert run(["verify", str(tmp_path / "a")]) == 0
    with pytest.raises(ConfigError, match="fraction"):
        inject(config.model_copy(update={"fraction": 0.2}))


def test_same_bytes_twice(cutouts: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 1)):
        inject(InjectConfig(cutouts=str(cutouts), output=str(tmp_path / name), workers=workers))
    for file in ("shard-00000.h5", "index.parquet", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_arcs_too_faint_for_anybody_have_no_label(cutouts: Path, tmp_path: Path) -> None:
    """Label -1 is for arcs below the limit in every band, and only for those; all else stays as it is."""
    options: dict[str, Any] = {"cutouts": str(cutouts), "fraction": 0.8, "workers": 0}
    inject(InjectConfig(output=str(tmp_path / "a"), **options))
    before = pq.read_table(tmp_path / "a" / "index.parquet")
    painted = before["injected"].to_numpy() == 1
    per_band = np.stack([before[f"arc_snr_{band}"].to_numpy() for band in "gr"])
    least = float(np.median(per_band.max(axis=0)[painted]))
    faint = painted & ~(per_band >= least).any(axis=0)
    assert 0 < faint.sum() < painted.sum()
    config = InjectConfig(output=str(tmp_path / "b"), min_arc_snr=least, **options)
    assert inject(config).facts["unknown"] == faint.sum()
    assert inject(config).facts["unknown"] == faint.sum()  # from what is there
    after = pq.read_table(tmp_path / "b" / "index.parquet")
    np.testing.assert_array_equal(after["label"], np.where(faint, -1, before["label"]))
    for name in before.column_names:
        if name != "label":
            np.testing.assert_array_equal(before[name], after[name])
    one, other = (cutouts_of(open_artefact(tmp_path / name, "cutouts"), 0) for name in "ab")
    np.testing.assert_array_equal(one.image, other.image)
    assert (other.catalog["label"] == -1).sum() == faint.sum()
    # They are lenses all the same, and get no second one.
    again = inject_batch(other, InjectConfig(fraction=1.0)).catalog["not_injected"]
    assert (again[other.catalog["injected"] == 1] == "a lens already").all()


def test_hosts(cutouts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only cutouts that meet the condition get a lens, labelled lenses never; the index says why not."""
    before = pq.read_table(cutouts / "index.parquet").to_pylist()
    bright = sorted(row["lens_mag_i"] for row in before)[len(before) // 2]
    argv = ["inject", str(cutouts), "--fraction", "1", "--workers", "0", "-o", str(tmp_path / "a")]
    assert run([*argv, "--hosts", f"lens_mag_i <= {bright} and ra > 0"]) == 0
    after = pq.read_table(tmp_path / "a" / "index.parquet").to_pylist()
    assert len({row["not_injected"] for row in after}) >= 2
    for row in (r for r in after if r["shard"] >= 0):
        expected = "" if row["lens_mag_i"] <= bright else "not a host"
        lens = row["label"] == 1 and not row["injected"]
        assert row["not_injected"] == ("a lens already" if lens else expected)
        assert row["injected"] == (row["not_injected"] == "")
    known = [row["label"] for row in before if row["shard"] >= 0]
    assert sum(row["not_injected"] == "a lens already" for row in after) == known.count(1)
    assert run([*argv[:-1], str(tmp_path / "b"), "--hosts", "lens_mag < 20"]) == 3
    assert "--hosts: no column 'lens_mag'" in capfd.readouterr().err
    assert run([*argv[:-1], str(tmp_path / "b"), "--hosts", "lens_mag_i < 2"]) == 3


def test_kept_arcs_are_what_was_painted(cutouts: Path, tmp_path: Path) -> None:
    """Arcs without noise: their flux is that in the index, and the image has them with photon noise."""
    argv = ["inject", str(cutouts), "--fraction", "0.6", "--workers", "0", "-q"]
    assert run([*argv, "--keep-arcs", "-o", str(tmp_path / "a")]) == 0
    assert run([*argv, "-o", str(tmp_path / "b")]) == 0
    assert verify(tmp_path / "a") == []
    arcs = np.load(tmp_path / "a" / "arcs-00000.npy")
    before, after = (cutouts_of(open_artefact(d, "cutouts"), 0) for d in (cutouts, tmp_path / "a"))
    assert arcs.shape == after.image.shape
    painted = after.catalog["injected"] == 1
    assert (arcs[~painted] == 0).all()
    flux = arcs[painted].sum(axis=(2, 3), dtype=float)
    said = np.stack([after.catalog[f"arc_mag_{b}"][painted] for b in "gr"], axis=1)
    np.testing.assert_allclose(31.4 - 2.5 * np.log10(flux), said, atol=1e-3)
    added = np.nan_to_num(after.image - before.image)[painted]
    known = np.isfinite(before.variance)
    photons = np.subtract(after.variance, before.variance, out=np.zeros(known.shape), where=known)[painted]
    bright = photons > 0.1 * photons.max()
    pull = (added - arcs[painted])[bright] / np.sqrt(photons[bright])
    assert abs(pull.std() - 1) < 0.2
    np.testing.assert_array_equal(cutouts_of(open_artefact(tmp_path / "b", "cutouts"), 0).image, after.image)
    assert not (tmp_path / "b" / "arcs-00000.npy").exists()


def test_images_are_counted_as_lenstronomy_does() -> None:
    solver = pytest.importorskip("lenstronomy.LensModel.Solver.lens_equation_solver")
    model = pytest.importorskip("lenstronomy.LensModel.lens_model")
    util = pytest.importorskip("lenstronomy.Util.param_util")
    rng = np.random.default_rng(0)
    lens = model.LensModel(["SIE", "SHEAR"])
    same, seen = [], set()
    for k in range(42):
        q, angle, g1, g2 = rng.uniform(0.5, 0.95), rng.uniform(0, 3), *rng.uniform(-0.05, 0.05, 2)
        x, y = rng.uniform(-1.2, 1.2, 2) * (1.0, 0.05, 2.0)[k % 3]
        e1, e2 = util.phi_q2_ellipticity(angle, q)
        sie = {"theta_E": 1.3, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0}
        kwargs = [sie, {"gamma1": g1, "gamma2": g2}]
        found, _ = solver.LensEquationSolver(lens).image_position_from_source(
            x, y, kwargs, min_distance=0.02, search_window=12
        )
        mine = image_count(Deflector(1.3, q, angle, g1, g2), x, y)
        same.append(mine == len(found))
        seen.add(mine)
    assert np.mean(same) >= 0.95  # sources next to a caustic: images that merge
    assert seen == {1, 2, 4}


def test_what_is_said_of_an_arc() -> None:
    out = inject_batch(make_batch(6), InjectConfig(fraction=1.0)).catalog
    each = np.stack([out[f"arc_snr_{b}"] for b in BAND_NAMES])
    np.testing.assert_allclose(out["arc_snr"], each.max(axis=0))
    np.testing.assert_allclose(out["arc_sb"], out["arc_sb_g"])
    seeing = np.mean([BANDS[b].fwhm for b in BAND_NAMES])
    np.testing.assert_allclose(out["theta_E_over_seeing"], out["theta_E"] / seeing, rtol=0.02)
    assert (out["images"] >= 2).all()
    assert (out["not_injected"] == "").all()


def test_depth_seam_and_bad_pixels_of_every_row() -> None:
    """Known before anything was painted, so the same where nothing was."""
    batch = make_batch(4)
    batch.psf_index[1, 0] = -1
    batch.image[1, 0] = batch.variance[1, 0] = np.nan
    batch.mask[2, 1, :32] = batch.bits("NO_DATA")
    batch = replace(batch, psf_cells=np.array([[3, 0, 0, 64, 40, 64, 1]], np.int32))
    none, all_rows = (inject_batch(batch, InjectConfig(fraction=f)).catalog for f in (1e-9, 1.0))
    for name in ("depth_g", "depth_r", "seam", "host_bad"):
        np.testing.assert_array_equal(none[name], all_rows[name])
    np.testing.assert_array_equal(none["seam"], [0, 0, 0, 1])
    np.testing.assert_allclose(none["host_bad"], [0, 0, 0.5, 0])
    # A matched filter measures a point source of flux f with S/N f sqrt(sum psf²) / sigma.
    error = noise_sigma("r") / np.sqrt((batch.psf[1].astype(float) ** 2).sum())
    np.testing.assert_allclose(none["depth_r"], 31.4 - 2.5 * np.log10(5 * error), atol=1e-4)
    assert np.isnan(none["depth_g"]).tolist() == [False, True, False, False]


def test_sources_of_a_survey() -> None:
    batch = make_batch(40)
    out = inject_batch(batch, InjectConfig(fraction=1.0, drawn_sources="survey")).catalog
    even = inject_batch(batch, InjectConfig(fraction=1.0)).catalog
    assert out["injected"].all()
    # Painted, and not only foreseen.
    assert out["arc_mag_i"].max() < LIMIT + 0.02
    assert out["magnification"].min() > LEAST - 0.02
    assert out["magnification"].mean() > even["magnification"].mean() + 1.0
    brighter = out["source_mag"] - out["arc_mag_i"]
    np.testing.assert_allclose(brighter, 2.5 * np.log10(out["magnification"]), atol=0.02)
    # A mass so small magnifies no galaxy enough.
    small = InjectConfig(fraction=1.0, drawn_sources="survey", theta_min=0.05, theta_max=0.05)
    none = inject_batch(make_batch(1), small).catalog
    assert not none["injected"].any()
    assert none["not_injected"].tolist() == ["no source of a survey is bright enough behind it"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("sources=real.fits", "drawn_sources is for drawn sources"),
        ("lenses=mine.csv", "drawn_sources is for drawn lenses"),
        ("source_bright=21", "source_bright is for even sources"),
    ],
)
def test_sources_of_a_survey_beside_others(other: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    name, _, value = other.partition("=")
    options = ["--set", other] if name == "source_bright" else [f"--{name}", value]
    assert run(["inject", "x", "-o", "y", "--set", "drawn_sources=survey", *options]) == 2
    assert said in capfd.readouterr().err


def test_bad_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inject", "-o", str(tmp_path / "x")]) == 2
    assert run(["inject", "x", "-o", "y", "--theta-min", "3", "--theta-max", "1"]) == 2
    assert "theta_min" in capfd.readouterr().err


def test_einstein_radii_follow_from_velocity_dispersions(tmp_path: Path) -> None:
    n = 40
    rng = np.random.default_rng(0)
    known = {
        "sigma": np.where(np.arange(n) % 10 == 3, np.nan, rng.uniform(150.0, 330.0, n)),
        "z_lens": np.where(np.arange(n) % 10 == 5, -1.0, rng.uniform(0.3, 0.7, n)),
    }
    batch = make_batch(n, 64)
    batch = replace(batch, catalog=batch.catalog | known)
    cutouts = write(tmp_path / "cutouts", batch, 0, n, ("sigma", "z_lens"))
    options = {"cutouts": str(cutouts), "fraction": 1.0, "workers": 0, "output": str(tmp_path / "out")}
    inject(InjectConfig.make(options | {"theta_from": "sigma", "theta_min": 0.7, "theta_max": 2.0}))
    index = open_artefact(tmp_path / "out").index()
    placed = index["shard"].to_numpy() >= 0
    names = ("injected", "theta_E", "z_source")
    painted, theta, zs = (np.asarray(index[name].to_numpy())[placed] for name in names)
    done = painted == 1
    assert 5 < done.sum() < n
    expected = einstein_radius(known["sigma"][done], known["z_lens"][done], zs[done])
    np.testing.assert_allclose(theta[done], expected, rtol=1e-6)
    assert ((theta[done] >= 0.7) & (theta[done] <= 2.0) & (zs[done] > known["z_lens"][done])).all()
    why = np.array(index["not_injected"].to_pylist())[placed]
    assert (why[np.isnan(known["sigma"])] == "no velocity dispersion in sigma").all()
    assert (why[known["z_lens"] < 0] == "no redshift of a lens in z_lens").all()
    assert "its Einstein radius is outside theta_min and theta_max" in why
    with pytest.raises(CatalogueError, match="no column 'sigmaa'; did you mean 'sigma'"):
        inject(InjectConfig.make(options | {"output": str(tmp_path / "o"), "theta_from": "sigmaa"}))
    with pytest.raises(CatalogueError, match="column 'reason' of the cutouts has no numbers"):
        inject(InjectConfig.make(options | {"output": str(tmp_path / "o"), "theta_from": "reason"}))
