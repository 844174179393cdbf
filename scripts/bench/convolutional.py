#!/usr/bin/env python3
"""Why the windows of a blind search do not share the features of the network: a fully convolutional pass against windows.

    .venv/bin/python scripts/bench/convolutional.py MODEL --repo REPO --truth TABLE --tract T --patch P [--stamps 8] [--step 16]

Two comparisons, both on the coadds of a survey and with a `d4cnn` MODEL. First the pixels: two windows that are --step px
apart are fetched and preprocessed as the model wants it, each for itself, and what both show is subtracted. Then the
network alone: stamps of 256 px, each with one stretch, are scored once in windows of the model's size and once by one pass
over the stamp, whose last feature maps are pooled over the place of each window. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from blind import ripple
from torch import Tensor

from ripple.learn.model.network import D4Cnn
from ripple.learn.model.weights import load_model
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors

WIDE = 256


def stacked(tensors: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images and catalogue of all rows."""
    artefact = open_artefact(tensors, "tensors")
    shards = [map_tensors(artefact.verified_path(k)) for k in range(len(artefact.shards))]
    names = set.intersection(*[set(s.catalog) for s in shards])
    columns = {name: np.concatenate([np.asarray(s.catalog[name]) for s in shards]) for name in names}
    return np.concatenate([s.image for s in shards]).astype(np.float32), columns


def pixels(work: Path, model: str, where: list[str], step: int) -> None:
    """The same sky in neighbouring windows, each matched and stretched for itself."""
    bands = "".join(load_model(Path(model)).contract.bands)
    size = load_model(Path(model)).contract.size
    ripple("fetch", *where, "--grid", str(step), "--bands", bands, "--size", str(size), "-o", str(work / "c"))
    ripple("preprocess", str(work / "c"), "--model", model, "-o", str(work / "t"))
    image, columns = stacked(work / "t")
    place = {
        (int(c), int(r)): k
        for k, (c, r) in enumerate(zip(columns["grid_column"], columns["grid_row"], strict=True))
    }
    good = columns["accept"] == 1
    pairs = [
        (k, place[c + 1, r])
        for (c, r), k in place.items()
        if (c + 1, r) in place and good[k] and good[place[c + 1, r]]
    ]
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    apart = np.abs(image[left][:, :, :, step:] - image[right][:, :, :, :-step]).reshape(len(left), -1)
    print(
        f"{len(left):,} pairs of windows {step} px apart, values of the network's input (noise has a width of 1):\n"
    )
    print("| | median pair | 90 % of pairs below | worst pair |\n|---|---|---|---|")
    for name, values in (
        ("rms of the difference", np.sqrt((apart**2).mean(1))),
        ("largest difference", apart.max(1)),
    ):
        print(f"| {name} | {np.median(values):.1e} | {np.quantile(values, 0.9):.1e} | {values.max():.1e} |")


def pooled(y: Tensor) -> Tensor:
    """Features of feature maps `(n, C, h, w)`, as `D4Cnn.forward` ends."""
    n, c, h, w = y.shape
    fields = y.reshape(n, c // 8, 8, h, w).amax(2)
    return torch.cat([fields.mean((2, 3)), fields.amax((2, 3))], 1)


def maps(body: D4Cnn, image: Tensor) -> Tensor:
    y = torch.nn.functional.relu(body.norm(body.stem(image)))
    for block in body.blocks:
        y = block(y)
    return y


@torch.inference_mode()
def network(work: Path, model: str, where: list[str], truth: str, stamps: int, step: int) -> None:
    """Scores of one pass over large stamps against those of windows."""
    net = load_model(Path(model)).nets[0]
    contract = load_model(Path(model)).contract
    body, size = net.backbone, contract.size
    assert isinstance(body, D4Cnn), "needs a d4cnn"
    table = pq.read_table(truth).slice(0, stamps)
    pq.write_table(table, work / "few.parquet")
    ripple(
        "fetch",
        *where,
        "--targets",
        str(work / "few.parquet"),
        "--bands",
        "".join(contract.bands),
        "--size",
        str(WIDE),
        "-o",
        str(work / "wide"),
    )
    ripple("preprocess", str(work / "wide"), "-o", str(work / "wide-t"))
    image = torch.from_numpy(stacked(work / "wide-t")[0])
    starts = range(0, WIDE - size + 1, step)
    windows = torch.cat([image[:, :, y : y + size, x : x + size] for y in starts for x in starts])
    start = time.process_time()
    windowed = net.head(torch.cat([pooled(maps(body, part)) for part in windows.split(32)]))[:, 0].sigmoid()
    slow = time.process_time() - start
    start = time.process_time()
    whole = torch.cat([maps(body, part) for part in image.split(1)])
    ratio = WIDE // whole.shape[-1]
    if step % ratio:
        raise SystemExit(f"--step must be a multiple of {ratio} px, a pixel of the last maps")
    side = maps(body, windows[:1]).shape[-1]
    parts = [
        whole[:, :, y // ratio : y // ratio + side, x // ratio : x // ratio + side]
        for y in starts
        for x in starts
    ]
    passed = net.head(torch.cat([pooled(part) for part in parts]))[:, 0].sigmoid()
    fast = time.process_time() - start
    apart = (windowed - passed).abs()
    print(
        f"\n{len(windows):,} windows of {size} px in {len(image)} stamps of {WIDE} px, one stretch for each stamp:\n"
    )
    print("| difference of scores | |\n|---|---|")
    print(
        f"| median | {float(apart.median()):.1e} |\n| 90 % below | {float(apart.quantile(0.9)):.1e} |\n| largest | {float(apart.max()):.1e} |"
    )
    best = windowed.argsort(descending=True)[: max(1, len(windows) // 100)]
    print(
        f"| largest among the best 1 % | {float(apart[best].max()):.1e} |\n| within 1e-5 | {float((apart <= 1e-5).float().mean()):.1%} |"
    )
    print(f"\nCPU time of the pass to that of the windows: {fast / slow:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--repo", required=True)
    parser.add_argument("--collections", default="mini")
    parser.add_argument("--truth", required=True, help="table of positions for the stamps")
    parser.add_argument("--tract", default="4849")
    parser.add_argument("--patch", default="988")
    parser.add_argument("--stamps", type=int, default=8)
    parser.add_argument("--step", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = ["--repo", options.repo, "--collections", options.collections]
    with tempfile.TemporaryDirectory() as scratch:
        patch = ["--tract", options.tract, "--patch", options.patch]
        pixels(Path(scratch), options.model, [*where, *patch], options.step)
        network(Path(scratch), options.model, where, options.truth, options.stamps, options.step)


if __name__ == "__main__":
    main()
