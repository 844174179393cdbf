"""What `ripple export` writes as zarr and webdataset comes back as it was; damage costs the rows it hits."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import make_cutouts

from ripple import write_cutouts, write_tensors
from ripple.errors import ConfigError, DataError
from ripple.imaging.batch import CutoutBatch, TensorBatch, concatenate
from ripple.imaging.quality.measure import usable
from ripple.stages.formats.config import ExportConfig, ImportConfig
from ripple.stages.formats.export import export
from ripple.stages.formats.foreign_cutout import ForeignCutout, Listing, Unreadable
from ripple.stages.formats.import_cutouts import import_cutouts
from ripple.stages.formats.webdataset import webdataset
from ripple.stages.formats.zarr_cutouts import zarr_cutouts
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.shards import images_of

FORMATS = {"zarr": zarr_cutouts, "webdataset": webdataset}
FILES = {"zarr": "data.zarr/zarr.json", "webdataset": "dataset.json"}

both = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(autouse=True)
def _needs_zarr() -> None:
    pytest.importorskip("zarr")


def exported(source: Path, out: Path, form: str, **options: Any) -> Path:
    export(ExportConfig.make({"source": source, "output": out, "format": form, **options}))
    assert verify(out) == []
    return out


def batch_of(directory: Path) -> CutoutBatch:
    opened = open_artefact(directory)
    batches = [images_of(opened, k) for k in range(len(opened.shards))]
    assert all(isinstance(batch, CutoutBatch) for batch in batches)
    return concatenate(batches)  # type: ignore[arg-type]


def listed(listing: Listing) -> list[ForeignCutout | Unreadable]:
    return [listing.read(k) for k in range(listing.rows)]


@both
def test_an_export_comes_back_as_it_was(tmp_path: Path, form: str) -> None:
    make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "e", form, rows_per_file=5)
    config = ImportConfig.make({"source": out, "output": tmp_path / "back", "format": form})
    import_cutouts(config)
    assert verify(tmp_path / "back") == []
    before, after = batch_of(tmp_path / "c"), batch_of(tmp_path / "back")
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(np.where(np.isnan(before.image), np.nan, before.variance), after.variance)
    np.testing.assert_array_equal(usable(after), usable(before))
    for plane in before.mask_planes:
        np.testing.assert_array_equal(
            after.mask & after.bits(plane) != 0, before.mask & before.bits(plane) != 0
        )
    for column in ("id", "ra", "dec", "label", "tract", "x0", "y0"):
        np.testing.assert_array_equal(after.catalog[column], before.catalog[column])
    np.testing.assert_allclose(after.catalog["dx"], 0.3, atol=1e-4)
    assert after.bands == before.bands
    assert after.pixel_scale == before.pixel_scale
    assert after.wcs == before.wcs
    for k, row in enumerate(before.psf_index):
        for b, which in enumerate(row):
            np.testing.assert_allclose(after.psf[after.psf_index[k, b]], before.psf[which], rtol=1e-6)


@both
def test_tensors_come_back_as_tensors(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(size=(5, 2, 9, 9)).astype(np.float32)
    valid = (rng.random(image.shape) < 0.9).astype(np.uint8)
    write_tensors(tmp_path / "t", image, "gr", {"label": [0, 1, 0, 1, -1]}, valid=valid, pixel_scale=0.3)
    out = exported(tmp_path / "t", tmp_path / "e", form)
    options = {"source": out, "output": tmp_path / "back", "format": form}
    with pytest.raises(ConfigError, match="flux unit"):
        import_cutouts(ImportConfig.make(options))
    import_cutouts(ImportConfig.make({**options, "into": "tensors"}))
    back = images_of(open_artefact(tmp_path / "back"), 0)
    assert isinstance(back, TensorBatch)
    np.testing.assert_array_equal(back.image, image)
    np.testing.assert_array_equal(back.valid, valid)
    assert back.catalog["label"].tolist() == [0, 1, 0, 1, -1]
    assert back.pixel_scale == 0.3


@both
def test_user_columns_and_exact_ids_survive(tmp_path: Path, form: str) -> None:
    ids = np.array([12547118600189071360, 12547118600189071361, 3], np.uint64)
    columns = {"id": ids, "z_phot": [0.5, np.nan, 1.25], "grade": ["A", "B", "C"], "visits": [3, 4, 5]}
    image = np.random.default_rng(1).normal(size=(3, 1, 9, 9)).astype(np.float32)
    write_cutouts(tmp_path / "c", image, ("VIS",), columns, pixel_scale=0.1)
    listing = FORMATS[form](exported(tmp_path / "c", tmp_path / "e", form), (), ())
    rows = listed(listing)
    assert [row.id for row in rows] == [str(v) for v in ids]
    assert [row.columns["grade"] for row in rows] == ["A", "B", "C"]
    assert [row.columns["visits"] for row in rows] == [3, 4, 5]
    assert [row.columns.get("z_phot") for row in rows] == [0.5, None, 1.25]
    assert (listing.bands, listing.pixel_scale) == (("VIS",), 0.1)
    first = rows[0]
    assert isinstance(first, ForeignCutout)
    assert first.variance is None
    assert first.wcs is None
    assert first.to_njy.tolist() == [1.0]


@both
def test_bands_are_chosen_by_name(tmp_path: Path, form: str) -> None:
    make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "e", form)
    before = batch_of(tmp_path / "c")
    listing = FORMATS[form](out, ("i", "DECam_g"), ())
    row = listing.read(3)
    assert isinstance(row, ForeignCutout)
    np.testing.assert_array_equal(row.image, before.image[3][[2, 0]])
    assert listing.bands == ("i", "DECam_g")
    np.testing.assert_allclose(row.psf[1], before.psf[before.psf_index[3, 0]])
    said = {u.part: f"{u.role} of {u.band}: {u.facts}" for u in row.understood}
    assert said["image"] == "image of i DECam_g: nJy, 0.2 arcsec"
    assert said["psf"] == "psf of i DECam_g: 15 x 15 px"
    with pytest.raises(ConfigError, match=r"no band 'z' \(it has g, r, i\)"):
        FORMATS[form](out, ("z",), ())
    with pytest.raises(ConfigError, match="one of them twice"):
        FORMATS[form](out, ("g", "DECam_g"), ())


@both
def test_classes_come_from_the_export_and_are_not_contradicted(tmp_path: Path, form: str) -> None:
    image = np.ones((4, 1, 9, 9), np.float32)
    write_cutouts(
        tmp_path / "c", image, "g", {"label": [0, 1, -1, 2]}, class_map={0: "no", 1: "sphere", 2: "vort"}
    )
    out = exported(tmp_path / "c", tmp_path / "e", form)
    listing = FORMATS[form](out, (), ())
    assert listing.classes == ("no", "sphere", "vort")
    assert [row.label for row in listed(listing)] == [0, 1, -1, 2]
    with pytest.raises(DataError, match="its classes are no, sphere, vort, not nonlens, lens"):
        FORMATS[form](out, (), ("nonlens", "lens"))


@both
def test_headers_that_are_damaged_or_missing_are_named(tmp_path: Path, form: str) -> None:
    make_cutouts(tmp_path / "c")
    with pytest.raises(DataError, match="ripple export"):
        FORMATS[form](tmp_path / "c", (), ())
    out = exported(tmp_path / "c", tmp_path / "e", form)
    path = out / FILES[form]
    good = path.read_text()
    for text in ("", "{", "[]", good.replace('"bands"', '"sbnda"'), good.replace("0.2,", '"x",')):
        path.write_text(text)
        with pytest.raises(DataError, match=r"data\.zarr|dataset\.json"):
            FORMATS[form](out, (), ())


def flipped(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


def test_a_damaged_or_missing_chunk_costs_its_rows(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "e", "zarr", rows_per_file=5)
    before = batch_of(tmp_path / "c")
    flipped(out / "data.zarr/variance/c/1/0/0/0", 0.6)
    (out / "data.zarr/valid/c/2/0/0/0").unlink()
    rows = listed(zarr_cutouts(out, (), ()))
    assert [isinstance(row, Unreadable) for row in rows] == [False] * 5 + [True] * 7
    assert [row.id for row in rows] == [str(v) for v in before.catalog["id"]]
    assert "chunk valid/c/2/0/0/0 is missing" in rows[11].detail
    (out / "data.zarr/catalog/ra/c/0").unlink()
    with pytest.raises(DataError, match="catalog/ra: chunk ra/c/0 is missing"):
        zarr_cutouts(out, (), ())


def test_zeros_are_written(tmp_path: Path) -> None:
    write_cutouts(tmp_path / "c", np.zeros((2, 1, 9, 9), np.float32), "g")
    rows = listed(zarr_cutouts(exported(tmp_path / "c", tmp_path / "e", "zarr"), (), ()))
    assert all(isinstance(row, ForeignCutout) and (row.image == 0).all() for row in rows)


def member(path: Path, name: str) -> tuple[int, int]:
    with tarfile.open(path) as tar:
        entry = tar.getmember(name)
        return entry.offset_data, entry.size


def test_a_damaged_row_of_a_tar_file_costs_that_row(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "e", "webdataset", rows_per_file=5)
    first, second, third = sorted(out.glob("*.tar"))
    for name in ("000000001.image.npy", "000000002.json"):
        at, size = member(first, name)
        data = bytearray(first.read_bytes())
        data[at + size // 2] ^= 1
        first.write_bytes(data)
    at, _ = member(second, "000000008.image.npy")
    second.write_bytes(second.read_bytes()[: at + 100])
    third.unlink()
    rows = listed(webdataset(out, (), ()))
    assert [k for k, row in enumerate(rows) if isinstance(row, Unreadable)] == [1, 2, 8, 9, 10, 11]
    assert "checksum" in rows[1].detail
    assert "missing, cut short or damaged" in rows[11].detail


def test_rows_of_two_exports_in_one_folder_are_refused(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "e", "webdataset", rows_per_file=5)
    shutil.copy(out / "000000.tar", out / "copy.tar")
    with pytest.raises(DataError, match=r"copy\.tar: row 000000000 is also in 000000\.tar"):
        webdataset(out, (), ())
    (out / "copy.tar").unlink()
    header = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**header, "rows": 11}))
    with pytest.raises(DataError, match="says 11 rows, but there is '000000011'"):
        webdataset(out, (), ())


@both
def test_any_flipped_byte_costs_rows_or_is_named(tmp_path: Path, form: str) -> None:
    make_cutouts(tmp_path / "c", n=4)
    out = exported(tmp_path / "c", tmp_path / "e", form, rows_per_file=2)
    before = batch_of(tmp_path / "c")
    rng = np.random.default_rng(4)
    paths = sorted(
        p for p in out.rglob("*") if p.is_file() and "manifest" not in p.name and p.suffix != ".json"
    )
    for _ in range(60):
        path = paths[rng.integers(len(paths))]
        good = path.read_bytes()
        flipped(path, rng.random())
        try:
            rows = listed(FORMATS[form](out, (), ()))
        except DataError:
            rows = []
        for k, row in enumerate(rows):
            if isinstance(row, ForeignCutout):
                np.testing.assert_array_equal(row.image, before.image[k])
                assert row.ra == before.catalog["ra"][k]
        path.write_bytes(good)
