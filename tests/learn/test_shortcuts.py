"""Shortcut gates: planted flaws are found, fair toys are not accused, memory stays below that of the rows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import SMALL
from toys import toy_batch, write_batches

from ripple.imaging.batch import TensorBatch
from ripple.learn.config import TrainConfig
from ripple.learn.data.training_set import TrainingSet, training_set
from ripple.learn.evaluation import shortcuts

LIMIT = 0.65


def data_of(path: Path, flaw: Callable[[TensorBatch, np.ndarray], None] | None = None) -> TrainingSet:
    """1,200 toys in equal numbers, with a flaw in the pixels or columns of the lenses."""
    batches = []
    for k in range(3):
        batch = toy_batch(400, 500 + k, first=400 * k, lens=0.5)
        batch = replace(batch, image=batch.image.copy(), catalog=dict(batch.catalog))
        if flaw:
            flaw(batch, np.asarray(batch.catalog["label"]) == 1)
        batches.append(batch)
    tensors = write_batches(path, batches)
    options = SMALL | {"tensors": [str(tensors)], "output": str(path / "m"), "fractions": [0.5, 0.2, 0.3]}
    return training_set(TrainConfig.make(options))


def gates_of(data: TrainingSet) -> dict[str, Any]:
    found = shortcuts.run_gates(data, limit=LIMIT, rows=1200, draws=50, seed=0)
    return dict(found["shortcuts"])


def level(batch: TensorBatch, lens: np.ndarray) -> None:
    """A level of +0.15 or -0.15 in lenses: half the noise, of either sign, invisible to a line."""
    sign = np.random.default_rng(len(batch) + int(lens.sum())).choice([-1, 1], lens.sum())
    batch.image[lens] += 0.15 * sign[:, None, None, None]


def noise(batch: TensorBatch, lens: np.ndarray) -> None:
    """Lenses have noise of 0.05 more, added in quadrature to 0.3: 1.4 per cent in each pixel."""
    rng = np.random.default_rng(int(lens.sum()))
    batch.image[lens] += rng.normal(0, np.sqrt(0.35**2 - 0.3**2), batch.image[lens].shape)


def psf_width(batch: TensorBatch, lens: np.ndarray) -> None:
    """Lenses were drawn with a wider PSF: three pixels averaged along x."""
    wide = batch.image[lens]
    batch.image[lens] = (wide + np.roll(wide, 1, -1) + np.roll(wide, -1, -1)) / 3


def psf_column(batch: TensorBatch, lens: np.ndarray) -> None:
    """The catalogue says that lenses have better seeing."""
    batch.catalog["psf_g"][lens] -= 0.15  # type: ignore[index]


def blue_companions(batch: TensorBatch, lens: np.ndarray) -> None:
    """Companions of ellipticals are always blue, arcs never are: light of the first band at their place."""
    y, x = np.mgrid[:32, :32]
    ring = (np.hypot(y - 16, x - 16) > 4) & (np.hypot(y - 16, x - 16) < 10)
    batch.image[~lens, 0] += 0.35 * ring


@pytest.mark.parametrize(
    ("flaw", "gates"),
    [
        (level, ("pixel_noise_boosted",)),
        (noise, ("pixel_noise", "pixel_noise_boosted")),
        (psf_width, ("pixel_noise",)),
        (psf_column, ("psf_noise",)),
    ],
)
def test_planted_flaws_are_found(
    tmp_path: Path, flaw: Callable[[TensorBatch, np.ndarray], None], gates: tuple[str, ...]
) -> None:
    found = gates_of(data_of(tmp_path / "t", flaw))
    for name in gates:
        assert found[name]["verdict"] == "shortcut", (name, found[name])
        assert not found[name]["passed"]


def test_always_blue_companions_come_near_the_network(tmp_path: Path) -> None:
    data = data_of(tmp_path / "t", blue_companions)
    report = shortcuts.run_gates(data, limit=LIMIT, rows=1200, draws=50, seed=0)
    assert any(line.startswith("flux_colour") for line in shortcuts.too_near(report, 0.98, 0.1))


def test_fair_toys_are_accused_of_nothing_but_the_light_of_their_arcs(tmp_path: Path) -> None:
    """An arc of a toy has more light than a blob, which rings and fluxes see."""
    report = shortcuts.run_gates(data_of(tmp_path / "t"), limit=LIMIT, rows=1200, draws=50, seed=0)
    lines = shortcuts.too_near(report, 0.98, 0.1)
    assert [line for line in lines if not line.startswith(shortcuts.SEES_ARCS)] == []
    assert {gate["verdict"] for name, gate in report["shortcuts"].items() if "noise" in name} == {"ok"}


def test_truth_never_enters(tmp_path: Path) -> None:
    def truth(batch: TensorBatch, lens: np.ndarray) -> None:
        rng = np.random.default_rng(1)
        for name in ("injected", "lens_mag_i", "z_lens", "true_flux", "deflector_mag", "is_lens_candidate"):
            batch.catalog[name] = lens + rng.normal(0, 0.1, len(lens))  # type: ignore[index]

    found = shortcuts.run_gates(data_of(tmp_path / "t", truth), limit=LIMIT, rows=1200, draws=50, seed=0)
    assert found["columns"] == ["mag_i", "psf_g"]


def test_memory_stays_below_that_of_the_rows(tmp_path: Path) -> None:
    data = data_of(tmp_path / "t")
    rows = np.arange(1200)
    size = data.dataset.read(rows[:1]).astype(np.float32).nbytes * len(rows)
    gates_of(data)  # what is imported and mapped once does not count
    tracemalloc.start()
    gates_of(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size


def test_an_interval_decides() -> None:
    def verdict(value: float, low: float, high: float, limit: float = LIMIT) -> str:
        return shortcuts.Gate("g", shortcuts.Estimate(value, low, high), 1, limit).verdict

    assert verdict(0.9, 0.7, 0.95) == "shortcut"
    assert verdict(0.7, 0.55, 0.8) == "undecided"
    assert verdict(0.5, 0.4, 0.6) == "ok"
    assert verdict(0.9, 0.8, 0.95, 1.0) == "ok"  # compared with the network alone


def test_arcs_are_masked_out_of_the_centre() -> None:
    """A deflector that is symmetric stays, light on one side of it goes."""
    y, x = np.mgrid[:32, :32]
    deflector = np.exp(-(((y - 16) ** 2 + (x - 16) ** 2) / 8))
    arc = 2.0 * ((x - 16 >= 3) & (np.abs(y - 16) <= 2))
    both = np.stack([deflector, deflector + arc])[:, None].astype(np.float32)
    found = shortcuts.central_pixels(both)
    assert found.shape == (2, 100)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
