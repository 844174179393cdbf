"""How fast the loader is, as ratios measured side by side in one run.

    python scripts/bench/loader.py [--rows 20000] [--shards 100] [--dtype float32]

Every competitor reads the same rows. Rounds are interleaved and the ratio of each round is taken, so that
other work on the machine hits all of them alike; the median over rounds is printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch

from ripple import shard, write_tensors
from ripple.artefact import open_artefact
from ripple.export import ExportConfig, export
from ripple.learn.loader import Loader, TensorDataset

BATCH = 256


def make(directory: Path, rows: int, shards: int, dtype: str) -> Path:
    """Rows of three bands of 64 x 64 px: a table of noise, shifted by the row, so that rows differ."""
    noise = np.random.default_rng(0).normal(size=(4096, 3, 64, 64)).astype(dtype)
    image = np.lib.format.open_memmap(
        directory.with_suffix(".npy"), mode="w+", dtype=dtype, shape=(rows, 3, 64, 64)
    )
    for at in range(0, rows, 4096):
        image[at : at + 4096] = noise[: min(4096, rows - at)]
        image[at : at + 4096, 0, 0, 0] = np.arange(at, min(at + 4096, rows)) % 1000
    catalog = {"label": np.arange(rows) % 2}
    write_tensors(directory, image, "gri", catalog, dtype=dtype, rows_per_shard=rows // shards)
    directory.with_suffix(".npy").unlink()
    return directory


class PlainH5(torch.utils.data.Dataset):
    """What people write first: open the files, read one row per item."""

    def __init__(self, directory: Path) -> None:
        artefact = open_artefact(directory)
        self.paths = [artefact.shard_path(k) for k in range(len(artefact.shards))]
        self.offsets = np.cumsum([0, *(s.rows for s in artefact.shards)])
        self.files: dict[int, h5py.File] = {}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        k = int(np.searchsorted(self.offsets, row, side="right")) - 1
        if k not in self.files:
            self.files[k] = h5py.File(self.paths[k], "r")
        file, at = self.files[k], row - self.offsets[k]
        return torch.from_numpy(file["image"][at]).float(), int(file["catalog/label"][at])


def ours(directory: Path) -> Callable[[int], Iterator[int]]:
    loader = Loader(TensorDataset(directory), batch_size=BATCH, seed=1)
    return lambda epoch: (len(batch["row"]) for batch in loader.epoch(epoch))


def plain(directory: Path, workers: int) -> Callable[[int], Iterator[int]]:
    data = torch.utils.data.DataLoader(PlainH5(directory), BATCH, shuffle=True, num_workers=workers)
    return lambda epoch: (len(image) for image, _ in data)


def floor(directory: Path) -> Callable[[int], Iterator[int]]:
    """The same bytes in file order, each copied once."""
    artefact = open_artefact(directory)
    maps = [shard.map_tensors(artefact.verified_path(k)).image for k in range(len(artefact.shards))]

    kind = torch.from_numpy(np.empty(0, maps[0].dtype)).dtype

    def epoch(_: int) -> Iterator[int]:
        out, filled = torch.empty((BATCH, *maps[0].shape[1:]), dtype=kind), 0
        for image in maps:
            at = 0
            while at < len(image):
                count = min(BATCH - filled, len(image) - at)
                out.numpy()[filled : filled + count] = image[at : at + count]
                at, filled = at + count, filled + count
                if filled == BATCH:
                    yield BATCH
                    out, filled = torch.empty((BATCH, *maps[0].shape[1:]), dtype=kind), 0

    return epoch


def tars(directory: Path) -> Callable[[int], Iterator[int]]:
    import webdataset

    out = directory.with_name("tars")
    options = {"source": directory, "output": out, "format": "webdataset", "rows_per_file": 1000}
    export(ExportConfig.make(options))
    files = [str(p) for p in sorted(out.glob("*.tar"))]

    def epoch(_: int) -> Iterator[int]:
        data = webdataset.WebDataset(files, shardshuffle=len(files), seed=1).shuffle(1000).decode()
        for image, _label in data.to_tuple("image.npy", "cls").batched(BATCH):
            yield len(torch.from_numpy(np.asarray(image)).float())

    return epoch


def rate(epoch: Callable[[int], Iterator[int]], number: int, seconds: float) -> float:
    """Rows per second over whole batches, for about `seconds`."""
    gc.collect()
    start, rows = time.perf_counter(), 0
    for count in epoch(number):
        rows += count
        if time.perf_counter() - start > seconds:
            break
    return rows / (time.perf_counter() - start)


def first_batch(directory: Path) -> float:
    """Seconds from a path to the first batch in a new process, imports not counted."""
    code = (
        "import sys, time; from ripple.learn.loader import Loader, TensorDataset; t = time.perf_counter();"
        "next(Loader(TensorDataset(sys.argv[1]), batch_size=256).epoch(0)); print(time.perf_counter() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def memory(directory: Path, epochs: int) -> list[float]:
    """Private memory after each epoch, MB (mapped files belong to the page cache)."""
    epoch = ours(directory)
    process, used = psutil.Process(), []
    for number in range(epochs):
        for _ in epoch(number):
            pass
        info = process.memory_info()
        used.append((info.rss - info.shared) / 1e6)
    return used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each competitor in each round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = make(Path(scratch) / "tensors", args.rows, args.shards, args.dtype)
        result: dict[str, object] = {"rows": args.rows, "shards": args.shards, "dtype": args.dtype}
        result["first_batch_seconds"] = round(statistics.median(first_batch(directory) for _ in range(3)), 3)
        runs = {"ours": ours(directory), "floor": floor(directory), "h5py": plain(directory, 0),
                "h5py, 2 workers": plain(directory, 2), "webdataset": tars(directory)}  # fmt: skip
        rate(runs["ours"], 0, 60), rate(runs["floor"], 0, 60)  # map and verify every shard once
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.rounds):
            for name, epoch in runs.items():
                rates[name].append(rate(epoch, number + 1, args.seconds))
        result["rows_per_second"] = {name: round(statistics.median(r)) for name, r in rates.items()}
        result["ours_over"] = {
            name: round(statistics.median(a / b for a, b in zip(rates["ours"], r, strict=True)), 2)
            for name, r in rates.items() if name != "ours"
        }  # fmt: skip
        used = memory(directory, 4)
        result["memory_growth_mb"] = round(used[-1] - used[0], 1)
        if torch.cuda.is_available():
            result["cuda"] = cuda(directory)
        print(json.dumps(result, indent=1))


def cuda(directory: Path) -> dict[str, float]:
    """Host-to-device rate of the loader over that of a pinned copy of the same bytes."""
    loader = Loader(TensorDataset(directory), batch_size=BATCH, device="cuda", threads=4)
    sample = next(loader.epoch(0))["image"]
    pinned = torch.empty(sample.shape, pin_memory=True)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(200):
        sample.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    copy = 200 * len(sample) / (time.perf_counter() - start)
    list(loader.epoch(1))
    start, rows = time.perf_counter(), 0
    for batch in loader.epoch(2):
        rows += len(batch["row"])
    torch.cuda.synchronize()
    mine = rows / (time.perf_counter() - start)
    return {"rows_per_second": round(mine), "over_pinned_copy": round(mine / copy, 3)}


if __name__ == "__main__":
    main()
