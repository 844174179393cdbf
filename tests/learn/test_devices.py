"""What works on batches stays on the device of its batch: seen without a GPU, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_contract, make_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from toys import METHODS, toy_batch

from ripple.imaging.normalize import transform
from ripple.learn.config import TrainConfig
from ripple.learn.data.augment import Augment
from ripple.learn.data.conditions import FIELD, FIELDS, PAD, Conditions, Ranges
from ripple.learn.data.neighbours import Neighbours
from ripple.learn.data.psf_input import with_widths
from ripple.learn.evaluation import robustness
from ripple.learn.evaluation.perturb import FluxCutouts, disturbances, flux_cutouts, joined, one_pixel
from ripple.learn.explain import attribution
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import ArchitectureRecord
from ripple.learn.model.device import choose_device
from ripple.learn.model.network import Net, build
from ripple.learn.model.uncertainty import Uncertainty
from ripple.learn.model.weights import Bank, Model, laid_out, load_model
from ripple.learn.scoring.engine import with_precision
from ripple.learn.scoring.forward import member_outputs
from ripple.learn.scoring.score import distances, outputs
from ripple.learn.training import losses
from ripple.learn.training.adapt.methods import Latent, Step, make_method, two_logits
from ripple.learn.training.loop import class_loss, lens_loss, update_average

GPU = "cuda:0"
N, BANDS, SIZE = 4, 3, 32


def no_data() -> FakeTensorMode:
    """Tensors with shape, type and device, and nothing in them: mixing devices raises as on a GPU."""
    # Rows that a mask picks are as many as nobody knows: the environment gives their number a symbol.
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


class Copies(TorchDispatchMode):
    """Counts copies from the host to the GPU that the host waits for."""

    waited = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {one.device.type for one in (out, *args) if isinstance(one, torch.Tensor)}
            self.waited += len(devices) > 1 and not (kwargs or {}).get("non_blocking", False)
        return out


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Fails where the host asks a GPU for a number, or sends it one and waits until it is there."""
    # Without the environment of `no_data`, asking for a number raises.
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield
    assert copies.waited == 0


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with no_data() as mode:
        yield mode


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device=GPU)


def cutouts() -> FluxCutouts:
    planes, numbers = on_gpu(N, BANDS, SIZE, SIZE).double(), on_gpu(N, BANDS).double()
    return FluxCutouts(planes, numbers[..., None, None], numbers, numbers, "asinh", 0.2)


def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert choose_device("auto") == torch.device(GPU)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_mixing_is_noticed(fake: FakeTensorMode) -> None:
    with pytest.raises(RuntimeError, match="device"):
        on_gpu(3) + torch.empty(3)


def test_waiting_is_noticed() -> None:
    with pytest.raises(DataDependentOutputException), nothing_waits():
        bool(on_gpu(3).sum() > 0)
    with pytest.raises(AssertionError), nothing_waits():
        torch.tensor([1.0, 2.0], device=GPU)


@pytest.mark.parametrize("options", [{}, {"shift": 2, "noise": 0.1, "blur": 0.5, "sky": 0.1}])
@pytest.mark.parametrize("width", [SIZE, SIZE - 2])
def test_augmentation(options: dict[str, Any], width: int) -> None:
    with nothing_waits():
        row = torch.empty(N, dtype=torch.int64, device=GPU)
        out = Augment(**options)(on_gpu(N, BANDS, SIZE, width), row, seed=1, epoch=0, draw=row)
        assert out.device == torch.device(GPU)


@pytest.mark.parametrize("method", ["asinh", "log"])
@pytest.mark.parametrize("follows", ["row", "band", ""])
def test_other_conditions(method: str, follows: str) -> None:
    with nothing_waits():
        row = torch.empty(N, dtype=torch.int64, device=GPU)
        how = _conditions(method, follows, GPU)
        out = how(on_gpu(N, BANDS, SIZE, SIZE), row, seed=1, epoch=0, draw=row)
        width = how.widths(on_gpu(N, BANDS), row, seed=1, epoch=0, draw=row)
        out = with_widths(out, width)
        assert out.device == torch.device(GPU)
        assert out.shape == (N, 2 * BANDS, SIZE, SIZE)


def test_tables_of_other_conditions_are_moved(fake: FakeTensorMode) -> None:
    how, row = _conditions("asinh", "row").to(torch.device(GPU)), torch.arange(N, device=GPU)
    out = how(on_gpu(N, BANDS, SIZE, SIZE), row, seed=1, epoch=0)
    assert {out.device, how.widths(on_gpu(N, BANDS), row, seed=1, epoch=0).device} == {torch.device(GPU)}


def _conditions(method: str, follows: str, device: str = "cpu") -> Conditions:
    """With each of its ranges."""
    table = torch.empty(N, BANDS, device=device)
    side = SIZE + 2 * PAD
    fields = torch.empty(BANDS, FIELDS, FIELD, FIELD, device=device)
    power = torch.empty(BANDS, side, side // 2 + 1, device=device)
    light = torch.empty(BANDS, 5, 9, 9, device=device)
    bank = Neighbours(light, torch.empty(5, dtype=torch.int64, device=device), 8.0)
    ranges = Ranges(0.5, 0.5, 0.02, 0.1, 0.5, 0.5, 0.2)
    return Conditions(ranges, table, table, table, fields, power, method, follows, 0.2, bank)


def test_distances_are_measured_where_the_features_are(tmp_path: Path) -> None:
    """With a bank on the device as `Model.to` has it there, and nothing of it but `(n,)` numbers to fetch."""
    model, known = load_model(make_model(tmp_path / "model", members=2)), Uncertainty(neighbour=3)
    contract = model.contract.model_copy(update={"uncertainty": known})
    row = torch.arange(40)
    bank = Bank(torch.randn(2, 40, 6), row, row).to(torch.device(GPU))
    with no_data():
        assert bank.places.device == torch.device(GPU)
    with nothing_waits():
        there = replace(bank, features=on_gpu(2, 40, 6))
        found = distances(replace(model, contract=contract, bank=there), on_gpu(2, N, 6))
        assert (found.device, found.shape, found.dtype) == (torch.device(GPU), (N,), torch.float32)


@pytest.mark.parametrize("name", list(disturbances(("g", "r", "i"))))
def test_disturbances(fake: FakeTensorMode, name: str) -> None:
    out = disturbances(("g", "r", "i"))[name](cutouts(), torch.Generator().manual_seed(0))
    assert out.device == torch.device(GPU)
    assert out.shape == (N, BANDS, SIZE, SIZE)


def test_fluxes_come_onto_the_device_with_their_constants(fake: FakeTensorMode) -> None:
    """Of tensors with other bands, larger stamps and wider pixels, for a network that sees the PSFs."""
    widths = {f"psf_fwhm_{band}": np.full(N, 0.8) for band in "gri"}
    batch = toy_batch(N, 3, size=SIZE + 8, pixel_scale=0.21, catalog_extra=widths)
    names = ("norm_offset", "norm_scale")
    constants = {f"{name}_{band}": np.ones(N) for name in names for band in "gri"}
    batch = replace(batch, catalog=batch.catalog | constants)
    record = ArchitectureRecord(name="d4cnn", bands=4, size=SIZE, outputs=1)
    contract = make_contract(architecture=record, bands=("i", "g"), psf_input="width")
    found = joined([flux_cutouts(batch, np.arange(N), contract, torch.device(GPU))] * 2)
    for name in ("flux", "noise", "offset", "scale", "psf"):
        assert getattr(found, name).device == torch.device(GPU), name
    assert found.take(torch.arange(3, device=GPU)).tensor(found.flux[:3]).shape == (3, 4, SIZE, SIZE)


def test_the_robustness_card_is_made_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`score --stress`: all of it but the answers, which are numbers on the host."""

    def answer(model: Model, image: torch.Tensor, label: Any) -> robustness.Answers:
        assert image.device == torch.device(GPU)
        n = len(image)
        return robustness.Answers(np.full((n, 2), 0.5), np.zeros(n, np.int64), np.zeros(n), np.ones(n))

    monkeypatch.setattr(robustness, "answer", answer)
    model, label = load_model(make_model(tmp_path / "model")), np.array([0, 1, 0, 1])
    with no_data():
        card = robustness.card(model, cutouts(), label, seed=0, attacked=2, device=torch.device(GPU))
    assert len(card["card"]) == 1 + len(disturbances(model.contract.bands))


@pytest.mark.parametrize("name", ["d4cnn", "resnet18"])
def test_explanations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd, "grad", lambda of, by: (torch.empty_like(by),))  # as below
    net = build(Architecture(name, BANDS, SIZE, 1, "small", 2, 0.1)).eval()
    with no_data():
        _move(net)
        image = on_gpu(N, BANDS, SIZE, SIZE)
        given = (net, image, lambda outputs: outputs[:, 0])
        maps = [attribution.saliency(*given), attribution.integrated_gradients(*given, steps=2)]
        maps += [attribution.grad_cam(*given), attribution.activation(net, image)]
        maps += [attribution.band_ablation(*given)]
        assert {one.device for one in maps if one is not None} == {torch.device(GPU)}


def test_clusters_of_the_target(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode) -> None:
    monkeypatch.setattr(
        torch, "equal", lambda a, b: False
    )  # asked once in each round, at the start of an epoch
    chosen, centres = losses.spherical_kmeans(on_gpu(20, 5), on_gpu(2, 5), iterations=2)
    assert {chosen.device, centres.device} == {torch.device(GPU)}


def test_one_pixel_attack_judged_on_the_cpu(fake: FakeTensorMode) -> None:
    g = torch.Generator().manual_seed(0)
    out = one_pixel(lambda image: torch.empty(len(image)), cutouts(), g, population=4, rounds=2)
    assert out.device == torch.device(GPU)


@pytest.mark.parametrize("name", ["d4cnn", "resnet18", "vit_small", "convnextv2_atto"])
@pytest.mark.parametrize("dropout", [0, 3])
def test_networks_and_turns(name: str, dropout: int) -> None:
    net = build(Architecture(name, BANDS, SIZE, 1, "small", 2, 0.1)).eval()
    net.standardise([0.1] * BANDS, [2.0] * BANDS)
    with no_data(), torch.no_grad():
        _move(net)
        values, features = member_outputs([net], on_gpu(N, BANDS, SIZE, SIZE), dropout=dropout)
        assert {values.device, features.device} == {torch.device(GPU)}
        update_average(net, net, 0.9, 3)


@pytest.mark.parametrize("name", ["d4cnn", "resnet18", "vit_small"])
def test_scores_in_bf16(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of the network compute in bf16, its head and all after it in float32."""
    # Without a GPU torch would leave its mixed precision out.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    plain = load_model(make_model(tmp_path / "model", name=name, members=2))
    layers, heads = set(), set()
    for net in plain.nets:
        for module in net.backbone.modules():
            module.register_forward_hook(lambda _, __, out: layers.add(out.dtype))
        net.head.register_forward_hook(lambda _, __, out: heads.add(out.dtype))
    with no_data():
        for net in plain.nets:
            _move(net)
        model = with_precision(plain, "bf16")
        for kept in outputs(model, on_gpu(N, BANDS, SIZE, SIZE)):
            assert (kept.device, kept.dtype) == (torch.device(GPU), torch.float32)
    assert torch.bfloat16 in layers
    assert heads == {torch.float32}


@pytest.mark.parametrize(("name", "last"), [("resnet18", True), ("convnextv2_atto", True), ("d4cnn", False)])
def test_convolutions_have_channels_last_from_the_first_to_the_last(name: str, last: bool) -> None:
    net = build(Architecture(name, BANDS, SIZE, 1, "small", 2, 0.0)).eval()
    image = torch.randn(N, BANDS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net(image)
        laid_out(net, torch.device("cpu"))
        assert all(p.is_contiguous() for p in net.parameters())
        laid_out(net, torch.device(GPU))
        torch.testing.assert_close(net(image), before, rtol=1e-4, atol=1e-5)  # the same numbers
    found = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, out: found.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    with no_data(), torch.no_grad():
        _move(net)
        member_outputs([net], on_gpu(N, BANDS, SIZE, SIZE))
    assert all(found)
    assert bool(found) == last


def _move(net: torch.nn.Module) -> None:
    """What `.to("cuda")` does."""
    for module in net.modules():
        for kept in (module._parameters, module._buffers):
            for key, value in kept.items():
                kept[key] = None if value is None else _twin(value)  # type: ignore[assignment]


def _twin(value: torch.Tensor) -> torch.Tensor:
    found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
    return torch.nn.Parameter(found) if isinstance(value, torch.nn.Parameter) else found


def test_losses(fake: FakeTensorMode) -> None:
    x, y, weight = on_gpu(N, 5), on_gpu(N + 1, 5), on_gpu(N)
    label, planes = torch.empty(N, dtype=torch.int64, device=GPU), on_gpu(N, BANDS, 8, 8)
    found = [
        losses.mmd(x, y, weight), losses.coral(x, y, weight), losses.domain_loss(x[:, 0], y[:, 0], weight),
        losses.wasserstein(x[:, 0], y[:, 0], weight), losses.entropy(x), losses.separation(x, 0.3),
        losses.reverse(x), lens_loss(x[:, 0], label, on_gpu(2), 2.0, truth=weight),
        class_loss(x, label, on_gpu(5), 0.0), transform(planes, x[:, :BANDS], x[:, :BANDS], "lupton"),
    ]  # fmt: skip
    assert {one.device for one in found} == {torch.device(GPU)}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_adaptation_waits_for_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, and losses of task and method; the start of an epoch may wait."""
    # The way back needs the streams of a GPU: what it would give has the shape of what it is asked for.
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    monkeypatch.setattr(torch.autograd, "grad", lambda of, by, create_graph: (torch.empty_like(by),))
    rows, features = 9, 16
    net = build(Architecture("d4cnn", BANDS, SIZE, 1, "small", 2, 0.1))
    given = {"tensors": ["-"], "target": ["-"], "output": "-", "adapt": method}
    how = TrainConfig.make(given | ({"target_labels": 4} if method == "supervised" else {}))
    chosen = make_method(how, net, torch.tensor([0.7, 0.3]), 0)
    latent = Latent(np.arange(rows), torch.randn(rows, features), torch.randn(2, features))
    chosen.begin(net, latent, 0.5)
    if chosen.optimizer is not None:  # Adam counts its steps in numbers that have no value here
        chosen.optimizer = torch.optim.SGD(chosen.parameters(), lr=0.1)
    with nothing_waits():
        _move(net)
        _move(chosen)
        for name, value in vars(chosen).items():
            if isinstance(value, torch.Tensor):
                setattr(chosen, name, _twin(value))
        step = _step(net)
        loss = chosen.loss(step) + lens_loss(step.source_logits[:, 1], step.label, on_gpu(2), 0.0)
        assert loss.device == torch.device(GPU)
        assert loss.dtype == torch.float32
        loss.backward()
        chosen.after_step()


def _step(net: Net) -> Step:
    """As `Adaptation.step` gives it."""
    row, label = (torch.empty(N, dtype=torch.int64, device=GPU) for _ in range(2))
    images = [on_gpu(N, BANDS, SIZE, SIZE) for _ in range(2)]
    source, target = (net.features(image) for image in images)
    batch = {"image": images[1], "source_image": images[0], "row": row, "label": label}
    weight = losses.class_weight(label, on_gpu(2))
    logits = [two_logits(net.head(one)) for one in (source, target)]
    return Step(net, net, source, target, *logits, label, weight, batch, 0.5, nullcontext)
