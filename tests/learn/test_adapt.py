"""Domain adaptation: losses against analytic answers, and methods on toys seen by a second instrument."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import METHODS, write_pair, write_toys

from ripple.errors import ConfigError, ContractError, DataError, Interrupted
from ripple.learn.config import TrainConfig
from ripple.learn.data.training_set import few_rows, training_set
from ripple.learn.model.contract import load_contract
from ripple.learn.model.weights import load_model
from ripple.learn.training import loop, losses
from ripple.learn.training.adapt.adaptation import (
    assumed_shares,
    at_shares,
    estimated_shares,
    own_statistics,
    target_statistics,
)
from ripple.learn.training.adapt.methods import ramp, two_logits
from ripple.learn.training.loop import predict
from ripple.learn.training.train import train
from ripple.sky.splits import TRAIN
from ripple.storage.artefact import open_artefact


def gaussians(n: int, shift: float, width: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return x, shift + width * torch.randn(n, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("shift", "width"), [(1.0, 1.0), (0.0, 2.0), (2.0, 0.5)])
def test_mmd_of_two_gaussians(shift: float, width: float) -> None:
    """For a Gaussian kernel of width s, E k(x, y) = s / sqrt(v) exp(-d^2 / 2v) with v = s^2 + a^2 + b^2."""
    x, y = gaussians(2000, shift, width)
    s2 = 0.7

    def mean_kernel(a2: float, b2: float, d: float) -> float:
        v = s2 + a2 + b2
        return math.sqrt(s2 / v) * math.exp(-(d**2) / (2 * v))

    expected = mean_kernel(1, 1, 0) + mean_kernel(width**2, width**2, 0) - 2 * mean_kernel(1, width**2, shift)
    found = losses.mmd(x, y, squared_widths=torch.tensor([s2], dtype=torch.float64))
    # The biased estimate is high by about (1 - E k) / n for each cloud; the scatter is about 1 / sqrt(n).
    assert float(found) == pytest.approx(expected, abs=0.02)


def test_mmd_falls_to_zero_for_one_distribution_and_sees_weights() -> None:
    x, y = gaussians(500, 0.0)
    assert float(losses.mmd(x, y)) < 8e-3
    mixed = torch.cat([x, y + 5])
    weight = torch.cat([torch.ones(500), torch.zeros(500)]).double()
    assert float(losses.mmd(mixed, y, weight)) < 8e-3 < 0.1 < float(losses.mmd(mixed, y))


def test_coral_of_known_covariances() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(20000, 3)))
    y = torch.from_numpy(rng.normal(size=(20000, 3)) * np.array([1.0, 2.0, 3.0]) + 7)
    assert float(losses.coral(x, y)) == pytest.approx((3**2 + 8**2) / (4 * 9), rel=0.05)
    assert float(losses.coral(x, x + 3)) == pytest.approx(0, abs=1e-12)


def test_gradient_reversal_sign() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = losses.reverse(x, 0.5)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-1.5, -1.5]))  # type: ignore[arg-type]


def test_domain_loss_is_log_two_without_information() -> None:
    zero = torch.zeros(5)
    assert float(losses.domain_loss(zero, zero)) == pytest.approx(math.log(2))
    assert float(losses.domain_loss(zero + 30, zero - 30)) < 1e-9


def test_wasserstein_of_shifted_samples() -> None:
    """A critic with a gradient penalty finds the shift of two equal clouds."""
    torch.manual_seed(0)
    x = torch.randn(400, 2) + torch.tensor([3.0, 0.0])
    y = torch.randn(400, 2)
    critic = torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1), torch.nn.Flatten(0)
    )
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    for _ in range(300):
        distance = losses.wasserstein(critic(x), critic(y))
        optimizer.zero_grad()
        (100 * losses.gradient_penalty(critic, x, y) - distance).backward()
        optimizer.step()
    # A penalty of 100 lets the slope exceed 1 by W / 200.
    assert float(distance.detach()) == pytest.approx(3.0, rel=0.12)


def test_spherical_kmeans_finds_known_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3)
    truth = rng.integers(0, 3, 300)
    length = rng.uniform(0.1, 10, (300, 1))
    x = torch.from_numpy((centres[truth] + rng.normal(0, 0.15, (300, 3))) * length)
    start = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, 0.4], [0.4, 0.0, 1.0]], dtype=torch.float64)
    chosen, found = losses.spherical_kmeans(x, start)
    assert (chosen.numpy() == truth).mean() > 0.99
    assert np.abs(found.numpy() - centres).max() < 0.05
    lonely, kept = losses.spherical_kmeans(x[:1], start)
    assert int(lonely[0]) in (0, 1, 2)
    assert torch.allclose(kept.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_entropy_separation_pushes_both_ways() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 0.1]], requires_grad=True)
    losses.separation(torch.softmax(logits, 1), 0.05).backward()
    step = logits.detach() - logits.grad  # type: ignore[operator]
    before, after = (losses.entropy(torch.softmax(z, 1)) for z in (logits.detach(), step))
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_contrast_pulls_the_same_class_together() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(losses.contrastive(x, x, torch.tensor([0, 1]), torch.tensor([0, 1]))) == pytest.approx(
        0, abs=1e-6
    )
    assert float(losses.contrastive(x, x, torch.tensor([0, 1]), torch.tensor([1, 0]))) > 1


def test_weights_give_the_assumed_shares() -> None:
    label = torch.tensor([0, 0, 0, 1])
    weight = losses.class_weight(label, torch.tensor([0.9, 0.1]))
    assert float(weight[label == 1].sum() / weight.sum()) == pytest.approx(0.1)
    assert float(weight.mean()) == pytest.approx(1)
    # A class that the batch lacks cannot have its share; a batch of such classes alone stays as it is.
    both = torch.tensor([0.0, 0.5, 0.5])
    assert losses.class_weight(torch.tensor([1, 1, 0]), both).tolist() == [1.5, 1.5, 0.0]
    assert losses.class_weight(torch.tensor([0, 0]), both).tolist() == [1.0, 1.0]


def test_shares_are_found_when_only_they_differ() -> None:
    rng = np.random.default_rng(0)
    label = rng.random(20000) < 0.1
    z = rng.normal(1.0 * (2 * label - 1), 1.0)  # log odds are 2 z at equal shares
    p = 1 / (1 + np.exp(-2 * z))
    found = estimated_shares(np.stack([1 - p, p], 1), np.array([0.5, 0.5]))
    assert found[1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.5), (0.01, 0.15), (0.5, 0.1)])
def test_rows_drawn_again_have_the_share_of_the_source(before: float, after: float) -> None:
    """Each best row as often as the others, give or take one, and the others from all ranks alike."""
    drawn = at_shares(np.arange(1000)[::-1], before, after)
    best = drawn >= 1000 - round(1000 * before)
    assert len(drawn) == 1000
    assert best.mean() == pytest.approx(after)
    count = np.unique(drawn[best], return_counts=True)[1]
    assert len(count) == min(round(1000 * before), round(1000 * after))
    assert count.max() - count.min() <= 1
    assert drawn[~best].mean() == pytest.approx((1000 - round(1000 * before)) / 2, rel=0.01)


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize(("before", "after"), [(0.001, 0.999), (0.999, 0.5), (0.5, 0.0), (0.1, 1.0)])
def test_few_rows_are_drawn_again_with_extreme_shares(rows: int, before: float, after: float) -> None:
    drawn = at_shares(np.arange(rows), before, after)
    assert len(drawn) == rows
    assert set(drawn) <= set(range(rows))


def test_statistics_of_the_target_are_those_of_the_source_when_only_shares_differ(tmp_path: Path) -> None:
    """Half of the source are lenses, a tenth of the target; otherwise they are alike."""
    source = write_toys(tmp_path / "source", shards=1, rows=400, lens=0.5)
    target = write_toys(tmp_path / "target", shards=1, rows=400, lens=0.1, seed=5)
    options = {**SMALL, "tensors": [str(source)], "target": [str(target)], "output": str(tmp_path / "m"),
               "adapt": "adabn", "epochs": 6, "gate_rows": 100}  # fmt: skip
    train(TrainConfig.make(options))
    given = TrainConfig.make(options | {"target_prevalence": 0.1})
    data = training_set(given)
    net, cpu = load_model(tmp_path / "m").nets[0], torch.device("cpu")
    own = own_statistics(net, data.dataset, data.rows(TRAIN), cpu)
    lens = {}
    for name, config in (("not given", TrainConfig.make(options)), ("given", given)):
        there = target_statistics(net, data, config, cpu)
        rows = data.target.rows(TRAIN)  # type: ignore[union-attr]
        score = predict(there, data.target, rows, cpu)[:, 0]  # type: ignore[arg-type]
        level = predict(own, data, data.rows(TRAIN), cpu)[:, 0]
        lens[name] = float((score > np.median(level)).mean())
    # Normalised over its own few lenses, the target seems to have nearly as many as the source.
    assert lens["not given"] > 0.2
    assert lens["given"] < 0.6 * lens["not given"]
    record = load_contract(tmp_path / "m").training["adaptation"]
    assert "--target-prevalence" in record["warning"]


def test_small_things() -> None:
    assert ramp(0) == 0
    assert ramp(1) == pytest.approx(1, abs=1e-4)
    z = torch.tensor([[2.0]])
    assert torch.softmax(two_logits(z), 1)[0, 1] == torch.sigmoid(z)[0, 0]
    labels = np.array([0] * 95 + [1] * 5)
    chosen = few_rows(np.arange(100), labels, 20, 0)
    assert len(chosen) == 20
    assert 1 <= labels[chosen].sum() <= 2


# --- on toys ----------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {
    "width": 2, "epochs": 2, "batch_size": 32, "nside": 512, "draws": 20, "threads": 1, "lr": 0.01,
    "adapt_start": 0.5, "gate_rows": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def config(pair: tuple[Path, Path], output: Path, **changes: Any) -> TrainConfig:
    fields = SMALL | {"tensors": [str(pair[0])], "target": [str(pair[1])], "output": str(output)} | changes
    if fields.get("adapt") == "supervised":
        fields |= {"target_labels": 20}
    return TrainConfig.make(fields)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_is_written_down(pair: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    train(config(pair, tmp_path / "m", adapt=method))
    contract = load_contract(tmp_path / "m")
    record = contract.training["adaptation"]
    assert record["method"] == method
    assert sum(record["assumed_shares"]) == pytest.approx(1)
    assert 0 <= record["auroc"]["value"] <= 1
    assert contract.psf_fwhm == 0.9  # what the target has: the network is for the target
    assert contract.members[0].epoch == 2  # the last epoch, not the best on source sky
    assert contract.training["inputs"] == [open_artefact(path, "tensors").digest for path in pair]
    evaluation = json.loads((tmp_path / "m" / "evaluation.json").read_text())
    assert evaluation["target"]["method"] == method


@pytest.mark.parametrize("method", ["wdgrl", "adda"])
def test_a_killed_adaptation_ends_with_the_same_bytes(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    train(config(pair, tmp_path / "whole", adapt=method, epochs=4, adapt_start=0.25))
    calls, original = 0, loop.lens_loss

    def interrupted(*args: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 * 4:  # three batches and a validation per epoch: in the third
            raise Interrupted(signal.SIGTERM)
        return original(*args, **named)

    monkeypatch.setattr(loop, "lens_loss", interrupted)
    with pytest.raises(Interrupted):
        train(config(pair, tmp_path / "cut", adapt=method, epochs=4, adapt_start=0.25))
    train(config(pair, tmp_path / "cut", adapt=method, epochs=4, adapt_start=0.25))
    for name in ("model.safetensors", "latent.safetensors", "history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_target_labels_are_not_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The same target without labels gives the same weights."""
    blank = write_toys(
        tmp_path / "blank", shards=2, rows=60, seed=5, psf_fwhm=0.9, catalog_extra={"label": np.full(60, -1)}
    )
    for name, target in (("seen", pair[1]), ("blank", blank)):
        train(config((pair[0], target), tmp_path / name / "m", adapt="kmeans"))
    weights = [(tmp_path / n / "m" / "model.safetensors").read_bytes() for n in ("seen", "blank")]
    assert weights[0] == weights[1]
    assert "auroc" not in load_contract(tmp_path / "blank" / "m").training["adaptation"]


def test_same_blocks_of_sky_for_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from ripple.sky.splits import sky_cells

    data = training_set(config(pair, tmp_path, adapt="mmd"))
    assert data.target is not None
    cells = [sky_cells(d.column("ra"), d.column("dec"), 512) for d in (data.dataset, data.target.dataset)]
    seen = set(cells[0][data.split <= 1][data.split[data.split <= 1] >= 0].tolist())
    assert not seen & set(cells[1][data.target.split == 2].tolist())
    assert data.held.by == "sky"
    assert set(cells[1][data.target.split == 0].tolist()) <= set(data.held.train)


def test_a_target_that_does_not_fit_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    small = write_toys(tmp_path / "small", shards=1, rows=40, size=24)
    with pytest.raises(ContractError, match=r"size is \(24, 24\)"):
        train(config((pair[0], small), tmp_path / "m", adapt="mmd"))
    other = write_toys(tmp_path / "other", shards=1, rows=40, class_map={"0": "star", "1": "lens"})
    with pytest.raises(ContractError, match="classes are star, lens, but those of the source"):
        train(config((pair[0], other), tmp_path / "m", adapt="mmd"))


def test_a_label_without_a_share_is_refused_before_the_first_batch(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    how = config(pair, tmp_path, adapt="mmd")
    data = training_set(how)
    assert assumed_shares(data, how).sum() == pytest.approx(1)
    label = data.labels.copy()
    label[data.rows(TRAIN)[0]] = 2
    data.dataset.replace_column("label", label)
    with pytest.raises(DataError, match="labels 0 to 2, but 2 classes"):
        assumed_shares(data, how)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": "none"}, "belong together"),
        ({"adapt": "none", "target": (), "task": "classes", "calibration": "isotonic"}, "of lens finders"),
        ({"adapt": "teacher", "ema": 0}, "moving average"),
        ({"adapt": "mmd", "target_labels": 5}, "target-labels belongs"),
        ({"adapt": "kmeans", "task": "regression", "targets": ["theta_E"]}, "needs classes"),
    ],
)
def test_options_that_contradict(pair: tuple[Path, Path], tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(pair, tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_in_small(tmp_path: Path) -> None:
    """Two instruments: batch statistics of the target's own already close part of the gap."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        str(root / "scripts/bench/gap.py"),
        str(root / "scripts/bench/configs/gap-instruments.yaml"),
    ]
    small = ["seeds=[0]", "rows=800", "methods=[adabn]", "labels=[50]", "fractions=[0.6, 0.2, 0.2]"]
    command += ["-o", str(tmp_path / "gap"), *[part for s in small for part in ("--set", s)]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=900)
    runs = json.loads((tmp_path / "gap" / "result.json").read_text())["runs"]
    auroc = {name: records[0]["target_auroc"] for name, records in runs.items()}
    assert auroc["ceiling"] > auroc["source-only"] + 0.05
    assert auroc["adabn"] > auroc["source-only"] + 0.03
    assert (tmp_path / "gap" / "result.md").read_text().count("| adabn |") == 2
