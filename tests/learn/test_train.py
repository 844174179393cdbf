"""Training on toys: it learns, it resumes to the same weights, it refuses what it should."""

from __future__ import annotations

import copy
import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from models import SMALL
from toys import toy_batch, write_batches, write_toys

from ripple.cli import run
from ripple.errors import ConfigError, ContractError, DataError, IntegrityError, Interrupted, WriteError
from ripple.learn.config import TrainConfig
from ripple.learn.data.training_set import training_set
from ripple.learn.evaluation import shortcuts
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import load_contract
from ripple.learn.model.network import build
from ripple.learn.model.weights import load_model
from ripple.learn.training import loop
from ripple.learn.training.train import train
from ripple.runtime.signals import Stop

#: For tests that start programs or compilers, which take minutes on a busy machine.
PATIENT = pytest.mark.timeout(1200)
#: One thread each for programs that run beside others.
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "tensors")


def config(toys: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.make(SMALL | {"tensors": [str(toys)], "output": str(output)} | changes)


@pytest.fixture(scope="module")
def model(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("model") / "model"
    train(config(toys, output, epochs=12, width=4))
    return output


def test_it_learns_and_writes_a_model(toys: Path, model: Path) -> None:
    names = {p.name for p in model.iterdir()}
    assert names == {
        ".lock", "latent.safetensors", "model.json", "model.safetensors", "history.csv", "evaluation.json",
        "curves.png", "manifest.json",
    }  # fmt: skip
    contract = load_contract(model)
    assert contract.metrics["auroc"]["value"] > 0.9
    assert contract.bands == ("g", "r", "i")
    assert (contract.size, contract.psf_fwhm, contract.pixel_scale) == (32, 1.2, 0.2)
    history = list(csv.DictReader((model / "history.csv").open()))
    best = max(float(r["val_pr_auc"]) for r in history)
    assert float(next(r for r in history if r["best"] == "1")["val_pr_auc"]) == best
    assert contract.members[0].epoch == int(next(r["epoch"] for r in history if r["best"] == "1"))
    assert contract.training["inputs"] == list(training_set(config(toys, model)).digests)


def test_again_does_nothing_and_other_options_are_refused(toys: Path, model: Path) -> None:
    before = (model / "model.json").read_bytes()
    assert train(config(toys, model, epochs=12, width=4)).done_before
    with pytest.raises(ConfigError, match=r"train.config.lr: 0.01 -> 0.02"):
        train(config(toys, model, epochs=12, width=4, lr=0.02))
    assert (model / "model.json").read_bytes() == before


def test_same_seed_same_bytes_and_kill_changes_nothing(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(toys, tmp_path / "whole", seeds=2))
    calls, original = 0, loop.lens_loss

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (12, 31):  # in the second epoch, and after the first member
            raise Interrupted(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "lens_loss", interrupted)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(config(toys, tmp_path / "cut", seeds=2))
    train(config(toys, tmp_path / "cut", seeds=2))
    for name in ("model.safetensors", "member-1.safetensors", "history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    first, second = load_model(tmp_path / "whole").nets
    assert not torch.equal(first.head.weight, second.head.weight)


@pytest.mark.slow
@PATIENT
def test_kill_minus_nine_at_random_moments(toys: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ripple.cli", "train", str(toys), "--epochs", "4", "--width", "2"]
    command = [sys.executable, "-c", "from ripple.cli import main; main()", *command[3:]]
    command += ["--nside", "512", "--threads", "1", "--draws", "20"]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    rng = np.random.default_rng(0)
    for _ in range(4):
        child = subprocess.Popen([*command, "-o", str(tmp_path / "cut")], stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(4, 12)))
        child.kill()
        child.wait()
    subprocess.run([*command, "-o", str(tmp_path / "cut")], check=True, capture_output=True)
    for name in ("model.safetensors", "history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_with_another_option_is_refused(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(loop, "lens_loss", stop)
    with pytest.raises(Interrupted):
        train(config(toys, tmp_path / "m"))
    with pytest.raises(ConfigError, match=r"train.config.batch_size: 32 -> 16"):
        train(config(toys, tmp_path / "m", batch_size=16))


@pytest.mark.parametrize("part", ["run.json", "gates.json", "seed-0.state", "seed-0.best-*"])
def test_damaged_state_is_not_resumed(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_print_epoch", stop)
        with pytest.raises(Interrupted):
            train(config(toys, tmp_path / "m"))
    (path,) = (tmp_path / "m" / ".train").glob(part)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + bytes([whole[-200] ^ 4]) + whole[-199:])
    with pytest.raises(IntegrityError, match=path.name) as err:
        train(config(toys, tmp_path / "m"))
    assert "remove" in err.value.hint
    path.write_bytes(whole)
    train(config(toys, tmp_path / "m"))
    assert not (tmp_path / "m" / ".train").exists()


def test_splits_follow_the_sky(toys: Path, tmp_path: Path) -> None:
    from ripple.sky.splits import sky_cells

    data = training_set(config(toys, tmp_path))
    cells = sky_cells(data.dataset.column("ra"), data.dataset.column("dec"), 512)
    for cell in np.unique(cells):
        assert len(set(data.split[cells == cell].tolist()) - {-1}) <= 1
    assert not set(data.held.train) & set(data.held.validation)


@pytest.mark.parametrize("balance", ["sampler", "weights"])
def test_losses_of_training_and_validation_are_at_the_same_prior(
    toys: Path, tmp_path: Path, balance: str
) -> None:
    """For one constant logit, the balanced loss is the mean over classes, whatever their numbers."""
    options = config(toys, tmp_path, balance=balance)
    data = training_set(options)
    objective = loop.make_objective(data, options, torch.device("cpu"), which=1)
    label = torch.from_numpy(data.labels[data.rows(1)])
    logit = torch.tensor(1.7)
    want = torch.nn.functional.softplus(torch.stack([-logit, logit])).mean()
    found = objective(logit.expand(len(label), 1), {"label": label})
    torch.testing.assert_close(found, want)
    assert 0.2 < float(label.double().mean()) < 0.45


def test_given_split_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["train", "validation", "test"], 100)
    tensors = write_toys(tmp_path / "t", shards=1, rows=100, catalog_extra={"fold": names})
    data = training_set(config(tensors, tmp_path, split_column="fold"))
    kept = data.split >= 0  # the others lie within the diagonal of a stamp of another split
    assert kept.sum() > 90
    assert (np.array(["train", "validation", "test"])[data.split] == names)[kept].all()
    assert data.held.by == "column"


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_other_tasks(toys: Path, tmp_path: Path, task: str) -> None:
    extra = {"targets": ["theta_E"]} if task == "regression" else {}
    train(config(toys, tmp_path / "m", task=task, loss="focal", balance="weights", **extra))
    contract = load_contract(tmp_path / "m")
    assert contract.output == task
    if task == "regression":
        assert contract.metrics["theta_E"]["rms"] < 0.5
        assert contract.target_mean[0] == pytest.approx(1.5, abs=0.3)
    else:
        assert contract.metrics["macro_auroc"]["value"] > 0.5


def test_fine_tuning_starts_from_the_weights_and_keeps_frozen_ones(
    toys: Path, model: Path, tmp_path: Path
) -> None:
    options = {
        "init": str(model),
        "freeze": "backbone",
        "width": 4,
        "epochs": 1,
        "ema": 0,
        "layer_decay": 0.7,
    }
    train(config(toys, tmp_path / "m", **options))
    before, after = load_model(model).nets[0], load_model(tmp_path / "m").nets[0]
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b) == name.startswith("backbone"), name


def test_strict_fails_on_a_shortcut(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Lenses in the toys have better seeing here, which a classifier may not use.
    leaky = write_toys(tmp_path / "leaky", leak=True)
    arguments = ["train", str(leaky), "-o", str(tmp_path / "m"), "--epochs", "1", "--width", "2", "--strict"]
    assert run([*arguments, "--nside", "512", "--draws", "20"]) == 2
    assert "psf_noise: AUROC" in capsys.readouterr().err
    report = load_contract(tmp_path / "m").gates
    assert report["shortcuts"]["psf_noise"]["auroc"]["value"] > 0.9
    assert report["shortcuts"]["central_pixels"]["auroc"]["value"] < 0.65


def test_gates_find_copies_in_another_split(tmp_path: Path) -> None:
    batch = toy_batch(60, 5)
    split = np.repeat([0, 1, 2], 20)
    batch.image[59] = batch.image[3] * 1.5 + 0.2
    ra, dec = batch.catalog["ra"], batch.catalog["dec"]
    ra[40], dec[40] = ra[10], dec[10] + 0.5 / 3600  # type: ignore[operator]

    class Data:
        pass

    data: Any = Data()
    data.split, data.dataset = split, Data()
    data.dataset.column = lambda name: batch.catalog[name]
    data.dataset.read = lambda rows: batch.image[rows]
    small = shortcuts.pixel_features(data, np.arange(60))[1]
    found = shortcuts.near_duplicates(data, small, np.arange(60))
    assert found == {"position": 1, "pixels": 1, "pairs": ["train-test"]}


def test_leaks_between_given_splits_are_refused(tmp_path: Path) -> None:
    split = np.repeat([0, 1, 2], 20)
    options = {"split_column": "part", "nside": 512}
    batch = toy_batch(60, 5, catalog_extra={"part": split})
    batch.catalog["ra"][40], batch.catalog["dec"][40] = batch.catalog["ra"][3], batch.catalog["dec"][3]
    with pytest.raises(DataError, match=r"rows 3 \(train\) and 40 \(test\)"):
        train(config(write_batches(tmp_path / "near", [batch]), tmp_path / "m1", **options))
    batch = toy_batch(60, 5, catalog_extra={"part": split})
    batch.image[59] = batch.image[3] * 1.5 + 0.2
    with pytest.raises(DataError, match=r"1 pairs of rows show the same pixels \(train-test\)"):
        train(config(write_batches(tmp_path / "same", [batch]), tmp_path / "m2", **options))


def test_bad_input_is_named(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freeze needs weights"):
        train(config(toys, tmp_path / "a", freeze="stem"))
    with pytest.raises(ConfigError, match="unknown network 'alexnet'"):
        train(config(toys, tmp_path / "b", network="alexnet"))
    with pytest.raises(DataError, match="sky has no"):
        train(config(toys, tmp_path / "c", fractions=[1, 0, 0]))
    other = write_toys(tmp_path / "other", shards=1, pixel_scale=0.168)
    with pytest.raises(ContractError, match=r"pixel_scale is 0.168, .* 0.2"):
        train(config(toys, tmp_path / "d", tensors=[str(toys), str(other)]))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.tex").write_text("precious")
    with pytest.raises(WriteError, match=r"thesis.tex"):
        train(config(toys, tmp_path / "e"))


def test_schedule_warms_up_and_cools_down(toys: Path, tmp_path: Path) -> None:
    options = config(toys, tmp_path, epochs=10, warmup=2)
    rates = [loop.schedule(e, options) for e in np.linspace(0, 10, 101)]
    assert rates[10] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)
    assert np.argmax(rates) == 20


def test_losses_by_hand() -> None:
    logit, label = torch.tensor([0.0, 2.0]), torch.tensor([1, 0])
    even = torch.ones(2)
    each = torch.tensor([np.log(2), np.log1p(np.exp(2.0))])
    assert loop.lens_loss(logit, label, even, 0.0) == pytest.approx(float(each.mean()))
    focus = torch.tensor([0.5**2, (1 / (1 + np.exp(-2.0))) ** 2])
    assert loop.lens_loss(logit, label, even, 2.0) == pytest.approx(float((each * focus).mean()))
    weights = torch.tensor([1.0, 3.0])
    expected = float((3 * each[0] + each[1]) / 4)
    assert loop.lens_loss(logit, label, weights, 0.0) == pytest.approx(expected)


def test_the_average_follows_the_network() -> None:
    net, average = (
        build(Architecture("d4cnn", 1, 16, 1, width=1)),
        build(Architecture("d4cnn", 1, 16, 1, width=1)),
    )
    start = average.head.weight.clone()
    loop.update_average(average, net, 0.9, 1000)
    torch.testing.assert_close(average.head.weight, 0.9 * start + 0.1 * net.head.weight)


def test_tensorboard_is_missed_before_the_training(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="tensorboard needs the package"):
        train(config(toys, tmp_path / "m", tensorboard=True))
    assert not (tmp_path / "m").exists()


def test_tensorboard_events(toys: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config(toys, tmp_path / "m", tensorboard=True, epochs=1))
    assert list((tmp_path / "m" / "tensorboard" / "member-0").glob("events*"))


@pytest.mark.slow
@PATIENT
def test_a_compiled_network_learns_the_same(toys: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler on the CPU")
    train(config(toys, tmp_path / "m", compile=True, epochs=1))
    net, image = build(Architecture("d4cnn", 3, 32, 1, width=2)), torch.randn(16, 3, 32, 32)
    answers = []
    for used in (copy.deepcopy(net), copy.deepcopy(net)):
        out = (torch.compile(used) if answers else used)(image)
        out.square().mean().backward()
        gradients = [p.grad for p in used.parameters() if p.grad is not None]
        answers.append([out.detach(), *gradients])
    assert len(answers[0]) == 1 + len(list(net.parameters()))
    for plain, compiled in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


def _fit_together(how: TrainConfig, rank: int, told: dict[str, str]) -> None:
    os.environ |= told | {"RANK": str(rank)}
    fit_alone(how, rank)


def fit_alone(how: TrainConfig, rank: int = 0) -> None:
    """Train a network; the first rank writes its history."""
    torch.set_num_threads(1)
    arch, cpu = Architecture(how.network, 3, 32, 1), torch.device("cpu")
    with loop.process_group(cpu) as ranks:
        fitted = loop.fit(
            training_set(how), how, arch, Path(how.output), seed=0, device=cpu, ranks=ranks, stop=Stop()
        )
        assert ranks.rank == rank
    if ranks.first:
        (Path(how.output) / "history.json").write_text(json.dumps(fitted.progress.history))


@PATIENT
def test_two_ranks_learn_what_one_learns_from_batches_twice_as_large(tmp_path: Path) -> None:
    """They share each batch and average their gradients by gloo; without batch norms that is the same."""
    toys, told = write_toys(tmp_path / "toys", shards=2, rows=50), {"WORLD_SIZE": "2"}
    options = {"network": "convnextv2_atto", "epochs": 1}
    fit_alone(config(toys, tmp_path / "one", batch_size=32, **options))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    how = config(toys, tmp_path / "two", batch_size=16, **options)
    fresh = multiprocessing.get_context("spawn")
    ranks = [fresh.Process(target=_fit_together, args=(how, k, told)) for k in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    assert two[0]["val_loss"] == pytest.approx(one[0]["val_loss"], rel=1e-5)
    assert two[0]["val_auroc"] == one[0]["val_auroc"]


@pytest.mark.slow
@PATIENT
def test_two_processes_train_together(toys: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29531",
    ]
    command += [
        "--no-python",
        sys.executable,
        "-c",
        "from ripple.cli import main; main()",
        "train",
        str(toys),
    ]
    command += [
        "-o",
        str(tmp_path / "m"),
        "--epochs",
        "2",
        "--width",
        "2",
        "--nside",
        "512",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("d4cnn x 1") == 1  # one of them speaks
    assert (
        json.loads((tmp_path / "m" / "model.json").read_text())["contract"]["metrics"]["auroc"]["value"] > 0.4
    )


@pytest.mark.slow
@PATIENT
@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_of_several_that_dies(toys: Path, tmp_path: Path, dead: int) -> None:
    """The other one ends with a line that says how to go on, and the same command does."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29532",
    ]
    command += [
        "-m",
        "ripple",
        "train",
        str(toys),
        "-o",
        str(tmp_path / "m"),
        "--width",
        "2",
        "--nside",
        "512",
    ]
    command += ["--threads", "1", "--device", "cpu", "--batch-size", "16", "--epochs"]
    # As text on one pipe: torchrun and both processes.
    begun = subprocess.Popen([*command, "400"], stderr=subprocess.PIPE, text=True, env=ALONE)
    assert begun.stderr is not None
    said = []
    for line in begun.stderr:
        said.append(line)
        if "epoch 2/400" in line:
            ranks = sorted(psutil.Process(begun.pid).children(), key=lambda one: one.pid)
            ranks[dead].kill()
    begun.wait()
    (line,) = [line for line in said if line.startswith("ripple: ")]
    assert line == (
        "ripple: train: another process of torchrun died (run the same command again to resume)\n"
    )
    again = subprocess.Popen([*command, "400"], stderr=subprocess.PIPE, text=True, env=ALONE)
    assert again.stderr is not None
    first = next(line for line in again.stderr if "epoch " in line)
    again.terminate()
    again.communicate()
    assert int(re.search(r"epoch (\d+)/", first)[1]) > 2  # type: ignore[index]


def test_lenses_that_no_picture_shows_are_left_out(toys: Path, tmp_path: Path) -> None:
    extra = {"arc_snr": np.linspace(0, 20, 120).astype(np.float32)}
    batches = [toy_batch(120, k, first=120 * k, catalog_extra=extra) for k in range(3)]
    tensors = write_batches(tmp_path / "t", batches)
    data = training_set(config(tensors, tmp_path / "m", min_arc_snr=5.0, guard=0.0))
    snr, used = np.asarray(data.dataset.column("arc_snr")), data.split >= 0
    assert (snr[used & (data.labels == 1)] >= 5).all()
    assert used[(data.labels == 0) & (snr < 5)].all()
    assert any("lenses with arc_snr below 5 are left out" in note for note in data.notes)
    with pytest.raises(DataError, match="no column 'arc_snr'"):
        training_set(config(toys, tmp_path / "m", min_arc_snr=5.0))
