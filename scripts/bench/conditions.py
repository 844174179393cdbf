#!/usr/bin/env python3
"""What other observing conditions cost in training: milliseconds of one CPU thread for a batch of 64 rows.

    .venv/bin/python scripts/bench/conditions.py TENSORS

`TENSORS` as `ripple preprocess` wrote them. Beside the conditions, a step of networks on the same batch: forward, backward and
optimiser. CPU time of the process, median of 7. Prints Markdown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ripple.learn.data.augment import Augment
from ripple.learn.data.conditions import Ranges, conditions
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import build

CASES = {
    "all of them": Ranges(0.4, 0.5, 0.02, 0.1, 0.5, 0.5, 0.2),
    "seeing, depth, zero point, a lost band, parts of a pixel": Ranges(0.4, 0.5, 0.02, 0.1, 0.5),
    "depth alone": Ranges(depth=0.5),
    "zero point alone": Ranges(zero_point=0.02),
    "neighbours alone": Ranges(neighbours=0.5),
    "a sky residual alone": Ranges(background=0.2),
}


def cpu(call: Callable[[], object], times: int = 7) -> float:
    """Median milliseconds of CPU time, after two calls."""
    call(), call()
    spent = []
    for _ in range(times):
        began = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - began))
    return statistics.median(spent)


def step(name: str, width: int, image: torch.Tensor) -> Callable[[], None]:
    """One step of training."""
    net = build(Architecture(name, image.shape[1], image.shape[-1], 1, "small", width, 0.0))
    optimizer = torch.optim.AdamW(net.parameters())

    def once() -> None:
        optimizer.zero_grad()
        net(image).sum().backward()
        optimizer.step()

    return once


def main() -> None:
    torch.set_num_threads(1)
    dataset = TensorDataset(Path(sys.argv[1]))
    batch = next(iter(Loader(dataset, batch_size=64).epoch(0)))
    image, row = batch["image"], batch["row"]
    galaxies = dataset.rows[dataset.column("label")[dataset.rows] != 1]
    print(f"| 64 rows of {image.shape[1]} bands x {image.shape[-1]} px | CPU ms |\n|---|---|")
    for name, ranges in CASES.items():
        how = conditions(ranges, dataset, galaxies)
        print(f"| {name} | {cpu(lambda h=how: h(image, row, seed=1, epoch=0)):.0f} |")
    turns = Augment(shift=2)
    print(f"| turns and whole shifts | {cpu(lambda: turns(image, row, seed=1, epoch=0)):.0f} |")
    for name, width in (("d4cnn", 4), ("d4cnn", 8), ("resnet18", 8)):
        wide = f" of width {width}" if name == "d4cnn" else ""
        print(f"| a step of {name}{wide} | {cpu(step(name, width, image), 3):.0f} |")


if __name__ == "__main__":
    main()
