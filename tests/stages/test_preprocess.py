"""`ripple preprocess`: artefact to artefact, nothing lost, only finite numbers, the same bytes again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cutout_artefacts import digest, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stampmaker import SIGMA, bit, make_batch

import ripple
from ripple.errors import ConfigError, DataError, TooManyRejected
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.shard_reader import map_tensors

QUIET = PreprocessConfig.make({"registration": False})


def options(cutouts: Path, output: Path, **values: object) -> PreprocessConfig:
    base = {"cutouts": str(cutouts), "output": str(output), "workers": 0, "registration": False}
    return PreprocessConfig.make({**base, **values})


def test_artefact_to_artefact(tmp_path: Path) -> None:
    batch = make_batch(12, "gri", 32, 10)
    batch.image[3, 0] = np.nan
    cutouts = write(tmp_path / "cutouts", batch, 10)
    summary = preprocess(options(cutouts, tmp_path / "tensors"))
    assert summary.facts["targets"] == 13
    assert verify(tmp_path / "tensors") == []
    artefact = open_artefact(tmp_path / "tensors", "tensors")
    index = artefact.index().to_pylist()
    assert [row["reason"] for row in index[:2]] == ["no_tract", ""]
    assert sum(row["status"] == "rejected" for row in index) == sum(row["accept"] == 0 for row in index)
    tensors = map_tensors(artefact.shard_path(0))
    assert tensors.image.shape == (5, 3, 32, 32)
    assert tensors.class_map == {"1": "lens"}
    assert tensors.catalog["label"].tolist() == [0, 1, 0, 1, 0]
    assert index[4]["qc_bad_g"] == 1.0
    assert {"psf_residual_g", "psf_gain_r", "psf_flux_i", "noise_g", "norm_scale"} <= set(index[1])
    # The delivered stamp is the centre of the cutout: undone where nothing was matched (broadest band g).
    flux = ripple.denormalize(tensors)
    np.testing.assert_allclose(flux[0, 0], batch.image[0, 0, 10:-10, 10:-10], rtol=1e-5, atol=1e-3)
    again = preprocess(options(cutouts, tmp_path / "tensors"))
    assert again.done_before


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile", "zscale"])
def test_one_row_of_1e12_njy_spoils_no_other(tmp_path: Path, method: str) -> None:
    """Also with constants of the whole data set; the summary says that it was left out of them."""
    batch = make_batch(12, "gi", 32)
    batch.image[5] = 1e12
    cutouts = write(tmp_path / "cutouts", batch, 0)
    every = {"scope": "dataset", "train_fractions": [1.0, 0.0, 0.0], "psf": "none", "normalize": method}
    summary = preprocess(options(cutouts, tmp_path / "tensors", **every))
    left_out = "training rows far beyond the others, left out of the constants of the data set: 1"
    assert summary.notes == (left_out,)
    artefact = open_artefact(tmp_path / "tensors", "tensors")
    tensors = [map_tensors(artefact.shard_path(k)) for k in range(len(artefact.shards))]
    flux = np.concatenate([ripple.denormalize(t) for t in tensors])
    np.testing.assert_allclose(flux, batch.image, rtol=1e-5, atol=1e-5 * SIGMA)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{"scope": "dataset", "normalize": "zscore"}, {"psf": "1.3"}])
def test_same_bytes_whatever_the_workers(tmp_path: Path, values: dict[str, object]) -> None:
    cutouts = write(tmp_path / "cutouts", make_batch(12, "gi", 32, 6), 6)
    wide = {"train_nside": 2**16, **values}
    preprocess(options(cutouts, tmp_path / "a", **wide))
    preprocess(options(cutouts, tmp_path / "b", **{**wide, "workers": 2}))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_rows_do_not_depend_on_their_shard(tmp_path: Path) -> None:
    batch = make_batch(12, "gi", 32, 6)
    images = []
    for per_shard in (12, 4):
        cutouts = write(tmp_path / f"cutouts{per_shard}", make_batch(12, "gi", 32, 6), 6, per_shard)
        preprocess(options(cutouts, tmp_path / f"tensors{per_shard}"))
        artefact = open_artefact(tmp_path / f"tensors{per_shard}")
        shards = range(len(artefact.shards))
        images.append(np.concatenate([map_tensors(artefact.shard_path(k)).image for k in shards]))
    assert len(batch) == len(images[0])
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


def test_other_config_is_refused(tmp_path: Path) -> None:
    cutouts = write(tmp_path / "cutouts", make_batch(4, "gi", 32), 0)
    preprocess(options(cutouts, tmp_path / "tensors"))
    with pytest.raises(ConfigError, match="softening"):
        preprocess(options(cutouts, tmp_path / "tensors", softening=1.0))


def test_too_many_rejected(tmp_path: Path) -> None:
    batch = make_batch(4, "gi", 32)
    batch.image[:] = 0
    cutouts = write(tmp_path / "cutouts", batch, 0)
    with pytest.raises(TooManyRejected, match="quality"):
        preprocess(options(cutouts, tmp_path / "tensors", max_rejected=0.5))
    assert verify(tmp_path / "tensors") == []


@pytest.mark.parametrize("bad", [{"psf": "wide"}, {"psf": "99"}, {"zero_point": ["g"]}, {"psff": "none"}])
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PreprocessConfig.make(bad)


def test_margin_that_eats_the_stamp() -> None:
    with pytest.raises(DataError, match="margin"):
        preprocess_batch(make_batch(1, "gi", 16), QUIET, DataConstants(margin=8))


def test_zero_point_changes_the_flux() -> None:
    batch = make_batch(2, "gi", 24)
    config = PreprocessConfig.make({"psf": "none", "zero_point": ["g:0.1"], "registration": False})
    flux = ripple.denormalize(preprocess_batch(batch, config, DataConstants()))
    np.testing.assert_allclose(flux[:, 0], batch.image[:, 0] * 10**-0.04, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(flux[:, 1], batch.image[:, 1], rtol=1e-4, atol=1e-2)


def test_stamps_without_variance_and_psf() -> None:
    """Stamps from elsewhere: no variance, no PSF, and still tensors."""
    batch = make_batch(3, "gi", 32)
    batch.variance[:] = np.nan
    bare = replace(batch, psf=np.zeros((0, 1, 1), np.float32), psf_index=np.full((3, 2), -1, np.int32))
    config = PreprocessConfig.make({"psf": "none", "registration": False})
    tensors = preprocess_batch(bare, config, DataConstants())
    assert tensors.catalog["accept"].all()
    assert tensors.valid.all()


@pytest.mark.parametrize("variance", [False, True])
def test_empty_batch(variance: bool) -> None:
    how = QUIET.model_copy(update={"variance": variance})
    tensors = preprocess_batch(make_batch(2, "gi", 32).take(slice(0, 0)), how, DataConstants())
    assert tensors.image.shape == (0, 2, 32, 32)


VALUES = [np.nan, np.inf, -np.inf, 0.0, -1.0, 3e38, -3e38, 1e-42, 1e14]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_but_finite_numbers(data: st.DataObject) -> None:
    """Rubbish of any kind in image, variance, mask, PSF: tensors, columns and constants stay finite."""
    draw = data.draw
    batch = make_batch(
        2, "gi", 16, 4, seed=draw(st.integers(0, 3)), flux=draw(st.sampled_from([0, 1e4, 1e12]))
    )
    for plane in (batch.image, batch.variance, batch.psf):
        for _ in range(draw(st.integers(0, 3))):
            where = tuple(
                draw(st.one_of(st.just(slice(None)), st.integers(0, size - 1))) for size in plane.shape
            )
            plane[where] = draw(st.sampled_from(VALUES))
    if draw(st.booleans()):
        batch.mask[draw(st.integers(0, 1)), :, 3:9] |= bit(draw(st.sampled_from(["SAT", "NO_DATA", "CR"])))
    if draw(st.booleans()):
        batch.psf_index[0, draw(st.integers(0, 1))] = -1
    methods = ["asinh", "minmax", "zscore", "log", "sqrt", "percentile", "zscale", "lupton", "none"]
    choices = {
        "psf": ["none", "match", "1.3"], "normalize": methods, "scope": ["row", "band"],
        "dtype": ["float32", "float16"],
    }  # fmt: skip
    config = PreprocessConfig.make({k: draw(st.sampled_from(v)) for k, v in choices.items()})
    with np.errstate(all="ignore"):
        tensors = preprocess_batch(batch, config, DataConstants(margin=4))
    assert np.isfinite(tensors.image).all()
    assert set(np.unique(tensors.valid)) <= {0, 1}
    for name, column in tensors.catalog.items():
        if name.startswith("norm_"):
            assert np.isfinite(column).all(), name
    if config.dtype == "float32":
        assert np.isfinite(ripple.denormalize(tensors)).all()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ripple.cli import run

    cutouts = write(tmp_path / "cutouts", make_batch(4, "gi", 32), 0)
    arguments = [
        "preprocess",
        str(cutouts),
        "-o",
        str(tmp_path / "out"),
        "--psf",
        "1.3",
        "--workers",
        "0",
        "--json",
    ]
    assert run(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["facts"]["targets"] == 5
    artefact = open_artefact(tmp_path / "out")
    assert map_tensors(artefact.shard_path(0)).psf_fwhm == 1.3


@pytest.mark.parametrize("release", ["dp1", "dp2"])
def test_release_configurations(release: str) -> None:
    from ripple.config import load_yaml

    path = Path(__file__).parents[2] / "configs" / f"quality-{release}.yaml"
    config = PreprocessConfig.make(load_yaml(path)["preprocess"])
    assert "saturated" in config.reject


def test_variance_is_that_of_the_matched_pixels(tmp_path: Path) -> None:
    """White noise through the verb: the scatter of the tensors, taken back to nJy, is what the plane says."""
    batch = make_batch(120, "gri", 40, 6)
    rng = np.random.default_rng(5)
    batch.image[:] = rng.normal(0, SIGMA, batch.image.shape)
    batch.image[7, 1] = np.nan  # a missing band
    cutouts = write(tmp_path / "cutouts", batch, 6, per_shard=60)
    preprocess(options(cutouts, tmp_path / "tensors", variance=True, noise_correlation="white"))
    preprocess(options(cutouts, tmp_path / "plain", noise_correlation="white"))
    artefact, plain = open_artefact(tmp_path / "tensors"), open_artefact(tmp_path / "plain")
    found = [map_tensors(artefact.shard_path(k)) for k in range(2)]
    assert all(b.variance is not None and b.variance.dtype == np.float32 for b in found)
    assert [map_tensors(plain.shard_path(k)).variance for k in range(2)] == [None, None]
    variance = np.concatenate([b.variance for b in found])
    flux = np.concatenate([ripple.denormalize(b) for b in found])
    assert np.isnan(variance[7, 1]).all()
    present = np.arange(len(variance)) != 7
    for band in range(3):
        ratio = flux[present, band].var() / variance[present, band].mean()
        assert ratio == pytest.approx(1, abs=0.03)
    # Matching to the broadest band smooths the others: their noise falls.
    assert np.nanmin(variance) < 0.8 * SIGMA**2
    assert verify(tmp_path / "tensors") == []
