"""Rows that concern train and score: rotting shards, damaged and hostile models, runs that are killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import verbs
from faultlib import Tally
from rows import named, row, trials_in_time
from verbs import VERB_ROWS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
SMALL = ["--width", "2", "--nside", "512", "--threads", "1", "--draws", "3", "--batch-size", "16"]


def toys(directory: Path, rows: int = 100) -> Path:
    """A tensor artefact of toys, made once per row."""
    from toys import write_toys

    return write_toys(directory / "toys", shards=3, rows=rows)


def model(directory: Path, **changes: Any) -> Path:
    from models import make_model

    return make_model(directory, **changes)


def train_argv(tensors: Path, output: Path, epochs: int = 3) -> list[str]:
    return [*verbs.RIPPLE, "train", str(tensors), "--epochs", str(epochs), *SMALL, "-o", str(output)]


def score_argv(trained: Path, tensors: Path, output: Path) -> list[str]:
    return [*verbs.RIPPLE, "score", str(trained), str(tensors), "--threads", "1", "-o", str(output)]


# Rows 1, 22, 35: killed and interrupted -----------------------------


@row("35", "train: kill -9 at random moments, resume to the same weights", full=200, gate=2, into=VERB_ROWS)
def train_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    data = toys(directory, 40)
    verbs.killed(tally, rng, trials, directory, lambda out, _: train_argv(data, out))


@row("22", "train: SIGINT and SIGTERM at random moments, resume", full=200, gate=1, into=VERB_ROWS)
def train_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    data = toys(directory, 40)
    verbs.interrupted(tally, rng, trials, directory, lambda out, _: train_argv(data, out))


@row("1", "score: kill -9 at random moments, resume", full=200, gate=1, into=VERB_ROWS)
def score_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    data, trained = toys(directory, 40), model(directory / "model")
    verbs.killed(tally, rng, trials, directory, lambda out, _: score_argv(trained, data, out))


@row("22", "score: SIGINT and SIGTERM at random moments, resume", full=200, gate=1, into=VERB_ROWS)
def score_interrupted(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    data, trained = toys(directory, 40), model(directory / "model")
    verbs.interrupted(tally, rng, trials, directory, lambda out, _: score_argv(trained, data, out))


# Row 31: rot while it trains ----------------------------------------


@row("31", "a bit flips in a shard while a model is trained on it", full=1000, gate=6, into=VERB_ROWS)
def rot(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from models import SMALL as OPTIONS

    from ripple.errors import IntegrityError
    from ripple.learn.config import TrainConfig
    from ripple.learn.training import loop
    from ripple.learn.training.train import train

    data = toys(directory)
    shards = sorted(data.glob("shard-*"))
    original = loop.lens_loss
    options = OPTIONS | {"epochs": 2, "draws": 5, "tensors": [str(data)]}
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"rot-{trial}", trial + 1
        path = rng.choice(shards)
        place, bit, after = rng.randrange(path.stat().st_size), 1 << rng.randrange(8), rng.randint(1, 10)
        calls = 0

        def flipping(
            *args: Any,
            path: Path = path,
            place: int = place,
            bit: int = bit,
            after: int = after,
            **named: Any,
        ) -> Any:
            nonlocal calls
            calls += 1
            if calls == after:
                flip(path, place, bit)
            return original(*args, **named)

        loop.lens_loss = flipping
        try:
            train(TrainConfig.make(options | {"output": str(here)}))
            tally.silent += 1
            tally.note(f"byte {place} of {path.name} rotted unseen")
        except IntegrityError as err:
            named(tally, str(err), path.name)
        finally:
            loop.lens_loss = original
            if calls >= after:
                flip(path, place, bit)
        if (here / "model.json").exists() or (here / ".train").exists():
            tally.silent += 1
            tally.note(f"left {sorted(p.name for p in here.iterdir())}")
        shutil.rmtree(here, ignore_errors=True)


def flip(path: Path, place: int, bit: int) -> None:
    """One bit of a file that others have mapped."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


# Rows 33, 34: bad and hostile models --------------------------------


class Scoring:
    """Scores with a model that is not fit for it, in process; says what came of it."""

    def __init__(self, directory: Path) -> None:
        from ripple.learn.config import ScoreConfig

        self.data, self.output = toys(directory), directory / "scores"
        self.make = ScoreConfig.make

    def __call__(self, tally: Tally, name: str, trained: Path, *parts: str, seconds: float = 10.0) -> None:
        from ripple.errors import ConfigError, InputError, IntegrityError
        from ripple.learn.scoring.score import score

        start = time.monotonic()
        fields = {
            "model": str(trained),
            "tensors": [str(self.data)],
            "output": str(self.output),
            "threads": 1,
        }
        try:
            score(self.make(fields))
            tally.silent += 1
            tally.note(f"{name}: scored")
        except (IntegrityError, InputError, ConfigError) as err:
            named(tally, str(err), *parts)
        if self.output.exists():
            tally.silent += 1
            tally.note(f"{name}: a score was written")
            shutil.rmtree(self.output)
        if time.monotonic() - start > seconds:
            tally.hung += 1
            tally.note(f"{name}: {time.monotonic() - start:.0f} s")


def _damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    out = bytearray(data)
    if kind == "flip":
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del out[rng.randrange(len(out)) :]
    elif kind == "longer":
        out += rng.randbytes(rng.randint(1, 100))
    elif kind == "zeros":
        start = rng.randrange(len(out))
        out[start : start + 64] = bytes(len(out[start : start + 64]))
    return bytes(out)


@row("33", "models flipped, cut, of other parts", full=1000, gate=60, into=VERB_ROWS, gating=True)
def bad_models(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    scoring, trained = Scoring(directory), model(directory / "model")
    other = model(directory / "other", members=2)
    for trial in range(trials):
        tally.trials = trial + 1
        path = trained / ("model.safetensors", "model.json")[trial % 2]
        whole, kind = path.read_bytes(), rng.choice(["flip", "cut", "longer", "zeros", "other", "gone"])
        damaged = (other / path.name).read_bytes() if kind == "other" else _damaged(whole, kind, rng)
        if damaged == whole:
            damaged = whole + b"x"
        path.write_bytes(damaged)
        if kind == "gone":
            path.unlink()
        _judge_model(tally, scoring, kind, trained, path, damaged, whole)
        path.write_bytes(whole)


def _judge_model(
    tally: Tally, scoring: Scoring, kind: str, trained: Path, path: Path, damaged: bytes, whole: bytes
) -> None:
    """JSON that still says the same (a blank more or less) is no fault."""
    if path.suffix == ".json" and kind != "gone":
        try:
            if json.loads(damaged) == json.loads(whole):
                return
        except ValueError:
            pass
    scoring(tally, f"{path.name} {kind}", trained, str(trained))


def _rewrite(trained: Path, weights: bytes | None = None, **fields: Any) -> None:
    """What an attacker can do: weights and a contract with the right digests."""
    from ripple.config import canonical_json

    path = trained / "model.json"
    contract = json.loads(path.read_bytes())["contract"]
    contract |= fields
    if weights is not None:
        (trained / "model.safetensors").write_bytes(weights)
        contract["members"][0] |= {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    record = {"contract": contract, "digest": hashlib.sha256(canonical_json(contract)).hexdigest()}
    path.write_text(json.dumps(record))


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def _safetensors(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def hostile_weights(good: bytes, canary: Path) -> Iterator[tuple[str, bytes]]:
    """Weights that attack their reader; after the `attacks` of safetensors."""
    import torch

    size = struct.unpack("<Q", good[:8])[0]
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
    first = sorted(k for k in header if k != "__metadata__")[0]
    entry = header[first]
    for protocol in range(5):
        yield f"pickle protocol {protocol}", pickle.dumps(_Bomb(canary), protocol=protocol)
    saved = io.BytesIO()
    torch.save({"x": _Bomb(canary)}, saved)
    yield "torch.save with code", saved.getvalue()
    yield "polyglot: zip behind safetensors", good + saved.getvalue()
    yield "polyglot: pickle in the body", _safetensors(header, pickle.dumps(_Bomb(canary)))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(50_000_000))
    yield "zip bomb", bomb.getvalue()
    for claim in (2**63, 2**40, 10**9, len(good) * 2, 0, 1):
        yield f"header of {claim} bytes", _safetensors(header, body, claim)
    yield "header of spaces", _safetensors(b" " * 1_000_000)
    yield "nested header", _safetensors(b"[" * 200_000 + b"]" * 200_000)
    yield "a key of a megabyte", _safetensors({"k" * 1_000_000: entry}, body)
    yield (
        "10^5 empty tensors",
        _safetensors(
            {f"t{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(100_000)}
        ),
    )
    for shape in ([2**62, 2**62], [10**12], [-1], [2**31, 2**31], [1.5], ["a"], [[1]]):
        yield f"shape {shape}", _safetensors(header | {first: entry | {"shape": shape}}, body)
    for offsets in ([0, 2**62], [2**62, 0], [-8, 0], [8, 0], [0], [0, 1, 2], "x", None):
        yield f"offsets {offsets}", _safetensors(header | {first: entry | {"data_offsets": offsets}}, body)
    yield (
        "overlapping tensors",
        _safetensors(
            {
                k: v | {"data_offsets": entry["data_offsets"]} if k != "__metadata__" else v
                for k, v in header.items()
            },
            body,
        ),
    )
    for dtype in ("F99", "", None, 7, "I8", "C64", "BOOL"):
        yield f"dtype {dtype}", _safetensors(header | {first: entry | {"dtype": dtype}}, body)
    yield (
        "another tensor",
        _safetensors(header | {"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, body),
    )
    for metadata in (5, [], {"a": 1}, {"a": {"b": "c"}}):
        yield f"metadata {metadata}", _safetensors(header | {"__metadata__": metadata}, body)
    rest = {k: v for k, v in header.items() if k != first}
    for name in ("../../etc/passwd", "/dev/zero", "a\0b", "", "__class__", "\u202e" * 50, "{0.__class__}"):
        yield f"a tensor called {name!r}", _safetensors(rest | {name: entry}, body)
    text = json.dumps(header)[:-1] + f", {json.dumps(first)}: " + json.dumps(entry | {"shape": [1]}) + "}"
    yield "a tensor twice", _safetensors(text.encode(), body)
    for text in ("[]", "null", "5", '"x"', "{", "\0" * 100, "{}"):
        yield f"header {text[:3]!r}", _safetensors(text.encode(), body)
    for odd in (
        None,
        [],
        {},
        5,
        entry | {"code": "os.system"},
        {k: v for k, v in entry.items() if k != "dtype"},
    ):
        yield f"entry {str(odd)[:60]}", _safetensors(header | {first: odd}, body)
    yield "a tensor less", _safetensors({k: v for k, v in header.items() if k != first}, body)
    low = entry["data_offsets"][0]
    for label, value in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", -float("inf"))):
        poisoned = bytearray(body)
        poisoned[low : low + 4] = struct.pack("<f", value)
        yield f"{label} weights", _safetensors(header, bytes(poisoned))
    for label, data in (
        ("empty", b""),
        ("8 bytes", bytes(8)),
        ("text", b"weights" * 99),
        ("html", b"<html>" * 99),
    ):
        yield label, data


def hostile_fields(directory: Path) -> list[dict[str, Any]]:
    """Contracts that lead astray."""
    member = {"bytes": 0, "sha256": "0" * 64, "seed": 0, "epoch": 0}
    names = [
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "..",
        "",
        "a\0b",
        str(directory),
    ]
    files = [{"members": [member | {"file": name}]} for name in names]
    sizes: list[dict[str, Any]] = [
        {"architecture": {"name": "d4cnn", "bands": 3, "size": 32, "outputs": 1, "width": 10**9}},
        {"architecture": {"name": "d4cnn", "bands": 10**9, "size": 32, "outputs": 1, "width": 2}},
        {"architecture": {"name": "os.system", "bands": 3, "size": 32, "outputs": 1, "width": 2}},
        {"architecture": {"name": "../x", "bands": 3, "size": 32, "outputs": 1, "width": 2}},
        {"size": 10**12}, {"size": -1}, {"bands": []}, {"bands": ["g"] * 10_000}, {"members": []},
        {"class_map": {"0": "x" * 10**6}}, {"normalization": {"method": "__import__('os')"}}, {"unknown": 1},
        {"pixel_scale": 0}, {"pixel_scale": -1}, {"psf_fwhm": 1e308}, {"threshold": "x"},
    ]  # fmt: skip
    return files + sizes


@row("34", "hostile models: code, bombs, wrong names", full=100, gate=25, into=VERB_ROWS)
def hostile_models(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    scoring, trained, canary = Scoring(directory), model(directory / "model"), directory / "CANARY"
    good = (trained / "model.safetensors").read_bytes()
    keep = (trained / "model.json").read_bytes()
    cases: list[tuple[str, Callable[[], None]]] = [
        (name, lambda data=data: _rewrite(trained, data)) for name, data in hostile_weights(good, canary)
    ]
    cases += [(str(f)[:80], lambda f=f: _rewrite(trained, **f)) for f in hostile_fields(directory)]
    rng.shuffle(cases)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for trial, (name, attack) in enumerate(cases[:trials]):
        tally.trials = trial + 1
        attack()
        scoring(tally, name, trained)
        (trained / "model.safetensors").write_bytes(good)
        (trained / "model.json").write_bytes(keep)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > 1 << 20:
            tally.silent += 1
            tally.note(f"{name}: {grown} KiB more memory")
            before += grown
    if canary.exists():
        tally.silent += 1
        tally.note("code ran")


SIDECAR = {
    "bands": ["g", "r", "i"], "size": 32, "pixel_scale": 0.2, "unit": "nJy", "psf_fwhm": 1.2,
    "normalization": {"method": "asinh"}, "class_map": {"0": "nonlens", "1": "lens"}, "output": "lens",
    "architecture": {"name": "d4cnn", "bands": 3, "size": 32, "outputs": 1, "width": 2},
}  # fmt: skip


@row("34", "import-model of hostile checkpoints", full=60, gate=6, into=VERB_ROWS)
def hostile_imports(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.errors import RippleError
    from ripple.learn.config import ImportModelConfig
    from ripple.learn.model.exchange import import_model

    canary, sidecar = directory / "CANARY", directory / "sidecar.yaml"
    sidecar.write_text(json.dumps(SIDECAR))
    good = (model(directory / "model") / "model.safetensors").read_bytes()
    cases = [(n, d, s) for n, d in hostile_weights(good, canary) for s in (".pt", ".safetensors", ".onnx")]
    rng.shuffle(cases)
    for trial, (name, data, suffix) in enumerate(cases[:trials]):
        tally.trials = trial + 1
        path, output = directory / f"weights{suffix}", directory / "imported"
        path.write_bytes(data)
        try:
            import_model(ImportModelConfig.make({"source": path, "sidecar": sidecar, "output": output}))
            tally.silent += 1
            tally.note(f"{name}{suffix}: imported")
            shutil.rmtree(output)
        except RippleError as err:
            named(tally, str(err), "weights")
    if canary.exists():
        tally.silent += 1
        tally.note("code ran")
