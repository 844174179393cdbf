"""Arrays to artefacts by the public API, and back by a plain h5py reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

import ripple
from ripple.errors import ConfigError, DataError
from ripple.sky.geometry import Tan
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.shard_reader import unpack_cutouts, unpack_tensors

N, B, S = 10, 3, 12


@pytest.fixture
def image() -> np.ndarray:
    flux = np.random.default_rng(0).normal(size=(N, B, S, S)).astype(np.float32)
    flux[3, 1] = np.nan  # a band that is not there
    flux[4, 2, 0, 0] = np.inf
    return flux


def test_cutouts_round_trip(tmp_path: Path, image: np.ndarray) -> None:
    kernel = np.full((5, 5), 2.0)
    tan = Tan(10.0, -5.0, 100.0, 100.0, (-5e-5, 0, 0, 5e-5))
    catalog = {
        "id": [f"s{k}" for k in range(N)],
        "ra": np.linspace(1, 2, N),
        "dec": np.linspace(-1, 1, N),
        "label": np.arange(N) % 2,
    }
    made = ripple.write_cutouts(
        tmp_path / "c", image, "gri", catalog, variance=np.full(image.shape, 4.0), psf=kernel, unit="uJy",
        wcs=tan, rows_per_shard=4, mask=np.ones(image.shape, np.int16), mask_planes=["DETECTED"],
    )  # fmt: skip
    assert verify(tmp_path / "c") == []
    assert [s.rows for s in made.shards] == [4, 4, 2]
    batch = unpack_cutouts(made.read(0))
    np.testing.assert_allclose(batch.image[0], image[0] * 1000, rtol=1e-6)  # µJy to nJy
    np.testing.assert_allclose(batch.variance[0], 4e6)
    assert np.isnan(batch.image[3, 1]).all()
    assert batch.mask_planes == ("DETECTED", "NO_DATA")
    assert (batch.mask[3, 1] == 3).all()
    assert (batch.mask[0] == 1).all()
    np.testing.assert_allclose(batch.psf, np.full((1, 5, 5), 0.04))
    assert batch.wcs == {-1: tan}
    assert batch.catalog["id"].tolist() == ["s0", "s1", "s2", "s3"]
    assert batch.catalog["band_mask"].tolist() == [7, 7, 7, 5]
    index = made.index().to_pydict()
    assert index["status"] == ["ok"] * 3 + ["partial"] + ["ok"] * 6
    assert index["bands"][3] == "gi"
    second = unpack_cutouts(made.read(1))
    assert np.isnan(second.image[0, 2, 0, 0])


def test_no_variance_is_not_zero_variance(tmp_path: Path, image: np.ndarray) -> None:
    batch = unpack_cutouts(ripple.write_cutouts(tmp_path / "c", image, "gri").read(0))
    assert np.isnan(batch.variance).all()
    assert (batch.psf_index == -1).all()
    assert (batch.mask[3, 1] == batch.bits("NO_DATA")).all()


def test_running_again_is_the_same_and_other_arrays_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    first = ripple.write_cutouts(tmp_path / "c", image, "gri")
    assert ripple.write_cutouts(tmp_path / "c", image, "gri").digest == first.digest
    with pytest.raises(ConfigError, match=r"inputs\.image"):
        ripple.write_cutouts(tmp_path / "c", image + 1, "gri")
    with pytest.raises(ConfigError, match=r"write\.pixel_scale: 0\.2 -> 0\.168"):
        ripple.write_cutouts(tmp_path / "c", image, "gri", pixel_scale=0.168)


@pytest.mark.parametrize("shape", [(5, 5), (B, 5, 5), (N, B, 5, 5)])
def test_kernels(tmp_path: Path, image: np.ndarray, shape: tuple[int, ...]) -> None:
    psf = np.random.default_rng(1).uniform(0.5, 1, shape)
    batch = unpack_cutouts(ripple.write_cutouts(tmp_path / "c", image, "gri", psf=psf).read(0))
    found = batch.psf[batch.psf_index]
    want = np.broadcast_to(psf, (N, B, 5, 5)) / psf.sum(axis=(-2, -1))[..., None, None]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": "gr"}, "2 names for 3"),
        ({"unit": "adu"}, "unit 'adu'"),
        ({"variance": np.ones((N, B, S))}, "variance has shape"),
        ({"variance": -np.ones((N, B, S, S))}, "negative in row 0"),
        ({"mask": np.ones((N, B, S, S), int)}, "mask_planes"),
        ({"mask": np.full((N, B, S, S), 64), "mask_planes": ["A", "B"]}, "bits beyond"),
        ({"psf": np.ones((4, 4))}, "odd"),
        ({"psf": np.zeros((5, 5))}, "sums to 0"),
        ({"catalog": {"label": [1, 2]}}, "10 rows"),
        ({"catalog": {"id": ["a"] * N}}, "not distinct"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, image: np.ndarray, change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ripple.write_cutouts(**{"directory": tmp_path / "c", "image": image, "bands": "gri", **change})


def test_tensors(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(DataError, match="row 3 is not finite"):
        ripple.write_tensors(tmp_path / "bad", image, "gri")
    pixels = np.nan_to_num(image, posinf=0)
    table = pa.table({"label": np.arange(N) % 2})
    made = ripple.write_tensors(
        tmp_path / "t", pixels, "gri", table, class_map={0: "nonlens", 1: "lens"}, dtype="float16"
    )
    batch = unpack_tensors(made.read(0))
    np.testing.assert_array_equal(batch.image, pixels.astype(np.float16))
    assert batch.class_map == {"0": "nonlens", "1": "lens"}
    assert batch.catalog["label"].tolist() == [0, 1] * 5
    assert open_artefact(tmp_path / "t", "tensors").rows == N


def test_the_reader_printed_in_format_md(tmp_path: Path, image: np.ndarray) -> None:
    text = (Path(__file__).parents[2] / "FORMAT.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 10
    ripple.write_tensors(tmp_path / "tensors", np.nan_to_num(image, posinf=0), "gri", {"label": np.arange(N)})
    source = code[1].replace('"tensors/', f'"{tmp_path}/tensors/')
    scope: dict = {}
    exec(source, scope)  # the example, as a user would run it
    assert scope["image"].shape == (N, B, S, S)
    assert scope["bands"] == ["g", "r", "i"]
    assert scope["label"].tolist() == list(range(N))
    with h5py.File(tmp_path / "tensors/shard-00000.h5") as file:
        np.testing.assert_array_equal(scope["image"], file["image"][:])


def test_catalogues_keep_units_masks_and_labels(tmp_path: Path) -> None:
    import astropy.units as u
    from astropy.table import MaskedColumn, QTable

    table = QTable({
        "objectId": np.array([2**62 + 1, 2**62 + 2, 7]), "ra": np.array([0.1, 0.2, 0.3]) * u.rad,
        "dec": np.array([1.0, 2.0, 3.0]) * u.deg, "label": ["lens", "nonlens", ""],
        "parent": MaskedColumn([2**60 + 1, 5, 6], mask=[False, True, False]),
    })  # fmt: skip
    made = ripple.write_cutouts(tmp_path / "c", np.ones((3, 1, 8, 8), np.float32), "i", table)
    index = made.index()
    assert index["id"].to_pylist() == [2**62 + 1, 2**62 + 2, 7]
    np.testing.assert_allclose(index["ra"].to_numpy(), np.degrees([0.1, 0.2, 0.3]))
    assert index["label"].to_pylist() == [1, 0, -1]
    assert index["parent"].to_pylist() == [2**60 + 1, -1, 6]
    assert made.attributes["class_map"] == {"0": "nonlens", "1": "lens"}
    with pytest.raises(DataError, match=r"label 'b' in row 1.*no class map|label 'a' in row 0"):
        ripple.write_tensors(tmp_path / "t", np.ones((2, 1, 8, 8)), "i", {"label": ["a", "b"]})
    with pytest.raises(DataError, match=r"label 0\.9 in row 0"):
        ripple.write_tensors(tmp_path / "t", np.ones((1, 1, 8, 8)), "i", {"label": [0.9]})


def test_mask_bits_beyond_the_planes_are_refused(tmp_path: Path) -> None:
    image, planes = np.ones((1, 1, 8, 8)), [f"P{k}" for k in range(30)] + ["NO_DATA", "LAST"]
    mask = np.zeros(image.shape, np.int32)
    mask[0, 0, 2, 3] = np.int32(-(2**31))
    made = ripple.write_cutouts(tmp_path / "c", image, "i", mask=mask, mask_planes=planes)
    batch = unpack_cutouts(made.shard_path(0).read_bytes())
    assert batch.mask[0, 0, 2, 3] == 1 << 31
    assert int((batch.mask != 0).sum()) == 1
    with pytest.raises(DataError, match="bits beyond"):
        ripple.write_cutouts(
            tmp_path / "d", image, "i", mask=np.full(image.shape, 1 << 40), mask_planes=planes
        )


def test_positions_off_the_sky_are_refused(tmp_path: Path) -> None:
    image, nan = np.ones((2, 1, 8, 8)), float("nan")
    for ra, dec in ((400.0, 1.0), (10.0, 95.0), (10.0, nan)):
        with pytest.raises(DataError, match="in row 1, counted from 0, is not on the sky"):
            ripple.write_cutouts(tmp_path / "c", image, "i", {"ra": [1.0, ra], "dec": [1.0, dec]})
    ripple.write_cutouts(tmp_path / "c", image, "i", {"ra": [1.0, nan], "dec": [1.0, nan]})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"id": [2.0**53 + 2, 1.0]}, "at most 53 bits"),
        ({"id": [[1, 2], [3, 4]]}, "no ids"),
        ({"ra": ["east", "west"], "dec": [1.0, 2.0]}, "expected 2 numbers"),
        ({"ra": [[1.0], [2.0]], "dec": [1.0, 2.0]}, "expected 2 numbers"),
        ({"z": [1 + 2j, 3j]}, "numbers, booleans or text"),
        ({"when": np.array(["2020", "2021"], "M8[s]")}, "numbers, booleans or text"),
    ],
)
def test_columns_that_mean_nothing_are_refused(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ripple.write_cutouts(tmp_path / "c", np.ones((2, 1, 8, 8)), "i", column)
