"""Noise under galaxies: what is measured is what was planted, with and without a detection mask."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
from noise import SIGMA, measured, stamps

from ripple import write_cutouts
from ripple.cli import run
from ripple.imaging.quality.sky import detect_sources
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.shard_writer import pack_cutouts


@pytest.mark.parametrize("peak", [10, 300, 10_000])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("variance", [True, False])
def test_noise_under_galaxies(peak: int, mask: bool, variance: bool) -> None:
    noise, rho, accepted = measured(stamps(40, 64, peak, 0.0, peak, mask=mask, variance=variance))
    # 3 % as for the median of many planes; one plane of few sky pixels scatters by more.
    assert np.median(noise) / SIGMA == pytest.approx(1, abs=0.035)
    assert abs(rho) < 0.015
    assert accepted > 0.95


def test_correlated_noise_is_no_galaxy() -> None:
    noise, rho, _ = measured(stamps(40, 64, 30, 0.6, 3, mask=False, variance=True))
    assert np.median(noise) / SIGMA == pytest.approx(1, abs=0.03)
    assert rho == pytest.approx(0.44, abs=0.02)


def test_sky_is_not_taken_for_sources() -> None:
    batch = stamps(20, 64, 0, 0.0, 1, mask=False, variance=True)
    good = np.ones(batch.image.shape, bool)
    assert detect_sources(batch.image, good).mean() < 0.2
    offset = batch.image + np.float32(500)  # a level is no source
    assert detect_sources(offset, good).mean() < 0.2


def _written(tmp_path: Path, image: np.ndarray, **more: object) -> Path:
    n = len(image)
    table = {"id": np.arange(n), "ra": 10.0 + np.arange(n), "dec": np.zeros(n)}
    write_cutouts(tmp_path / "c", image, ("g", "r", "i"), table, **more)  # type: ignore[arg-type]
    return tmp_path / "c"


def test_a_band_without_good_pixels_hides_no_source() -> None:
    image = np.random.default_rng(3).standard_normal((1, 2, 48, 48)).astype(np.float32)
    image[0, 0, 20:28, 20:28] += 30
    good = np.ones(image.shape, bool)
    good[0, 1] = False
    found = detect_sources(image, good, np.ones((1, 2), np.float32))[0]
    assert found[20:28, 20:28].all()
    assert found.mean() < 0.3


def test_shifts_are_found_without_variance(tmp_path: Path) -> None:
    batch = stamps(16, 64, 100, 0.0, 5, mask=False, variance=False)
    image = batch.image.copy()
    for k in range(8):  # 1 to 15 px
        image[k, 1] = np.roll(image[k, 1], 1 + 2 * k, axis=1)
    source = _written(tmp_path, image)
    assert run(["preprocess", str(source), "-o", str(tmp_path / "t"), "--psf", "none"]) == 0
    index = open_artefact(tmp_path / "t").index()
    assert np.nonzero(index["qc_registration_r"].to_numpy())[0].tolist() == list(range(8))
    assert set(index["noise_from"].to_pylist()) == {"pixels"}


def test_what_was_not_compared_is_not_zero(tmp_path: Path) -> None:
    image = stamps(2, 64, 100, 0.0, 5, mask=False, variance=True).image.copy()
    image[1, 1:] = np.nan  # one band alone
    source = _written(tmp_path, image)
    assert run(["preprocess", str(source), "-o", str(tmp_path / "t"), "--psf", "none"]) == 0
    found = open_artefact(tmp_path / "t").index()["qc_registration_g"].to_numpy()
    assert found[0] == 0
    assert np.isnan(found[1])


def test_no_psf_is_said_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _written(tmp_path, stamps(4, 32, 100, 0.0, 5, mask=False, variance=True).image)
    assert run(["preprocess", str(source), "-o", str(tmp_path / "t")]) == 2
    assert "no row has a PSF" in (said := capsys.readouterr().err)
    assert "--psf none" in said
    assert not (tmp_path / "t").exists()


def test_verify_wants_odd_squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes shards of its own, with good checksums and kernels that have no centre."""
    from dataclasses import replace

    from ripple.storage import arrays

    def scrambled(batch: object, attributes: object) -> bytes:
        psf = np.ones((1, 4, 5), np.float32)
        return pack_cutouts(replace(batch, psf=psf, psf_index=np.zeros((2, 3), np.int32)), attributes)  # type: ignore

    monkeypatch.setattr(arrays, "pack_cutouts", scrambled)
    source = _written(tmp_path, stamps(2, 32, 10, 0.0, 5, mask=False, variance=True).image)
    assert "kernels of 5 x 4 pixels are no odd squares" in verify(source)[0]
