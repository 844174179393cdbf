"""Networks computed by ONNX Runtime: the same numbers to 1e-5, on CPUs several times as fast as PyTorch.

Only the backbones change; heads, orientations and everything after them are as before. The graphs are written
once and read by every worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ripple.errors import ConfigError, ContractError
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


def chosen(engine: Engine, rows: int, device: torch.device) -> Literal["torch", "onnx"]:
    """The engine that is used: `auto` takes ONNX Runtime for many rows on a CPU where it is installed.

    Raises
    ------
    ConfigError
        ONNX Runtime is asked for and not installed, or for a GPU.
    """
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
    nets = []
    for net, path in zip(model.nets, paths, strict=True):
        other = copy(net)
        other._modules = {**net._modules, "backbone": OnnxProgram(path.read_bytes())}
        nets.append(other)
    return replace(model, nets=tuple(nets))


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
