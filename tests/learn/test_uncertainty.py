"""Conformal coverage, distances, energies and abstention against known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toys import write_toys

from ripple.errors import IntegrityError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.model import uncertainty
from ripple.learn.model.contract import load_contract
from ripple.learn.model.distance import nearest, placed
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train


def answers(n: int, rng: np.random.Generator, lens: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    label = (rng.random(n) < lens).astype(int)
    p = 1 / (1 + np.exp(-rng.normal(1.5 * (2 * label - 1), 1.2)))
    return np.stack([1 - p, p], 1), label


def test_conformal_sets_cover_what_they_promise_in_every_class() -> None:
    rng = np.random.default_rng(0)
    covered = {0: [], 1: []}
    for _ in range(300):
        p, y = answers(600, rng)
        limits = uncertainty.conformal_quantiles(p[:300], y[:300])
        found = uncertainty.set_coverage(uncertainty.conformal_sets(p[300:], limits), y[300:])
        for k in (0, 1):
            covered[k].append(found["by_class"][str(k)])
    # Exact: 1 - alpha <= E coverage <= 1 - alpha + 1 / (n + 1), n about 30 lenses and 270 others.
    assert 0.895 < np.mean(covered[0]) < 0.91
    assert 0.895 < np.mean(covered[1]) < 0.94


def test_few_rows_take_every_class() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert uncertainty.conformal_quantiles(p, [0, 1]) == (1.0, 1.0)
    assert uncertainty.conformal_sets(p, (1.0, 1.0)).all()


def chords(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances `(N, M)` in double precision, of directions and of 0.2 times the logarithm of lengths."""
    size = [np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (x, y)]
    a, b = (np.concatenate([v / s, 0.2 * np.log(s)], -1) for v, s in zip((x, y), size, strict=True))
    return np.stack([np.linalg.norm(one - b, axis=-1) for one in a])


def test_distance_to_the_tenth_neighbour() -> None:
    rng = np.random.default_rng(0)
    bank = rng.uniform(0.1, 5.0, (4000, 3))
    x = np.array([[5.0, 0.1, 0.1], [300.0, 300.0, 300.0]])
    there = uncertainty.neighbour_distance(bank[None], x[None], 10)
    for k in range(2):
        cosine = bank @ x[k] / np.linalg.norm(bank, axis=1) / np.linalg.norm(x[k])
        ratio = 0.2 * np.log(np.linalg.norm(bank, axis=1) / np.linalg.norm(x[k]))
        each = np.sqrt(2 - 2 * cosine + ratio**2)
        assert there[k] == pytest.approx(np.sort(each)[9], abs=1e-6)
    # Ten times as long is as far as 27 degrees, whatever the scale of the features.
    far = uncertainty.neighbour_distance(10 * x[None, :1], x[None, :1])
    assert far == pytest.approx(0.2 * np.log(10))
    assert uncertainty.neighbour_distance(7 * bank[None], 7 * x[None], 10) == pytest.approx(there, abs=1e-6)
    assert np.isfinite(uncertainty.neighbour_distance(bank[None], np.zeros((1, 1, 3)))).all()
    assert uncertainty.neighbour_distance(bank[None], np.zeros((1, 0, 3))).shape == (0,)
    # Of a bank of five rows the tenth is the farthest.
    assert uncertainty.neighbour_distance(bank[None, :5], x[None], 10) == pytest.approx(
        chords(x, bank[:5]).max(1), abs=1e-6
    )


@pytest.mark.parametrize("size", [64, 768])
def test_distances_are_those_of_double_precision_also_where_they_are_small(size: int) -> None:
    rng = np.random.default_rng(2)
    bank = np.abs(rng.normal(size=(1024, size))).astype(np.float32)
    # Twins of the first rows, 1e-5 away: differences of squares in float32 cannot tell them apart.
    bank[3:6] = bank[:3] * (1 + 1e-5 * rng.normal(size=(3, size)))
    x = np.abs(rng.normal(size=(300, size))).astype(np.float32)
    x[:3], x[3:40] = bank[:3], bank[6:43] * (1 + 1e-4 * rng.normal(size=(37, size)))
    want = np.sort(chords(x.astype(np.float64), bank.astype(np.float64)), axis=1)
    assert want[:3, 0].tolist() == [0, 0, 0]
    for k in (1, 2, 10):
        found = uncertainty.neighbour_distance(bank[None], x[None], k)
        np.testing.assert_allclose(found, want[:, k - 1], rtol=0, atol=1e-6)


def test_the_nearest_rows_are_named_in_order() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    distance, row = nearest(placed(bank), torch.tensor([[2.0, 0.0]]), 9)
    assert row.tolist() == [[0, 2, 3, 1]]  # of equal ones the first
    square = 0.04 * np.log([2, 2, 2**0.5, 2]) ** 2 + np.array([0, 0, 2 - 2**0.5, 2])
    np.testing.assert_allclose(distance[0], np.sqrt(square), atol=1e-6)


def test_the_distance_of_an_ensemble_is_the_mean_over_its_members() -> None:
    rng = np.random.default_rng(1)
    bank, x = rng.normal(size=(3, 50, 4)), rng.normal(size=(3, 300, 4))
    each = [chords(a, b).min(1) for a, b in zip(x, bank, strict=True)]
    assert uncertainty.neighbour_distance(bank, x, 1) == pytest.approx(np.mean(each, axis=0), abs=1e-6)


def test_energy_is_minus_log_sum_exp() -> None:
    z = np.array([[0.0, 0.0], [1000.0, 0.0]])
    assert uncertainty.energy(z) == pytest.approx([-np.log(2), -1000.0])


def test_risk_falls_with_coverage_for_honest_confidence() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    correct = rng.random(20000) < confidence
    found = uncertainty.risk_coverage(confidence, correct)
    assert found["risk"][-1] == pytest.approx(0.25, abs=0.01)
    # Risk at coverage c is the mean of 1 - confidence over the top c: c / 4, so the mean risk is 1 / 8.
    assert found["aurc"] == pytest.approx(1 / 8, abs=0.01)
    blind = uncertainty.risk_coverage(rng.random(20000), correct)
    assert blind["aurc"] == pytest.approx(0.25, abs=0.01)


def test_columns() -> None:
    known = uncertainty.Uncertainty(quantiles=(0.3, 0.3), ood_limit=0.5)
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9]])
    found = uncertainty.doubts(known, p, np.array([0.1, 0.1, 0.1, 1.0]), ("nonlens", "lens"))
    assert found["set"].tolist() == ["nonlens", "", "lens", "lens"]
    assert found["abstain"].tolist() == [0, 1, 0, 1]
    assert found["ood"].tolist() == pytest.approx([0.2, 0.2, 0.2, 2.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("model")
    tensors = write_toys(base / "tensors", shards=2, rows=150)
    train(TrainConfig.make({
        "tensors": [str(tensors)], "output": str(base / "m"), "width": 2, "epochs": 6, "nside": 512,
        "draws": 20, "threads": 1, "lr": 0.01, "batch_size": 32, "gate_rows": 100, "dropout": 0.2,
    }))  # fmt: skip
    return base / "m"


def test_scores_carry_doubts_and_noise_is_unlike_the_training_rows(model: Path, tmp_path: Path) -> None:
    same = write_toys(tmp_path / "same", shards=1, rows=150, seed=9)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, (150, 3, 32, 32)).astype(np.float32)
    other = write_toys(tmp_path / "other", shards=1, rows=150, seed=9, image=noise)
    score(ScoreConfig.make({
        "model": str(model), "tensors": [str(same), str(other)], "output": str(tmp_path / "s"),
        "mc_dropout": 5, "threads": 1, "evaluate": True, "draws": 20,
    }))  # fmt: skip
    doubt = json.loads((tmp_path / "s" / "evaluation.json").read_text())["doubt"]
    assert 0 <= doubt["conformal"]["coverage"] <= 1
    assert doubt["abstained"] >= doubt["outside"] > 0
    table = pq.read_table(tmp_path / "s" / "scores.parquet")
    shard, ood = table["shard"].to_numpy(), table["ood"].to_numpy()
    assert np.median(ood[shard == 1]) > 1 > np.median(ood[shard == 0])
    assert table["abstain"].to_numpy()[shard == 1].mean() > 0.9
    assert set(table["set"].to_pylist()) <= {"", "lens", "nonlens", "nonlens|lens"}
    assert (
        table["spread"].to_numpy()[shard == 0] > 0
    ).all()  # dropout makes the one member disagree with itself


def test_the_bank_is_held_to_its_digest(model: Path, tmp_path: Path) -> None:
    assert load_model(model).bank is not None
    contract = load_contract(model)
    assert contract.uncertainty is not None
    bank = load_model(model).bank
    assert bank is not None
    assert torch.isfinite(bank.features).all()
    copied = tmp_path / "m"
    copied.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    data = bytearray((copied / "latent.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "latent.safetensors").write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="another digest"):
        load_model(copied)
