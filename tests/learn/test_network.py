"""The networks: shapes, exact invariance, parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ripple.errors import ConfigError, ContractError
from ripple.learn.model.architecture import NAMES, Architecture
from ripple.learn.model.contract import ArchitectureRecord
from ripple.learn.model.network import GroupConv, Net, _act, build, parameter_groups, timm_state


@pytest.mark.parametrize("size", [64, 63, 50, 33, 16])
@pytest.mark.parametrize("bands", [1, 4])
def test_d4cnn_is_exactly_invariant(size: int, bands: int) -> None:
    torch.manual_seed(1)
    net = build(Architecture("d4cnn", bands, size, 2, width=4)).double().eval()
    image = torch.randn(3, bands, size, size, dtype=torch.float64)
    expected = net(image)
    assert expected.std() > 1e-4  # not constant
    for g in range(8):
        torch.testing.assert_close(net(_act(image, g)), expected, rtol=0, atol=1e-12)


def test_d4cnn_sees_what_is_not_a_symmetry() -> None:
    torch.manual_seed(1)
    net = build(Architecture("d4cnn", 2, 32, 1)).eval()
    image = torch.randn(2, 2, 32, 32)
    assert (net(image) - net(image.flip(1))).abs().max() > 1e-4  # bands swapped
    assert (net(image) - net(image.roll(3, -1))).abs().max() > 1e-4


def test_group_convolution_turns_its_maps_with_the_image() -> None:
    torch.manual_seed(0)
    lift = GroupConv(1, 2, 3, lift=True).double()
    image = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    maps = lift(image).reshape(2, 8, 9, 9).detach()
    turned = lift(_act(image, 1)).reshape(2, 8, 9, 9).detach()
    # A quarter turn turns the planes and permutes the eight channels of each field.
    planes = _act(maps, 1)
    for field in range(2):
        found = [
            next(k for k in range(8) if torch.allclose(turned[field, h], planes[field, k])) for h in range(8)
        ]
        assert sorted(found) == list(range(8))


@pytest.mark.parametrize("name", ["d4cnn", "resnet18", "efficientnet_b0", "convnextv2_atto", "vit_small"])
def test_networks_take_any_number_of_bands(name: str) -> None:
    net = build(Architecture(name, 5, 48, 3)).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        assert net(torch.zeros(2, 5, 48, 48)).shape == (2, 3)
        assert net.features(torch.zeros(2, 5, 48, 48)).shape == (2, net.head.in_features)


def test_names_are_refused_by_name() -> None:
    assert len(NAMES) == 12
    with pytest.raises(ContractError, match=r"architecture.name: '../alexnet' cannot be a name"):
        ArchitectureRecord(name="../alexnet", bands=3, size=64, outputs=1).architecture()
    with pytest.raises(ConfigError, match="unknown network 'alexnet'"):
        build(Architecture("alexnet", 3, 64, 1))
    with pytest.raises(ConfigError, match="60 px, which is not a multiple of 8"):
        build(Architecture("vit_small", 3, 60, 1))


def test_weights_of_a_plain_timm_model_fit() -> None:
    import timm

    torch.manual_seed(0)
    arch = Architecture("convnextv2_atto", 3, 64, 1, stem="standard")
    theirs = timm.create_model("convnextv2_atto", in_chans=3, num_classes=1).eval()
    net = build(arch).eval()
    net.load_state_dict(timm_state(arch, theirs.state_dict()))
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net(image), theirs(image))


@pytest.mark.parametrize("name", ["d4cnn", "resnet18"])
def test_groups_hold_every_parameter_once_and_rates_fall_to_the_input(name: str) -> None:
    net = build(Architecture(name, 3, 32, 1))  # type: ignore[arg-type]
    groups = parameter_groups(net, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(net.head.weight)] == 1.0
    assert rate[id(next(net.backbone.parameters()))] == min(rate.values()) < 0.5
    assert all(g["weight_decay"] == (0.1 if g["params"][0].ndim >= 2 else 0) for g in groups)


@pytest.mark.parametrize(("freeze", "free"), [("none", 1.0), ("stem", 0.99), ("backbone", 0.01)])
def test_frozen_layers_take_no_gradient(freeze: str, free: float) -> None:
    net: Net = build(Architecture("d4cnn", 3, 32, 1))
    parameter_groups(net, lr=1.0, weight_decay=0.0, freeze=freeze)
    counts = np.array([(p.numel(), p.requires_grad) for p in net.parameters()])
    share = counts[counts[:, 1] == 1, 0].sum() / counts[:, 0].sum()
    assert share == pytest.approx(free, abs=0.03)
    assert net.head.weight.requires_grad
