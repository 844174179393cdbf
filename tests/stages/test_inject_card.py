"""`inject --card`: distributions, and planted flaws that give painted rows away."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutout_artefacts import write

from ripple.cli import run
from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.simulation.observing import moffat
from ripple.stages.inject import card as report
from ripple.stages.inject import inject as painter
from ripple.stages.inject import literature, paint
from ripple.stages.inject.spectra import ab_magnitudes, read_spectrum, spectrum_file
from ripple.storage.artefact import verify

N, SIZE = 240, 48


def galaxies() -> CutoutBatch:
    """Round galaxies of very different brightness, which the column `light` knows, in g and r."""
    rng = np.random.default_rng(4)
    light = rng.uniform(300, 3000, N)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    shape = np.exp(-np.hypot(x, y) / 2.5)
    image = 8 * rng.standard_normal((N, 2, SIZE, SIZE)) + light[:, None, None, None] * shape
    catalog: dict[str, np.ndarray[Any, Any]] = {
        "index": np.arange(N, dtype=np.int64), "id": light.astype(np.int64), "ra": np.zeros(N),
        "dec": np.zeros(N), "dx": np.zeros(N, np.float32), "dy": np.zeros(N, np.float32),
    }  # fmt: skip
    return CutoutBatch(
        ("g", "r"), image.astype(np.float32), np.full(image.shape, 64, np.float32),
        np.zeros(image.shape, np.uint32), MASK_PLANES, moffat(41, 4.0, 0.0, 0.0).astype(np.float32)[None],
        np.zeros((N, 2), np.int32), catalog,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("card") / "cutouts", galaxies(), 0, per_shard=120))


def card(cutouts: str, out: Path, *more: str) -> dict[str, Any]:
    argv = ["inject", cutouts, "--card", "--theta-min", "1.8", "--theta-max", "2.5", "--workers", "0", "-q"]
    assert run([*argv, *more, "-o", str(out)]) == 0
    assert verify(out) == []
    found: dict[str, Any] = json.loads((out / "realism.json").read_text())
    return found


def flaws(found: dict[str, Any]) -> set[str]:
    """Names of the checks that found something; of the colours what they found."""
    painting = dict(found["painting"])
    colours = painting.pop("colours")["verdict"]
    bad = {name for name, bands in painting.items() if any(v["verdict"] == "flaw" for v in bands.values())}
    gates = found["shortcuts"]["gates"] or {}
    bad |= {name for name, gate in gates.items() if gate["verdict"] == "shortcut"}
    return bad | ({colours} - {"ok"})


@pytest.mark.slow
def test_nothing_gives_arcs_away_in_hosts_drawn_at_random(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "0.5")
    assert flaws(found) == set()
    gates = found["shortcuts"]["gates"]
    assert set(gates) == {
        n + k for n in ("central_pixels", "pixel_noise", "host_light") for k in ("", "_boosted")
    }
    assert gates["host_light"]["verdict"] != "shortcut"
    assert gates["central_pixels"]["verdict"] != "shortcut"
    known = found["distributions"]
    assert {"theta_E", "source_mag", "arc_snr", "mag g", "g - r"} <= set(known)
    sizes = {kind: one["quantiles"][2] for kind, one in known["half-light radius"]["of"].items()}
    # An exponential of 2.5 pixels has half of its light within 1.68 of them, less within a finite aperture.
    assert 0.7 < sizes["their hosts"] < 0.2 * 2.5 * 1.68
    assert sizes["sources"] == pytest.approx(0.24, abs=0.04)
    assert 1.8 <= known["theta_E"]["of"]["arcs"]["quantiles"][0] <= 2.5
    assert set(known["theta_E"]["literature"]) == {literature.FORECAST, literature.SLACS}
    kinds = known["mag g"]["of"]
    assert kinds["their hosts"]["rows"] == found["rows"]["injected"]
    assert sum(found["rows"].values()) == N
    page = (tmp_path / "a" / "realism.html").read_text()
    assert "Realism of painted arcs" in page
    assert page.count("<svg") == len(known)
    assert "forecast for LSST (Collett 2015), 25 to 75 %" in page
    assert card(cutouts, tmp_path / "b", "--fraction", "0.5") == found


def test_hosts_that_are_always_bright_are_reported(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "1", "--hosts", "id > 1500")
    gates = found["shortcuts"]["gates"]
    assert gates["host_light"]["verdict"] == gates["central_pixels"]["verdict"] == "shortcut"
    assert "host_light: painted rows are told from others" in (tmp_path / "a" / "realism.html").read_text()


Painter = Callable[[pytest.MonkeyPatch], None]


def without_noise(patch: pytest.MonkeyPatch, *, variance: bool = True) -> None:
    def add(image: Any, plane: Any, arcs: Any, gain: Any, rng: Any) -> None:
        image += arcs
        if variance:
            plane += np.maximum(arcs, 0) * gain[:, None, None].astype(np.float32)

    patch.setattr(painter, "add_arcs", add)


def through(fwhm: float) -> Painter:
    """Arcs through a PSF of so many pixels, whatever that of their cell is."""
    kernel = moffat(41, fwhm, 0.0, 0.0).astype(np.float32)[None]

    def apply(patch: pytest.MonkeyPatch) -> None:
        right = paint.through_psf
        patch.setattr(paint, "through_psf", lambda s, batch, k: right(s, replace(batch, psf=kernel), k))

    return apply


def coloured(g_r: float, spread: float) -> Painter:
    def magnitudes(rng: np.random.Generator, i_mag: Any) -> Any:
        g = i_mag + g_r + spread * rng.standard_normal(len(i_mag))
        return np.stack([g, g, i_mag, i_mag, i_mag, i_mag], axis=1)

    return lambda patch: patch.setattr(paint, "blue_magnitudes", magnitudes)


# The slow ones are the others over again: a second of each.
@pytest.mark.parametrize(
    ("painted", "expected"),
    [
        pytest.param(without_noise, {"photon_noise"}, marks=pytest.mark.slow),
        (lambda patch: without_noise(patch, variance=False), {"photon_noise", "variance"}),
        (through(6.0), {"psf_width"}),  # 1.5 times the right one
        pytest.param(through(4.4), {"psf_width"}, marks=pytest.mark.slow),
        (through(0.3), {"psf_width", "photon_noise"}),  # none: what it leaves of the arc is as fine as noise
        (coloured(-0.1, 0.12), {"always blue"}),
        pytest.param(coloured(0.25, 0.005), {"all alike"}, marks=pytest.mark.slow),
        pytest.param(coloured(0.35, 0.15), set(), marks=pytest.mark.slow),
    ],
)
def test_planted_flaws_are_reported(
    cutouts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, painted: Painter, expected: set[str]
) -> None:
    # What needs no other rows; classifiers take seconds.
    monkeypatch.setattr(report, "shortcuts", lambda *_: {"gates": None, "reason": "not asked"})
    painted(monkeypatch)
    found = card(cutouts, tmp_path / "a", "--fraction", "0.5")
    assert flaws(found) == expected


@pytest.mark.slow  # twenty seconds
@pytest.mark.parametrize("seed", range(2, 8))
def test_nothing_is_reported_of_what_is_right(cutouts: str, tmp_path: Path, seed: int) -> None:
    assert flaws(card(cutouts, tmp_path / "a", "--fraction", "0.5", "--seed", str(seed))) == set()


def test_the_flaws_are_said(
    cutouts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "shortcuts", lambda *_: {"gates": None, "reason": "not asked"})
    without_noise(monkeypatch)
    argv = ["inject", cutouts, "--card", "--workers", "0", "-o", str(tmp_path / "a")]
    assert run(argv) == 0
    said = "Arcs have 0.00 times the photon noise of their light in g."
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in (tmp_path / "a" / "realism.html").read_text()


def test_colours_of_templates_are_those_of_their_spectra() -> None:
    pytest.importorskip("galsim")
    z = np.array(literature.REDSHIFTS)
    for name, table in (("CWW_Im_ext", literature.IM), ("CWW_Sbc_ext", literature.SBC)):
        mags = ab_magnitudes(read_spectrum(spectrum_file(name)), z, tuple("ugrizy"))
        np.testing.assert_allclose(table, mags - mags[:, 3:4], atol=0.006)


def test_too_few_rows(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "0.05")
    assert found["shortcuts"]["gates"] is None
    assert "fewer than 40" in found["shortcuts"]["reason"]
    assert found["painting"]["photon_noise"]["g"]["verdict"] == "unknown"
