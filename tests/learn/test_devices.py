"""What works on batches stays on the device of its batch: seen without a GPU, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ripple.imaging.normalize import transform
from ripple.learn.data.augment import Augment
from ripple.learn.data.conditions import FIELD, FIELDS, PAD, Conditions, Ranges
from ripple.learn.data.neighbours import Neighbours
from ripple.learn.evaluation.perturb import FluxCutouts, disturbances, one_pixel
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import build
from ripple.learn.model.weights import laid_out
from ripple.learn.scoring.forward import member_outputs
from ripple.learn.training import losses
from ripple.learn.training.loop import class_loss, lens_loss, update_average

GPU = "cuda:0"
N, BANDS, SIZE = 4, 3, 32


def no_data() -> FakeTensorMode:
    """Tensors with shape, type and device, and nothing in them: mixing devices raises as on a GPU."""
    # Rows that a mask picks are as many as nobody knows: the environment gives their number a symbol.
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with no_data() as mode:
        yield mode


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device=GPU)


def cutouts() -> FluxCutouts:
    planes, numbers = on_gpu(N, BANDS, SIZE, SIZE).double(), on_gpu(N, BANDS).double()
    return FluxCutouts(planes, numbers[..., None, None], numbers, numbers, "asinh", 0.2)


def test_mixing_is_noticed(fake: FakeTensorMode) -> None:
    with pytest.raises(RuntimeError, match="device"):
        on_gpu(3) + torch.empty(3)


@pytest.mark.parametrize("options", [{}, {"shift": 2, "noise": 0.1, "blur": 0.5, "sky": 0.1}])
def test_augmentation(fake: FakeTensorMode, options: dict[str, Any]) -> None:
    row = torch.empty(N, dtype=torch.int64, device=GPU)
    out = Augment(**options)(on_gpu(N, BANDS, SIZE, SIZE), row, seed=1, epoch=0, draw=row)
    assert out.device == torch.device(GPU)


def test_other_conditions(fake: FakeTensorMode) -> None:
    row, table = torch.empty(N, dtype=torch.int64, device=GPU), on_gpu(N, BANDS)
    side = SIZE + 2 * PAD
    fields, power = on_gpu(BANDS, FIELDS, FIELD, FIELD), on_gpu(BANDS, side, side // 2 + 1)
    ranges = Ranges(0.5, 0.5, 0.02, 0.1, 0.5, 0.5, 0.2)
    bank = Neighbours(torch.empty(BANDS, 5, 9, 9), torch.empty(5, dtype=torch.int64), 8.0)
    how = Conditions(ranges, table, table, table, fields, power, "asinh", "row", 0.2, bank)
    how = how.to(torch.device(GPU))
    out = how(on_gpu(N, BANDS, SIZE, SIZE), row, seed=1, epoch=0, draw=row)
    assert out.device == torch.device(GPU)


@pytest.mark.parametrize("name", list(disturbances(("g", "r", "i"))))
def test_disturbances(fake: FakeTensorMode, name: str) -> None:
    out = disturbances(("g", "r", "i"))[name](cutouts(), torch.Generator().manual_seed(0))
    assert out.device == torch.device(GPU)
    assert out.shape == (N, BANDS, SIZE, SIZE)


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
