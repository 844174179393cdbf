"""Training and scoring from shards against the same network on tensors in memory; memory; time to start.

Run: python scripts/bench/train.py [--rows 4096] [--network d4cnn] [--device auto] [--large] [--part NAME]
Prints one JSON record: rows/s, ratios (shards / memory), peak memory of scoring by rows, seconds to start. The rows
of the memory test are 2,000 images of 16 px over and over, each time with ids of their own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from toys import BANDS, NORMALIZATION, ToyConfig, toy_batch, write_toys

from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.contract import ArchitectureRecord, Contract, Member
from ripple.learn.model.device import choose_device
from ripple.learn.model.network import Net, build
from ripple.learn.model.weights import save_model
from ripple.storage.shard_writer import pack_tensors
from ripple.storage.writer import ArtefactWriter, create


def make_model(directory: Path, record: ArchitectureRecord) -> None:
    """A model with random weights."""
    contract = Contract(
        architecture=record, bands=BANDS, size=record.size, pixel_scale=0.2, unit="nJy", psf_fwhm=1.2,
        normalization=NORMALIZATION, class_map={"0": "nonlens", "1": "lens"}, output="lens",
        members=(Member(file="model.safetensors", bytes=0, sha256=""),),
    )  # fmt: skip
    save_model(directory, contract, [build(record.architecture()).state_dict()])


def train_seconds(net: Net, batches: Any, device: torch.device) -> float:
    """Seconds of one epoch over an iterable of image and label."""
    optimizer, loss_of = torch.optim.AdamW(net.parameters(), 1e-4), nn.BCEWithLogitsLoss()
    net.train()
    began = time.perf_counter()
    for image, label in batches:
        loss = loss_of(net(image)[:, 0], label.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.inference_mode()
def score_seconds(net: Net, batches: Any, device: torch.device) -> float:
    """Seconds of one pass without gradients."""
    net.eval()
    began = time.perf_counter()
    for image, _ in batches:
        net(image)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def ratios(tensors: Path, record: ArchitectureRecord, device: torch.device, repeat: int) -> dict[str, Any]:
    """Rows/s from shards over rows/s from memory, pairs measured in turns, medians."""
    data = TensorDataset(tensors)
    net = build(record.architecture()).to(device)
    loader = Loader(data, batch_size=128, device=device)
    steps, last = len(loader), len(data) - 128 * (len(loader) - 1)
    image = torch.randn(128, *data.shape, device=device)
    label = torch.randint(0, 2, (128,), device=device)

    def memory() -> Any:
        return ((image[:n], label[:n]) for n in [128] * (steps - 1) + [last])

    def shards(epoch: int) -> Any:
        return ((batch["image"], batch["label"]) for batch in loader.epoch(epoch))

    found: dict[str, Any] = {}
    for name, run in (("train", train_seconds), ("score", score_seconds)):
        run(net, memory(), device)
        pairs = [(run(net, shards(k), device), run(net, memory(), device)) for k in range(repeat)]
        found[name] = {
            "rows_per_s": round(len(data) / statistics.median(a for a, _ in pairs)),
            "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        }
    return found


CHILD = """
import pathlib, sys
from ripple.cli import run
code = run(sys.argv[1:])
# ru_maxrss would begin with the size of the parent; VmHWM begins with this program.
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024)
sys.exit(code)
"""


def write_many(directory: Path, rows: int, each: int = 2000) -> Path:
    """A tensor artefact of the same images again and again, with new ids and indices."""
    writer = create(directory, kind="tensors", config=ToyConfig(), inputs={}, units=rows // each)
    assert isinstance(writer, ArtefactWriter)
    batch = toy_batch(each, 0, size=16)
    columns: dict[str, list[Any]] = {name: [] for name in batch.catalog}
    with writer:
        for k in range(rows // each):
            moved = {name: batch.catalog[name] + each * (k > 0) for name in ("index", "id")}
            batch = replace(batch, catalog=batch.catalog | moved)
            writer.commit(k, pack_tensors(batch, {}), each, {})
            for name, column in batch.catalog.items():
                columns[name].append(column)
        table = {name: np.concatenate(parts) for name, parts in columns.items()}
        place = {
            "shard": np.repeat(np.arange(rows // each), each),
            "row": np.tile(np.arange(each), rows // each),
        }
        table |= place | {"status": ["ok"] * rows, "reason": [""] * rows}
        writer.finish(pa.table(table), {}, {"bands": list(batch.bands)})
    return directory


def peak_mib(model: Path, tensors: Path, output: Path) -> int:
    """Peak memory of `ripple score` in a process of its own, MiB."""
    command = [sys.executable, "-c", CHILD, "score", str(model), str(tensors), "-o", str(output), "--no-tta"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def memory(root: Path, sizes: tuple[int, ...]) -> dict[str, int]:
    """Peak memory of scoring by number of rows, MiB."""
    small = ArchitectureRecord(name="d4cnn", bands=3, size=16, outputs=1, width=1)
    make_model(root / "model", small)
    found = {}
    for rows in sizes:
        many = write_many(root / f"t{rows}", rows)
        found[str(rows)] = peak_mib(root / "model", many, root / f"s{rows}")
        shutil.rmtree(many)
    return found


def start_seconds(tensors: Path) -> dict[str, float]:
    """Import of the package, of the learning part, and the first batch, each in a fresh process."""
    code = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    first = (
        "from ripple.learn.data.loader import Loader, TensorDataset; "
        f"next(Loader(TensorDataset('{tensors}'), batch_size=256).epoch(0))"
    )
    out = {}
    for name, what in (("import_ripple", "import ripple"), ("first_batch", first)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(what)], capture_output=True, text=True, check=True
        )
        out[name] = round(float(done.stdout), 3)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--network", default="d4cnn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--large", action="store_true", help="scoring memory up to 10^6 rows of 16 px")
    parser.add_argument("--part", choices=("speed", "start", "memory"), help="one of the three; default all")
    args = parser.parse_args()
    parts = [args.part] if args.part else ["speed", "start", "memory"]
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        result: dict[str, Any] = {"network": args.network, "device": str(device), "rows": args.rows}
        if parts != ["memory"]:
            tensors = write_toys(root / "tensors", shards=4, rows=args.rows // 4, size=64)
        if "speed" in parts:
            record = ArchitectureRecord(name=args.network, bands=3, size=64, outputs=1)
            result |= ratios(tensors, record, device, args.repeat)
        if "start" in parts:
            result["start_seconds"] = start_seconds(tensors)
        if "memory" in parts:
            result["peak_mib"] = memory(
                root, (10_000, 100_000, 1_000_000) if args.large else (10_000, 40_000)
            )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
