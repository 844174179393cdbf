#!/usr/bin/env python3
"""What a GPU is asked on the day one is at hand: speed, idle share, agreement with the CPU, several ranks.

    .venv/bin/python scripts/bench/gpu.py [--device auto] [--rows 16384] [--seconds 420] [-o gpu.json]

Made to end within eight minutes on one card: parts that no longer fit into `--seconds` are left out, and named.
Prints a table and writes JSON. Runs on a CPU as well (`--rows 128`), which the tests do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from models import make_model
from stampmaker import make_batch
from toys import write_toys

from ripple.learn.data.augment import Augment
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import ArchitectureRecord
from ripple.learn.model.device import choose_device
from ripple.learn.model.network import Net, build
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.forward import answered, average
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig

Record = dict[str, Any]
NETWORKS = ("d4cnn:4", "d4cnn:8", "resnet18", "convnextv2_atto")


@dataclass(frozen=True)
class Bench:
    """What the parts share: tensors, the device, rows of a batch, and where to write."""

    tensors: Path
    root: Path
    device: torch.device
    size: int
    batch: int
    repeat: int
    networks: tuple[str, ...]

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of `work`, with what the device still does at its end."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def network(self, text: str) -> Net:
        """A network by name, or `d4cnn:WIDTH`, on the device."""
        name, _, width = text.partition(":")
        return build(Architecture(name, 3, self.size, 1, "small", int(width or 8), 0.0)).to(self.device)

    def loader(self, **options: Any) -> Loader:
        """Batches of the tensors, augmented as in training."""
        return Loader(
            TensorDataset(self.tensors),
            batch_size=self.batch,
            device=self.device,
            augment=Augment(),
            **options,
        )

    def autocast(self, precision: str) -> Any:
        """bf16, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def train_on(bench: Bench, net: Net, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> None:
    """One epoch."""
    optimizer, loss_of = torch.optim.AdamW(net.parameters(), 1e-4), nn.BCEWithLogitsLoss()
    net.train()
    for image, label in batches:
        with bench.autocast(precision):
            loss = loss_of(net(image)[:, 0].float(), label.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def score_on(bench: Bench, net: Net, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> None:
    """One pass without gradients."""
    net.eval()
    for image, _ in batches:
        with bench.autocast(precision):
            net(image)


def speed(bench: Bench) -> list[Record]:
    """Rows/s from shards and from memory, in turns; what the loader leaves idle is one minus their ratio."""
    loader = bench.loader(drop_last=True)
    rows = len(loader) * bench.batch
    image = torch.randn(bench.batch, *loader.dataset.shape, device=bench.device)
    label = torch.randint(0, 2, (bench.batch,), device=bench.device)
    found = []
    for name in bench.networks:
        for precision, layout in (("fp32", "nchw"), ("bf16", "nchw"), ("bf16", "nhwc")):
            order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
            net = bench.network(name)
            if not name.startswith("d4cnn"):  # whose kernels have five axes
                net = net.to(memory_format=order)

            def memory(order: torch.memory_format = order) -> Iterator[tuple[Tensor, Tensor]]:
                return iter([(image.contiguous(memory_format=order), label)] * len(loader))

            def shards(epoch: int, order: torch.memory_format = order) -> Iterator[tuple[Tensor, Tensor]]:
                return ((b["image"].contiguous(memory_format=order), b["label"]) for b in loader.epoch(epoch))

            for what, run in (("train", train_on), ("score", score_on)):
                work = partial(run, bench, net, precision=precision)
                work(memory())  # kernels are chosen and loaded
                pairs = [
                    (bench.seconds(partial(work, shards(k))), bench.seconds(partial(work, memory())))
                    for k in range(bench.repeat)
                ]
                ratio = statistics.median(m / s for s, m in pairs)
                found.append({
                    "network": name, "what": what, "precision": precision, "layout": layout,
                    "rows_per_s": round(rows / statistics.median(s for s, _ in pairs)),
                    "of_memory": round(ratio, 3), "idle_share": round(max(0.0, 1 - ratio), 3),
                })  # fmt: skip
    return found


def agreement(bench: Bench) -> list[Record]:
    """Largest differences between the device and the CPU, of preprocessing and of scores."""
    batch = make_batch(n=64)
    tensors = [
        preprocess_batch(
            batch,
            PreprocessConfig.make({"device": name, "dtype": "float32", "registration": False}),
            DataConstants(),
        ).image
        for name in ("cpu", str(bench.device))
    ]
    found = [{"what": "preprocess", "difference": float(np.abs(tensors[0] - tensors[1]).max())}]
    data = TensorDataset(bench.tensors)
    rows = data.rows[: 2 * bench.batch]
    for name in ("d4cnn", "resnet18"):
        record = ArchitectureRecord(name=name, bands=3, size=bench.size, outputs=1, width=4)
        directory = make_model(bench.root / f"model-{name}", size=bench.size, architecture=record)
        scores = [
            expit(average(answered(load_model(directory).to(device).nets, data, rows, device)[0]))
            for device in (torch.device("cpu"), bench.device)
        ]
        found.append({"what": f"score {name}", "difference": float(np.abs(scores[0] - scores[1]).max())})
    return found


def first_batch(bench: Bench) -> list[Record]:
    """Seconds of a fresh process to its first batch on the device."""
    code = (
        "import sys, time; t = time.perf_counter()\n"
        "from ripple.learn.data.loader import Loader, TensorDataset\n"
        "batch = next(Loader(TensorDataset(sys.argv[1]), batch_size=256, device=sys.argv[2]).epoch(0))\n"
        "float(batch['image'].sum()); print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code, str(bench.tensors), str(bench.device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [{"what": "first batch", "seconds": round(float(done.stdout), 2)}]


def two_ranks(bench: Bench) -> list[Record]:
    """Two ranks of torchrun train one epoch: on two cards, or with gloo on the CPU where there is one card."""
    cards = torch.cuda.device_count()
    device = "auto" if cards >= 2 else "cpu"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ripple",
        "train", str(bench.tensors), "-o", str(bench.root / "ranks"), "--epochs", "1", "--width", "1",
        "--device", device, "--draws", "20", "-q",
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    record = {"what": "two ranks", "device": device, "exit": done.returncode}
    if done.returncode:
        record["said"] = done.stderr[-500:]
    return [record | {"seconds": round(time.perf_counter() - began, 1)}]


#: In the order in which they run: what is known about no other machine comes first.
PARTS: dict[str, Callable[[Bench], list[Record]]] = {
    "agreement": agreement,
    "first batch": first_batch,
    "two ranks": two_ranks,
    "speed": speed,
}


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = [f"{result['device']}, {result['rows']:,} rows of {result['size']} px\n"]
    for name, records in result["parts"].items():
        names = list(dict.fromkeys(key for record in records for key in record))
        lines += [f"\n{name}\n", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {' | '.join(str(record.get(key, '')) for key in names)} |" for record in records]
    return "\n".join([*lines, *(f"\nleft out, for want of time: {name}" for name in result["left_out"])])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    began, device = time.perf_counter(), choose_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    result: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "rows": args.rows, "size": args.size, "parts": {}, "left_out": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tensors = write_toys(root / "tensors", shards=4, rows=args.rows // 4, size=args.size)
        bench = Bench(
            tensors, root, device, args.size, args.batch, args.repeat, tuple(args.networks.split(","))
        )
        for part in args.parts.split(","):
            if time.perf_counter() - began > args.seconds:
                result["left_out"].append(part)
                continue
            result["parts"][part] = PARTS[part](bench)
            args.output.write_text(json.dumps(result, indent=1))  # after each part: time may run out
    args.output.write_text(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
