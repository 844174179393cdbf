#!/usr/bin/env python3
"""Rows per CPU-second of the networks by each engine on one thread, and what each does to the scores.

    .venv/bin/python scripts/bench/engines.py [--rounds 3]
    .venv/bin/python scripts/bench/engines.py --model benchmark/model --tensors benchmark/tensors

The first prints the speed of networks with random weights on 256 images of 64 px in 3 bands, in turns: PyTorch in one
batch and in slices of 32 images (what `ripple score` does), the latter also in bfloat16 (`--precision bf16`), ONNX
Runtime, the same quantised to int8 (static, per channel, calibrated on the images), and OpenVINO in float32, bfloat16 and
int8 where it is installed (`pip install openvino`). The second calibrates on 512 rows drawn by --seed, scores all others,
and prints how the scores change, and how many of the best 1e-3 stay among them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import build
from ripple.learn.model.program import OnnxProgram
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.engine import InBf16, graph_of
from ripple.learn.scoring.forward import SLICE
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors

CALIBRATED = 512
BEST = 1e-3


class _Images:
    """Calibration images as ONNX Runtime asks for them."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.parts = iter([{name: part.numpy()} for part in images.split(SLICE)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.parts, None)


def int8(graph: bytes, images: Tensor) -> bytes:
    """The graph with 8-bit weights (per channel) and activations, their ranges those of the images."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        first, ready, small = (Path(scratch) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        first.write_bytes(graph)
        quant_pre_process(str(first), str(ready), skip_symbolic_shape=True)
        name = onnx.load(str(ready)).graph.input[0].name
        how = {"quant_format": QuantFormat.QDQ, "per_channel": True}
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(ready), str(small), _Images(name, images), **how, **kinds)
        return small.read_bytes()


def openvino(graph: bytes, precision: str) -> Callable[[Tensor], Tensor]:
    import openvino as ov

    core = ov.Core()
    how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    program = core.compile_model(core.read_model(graph), "CPU", how)
    return lambda image: torch.cat(
        [torch.from_numpy(program(p.numpy())[0].copy()) for p in image.split(SLICE)]
    )


def engines_of(
    backbone: nn.Module, shape: tuple[int, int], images: Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> features of images."""
    graph, short = graph_of(backbone, shape), InBf16(backbone)
    small = int8(graph, images)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "PyTorch, one batch": backbone,
        "PyTorch": lambda image: torch.cat([backbone(part) for part in image.split(SLICE)]),
        "PyTorch bfloat16": lambda image: torch.cat([short(part) for part in image.split(SLICE)]),
        "ONNX Runtime": OnnxProgram(graph),
        "ONNX Runtime int8": OnnxProgram(small),
    }
    try:
        import openvino as _  # noqa: F401
    except ImportError:
        return found
    return found | {
        "OpenVINO": openvino(graph, "f32"),
        "OpenVINO bfloat16": openvino(graph, "bf16"),
        "OpenVINO int8": openvino(small, "f32"),
    }


def speed(rounds: int, rows: int = 256) -> None:
    image = torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    print(
        "| network | engine | rows per CPU-s | to ONNX Runtime | largest difference of features |\n|---|---|---|---|---|"
    )
    for name, width in (("d4cnn", 4), ("d4cnn", 8), ("resnet18", 8)):
        torch.manual_seed(0)
        backbone = build(Architecture(name, 3, 64, 1, "small", width, 0.0)).eval().backbone
        engines = engines_of(backbone, (3, 64), image)
        rates: dict[str, list[float]] = {engine: [] for engine in engines}
        with torch.inference_mode():
            whole = backbone(image)
            for round_ in range(rounds + 1):
                for engine, features in engines.items():
                    start = time.process_time()
                    features(image)
                    if round_:  # the first is a warm-up
                        rates[engine].append(rows / (time.process_time() - start))
            onnx = statistics.median(rates["ONNX Runtime"])
            for engine, features in engines.items():
                rate, apart = statistics.median(rates[engine]), float((features(image) - whole).abs().max())
                print(
                    f"| {name}, width {width} | {engine} | {rate:.0f} | {rate / onnx:.2f} | {apart:.1e} |",
                    flush=True,
                )


def change(directory: Path, tensors: Path, seed: int) -> None:
    """Scores of one trained network by each engine; no calibration, which keeps the order."""
    model, artefact = load_model(directory), open_artefact(tensors, "tensors")
    net = model.nets[0]
    arch = model.contract.architecture
    shards = [map_tensors(artefact.verified_path(k)) for k in range(len(artefact.shards))]
    images = torch.cat(
        [torch.from_numpy(s.image[np.asarray(s.catalog["accept"]) != 0].astype(np.float32)) for s in shards]
    )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    known, others = images[order[:CALIBRATED]], images[order[CALIBRATED:]]
    engines = engines_of(net.backbone, (arch.bands, arch.size), known)
    del engines["PyTorch, one batch"]
    best = max(1, round(BEST * len(others)))
    print(f"\n{len(others):,} rows; {CALIBRATED} others calibrate int8; {best} are the best {BEST:g}\n")
    print(
        "| engine | largest change of a score | rms | of the best stay | order among the best (Spearman) |\n|---|---|---|---|---|"
    )
    truth = np.zeros(0)
    with torch.inference_mode():
        for engine, features in engines.items():
            logit = (
                torch.cat([net.head(features(part)) for part in others.split(1024)])[:, 0].double().numpy()
            )
            score = 1 / (1 + np.exp(-logit))
            if engine == "PyTorch":
                truth, top = logit, np.argsort(-logit, kind="stable")[:best]
                scores = score
            stay = len(set(top) & set(np.argsort(-logit, kind="stable")[:best]))
            ranks = [np.argsort(np.argsort(values[top])) for values in (truth, logit)]
            apart = np.abs(score - scores)
            print(
                f"| {engine} | {apart.max():.1e} | {np.sqrt((apart**2).mean()):.1e} | {stay} of {best} |"
                f" {np.corrcoef(*ranks)[0, 1]:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tensors", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.model is None:
        speed(options.rounds)
    else:
        change(options.model, options.tensors, options.seed)


if __name__ == "__main__":
    main()
