"""One inference path: the same row has the same number wherever it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import SMALL, make_model
from toys import write_toys

from ripple.learn.config import ExportModelConfig, ScoreConfig, TrainConfig
from ripple.learn.data.augment import orient
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.evaluation.robustness import answer
from ripple.learn.explain.explain import rows_of
from ripple.learn.model.architecture import NAMES, Architecture
from ripple.learn.model.calibrate import ClassCalibration, fit_classes, logit, shares_at, sigmoid, softmax
from ripple.learn.model.exchange import export_model
from ripple.learn.model.network import build
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.forward import (
    mean_outputs,
    member_outputs,
    probabilities,
    sliced_outputs,
    turned,
    turned_features,
    varies,
)
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "tensors", shards=2, rows=60)


@pytest.fixture(scope="module", params=[pytest.param("resnet18", marks=pytest.mark.slow), "d4cnn"])
def model(request: Any, toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, one of the kinds that are not invariant by construction."""
    output = tmp_path_factory.mktemp(request.param) / "model"
    options = SMALL | {"network": request.param, "epochs": 1, "seeds": 2, "lr": 1e-3}
    train(TrainConfig.make(options | {"tensors": [str(toys)], "output": str(output)}))
    return output


def table_of(model: Path, toys: Path, output: Path, **options: Any) -> Any:
    score(ScoreConfig.make({"model": str(model), "tensors": [str(toys)], "output": str(output), **options}))
    return pq.read_table(output / "scores.parquet").sort_by("id")


def test_one_row_has_one_number(model: Path, toys: Path, tmp_path: Path) -> None:
    """Score, calibration and metrics of training, conformal sets, robustness, explanation and export."""
    table = table_of(model, toys, tmp_path / "s", batch_size=7)
    want = table["score"].to_numpy()
    found, data = load_model(model), TensorDataset(toys)
    mean = mean_outputs(found.nets, data, np.arange(data.total), CPU)  # of training: thresholds, metrics
    np.testing.assert_allclose(sigmoid(mean[:, 0]), want, atol=1e-6)
    own = table["probability_at_training_prevalence"].to_numpy()
    np.testing.assert_allclose(probabilities(found.contract, mean)[:, 1], own, atol=1e-6)
    images = [map_tensors(open_artefact(toys).shard_path(k)).image for k in (0, 1)]
    image = torch.from_numpy(np.concatenate(images).astype(np.float32))
    np.testing.assert_allclose(sigmoid(answer(found, image, np.zeros(120, np.int64)).score), want, atol=1e-6)
    np.testing.assert_allclose(rows_of(found, data, CPU).found["score"], want, atol=1e-6)
    export_model(ExportModelConfig(model=model, output=tmp_path / "net.pt2", format="pt2"))
    with torch.inference_mode():
        exported = torch.export.load(tmp_path / "net.pt2").module()(image)[:, 0].numpy()
    np.testing.assert_allclose(sigmoid(exported), want, atol=1e-6)


def test_the_metrics_of_training_are_those_of_scoring(model: Path, toys: Path, tmp_path: Path) -> None:
    table_of(model, toys, tmp_path / "s", evaluate=True, draws=20)
    contract = load_model(model).contract
    assert contract.judged is not None
    again = open_artefact(tmp_path / "s").attributes
    assert again["judged"] == {"rows": contract.judged.rows, "split": "test"}
    for name in ("auroc", "pr_auc", "tpr0", "ece", "brier", "tpr_at_threshold"):
        assert again["evaluation"][name]["value"] == pytest.approx(contract.metrics[name]["value"], abs=2e-6)


def test_images_seen_a_few_at_a_time_give_the_same_numbers(tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path / "model", members=2))
    image = torch.randn(75, len(model.contract.bands), 32, 32, generator=torch.Generator().manual_seed(1))
    for dropout in (0, 3):
        with torch.inference_mode():
            whole = member_outputs(model.nets, image, dropout=dropout)
            found = sliced_outputs(model.nets, image, dropout=dropout)
        for ours, theirs in zip(found, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_eight_orientations_in_one_batch_give_the_same_numbers() -> None:
    net = build(Architecture("resnet18", 2, 32, 1, "small", 2, 0.0)).eval()
    image = torch.randn(5, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        both = [turned_features(net, image, 8, together=together) for together in (False, True)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_answers_as_fp32_does(name: str) -> None:
    torch.manual_seed(0)
    net = build(Architecture(name, 3, 64, 1, "small", 2, 0.0)).eval()
    image = torch.randn(16, 3, 64, 64)
    with torch.inference_mode():
        exact = net.features(image)
        with torch.autocast("cpu", torch.bfloat16):
            short = net.features(image).float()
    # bf16 has 8 bits: a hundredth in each operation, of which errors hardly add up.
    assert float((short - exact).norm() / exact.norm()) < 0.05


def test_turns_are_those_of_the_augmentation() -> None:
    image = torch.randn(3, 2, 5, 5)
    for k in range(8):
        torch.testing.assert_close(turned(image, k), orient(image, torch.full((3,), k)), rtol=0, atol=0)


def test_a_spread_needs_more_than_one_answer(tmp_path: Path) -> None:
    one = load_model(make_model(tmp_path / "a")).nets
    assert not varies(one)
    assert varies(one, dropout=5)
    assert not varies(load_model(make_model(tmp_path / "b", name="resnet18")).nets, tta=False)
    assert varies(load_model(tmp_path / "b").nets)
    assert varies(load_model(make_model(tmp_path / "c", members=2)).nets)


@pytest.mark.parametrize(("balance", "prior"), [("sampler", 0.5), ("weights", 0.5), ("none", None)])
def test_an_uncalibrated_network_believes_its_sampler(
    toys: Path, tmp_path: Path, balance: str, prior: float | None
) -> None:
    options = {"tensors": [str(toys)], "output": str(tmp_path / "m"), "balance": balance}
    train(TrainConfig.make(SMALL | options | {"epochs": 1, "calibration": "none"}))
    contract = load_model(tmp_path / "m").contract
    counts = contract.training["rows"]["train"]
    want = counts["1"] / (counts["0"] + counts["1"]) if prior is None else prior
    assert contract.calibration.prevalence == pytest.approx(want)


# --- several classes --------------------------------------------------------------------------------


def classes(n: int, shares: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three normal classes 2 sigma apart, as balanced training would give them, and labels."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=shares)
    x = rng.normal(size=(n, 3)) + 2 * np.eye(3)[label]
    return 2 * x, label


def test_class_probabilities_are_those_of_bayes() -> None:
    """Fitted on balanced logits of rows with shares .6 .1 .3, and moved to others: calibrated in both."""
    z, label = classes(40_000, (0.6, 0.1, 0.3), 0)
    known = fit_classes(3 * z, label)
    assert known.scale == pytest.approx(1 / 3, rel=0.05)
    np.testing.assert_allclose(np.diff(known.offsets), np.diff(np.log([0.6, 0.1, 0.3])), atol=0.08)
    np.testing.assert_allclose(known.probability(3 * z), softmax(z + np.log([0.6, 0.1, 0.3])), atol=0.02)
    shares = shares_at(known.shares, (1,), 0.01)
    np.testing.assert_allclose(shares, [0.66, 0.01, 0.33], atol=0.005)
    y, truth = classes(40_000, tuple(shares / shares.sum()), 1)
    assert known.probability(3 * y, shares=shares)[:, 1].mean() == pytest.approx(
        (truth == 1).mean(), abs=0.002
    )
    # Other shares of the lens alone move no rank.
    order = [np.argsort(known.probability(3 * y, shares=s)[:, 1]) for s in (None, shares)]
    assert (order[0] == order[1]).mean() > 0.999


def test_rows_of_no_class_do_not_break_the_fit() -> None:
    z, label = classes(300, (0.5, 0.0, 0.5), 2)
    found = fit_classes(z, label)
    assert np.isfinite(found.probability(z)).all()
    assert 0 < found.shares[1] < 0.01
    assert ClassCalibration().probability(z) == pytest.approx(softmax(z))
    assert logit(0.5) == 0
