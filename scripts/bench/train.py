"""Training and scoring from shards against the same network on tensors in memory; memory; time to start.

Run: python scripts/bench/train.py [--rows 4096] [--network d4cnn] [--device auto] [--large] [--part NAME]
Prints one JSON record: rows/s, ratios (shards / memory), peak memory of scoring by rows, seconds to start. The rows
of the memory test are 2,000 images of 16 px over and over, each time with ids of their own.

`--part loop`: rates of the loop of `ripple train` as it is by default, over those of the same steps on one tensor in
memory that is shuffled by index and not augmented. `--part ood`: rates of scoring with distances to 4,096 training
rows over those without, by each engine. One thread, in turns, medians; by the clock, and in CPU time of all threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from toys import BANDS, NORMALIZATION, ToyConfig, toy_batch, write_toys

from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.contract import ArchitectureRecord, Contract, Member
from ripple.learn.model.device import choose_device
from ripple.learn.model.network import Net, build, parameter_groups
from ripple.learn.model.uncertainty import BANK, Uncertainty
from ripple.learn.model.weights import Bank, Model, load_model, save_bank, save_model
from ripple.learn.scoring.engine import with_onnx
from ripple.learn.scoring.forward import member_outputs
from ripple.learn.scoring.score import score_shard
from ripple.learn.training.adapt.methods import augmentation
from ripple.learn.training.loop import lens_loss, update_average
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors
from ripple.storage.shard_writer import pack_tensors
from ripple.storage.writer import ArtefactWriter, create

PARTS = ("speed", "start", "memory", "loop", "ood")


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


def in_turns(ours: Callable[[], None], theirs: Callable[[], None], rows: int, repeat: int) -> dict[str, Any]:
    """Rows/s of the first and its rates over those of the second, medians of pairs measured in turns."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeat)]
    return {
        "rows_per_s": round(rows / statistics.median(a[0] for a, _ in pairs)),
        "ratio": round(statistics.median(b[0] / a[0] for a, b in pairs), 3),
        "ratio_cpu": round(statistics.median(b[1] / a[1] for a, b in pairs), 3),
    }


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the CPUs by all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def whole_loop(tensors: Path, record: ArchitectureRecord, repeat: int) -> dict[str, Any]:
    """The training loop by default: balanced batches from shards, augmented, against a plain one."""
    torch.set_num_threads(1)
    config = TrainConfig.make({"tensors": [str(tensors)], "output": "unused"})
    data = TensorDataset(tensors)
    loader = Loader(
        data, batch_size=config.batch_size, balance=True, augment=augmentation(config), drop_last=True
    )
    images = torch.from_numpy(data.read(data.rows, np.empty((len(data), *data.shape), np.float32)))
    labels = torch.from_numpy(np.asarray(data.column("label"))[data.rows])
    net, average = (build(record.architecture()) for _ in range(2))
    groups = parameter_groups(net, lr=1e-4, weight_decay=config.weight_decay, layer_decay=1.0, freeze="none")
    optimizer = torch.optim.AdamW([dict(group) for group in groups])
    weights, epochs = torch.ones(2), itertools.count()

    def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        net.train()
        for step, (image, label) in enumerate(batches):
            loss = lens_loss(net(image)[:, 0], label, weights, 0.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            optimizer.step()
            update_average(average, net, config.ema, step)

    def ours() -> None:
        epoch((batch["image"], batch["label"]) for batch in loader.epoch(next(epochs)))

    def plain() -> None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(next(epochs)))
        epoch((images[part], labels[part]) for part in order.split(config.batch_size)[: len(loader)])

    return in_turns(ours, plain, len(loader) * config.batch_size, repeat)


def with_ood(root: Path, tensors: Path, record: ArchitectureRecord, repeat: int) -> dict[str, Any]:
    """Scoring with out-of-distribution distances against scoring without, shards in memory."""
    torch.set_num_threads(1)
    make_model(root / "plain", record)
    plain = load_model(root / "plain")
    artefact = open_artefact(tensors, "tensors")
    shards = [map_tensors(artefact.verified_path(k)) for k in range(len(artefact.shards))]
    config = ScoreConfig.make({"model": "unused", "tensors": [str(tensors)], "output": "unused"})
    images = [list(torch.from_numpy(np.array(s.image, np.float32)).split(config.batch_size)) for s in shards]
    found = {}
    (root / "graphs").mkdir()
    for name, without in (("torch", plain), ("onnx", with_onnx(plain, root / "graphs"))):
        doubting = doubtful(root / name, without, images[0][0][:8])

        def score_all(model: Model) -> None:
            for k, (shard, parts) in enumerate(zip(shards, images, strict=True)):
                how = (config, torch.device("cpu"), lambda _: None)
                score_shard(model, shard, parts, *how, number=k, digest=artefact.digest)

        found[name] = in_turns(
            partial(score_all, doubting), partial(score_all, without), sum(map(len, shards)), repeat
        )
    return found


def doubtful(directory: Path, model: Model, image: Tensor) -> Model:
    """A model with features of as many training rows as `ripple train` keeps; what they are costs nothing."""
    with torch.inference_mode():
        size = member_outputs(model.nets, image)[1].shape[-1]
    features = torch.randn(len(model.nets), BANK, size, generator=torch.Generator().manual_seed(0))
    bank = Bank(features, torch.arange(BANK), torch.zeros(BANK, dtype=torch.int64))
    known = Uncertainty(quantiles=(0.9, 0.9), **save_bank(directory, bank))
    return replace(model, contract=model.contract.model_copy(update={"uncertainty": known}), bank=bank)


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
    parser.add_argument("--part", choices=PARTS, help="one of them; default all")
    args = parser.parse_args()
    parts = [args.part] if args.part else list(PARTS)
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        result: dict[str, Any] = {"network": args.network, "device": str(device), "rows": args.rows}
        if parts != ["memory"]:
            tensors = write_toys(root / "tensors", shards=4, rows=args.rows // 4, size=64)
        record = ArchitectureRecord(name=args.network, bands=3, size=64, outputs=1)
        if "speed" in parts:
            result |= ratios(tensors, record, device, args.repeat)
        if "start" in parts:
            result["start_seconds"] = start_seconds(tensors)
        if "memory" in parts:
            result["peak_mib"] = memory(
                root, (10_000, 100_000, 1_000_000) if args.large else (10_000, 40_000)
            )
        # On one thread, so they come last.
        if "loop" in parts:
            result["loop"] = whole_loop(tensors, record, args.repeat)
        if "ood" in parts:
            result["ood"] = with_ood(root, tensors, record, args.repeat)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
