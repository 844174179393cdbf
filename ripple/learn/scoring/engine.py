"""Networks computed by ONNX Runtime: the same numbers to 1e-5, on CPUs several times as fast as PyTorch.

Only the backbones change; heads, orientations and everything after them are as before. The graphs are written
once and read by every worker. With `--precision bf16` PyTorch computes the backbones in bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ripple.errors import ConfigError, ContractError
from ripple.learn.config import Precision
from ripple.learn.model.contract import Contract, require_weights
from ripple.learn.model.device import autocast
from ripple.learn.model.program import OnnxProgram
from ripple.learn.model.weights import Model
from ripple.learn.scoring.forward import member_outputs
from ripple.runtime import extras
from ripple.storage.files import TEMPORARY, write_atomic

Engine = Literal["auto", "torch", "onnx"]
#: Rows from which on `auto` takes ONNX Runtime: writing a graph takes some 4 s, a row saves at least 0.2 ms.
ENOUGH = 20_000
#: Largest difference of scores on the images of the check.
TOLERANCE = 1e-5
PROBES = 64


def chosen(
    engine: Engine, rows: int, device: torch.device, precision: Precision = "fp32"
) -> Literal["torch", "onnx"]:
    """The engine that is used: `auto` takes ONNX Runtime for many rows on a CPU where it is installed.

    Raises
    ------
    ConfigError
        ONNX Runtime is asked for and not installed, or for a GPU, or for another precision than fp32.
    """
    if precision != "fp32":
        if engine == "onnx":
            raise ConfigError(
                f"--engine onnx computes in fp32, not in {precision}",
                hint="--engine torch, or leave out --precision",
            )
        return "torch"
    if engine == "onnx" and device.type != "cpu":
        raise ConfigError("--engine onnx computes on the CPU", hint="--device cpu, or --engine torch")
    if engine == "onnx":
        extras.require("onnx")
    if engine != "auto":
        return engine
    return "onnx" if rows >= ENOUGH and device.type == "cpu" and not extras.missing("onnx") else "torch"


def graph_paths(model: Model, directory: Path) -> tuple[Path, ...]:
    """Where the graphs of the members are: temporary names in an artefact that is being written."""
    return tuple(directory / f"{TEMPORARY}backbone-{k}.onnx" for k in range(len(model.nets)))


def graph_of(backbone: nn.Module, shape: tuple[int, int]) -> bytes:
    """A backbone as an ONNX file, for images of `shape` (bands, side) and any number of rows."""
    bands, side = shape
    example = torch.zeros(2, bands, side, side)
    rows = ({0: torch.export.Dim("rows")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about PyTorch's own operators, which nobody here can change
        program: Any = torch.onnx.export(
            backbone, (example,), dynamo=True, dynamic_shapes=rows, verbose=False
        )
    data: bytes = program.model_proto.SerializeToString()
    return data


def with_graphs(model: Model, paths: Sequence[Path]) -> Model:
    """The model with its backbones computed by ONNX Runtime; a program of others is that already."""
    if model.contract.architecture.is_program:
        return model
    return with_backbones(model, [OnnxProgram(path.read_bytes()) for path in paths])


def with_backbones(model: Model, backbones: Sequence[nn.Module]) -> Model:
    """The model with other backbones; heads and all else are shared."""
    nets = []
    for net, backbone in zip(model.nets, backbones, strict=True):
        other = copy(net)
        other._modules = {**net._modules, "backbone": backbone}
        nets.append(other)
    return replace(model, nets=tuple(nets))


class InBf16(nn.Module):
    """A backbone computed in bfloat16, its features float32 again.

    The head is not among it: logits of 8 bits would tie the best candidates.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """Features `(n, F)` float32 of images `(n, B, H, W)`."""
        with autocast("bf16", image.device)():
            features: Tensor = self.backbone(image)
        return features.float()


def with_precision(model: Model, precision: Precision) -> Model:
    """The model with its backbones computed in this precision."""
    if precision == "fp32":
        return model
    return with_backbones(model, [InBf16(net.backbone) for net in model.nets])


def check_precision(contract: Contract, name: str, precision: Precision) -> None:
    """Refuse another precision than fp32 for an ONNX program, which has its own; `ConfigError` names it."""
    if precision != "fp32":
        require_weights(
            contract, name, f"which has a precision of its own: leave out --precision {precision}"
        )


@torch.inference_mode()
def largest_difference(model: Model, other: Model) -> float:
    """Largest difference of the scores of two models on some images of noise and light."""
    arch = model.contract.architecture
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(PROBES, arch.bands, arch.size, arch.size, generator=generator)
    line = torch.arange(arch.size) - arch.size // 2
    blob = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * 3.0**2))
    image += blob * torch.linspace(0, 5, PROBES)[:, None, None, None]
    ours, theirs = (member_outputs(m.nets, image)[0].sigmoid() for m in (model, other))
    return float((ours - theirs).abs().max())


def with_onnx(model: Model, directory: Path) -> Model:
    """The model on the CPU computed by ONNX Runtime, its graphs in `directory` until that is finished.

    Raises
    ------
    ContractError
        ONNX Runtime gives other scores than PyTorch.
    """
    paths, arch = graph_paths(model, directory), model.contract.architecture
    if arch.is_program:
        return model
    for net, path in zip(model.nets, paths, strict=True):
        write_atomic(path, graph_of(net.backbone, (arch.bands, arch.size)))
    other = with_graphs(model, paths)
    difference = largest_difference(model, other)
    if not difference <= TOLERANCE:
        raise ContractError(
            f"ONNX Runtime gives scores that differ by {difference:.1g} from those of PyTorch",
            hint="--engine torch",
        )
    return other
