"""The HDF5 layout: round trip, determinism, zero copy, strict reading."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.errors import DataError
from ripple.imaging.batch import MASK_PLANES, CutoutBatch, TensorBatch
from ripple.sky.geometry import Tan
from ripple.storage.shard_reader import map_tensors, read_attributes, unpack_cutouts, unpack_tensors
from ripple.storage.shard_writer import pack_cutouts, pack_tensors

TAN = Tan(53.0, -28.0, 15000.0, 15100.5, (-0.2 / 3600, 0.0, 0.0, 0.2 / 3600))


def cutouts(rows: int = 7, seed: int = 0, size: int = 16) -> CutoutBatch:
    rng = np.random.default_rng(seed)
    shape = (rows, 3, size, size)
    image = rng.normal(size=shape).astype(np.float32)
    image[:, :, :2] = np.nan
    return CutoutBatch(
        bands=("g", "r", "i"),
        image=image,
        variance=rng.uniform(1, 2, shape).astype(np.float32),
        mask=rng.integers(0, 1 << 24, shape, dtype=np.uint32),
        mask_planes=MASK_PLANES,
        psf=rng.uniform(size=(4, 5, 5)).astype(np.float32),
        psf_index=rng.integers(-1, 4, (rows, 3)).astype(np.int32),
        catalog={
            "index": np.arange(rows),
            "id": np.array([f"näme-{k}" for k in range(rows)]),
            "ra": rng.uniform(0, 360, rows),
            "tract": np.full(rows, 5063, np.int32),
            "flag": np.arange(rows) % 2 == 0,
            "norm": rng.normal(size=(rows, 3)).astype(np.float32),
        },
        wcs={5063: TAN, 17: TAN},
    )


def tensors(rows: int = 7, dtype: type = np.float16) -> TensorBatch:
    rng = np.random.default_rng(1)
    return TensorBatch(
        bands=("g", "r"),
        image=rng.normal(size=(rows, 2, 8, 8)).astype(dtype),
        valid=np.ones((rows, 2, 8, 8), np.uint8),
        catalog={"index": np.arange(rows), "label": np.zeros(rows, np.int8)},
        pixel_scale=0.2,
        psf_fwhm=float("nan"),
        normalization={"method": "asinh", "scale": [1.0, 2.5]},
        class_map={"0": "nonlens", "1": "lens"},
    )


def same(a: object, b: object) -> None:
    for name in a.__slots__:  # type: ignore[attr-defined]
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        elif name == "catalog":
            assert set(x) == set(y)
            for key in x:
                np.testing.assert_array_equal(x[key], y[key])
        else:
            assert x == y or (x != x and y != y)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_cutouts_round_trip(rows: int) -> None:
    batch = cutouts(rows)
    data = pack_cutouts(batch, {"target_digest": "abc", "patches": [1, 2]})
    same(batch, unpack_cutouts(data))
    same(batch, unpack_cutouts(memoryview(data)))
    found = read_attributes(data)
    assert found["target_digest"] == "abc"
    assert found["patches"] == "[1,2]"
    assert found["bands"] == ("g", "r", "i")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensors_round_trip_and_map(tmp_path: Path, dtype: type) -> None:
    batch = tensors(300, dtype)
    data = pack_tensors(batch, {})
    same(batch, unpack_tensors(data))
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(data)
    mapped = map_tensors(path)
    same(batch, mapped)
    assert isinstance(mapped.image, np.memmap)
    assert not mapped.image.flags.writeable
    with h5py.File(path) as file:
        assert file["image"].id.get_offset() % 4096 == 0
        assert file["image"].chunks is None


def test_unpack_copies_no_pixels() -> None:
    data = pack_cutouts(cutouts(), {})
    image = unpack_cutouts(data).image
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(image, whole)


def test_bytes_are_the_same_in_another_process_at_another_time() -> None:
    first = pack_cutouts(cutouts(), {"a": 1})
    time.sleep(1.1)  # HDF5 time stamps have a resolution of one second
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_shard import cutouts; "
        "from ripple.storage.shard_writer import pack_cutouts; "
        "sys.stdout.buffer.write(pack_cutouts(cutouts(), {'a': 1}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, check=True
    )
    assert run.stdout == first


def test_what_the_layout_cannot_hold_is_named() -> None:
    batch = cutouts()
    for name, column in [
        ("a/b", np.arange(7)),
        ("..", np.arange(7)),
        ("when", np.zeros(7, "M8[s]")),
        ("end", np.array(["x\0"] * 7, object)),
        ("bad", np.array(["\ud800"] * 7, object)),
        ("mixed", np.array([1, "a"] + [None] * 5, object)),
    ]:
        batch.catalog[name] = column
        with pytest.raises(DataError, match="catalog column"):
            pack_cutouts(batch, {})
        del batch.catalog[name]
    with pytest.raises(DataError, match="kind"):
        pack_cutouts(batch, {"kind": "x"})
    with pytest.raises(DataError, match="fit"):
        pack_cutouts(batch, {"big": "x" * 70_000})


def test_the_other_kind_is_refused() -> None:
    with pytest.raises(DataError, match="'cutouts', not 'tensors'"):
        unpack_tensors(pack_cutouts(cutouts(), {}))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_text_round_trips_exactly(ids: list[str]) -> None:
    batch = cutouts(len(ids))
    batch.catalog["id"] = np.array(ids, object)
    if any(i.endswith("\0") for i in ids) or any("\ud800" <= c <= "\udfff" for i in ids for c in i):
        with pytest.raises(DataError):
            pack_cutouts(batch, {})
    else:
        assert unpack_cutouts(pack_cutouts(batch, {})).catalog["id"].tolist() == ids


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_truncated_shards_are_refused(data: st.DataObject) -> None:
    whole = pack_tensors(tensors(), {})
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError):
        unpack_tensors(whole[:cut])
