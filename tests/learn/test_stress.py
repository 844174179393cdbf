"""The robustness card: disturbances do what they say, and the attack finds a pixel that matters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import BANDS, toy_batch, write_toys

from ripple.errors import ConfigError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.evaluation import perturb, robustness
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train

NOISE = 0.3


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "tensors", shards=2, rows=200)


@pytest.fixture(scope="module")
def model(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("model") / "m"
    train(TrainConfig.make({
        "tensors": [str(toys)], "output": str(output), "width": 2, "epochs": 4, "nside": 512, "draws": 20,
        "threads": 1, "lr": 0.01, "batch_size": 32, "gate_rows": 100,
    }))  # fmt: skip
    return output


@pytest.fixture(scope="module")
def cutouts(model: Path) -> perturb.FluxCutouts:
    contract = load_model(model).contract
    batch = toy_batch(40, 3)
    catalog = batch.catalog | {f"norm_offset_{b}": np.zeros(40) for b in BANDS}
    catalog |= {f"norm_scale_{b}": np.full(40, 2.0) for b in BANDS}
    batch = type(batch)(**{**{n: getattr(batch, n) for n in batch.__slots__}, "catalog": catalog})
    return perturb.flux_cutouts(batch, np.arange(40), contract, torch.device("cpu"))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_fluxes_come_back_as_the_tensors_they_were(cutouts: perturb.FluxCutouts) -> None:
    image = torch.from_numpy(toy_batch(40, 3).image)
    assert torch.allclose(cutouts.tensor(cutouts.flux), image, atol=1e-5)


def test_noise_is_measured_and_doubled(cutouts: perturb.FluxCutouts) -> None:
    flat = perturb.FluxCutouts(
        100 + 5 * torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(7)).double(),
        torch.full((50, 3, 1, 1), 5.0, dtype=torch.float64), *[torch.zeros(50, 3)] * 2, "none", 0.2,
    )  # fmt: skip
    assert float(perturb.more_noise(flat, generator()).std()) == pytest.approx(10, rel=0.02)
    assert float(perturb.shallower(flat, generator()).std()) == pytest.approx(5 * 10**0.2, rel=0.02)
    assert float((perturb.lossy(flat, generator()) - flat.flux).std()) == pytest.approx(
        2.5 / 12**0.5, rel=0.03
    )
    assert float((perturb.quantised(flat, generator()) / 5 - (flat.flux / 5).round()).abs().max()) < 1e-9
    assert torch.allclose(perturb.gain(flat, generator()) / flat.flux, torch.tensor(1.1).double())


def test_geometry_of_disturbances(cutouts: perturb.FluxCutouts) -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    spot = torch.exp(-((x - 15) ** 2 + (y - 12) ** 2) / 8)[None, None].double()
    moved = perturb.shifted(spot, 0.5, -0.25)
    assert float((moved * y).sum() / moved.sum()) == pytest.approx(12.5, abs=1e-3)
    assert float((moved * x).sum() / moved.sum()) == pytest.approx(14.75, abs=1e-3)
    assert torch.allclose(perturb.turned(spot, 0.0), spot, atol=1e-9)
    quarter = perturb.turned(spot, 90.0)
    assert min(float((quarter - torch.rot90(spot, k, (-2, -1))).abs().max()) for k in (1, 3)) < 1e-6
    blurred = perturb.worse_seeing(cutouts, generator())
    assert float(blurred.sum()) == pytest.approx(float(cutouts.flux.sum()), rel=0.05)
    assert float(blurred.var()) < float(cutouts.flux.var())


def test_tracks_lie_in_one_band(cutouts: perturb.FluxCutouts) -> None:
    for track in (perturb.cosmic_ray, perturb.satellite):
        hit = (track(cutouts, generator()) - cutouts.flux).abs().amax((2, 3)) > 0
        assert (hit.sum(1) <= 1).all()
        assert hit.any(1).float().mean() > 0.9


def test_every_disturbance_changes_only_what_it_says(cutouts: perturb.FluxCutouts) -> None:
    before = cutouts.flux.clone()
    names = perturb.disturbances(BANDS)
    assert {"g missing", "r missing", "i missing", "r shifted by a pixel"} <= set(names)
    for name, change in names.items():
        out = change(cutouts, generator())
        assert out.shape == before.shape, name
        assert torch.isfinite(out).all(), name
        assert not torch.equal(out, before), name
        assert torch.equal(cutouts.flux, before), name


def test_the_attack_finds_the_pixel_that_matters(cutouts: perturb.FluxCutouts) -> None:
    few = cutouts.take(torch.arange(4))
    target = few.tensor(few.flux.amax((2, 3), keepdim=True))[:, 1, 0, 0]

    def probability(image: torch.Tensor) -> torch.Tensor:
        """Falls when a pixel near (9, 20) is bright in r."""
        best = image[:, 1, 5:14, 16:25].amax((1, 2)).double()
        return 1 / (1 + torch.exp(4 * (best - target.repeat_interleave(len(image) // 4))))

    out = perturb.one_pixel(probability, few, generator())
    changed = (out != few.flux).any(1)
    assert (changed.sum((1, 2)) <= 1).all()
    before, after = probability(few.tensor(few.flux)), probability(few.tensor(out))
    assert (after < before + 1e-12).all()
    assert float((before - after).max()) > 0.1


def test_a_turned_image_does_not_change_an_invariant_network(
    model: Path, cutouts: perturb.FluxCutouts
) -> None:
    label = np.asarray(toy_batch(40, 3).catalog["label"])
    loaded: Model = load_model(model)
    found = robustness.card(loaded, cutouts, label, seed=0, attacked=2, device=torch.device("cpu"))
    lines = {line["disturbance"]: line for line in found["card"]}
    assert lines["turn by 90 deg"]["flip_rate"]["value"] == 0
    assert lines["mirror"]["mean_change"] < 1e-4
    assert lines["noise x 2"]["mean_change"] > 1e-3
    assert found["undisturbed"]["wrong_class_distance"] > 0
    again = robustness.card(loaded, cutouts, label, seed=0, attacked=2, device=torch.device("cpu"))
    assert json.dumps(again) == json.dumps(found)


def test_score_writes_the_card(model: Path, tmp_path: Path) -> None:
    norms = {f"norm_offset_{b}": np.zeros(120) for b in BANDS} | {
        f"norm_scale_{b}": np.ones(120) for b in BANDS
    }
    tensors = write_toys(tmp_path / "t", shards=2, rows=120, seed=4, catalog_extra=norms)
    score(ScoreConfig.make({
        "model": str(model), "tensors": [str(tensors)], "output": str(tmp_path / "s"), "stress": True,
        "stress_rows": 40, "attacked_rows": 4, "threads": 1,
    }))  # fmt: skip
    found = json.loads((tmp_path / "s" / "stress.json").read_text())
    assert found["rows"] <= 40
    assert {line["disturbance"] for line in found["card"]} > {"one-pixel attack", "satellite trail"}
    lines = (tmp_path / "s" / "stress.csv").read_text().splitlines()
    assert len(lines) == 2 + len(found["card"])
    assert lines[1].startswith("none,")
    assert (tmp_path / "s" / "stress.png").read_bytes()[:4] == b"\x89PNG"


def test_dropout_is_asked_of_models_that_have_it(model: Path, toys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained without"):
        score(ScoreConfig.make({
            "model": str(model), "tensors": [str(toys)], "output": str(tmp_path / "s"), "mc_dropout": 3,
        }))  # fmt: skip
