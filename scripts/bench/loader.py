"""How fast the loader is, as ratios measured side by side in one run.

    python scripts/bench/loader.py [--rows 20000] [--shards 100] [--dtype float32] [--peers ENVIRONMENT]

Every competitor reads the same rows. Rounds are interleaved and the ratio of each round is taken, so that
other work on the machine hits all of them alike; the median over rounds is printed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch

from ripple import write_tensors
from ripple.learn.data.dataset import Batch, TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import build
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.export import export
from ripple.storage import shard_reader
from ripple.storage.artefact import open_artefact

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
    """The same bytes in file order, each copied once (and made float32 in that copy), one thread.

    The batches are a ring of buffers made before: what a loader that reads ahead hands out, less the cost of
    making it.
    """
    artefact = open_artefact(directory)
    shards = [shard_reader.map_tensors(artefact.verified_path(k)).image for k in range(len(artefact.shards))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the maps are not writable
        maps = [torch.from_numpy(image) for image in shards]
    ring = [torch.empty((BATCH, *maps[0].shape[1:])) for _ in range(4)]

    def epoch(_: int) -> Iterator[int]:
        turn, filled = 0, 0
        for image in maps:
            at = 0
            while at < len(image):
                count = min(BATCH - filled, len(image) - at)
                ring[turn][filled : filled + count] = image[at : at + count]
                at, filled = at + count, filled + count
                if filled == BATCH:
                    yield BATCH
                    turn, filled = (turn + 1) % len(ring), 0

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


def chunks(directory: Path) -> Callable[[int], Iterator[int]]:
    """litdata, samples read in its shuffled order."""
    import litdata

    out = directory.with_name("litdata")
    source = TensorDataset(directory)
    cache = litdata.streaming.Cache(str(out), chunk_bytes="64MB")
    for row in range(len(source)):
        item = source[row]
        cache[row] = {"image": item["image"], "label": int(item["label"])}
    cache.done()
    cache.merge()

    def epoch(number: int) -> Iterator[int]:
        data = litdata.StreamingDataset(str(out), shuffle=True, seed=number)
        for batch in litdata.StreamingDataLoader(data, batch_size=BATCH):
            yield len(batch["image"].float())

    return epoch


def mosaic(directory: Path) -> Callable[[int], Iterator[int]]:
    """mosaicml-streaming from a local directory, its default shuffle."""
    import streaming

    out, source = directory.with_name("mds"), TensorDataset(directory)
    shape = ",".join(map(str, source.shape))
    columns = {"image": f"ndarray:{source.dtype.name}:{shape}", "label": "int"}
    with streaming.MDSWriter(out=str(out), columns=columns, size_limit=1 << 26) as writer:
        for row, image in enumerate(source.read(source.rows)):
            writer.write({"image": image, "label": row % 2})
    data = streaming.StreamingDataset(local=str(out), shuffle=True, batch_size=BATCH, shuffle_seed=1)

    def epoch(_: int) -> Iterator[int]:
        for batch in torch.utils.data.DataLoader(data, BATCH):
            yield len(batch["image"].float())

    return epoch


def with_peers(where: Path) -> None:
    """Run this script again in an environment of its own that has litdata and mosaicml-streaming too."""
    python = where / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", where], check=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(where), "platbase": str(where)}))
        # torch, ripple and the rest are seen through this line, and not installed twice.
        parent = sysconfig.get_path("purelib")
        (packages / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
        install = [python, "-m", "pip", "install", "--quiet", "litdata", "mosaicml-streaming"]
        subprocess.run(install, check=True)
    rest = [a for a in sys.argv[1:] if a != "--peers" and a != str(where)]
    sys.exit(subprocess.run([python, __file__, *rest, "--peers-here"]).returncode)


def rate(epoch: Callable[[int], Iterator[int]], number: int, seconds: float) -> tuple[float, float]:
    """Rows per second, and per second of processor time of this process, over whole batches."""
    gc.collect()
    start, busy, rows = time.perf_counter(), time.process_time(), 0
    for count in epoch(number):
        rows += count
        if time.perf_counter() - start > seconds:
            break
    return rows / (time.perf_counter() - start), rows / (time.process_time() - busy)


def first_batch(directory: Path) -> tuple[float, float]:
    """Seconds, and of processor time, from a path to the first batch in a new process; imports not counted."""
    code = (
        "import sys, time; from ripple.learn.data.loader import Loader, TensorDataset;"
        "t, c = time.perf_counter(), time.process_time();"
        "next(Loader(TensorDataset(sys.argv[1]), batch_size=256).epoch(0));"
        "print(time.perf_counter() - t, time.process_time() - c)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True
    )
    wall, busy = map(float, done.stdout.split())
    return wall, busy


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
    parser.add_argument(
        "--idle", action="store_true", help="only the share of training spent waiting, on the CPU"
    )
    parser.add_argument("--peers", type=Path, help="environment for litdata and mosaicml-streaming; made")
    parser.add_argument("--peers-here", action="store_true", help="they are installed where this runs")
    args = parser.parse_args()
    torch.set_num_threads(1)  # nobody computes; threads that wait for each other would only disturb
    if args.peers is not None:
        with_peers(args.peers)
    with tempfile.TemporaryDirectory() as scratch:
        directory = make(Path(scratch) / "tensors", args.rows, args.shards, args.dtype)
        result: dict[str, object] = {"rows": args.rows, "shards": args.shards, "dtype": args.dtype}
        if args.idle:
            print(json.dumps(result | {"cpu_idle_share": idle_share(directory, "cpu")}, indent=1))
            return
        first = [first_batch(directory) for _ in range(3)]
        result["first_batch_seconds"] = round(min(wall for wall, _ in first), 3)
        result["first_batch_processor_seconds"] = round(min(busy for _, busy in first), 3)
        runs = {"ours": ours(directory), "floor": floor(directory), "h5py": plain(directory, 0),
                "h5py, 2 workers": plain(directory, 2), "webdataset": tars(directory)}  # fmt: skip
        if args.peers_here:
            runs |= {"litdata": chunks(directory), "mosaicml-streaming": mosaic(directory)}
        result |= compare(runs, args.rounds, args.seconds)
        used = memory(directory, 4)
        result["memory_growth_mb"] = round(used[-1] - used[0], 1)
        if torch.cuda.is_available():
            result["cuda"] = cuda(directory)
        print(json.dumps(result, indent=1))


def compare(
    runs: dict[str, Callable[[int], Iterator[int]]], rounds: int, seconds: float
) -> dict[str, object]:
    """Rows per second of each, and the median over rounds of ours over theirs."""
    rate(runs["ours"], 0, 60), rate(runs["floor"], 0, 60)  # map and verify every shard once
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, epoch in runs.items():
            rates[name].append(rate(epoch, number + 1, seconds))

    def over(name: str, which: int) -> float:
        pairs = zip(rates["ours"], rates[name], strict=True)
        return round(statistics.median(a[which] / b[which] for a, b in pairs), 2)

    return {
        "rows_per_second": {name: round(statistics.median(r)) for name, (r, _) in
                            ((name, zip(*pairs, strict=True)) for name, pairs in rates.items())},
        "ours_over": {name: over(name, 0) for name in runs if name != "ours"},
        "ours_over_floor_per_processor_second": over("floor", 1),
    }  # fmt: skip


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
    result = {"rows_per_second": round(mine), "over_pinned_copy": round(mine / copy, 3)}
    return result | {"idle_share": idle_share(directory, "cuda")}


def idle_share(directory: Path, device: str) -> float:
    """Share of a training epoch of the small network in which the device waits for rows.

    That is the time beyond the same steps on one batch that stays on the device; median of three pairs.
    """
    loader = Loader(TensorDataset(directory), batch_size=BATCH, device=device, drop_last=True, threads=4)
    bands, size, _ = loader.dataset.shape
    net = build(Architecture("d4cnn", bands, size, width=4)).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters())

    def train(batches: Iterable[Batch]) -> float:
        start = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(batch["image"])[:, 0], batch["label"].float()
            )
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    resident = next(loader.epoch(0))
    train([resident] * 3), train(itertools.islice(loader.epoch(0), 3))
    pairs = [(train([resident] * len(loader)), train(loader.epoch(k))) for k in (1, 2, 3)]
    return round(statistics.median(max(0.0, 1.0 - floor / whole) for floor, whole in pairs), 3)


if __name__ == "__main__":
    main()
