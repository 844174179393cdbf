"""The networks, by name: timm backbones with a stem for B bands, and a small D4-equivariant CNN of our own.

Every network is a `Net`: a backbone that maps `(n, B, H, W)` to features `(n, F)`, and one linear head. What
the head means (one logit, K classes, standardised quantities) is in the contract, not in the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ripple.config import suggest
from ripple.errors import ConfigError
from ripple.learn.model.architecture import NAMES, Architecture


class Net(nn.Module):
    """A backbone and a linear head.

    Parameters
    ----------
    backbone
        `(n, B, H, W)` -> features `(n, F)`; with timm's `group_matcher(coarse)`, which names its layers.
    features
        F.
    outputs
        Width of the head.
    invariant
        True when the output cannot change under rotations by 90 degrees and flips.
    """

    def __init__(self, backbone: nn.Module, features: int, outputs: int, *, invariant: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.head = nn.Linear(features, outputs)
        self.invariant = invariant
        # What is subtracted from images and divides them, `(1, B, 1, 1)`: of networks from elsewhere.
        self.register_buffer("input_mean", None, persistent=False)
        self.register_buffer("input_std", None, persistent=False)
        # Small, so that a new network starts undecided.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    input_mean: Tensor | None
    input_std: Tensor | None

    def standardise(self, mean: Sequence[float], std: Sequence[float]) -> Net:
        """Standardise images by band before the backbone; nothing without numbers."""
        if mean:
            self.input_mean, self.input_std = (torch.tensor(v)[None, :, None, None] for v in (mean, std))
        return self

    def features(self, image: Tensor) -> Tensor:
        """Features `(n, F)` of images `(n, B, H, W)`."""
        if self.input_mean is not None:
            assert self.input_std is not None
            image = (image - self.input_mean) / self.input_std
        out: Tensor = self.backbone(image)
        return out

    def forward(self, image: Tensor) -> Tensor:
        """Outputs `(n, outputs)` of images `(n, B, H, W)`: logits, or standardised quantities."""
        out: Tensor = self.head(self.dropout(self.features(image)))
        return out


def build(arch: Architecture, *, pretrained: bool = False) -> Net:
    """The network of an architecture, freshly initialised.

    Parameters
    ----------
    arch
        Name and shapes.
    pretrained
        Start from ImageNet weights (timm downloads them); only on request.

    Raises
    ------
    ConfigError
        Neither we nor timm know the name, or the network cannot take images of this size.
    """
    net = _build_named(arch, pretrained)
    net.dropout.p = arch.dropout
    return net


def _build_named(arch: Architecture, pretrained: bool) -> Net:
    small = arch.stem == "small"
    match arch.name:
        case "onnx":
            raise ConfigError("an ONNX program cannot be built, only imported", hint="ripple import-model")
        case "d4cnn":
            if arch.size < 16:
                raise ConfigError(f"d4cnn cannot take images of {arch.size} px", hint="use at least 16 px")
            body = D4Cnn(arch.bands, arch.width)
            return Net(body, body.features, arch.outputs, invariant=True)
        case "vit_small":
            patch = 8 if small else 16
            if arch.size % patch:
                raise ConfigError(
                    f"vit_small cannot take images of {arch.size} px, which is not a multiple of {patch}",
                    hint="crop the cutouts",
                )
            return _timm(arch, f"vit_small_patch{patch}_224", pretrained)
    # Published weights are for patches of 4 and cannot be put into others.
    patches = {"patch_size": 2} if small and not pretrained and arch.name.startswith("convnext") else {}
    net = _timm(arch, arch.name, pretrained, **patches)
    if small and isinstance(getattr(net.backbone, "maxpool", None), nn.MaxPool2d):
        net.backbone.maxpool = nn.Identity()  # with the pool, 64 px would be 2 px in the last stage
    return net


def _timm(arch: Architecture, name: str, pretrained: bool, **options: Any) -> Net:
    import timm  # not above: scoring with d4cnn needs none of it

    require_known(arch.name)
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = arch.size
    try:
        body: Any = timm.create_model(
            name, pretrained=pretrained, in_chans=arch.bands, num_classes=0, **options
        )
        if arch.name not in NAMES:  # nobody has tried whether it takes small cutouts
            with torch.inference_mode():
                body.eval()(torch.zeros(1, arch.bands, arch.size, arch.size))
    except (RuntimeError, AssertionError, TypeError, ValueError) as err:
        said = " ".join(str(err).split())[:160]
        raise ConfigError(f"{arch.name} cannot take images of {arch.size} px: {said}") from None
    # What comes out where there is no classifier: of some networks wider than the last feature map.
    width = getattr(body, "head_hidden_size", None) or body.num_features
    return Net(body.train(), int(width), arch.outputs)


def require_known(name: str) -> None:
    """Refuse a network that neither we nor timm know, without building one.

    Raises
    ------
    ConfigError
        Names the nearest ones.
    """
    if name in NAMES:
        return
    import timm

    if not timm.is_model(name):
        near = suggest(name, [*NAMES, *timm.list_models()])
        raise ConfigError(
            f"unknown network {name!r}{near}",
            hint="known are d4cnn, vit_small and the names of timm.list_models()",
        )


def timm_state(arch: Architecture, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a whole timm model under the names of `Net`: classifier -> head, the rest -> backbone."""
    backbone = build(arch).backbone
    classifier = str(getattr(backbone, "default_cfg", {}).get("classifier", "head")) + "."
    return {
        ("head." + key.removeprefix(classifier) if key.startswith(classifier) else "backbone." + key): value
        for key, value in state.items()
    }


class ParameterGroup(TypedDict):
    """Parameters that share a learning rate and a decay, as torch's optimisers take them."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def parameter_groups(
    net: Net, *, lr: float, weight_decay: float, layer_decay: float = 1.0, freeze: str = "none"
) -> list[ParameterGroup]:
    """Groups for the optimiser: no decay of vectors, rates that fall towards the input, frozen layers.

    Parameters
    ----------
    net
        The network; frozen parameters get `requires_grad = False` here.
    lr
        Learning rate of the head.
    weight_decay
        Of matrices and kernels; norms and biases have none.
    layer_decay
        Factor per layer from the head towards the input, in (0, 1].
    freeze
        "none", "stem" (the first layer), or "backbone" (all but the head).
    """
    depth = _layer_depths(net)
    top = max(depth.values())
    groups: dict[tuple[int, bool], ParameterGroup] = {}
    for name, parameter in net.named_parameters():
        level = depth[name]
        parameter.requires_grad = freeze == "none" or (level > 0 if freeze == "stem" else level == top)
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2
        rate = lr * layer_decay ** (top - level)
        group = groups.setdefault(
            (level, decays), {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]  # a fixed order: a resume matches groups by position


def _layer_depths(net: Net) -> dict[str, int]:
    """Parameter name -> depth, 0 at the input; the head is deepest."""
    # Which layer comes before which is known for every timm network by its group matcher.
    from timm.models._manipulate import group_parameters

    matcher = net.backbone.group_matcher(coarse=False)  # type: ignore[operator]
    inner = group_parameters(net.backbone, matcher, reverse=True)
    depth = {f"backbone.{name}": int(level) for name, level in inner.items()}
    top = max(depth.values()) + 1
    return depth | {"head.weight": top, "head.bias": top}


# --- the D4-equivariant network -------------------------------------------------------------------
# Group convolution over the dihedral group (Cohen & Welling 2016, ICML 48, 2990). A feature map holds, for
# every field, one channel per group element g = r^k f^m (k quarter turns, m flips), so that turning the image
# turns the maps and permutes the channels. The maximum over g and the mean over the plane are then invariant.


def _act(x: Tensor, g: int) -> Tensor:
    """Apply element g (0..7: flip first when g >= 4, then g % 4 quarter turns) to the last two axes."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))


def _inverse_products() -> list[list[int]]:
    """`table[g][h]` is the element g^-1 h, found by acting on a tile without symmetry."""
    # Computed, because one wrong entry of 64 would leave the network nearly, but not exactly, invariant.
    tile = torch.arange(9.0).reshape(3, 3)
    seen = [_act(tile, g) for g in range(8)]

    def find(x: Tensor) -> int:
        return next(k for k, y in enumerate(seen) if torch.equal(x, y))

    return [[next(k for k in range(8) if find(_act(seen[k], g)) == h) for h in range(8)] for g in range(8)]


def _turned_weight_indices(fields: int, inner: int, kernel: int) -> Tensor:
    """Where each weight of the eight turned kernels comes from, `(8 * fields * inner * k * k,)`."""
    place = torch.arange(fields * inner * kernel * kernel).reshape(fields, inner, kernel, kernel)
    table = _inverse_products()
    # Element g turns the kernel, and permutes the eight channels of each input field.
    turned = [_act(place if inner == 1 else place[:, table[g]], g) for g in range(8)]
    return torch.stack(turned).flatten()


class GroupConv(nn.Module):
    """Convolution that commutes with the eight symmetries of the square.

    Parameters
    ----------
    fields_in
        Fields of the input; for `lift` the number of bands.
    fields_out
        Fields of the output, eight channels each.
    kernel
        Side of the kernel; even when `stride` is 2, so that an even plane is sampled symmetrically.
    lift
        True for the first layer, whose input is a plain image.
    """

    index: Tensor

    def __init__(
        self, fields_in: int, fields_out: int, kernel: int, *, stride: int = 1, lift: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, (kernel - 1) // 2
        inner = 1 if lift else 8
        # He et al. (2015): keeps the variance through a ReLU.
        scale = math.sqrt(2.0 / (fields_in * inner * kernel * kernel))
        self.weight = nn.Parameter(torch.randn(fields_out, fields_in, inner, kernel, kernel) * scale)
        # Follows from the shapes, so it is not stored with the weights.
        self.register_buffer("index", _turned_weight_indices(fields_in, inner, kernel), persistent=False)

    def kernels(self) -> Tensor:
        """The plain kernels `(fields_out * 8, fields_in * (1 or 8), k, k)`."""
        out, fan, inner, k, _ = self.weight.shape
        turned = self.weight.reshape(out, -1)[:, self.index]  # (out, 8 * fan * inner * k * k)
        return turned.reshape(out * 8, fan * inner, k, k)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, fields_in * (1 or 8), H, W)` -> `(n, fields_out * 8, H', W')`."""
        # One plain convolution with eight times the kernels.
        return nn.functional.conv2d(x, self.kernels(), stride=self.stride, padding=self.padding)


class FieldNorm(nn.Module):
    """Batch normalisation with one mean, variance, gain and offset per field of eight channels."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        # The eight channels of a field as a third axis: normalised together, or a turn would change them.
        self.norm = nn.BatchNorm3d(fields)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, fields * 8, H, W)` -> the same shape."""
        n, c, h, w = x.shape
        out: Tensor = self.norm(x.reshape(n, c // 8, 8, h, w))
        return out.reshape(n, c, h, w)


class Block(nn.Module):
    """Two group convolutions with norms and activations, and a shortcut, on a plane of half the side."""

    def __init__(self, fields_in: int, fields_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = GroupConv(fields_in, fields_out, 3), FieldNorm(fields_out)
        self.conv2, self.norm2 = GroupConv(fields_out, fields_out, 3), FieldNorm(fields_out)
        self.skip = GroupConv(fields_in, fields_out, 1)  # matches the number of fields

    def forward(self, x: Tensor) -> Tensor:
        """`(n, fields_in * 8, H, W)` -> `(n, fields_out * 8, H / 2, W / 2)`."""
        x = halve(x)
        y = self.norm2(self.conv2(nn.functional.relu(self.norm1(self.conv1(x)))))
        return nn.functional.relu(self.skip(x) + y)


def halve(x: Tensor) -> Tensor:
    """Half the resolution, symmetric for even and odd sides alike, so that equivariance stays exact."""
    # Means of 2x2 are symmetric on even sides, means of 3x3 on odd ones.
    h, w = x.shape[-2:]
    if h % 2 or w % 2:
        return nn.functional.avg_pool2d(x, 3, stride=2, padding=1)
    return nn.functional.avg_pool2d(x, 2)


class D4Cnn(nn.Module):
    """A small CNN whose output is exactly invariant under quarter turns and flips of a square cutout.

    Parameters
    ----------
    bands
        Input channels.
    width
        Fields of the first layer (eight channels each); doubled twice on the way.
    """

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.stem = GroupConv(bands, width, 6, stride=2, lift=True)
        self.norm = FieldNorm(width)
        self.blocks = nn.ModuleList(
            [Block(width, width), Block(width, 2 * width), Block(2 * width, 4 * width)]
        )
        self.features = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        """`(n, B, H, W)` -> features `(n, 8 * width)`: per field the mean and the maximum over the plane."""
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            x = nn.functional.avg_pool2d(x, 2, stride=1)  # the stem halves even planes symmetrically
        y = nn.functional.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            y = block(y)
        n, c, h, w = y.shape
        # Maximum over the group and pooling over the plane: nothing is left that a turn could change.
        fields = y.reshape(n, c // 8, 8, h, w).amax(2)  # (n, fields, h, w)
        return torch.cat([fields.mean((2, 3)), fields.amax((2, 3))], 1)

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, None]]]:
        """Names of the layers in order, as timm's networks give them."""
        return {"stem": r"^stem|^norm", "blocks": [(r"^blocks\.(\d+)", None)]}
