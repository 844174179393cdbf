"""`inject --card`: distributions, and planted flaws that give painted rows away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutout_artefacts import write

from ripple.cli import run
from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.simulation.observing import moffat
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


def test_nothing_gives_arcs_away_in_hosts_drawn_at_random(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "0.5")
    gates = found["shortcuts"]["gates"]
    assert set(gates) == {
        n + k for n in ("central_pixels", "pixel_noise", "host_light") for k in ("", "_boosted")
    }
    assert gates["host_light"]["verdict"] != "shortcut"
    assert gates["central_pixels"]["verdict"] != "shortcut"
    known = found["distributions"]
    assert {"theta_E", "source_mag", "arc_snr", "mag g", "g - r"} <= set(known)
    assert 1.8 <= known["theta_E"]["of"]["arcs"]["quantiles"][0] <= 2.5
    kinds = known["mag g"]["of"]
    assert kinds["their hosts"]["rows"] == found["rows"]["injected"]
    assert sum(found["rows"].values()) == N
    page = (tmp_path / "a" / "realism.html").read_text()
    assert "Realism of painted arcs" in page
    assert page.count("<svg") == len(known)
    assert card(cutouts, tmp_path / "b", "--fraction", "0.5") == found


def test_hosts_that_are_always_bright_are_reported(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "1", "--hosts", "id > 1500")
    gates = found["shortcuts"]["gates"]
    assert gates["host_light"]["verdict"] == gates["central_pixels"]["verdict"] == "shortcut"
    assert "host_light: painted rows are told from others" in (tmp_path / "a" / "realism.html").read_text()


def test_too_few_rows(cutouts: str, tmp_path: Path) -> None:
    found = card(cutouts, tmp_path / "a", "--fraction", "0.05")
    assert found["shortcuts"]["gates"] is None
    assert "fewer than 40" in found["shortcuts"]["reason"]
