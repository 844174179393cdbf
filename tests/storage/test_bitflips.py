"""One bit anywhere in a shard, the index or the manifest: found by `verify` and by the first read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tensorsets import make_tensors

import ripple
from ripple.errors import DataError, RippleError
from ripple.learn.data.dataset import TensorDataset
from ripple.storage import artefact, shard_reader
from ripple.storage.artefact import Artefact, open_artefact


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tensors(tmp_path_factory.mktemp("flips") / "tensors", rows=(9, 6), size=12)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("flips") / "cutouts"
    rng = np.random.default_rng(0)
    image = rng.normal(size=(8, 2, 12, 12)).astype(np.float32)
    catalog = {"id": np.arange(8), "ra": 53 + 0.1 * np.arange(8), "dec": np.full(8, -28.0)}
    ripple.write_cutouts(directory, image, ("g", "r"), catalog, pixel_scale=0.2, rows_per_shard=4)
    return directory


@contextmanager
def flipped(path: Path, place: int) -> Iterator[None]:
    """Bit `place` of the file turned over, in a process that has verified nothing yet."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place // 8] ^= 1 << place % 8
    path.write_bytes(damaged)
    artefact._verified.clear()
    try:
        yield
    finally:
        path.write_bytes(whole)
        artefact._verified.clear()


def places(directory: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Half in the shards, a quarter in each of index and manifest: the small ones would go untouched."""
    rng = np.random.default_rng(seed)
    shards = sorted(directory.glob("shard-*"))
    for _ in range(count):
        path = [*shards, *shards, directory / "index.parquet", directory / "manifest.json"][
            rng.integers(2 * len(shards) + 2)
        ]
        yield path, int(rng.integers(8 * path.stat().st_size))


def reads(directory: Path, path: Path) -> Iterator[str]:
    """Ways to read what lies in `path` that came through without an error."""
    for name, read in (("read", Artefact.read), ("verified_path", Artefact.verified_path)):
        try:
            opened = open_artefact(directory)
            if path.name.startswith("shard"):
                read(opened, int(path.stem[-5:]))
            else:
                opened.index()
        except RippleError:
            continue
        yield name


def silent(directory: Path, path: Path, kind: str) -> list[str]:
    """What did not notice the damage."""
    missed = list(reads(directory, path))
    try:
        if not ripple.verify(directory):
            missed.append("verify")
    except RippleError:
        pass
    if kind == "tensors":
        artefact._verified.clear()
        try:
            dataset = TensorDataset(directory)
            dataset.read(np.arange(dataset.total))
            missed.append("TensorDataset")
        except RippleError:
            pass
    if path.name.startswith("shard"):  # without a digest: a view of what is there or a refusal, no crash
        unpack = shard_reader.unpack_tensors if kind == "tensors" else shard_reader.unpack_cutouts
        with suppress(DataError):
            unpack(path.read_bytes())
    return missed


def sweep(directory: Path, kind: str, count: int, seed: int) -> None:
    assert ripple.verify(directory) == []
    for path, place in places(directory, count, seed):
        with flipped(path, place):
            assert silent(directory, path, kind) == [], f"bit {place} of {path.name}"
    assert ripple.verify(directory) == []


@pytest.mark.parametrize("kind", ["tensors", "cutouts"])
def test_any_bit_is_found(kind: str, tensors: Path, cutouts: Path) -> None:
    sweep({"tensors": tensors, "cutouts": cutouts}[kind], kind, 60, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensors", "cutouts"])
def test_a_thousand_bits_are_found(kind: str, tensors: Path, cutouts: Path) -> None:
    sweep({"tensors": tensors, "cutouts": cutouts}[kind], kind, 1000, seed=2)


def test_every_part_of_a_manifest_matters(tensors: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(tensors, directory)
    path = directory / "manifest.json"
    for byte in range(0, path.stat().st_size, 3):
        with flipped(path, 8 * byte + byte % 8), pytest.raises(RippleError):
            open_artefact(directory)
