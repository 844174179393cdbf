"""Other people's stamps in, ours out, and back again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from foreign import TAN, deeplense_tree, make_cutouts

from ripple import write_cutouts
from ripple.cli import run
from ripple.errors import ConfigError, DataError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.learn.data.dataset import TensorDataset
from ripple.sky.geometry import Tan
from ripple.stages.formats.config import ExportConfig, ImportConfig
from ripple.stages.formats.export import export
from ripple.stages.formats.foreign import folder_meaning
from ripple.stages.formats.import_cutouts import import_cutouts
from ripple.storage import artefact, shard_reader
from ripple.storage.artefact import open_artefact
from ripple.storage.shards import cutouts_of


def ramp(*shape: int) -> np.ndarray:
    """Pixels that all differ: a constant picture is none."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def run_import(source: Path, output: Path, **options: Any) -> Any:
    options["bands"] = tuple(options.get("bands", ()))
    import_cutouts(ImportConfig.make({"source": source, "output": output, **options}))
    opened = artefact.open_artefact(output)
    data = opened.read(0)
    return (
        shard_reader.unpack_cutouts(data)
        if opened.manifest["kind"] == "cutouts"
        else shard_reader.unpack_tensors(data)
    )


def run_export(source: Path, output: Path, **options: Any) -> Path:
    export(ExportConfig.make({"source": source, "output": output, **options}))
    assert artefact.verify(output) == []
    return output


def whole(directory: Path) -> dict[str, np.ndarray]:
    """All rows of a cutout or tensor artefact by id."""
    opened = artefact.open_artefact(directory)
    rows = {}
    for k in range(len(opened.shards)):
        data = opened.read(k)
        batch: CutoutBatch | TensorBatch
        batch = (
            shard_reader.unpack_cutouts(data)
            if opened.manifest["kind"] == "cutouts"
            else shard_reader.unpack_tensors(data)
        )
        for j, name in enumerate(batch.catalog["id"].tolist()):
            rows[str(name)] = np.asarray(batch.image[j])
    return rows


# Folders of npy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "kind"),
    [
        ("train_lenses", "train", "lens"), ("test_nonlenses", "test", "nonlens"),
        ("val-non_lens", "validation", "nonlens"), ("sphere", "", "sphere"), ("train", "train", ""),
        ("training_lenses", "train", "lens"), ("Test", "test", ""), ("no", "", "no"),
        ("trains", "", "trains"),
    ],
)  # fmt: skip
def test_folder_names(name: str, split: str, kind: str) -> None:
    assert folder_meaning(name) == (split, kind)


def test_deeplense_test_ii_layout(tmp_path: Path) -> None:
    images = deeplense_tree(tmp_path / "in", np.random.default_rng(0))
    batch = run_import(tmp_path / "in", tmp_path / "out", format="deeplense")
    assert isinstance(batch, TensorBatch)
    assert batch.bands == ("g", "r", "i")
    assert batch.pixel_scale == 0.168
    assert batch.class_map == {"0": "nonlens", "1": "lens"}
    for k, name in enumerate(batch.catalog["id"]):
        np.testing.assert_array_equal(batch.image[k], images[str(name)])
        assert (batch.catalog["label"][k] == 1) == ("_lenses" in str(name))
        assert str(batch.catalog["split"][k]) == str(name).split("_")[0]
    dataset = TensorDataset(tmp_path / "out")
    assert len(dataset) == 16
    assert set(dataset.column("split")) == {"train", "test"}


def test_deeplense_substructure_layout_and_broken_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("no", "sphere", "vort"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        np.save(tmp_path / "in" / kind / "a.npy", rng.random((1, 150, 150)).astype(np.float32))
    np.save(tmp_path / "in" / "no" / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "in" / "no" / "small.npy", rng.random((1, 100, 100)))
    (tmp_path / "in" / "no" / "empty.npy").write_bytes(b"")
    (tmp_path / "in" / "vort" / "cut.npy").write_bytes(
        (tmp_path / "in" / "vort" / "a.npy").read_bytes()[:500]
    )
    with pytest.raises(ConfigError, match="pixel scale"):
        run_import(tmp_path / "in", tmp_path / "out", format="deeplense")
    batch = run_import(tmp_path / "in", tmp_path / "out", format="deeplense", pixel_scale=0.05)
    assert batch.image.shape == (3, 1, 150, 150)
    assert batch.catalog["label"].tolist() == [0, 1, 2]
    index = artefact.open_artefact(tmp_path / "out").index()
    rejected = index.filter(np.array(index["status"].to_pylist()) == "rejected")
    assert set(rejected["id"].to_pylist()) == {"no/object", "no/small", "no/empty", "vort/cut"}
    assert set(rejected["reason"].to_pylist()) == {"unreadable_source"}
    assert index.num_rows == 7


def test_import_again_is_done_and_changed_input_is_refused(tmp_path: Path) -> None:
    deeplense_tree(tmp_path / "in", np.random.default_rng(0), 2)
    config = ImportConfig.make({"source": tmp_path / "in", "output": tmp_path / "out", "format": "deeplense"})
    assert not import_cutouts(config).done_before
    assert import_cutouts(config).done_before
    np.save(tmp_path / "in" / "test_lenses" / "0.npy", np.zeros((3, 64, 64)))
    with pytest.raises(ConfigError, match="inputs"):
        import_cutouts(config)


# Arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize("last", [False, True])
def test_arrays_with_zero_points_and_sentinels(tmp_path: Path, kind: str, last: bool) -> None:
    rng = np.random.default_rng(1)
    counts = rng.normal(5, 2, (7, 3, 20, 20)).astype(np.float32)
    counts[2, 1, 3, 4] = 100.0  # the masked value of the Bologna challenge
    variance = np.full(counts.shape, 4.0, np.float32)
    mask = np.zeros(counts.shape, np.uint8)
    mask[5, 0, 1, 1] = 1
    turn = (lambda a: np.moveaxis(a, 1, -1)) if last else (lambda a: a)
    arrays = {
        "image": turn(counts), "variance": turn(variance), "mask": turn(mask),
        "label": np.arange(7)[:, None] % 2, "id": np.arange(100, 107), "ra": np.full(7, 10.0),
        "dec": np.full(7, -5.0), "theta_E": np.linspace(0.5, 2, 7),
    }  # fmt: skip
    path = tmp_path / f"stamps.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file["data/" + name] = values
    names = ("image", "variance", "mask", "label", "id", "ra", "dec")
    keys = {f"{k}_key": f"data/{k}" for k in names} if kind == "h5" else {}
    batch = run_import(
        path, tmp_path / "out", format="arrays", bands="gri", pixel_scale=0.263, sentinels=(100.0,),
        zero_points=(30.0, 31.4, 27.0), rows_per_shard=100, **keys,
    )  # fmt: skip
    factor = 10 ** ((31.4 - np.array([30.0, 31.4, 27.0])) / 2.5)
    good = np.isfinite(batch.image)
    assert (~good).sum() == 1
    expected = counts * factor[:, None, None]
    np.testing.assert_allclose(batch.image[good], expected[good], rtol=1e-6)
    np.testing.assert_allclose(
        batch.variance[3], 4.0 * factor[:, None, None] ** 2 * np.ones((20, 20)), rtol=1e-6
    )
    assert np.isnan(batch.variance[2, 1, 3, 4])
    assert batch.mask[2, 1, 3, 4] & batch.bits("NO_DATA")
    assert batch.mask[5, 0, 1, 1] & batch.bits("BAD")
    assert batch.catalog["id"].tolist() == [str(k) for k in range(100, 107)]
    assert batch.catalog["label"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    theta = batch.catalog["theta_E" if kind == "npz" else "data_theta_E"]
    np.testing.assert_allclose(theta, np.linspace(0.5, 2, 7))


def test_a_source_must_say_its_unit_and_bands(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.ones((3, 2, 9, 9)))
    base = {"format": "arrays", "pixel_scale": 0.2}
    with pytest.raises(ConfigError, match="2 bands without names"):
        run_import(tmp_path / "a.npz", tmp_path / "o", unit="nJy", **base)
    with pytest.raises(ConfigError, match="flux unit"):
        run_import(tmp_path / "a.npz", tmp_path / "o", bands="gr", **base)
    batch = run_import(tmp_path / "a.npz", tmp_path / "o", bands="gr", into="tensors", **base)
    assert batch.unit == "none"
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    with pytest.raises(DataError, match="image_key"):
        run_import(tmp_path / "b.npz", tmp_path / "o2", bands="gr", **base)


def test_crop_and_pad_keep_the_object_in_the_centre(tmp_path: Path) -> None:
    for side in (20, 21):
        image = np.zeros((2, 1, side, side), np.float32)
        image[:, 0, side // 2, side // 2] = 1.0
        np.savez(tmp_path / f"{side}.npz", image=image)
        for size in (11, 12, 30, 31):
            batch = run_import(
                tmp_path / f"{side}.npz", tmp_path / f"{side}-{size}", format="arrays", bands="i", unit="nJy",
                pixel_scale=0.2, size=size,
            )  # fmt: skip
            assert batch.image.shape == (2, 1, size, size)
            assert batch.image[0, 0, size // 2, size // 2] == 1.0


def test_hdf5_links_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["image"] = ramp(2, 1, 9, 9)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "image")
    with pytest.raises(DataError, match="no array"):
        run_import(
            tmp_path / "in.h5", tmp_path / "o", format="arrays", bands="i", unit="nJy", pixel_scale=0.2
        )


# FITS ------------------------------------------------------------------------------------------------


def stamp_header(x0: int, y0: int) -> fits.Header:
    tan = Tan(TAN.ra0, TAN.dec0, TAN.x0 - x0, TAN.y0 - y0, TAN.cd)
    return fits.Header({**tan.cards()})


def test_fits_one_file_per_band_with_rms(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(1, 1, (3, 2, 16, 16)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for k in range(3):
        for b, band in enumerate("gi"):
            header = stamp_header(980 + 20 * k, 1990)
            header["BUNIT"] = "uJy"
            hdus = [fits.PrimaryHDU(truth[k, b], header), fits.ImageHDU(np.full((16, 16), 0.5), name="RMS")]
            fits.HDUList(hdus).writeto(tmp_path / "in" / f"obj{k}_{band}.fits")
    batch = run_import(tmp_path / "in", tmp_path / "out", format="fits", bands="gi")
    np.testing.assert_allclose(batch.image, truth * 1e3, rtol=1e-6)
    np.testing.assert_allclose(batch.variance, 0.25e6, rtol=1e-6)
    assert batch.pixel_scale == pytest.approx(0.2)
    assert len(batch.wcs) == 1  # one pixel grid for all three
    tan = next(iter(batch.wcs.values()))
    x = batch.catalog["x0"][1] + 3.0
    y = batch.catalog["y0"][1] + 4.0
    ra, dec = tan.pixel_to_sky(x, y)
    expected = TAN.pixel_to_sky(1000 + 3.0, 1990 + 4.0)
    np.testing.assert_allclose([ra, dec], expected, atol=1e-9)
    np.testing.assert_allclose(
        [batch.catalog["ra"][1], batch.catalog["dec"][1]], TAN.pixel_to_sky(1000 + 8, 1990 + 8), atol=1e-9
    )


def test_fits_cubes_and_repeated_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(1, 1, (3, 12, 12)).astype(np.float32)
    (tmp_path / "cube").mkdir()
    header = stamp_header(0, 0)
    header["BUNIT"] = "nJy"
    fits.writeto(tmp_path / "cube" / "a.fits", truth, header)
    batch = run_import(tmp_path / "cube", tmp_path / "o1", format="fits", bands="gri")
    np.testing.assert_array_equal(batch.image[0], truth)
    assert np.isnan(batch.variance).all()
    (tmp_path / "same").mkdir()
    hdus: list[Any] = [fits.PrimaryHDU()]
    for k in range(3):
        for name, data in (("IMAGE", truth[k]), ("VARIANCE", np.full((12, 12), 2.0, np.float32))):
            hdus.append(fits.ImageHDU(data, header, name=name))
            hdus[-1].header["FILTER"] = f"HSC-{'GRI'[k]}"
        hdus.append(fits.ImageHDU(name="MASK"))  # empty: none, not zeros
    fits.HDUList([hdus[0], *hdus[:0:-1]]).writeto(tmp_path / "same" / "a.fits")
    batch = run_import(tmp_path / "same", tmp_path / "o2", format="fits", bands="gri")
    np.testing.assert_array_equal(batch.image[0], truth)
    assert (batch.variance == 2.0).all()
    assert (batch.mask == 0).all()


def test_fits_empty_variance_is_none_and_broken_files_are_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = ramp(10, 10)
    header = fits.Header({"BUNIT": "nJy", "FILTER": "HSC-I"})
    for name, variance in (("a", None), ("b", np.zeros((10, 10), np.float32))):
        hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(variance, name="VARIANCE")]
        fits.HDUList(hdus).writeto(tmp_path / "in" / f"{name}.fits")
    (tmp_path / "in" / "html.fits").write_bytes(b"<html>login</html>" * 300)
    (tmp_path / "in" / "empty.fits").write_bytes(b"")
    whole_file = (tmp_path / "in" / "a.fits").read_bytes()
    (tmp_path / "in" / "cut.fits").write_bytes(whole_file[:3000])
    batch = run_import(tmp_path / "in", tmp_path / "out", format="fits", pixel_scale=0.168)
    assert batch.bands == ("i",)
    assert batch.catalog["id"].tolist() == ["a", "b"]
    assert np.isnan(batch.variance).all()
    index = artefact.open_artefact(tmp_path / "out").index()
    assert sorted(index["status"].to_pylist()) == ["ok", "ok", "rejected", "rejected", "rejected"]


# Round trips -----------------------------------------------------------------------------------------


def test_fits_round_trip_and_wcs(tmp_path: Path) -> None:
    first = make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "fits", format="fits")
    with fits.open(out / "obj_.._2_0000002.fits") as hdus:
        wcs = WCS(hdus["IMAGE_r"].header)
        ra, dec = wcs.all_pix2world(10, 10, 0)
        expected = TAN.pixel_to_sky(first.catalog["x0"][2] + 10, first.catalog["y0"][2] + 10)
        np.testing.assert_allclose([ra, dec], expected, atol=1e-9)
        assert hdus["IMAGE_r"].header["BUNIT"] == "nJy"
        assert hdus[0].header["BANDS"] == "g,r,i"
    batch = run_import(out, tmp_path / "back", format="fits", bands="gri")
    # Rows are in the order of the file names; `first` is the first shard.
    names = batch.catalog["id"].tolist()
    batch = batch.take(np.array([names.index(name) for name in first.catalog["id"].tolist()]))
    np.testing.assert_array_equal(batch.image, first.image)
    np.testing.assert_array_equal(np.isnan(batch.variance), np.isnan(first.variance))
    np.testing.assert_array_equal(np.nan_to_num(batch.variance), np.nan_to_num(first.variance))
    for name in ("id", "ra", "dec", "tract", "x0", "y0", "label"):
        np.testing.assert_array_equal(batch.catalog[name], first.catalog[name])
    np.testing.assert_allclose(batch.catalog["dx"], 0.3, atol=1e-4)
    kernels = [batch.psf[k] for k in batch.psf_index[3]]
    for kernel, k in zip(kernels, first.psf_index[3], strict=True):
        np.testing.assert_allclose(kernel, first.psf[k], rtol=1e-6)
    for name in first.mask_planes:
        mine = first.mask & first.bits(name) != 0
        np.testing.assert_array_equal(batch.mask & batch.bits(name) != 0, mine, err_msg=name)


#: Ids that are no file names, say a band or a role, or differ only where file systems see no difference.
HOSTILE = (
    "J1000-02", "a_g", "a_i", "gal-01.r", "x_var", "X_VAR", "x_mask", "../../etc/passwd", "/abs", "dir/a",
    "dir:a", ".hidden", "-o", "..", "Ünïcode ☉", "ünïcode ☉", "star*?", "quote'\"s", "back\\slash",
    "tab\there", "line\nbreak", "and &", "blank ", " blank", "", "abc", "ABC", "abc_0000003", "a.fits",
    "manifest", "x" * 300, "x" * 299 + "y", "&", "12", "0012", "NaN", "psf", "g",
)  # fmt: skip


def test_fits_files_are_named_by_id_and_give_the_ids_back(tmp_path: Path) -> None:
    rows = len(HOSTILE)
    image = np.random.default_rng(3).normal(size=(rows, 3, 12, 12)).astype(np.float32)
    table = {"id": list(HOSTILE), "ra": np.linspace(1, 2, rows), "dec": np.linspace(-3, 3, rows)}
    write_cutouts(tmp_path / "c", image, "gri", table)
    out = run_export(tmp_path / "c", tmp_path / "f", format="fits")
    there = sorted(path.name for path in out.glob("*"))
    named = [name for name in there if name.endswith(".fits")]
    assert len(named) == len({name.casefold() for name in named}) == rows  # all in one folder
    assert all(name.isascii() and len(name) < 130 and name[0] not in ".-" for name in named)
    for plain in ("J1000-02", "12", "0012", "NaN", "manifest"):  # an id that can be a name is the name
        assert f"{plain}.fits" in named
    catalog = Table.read(out / "catalog.csv", format="csv", converters={"id": str})
    assert set(catalog["file"]) == set(named)
    for bands in ("", "gri", "ri"):
        run_import(out, tmp_path / f"back{bands}", format="fits", bands=bands)
        rows_back = whole(tmp_path / f"back{bands}")
        assert sorted(rows_back) == sorted(HOSTILE)
        for k, name in enumerate(HOSTILE):
            np.testing.assert_array_equal(rows_back[name], image[k][1 if bands == "ri" else 0 :])


def test_exports_are_without_the_margin(tmp_path: Path) -> None:
    image = ramp(4, 3, 20, 20)
    where = {"x0": [5, 6, 7, 8], "y0": [1, 2, 3, 4], "tract": [0] * 4, "ra": [53.0] * 4, "dec": [-27.0] * 4}
    write_cutouts(tmp_path / "c", image, "gri", where, margin=4, wcs=TAN)
    made = artefact.open_artefact(tmp_path / "c")
    assert (made.attributes["size"], made.attributes["margin"]) == ([12, 12], 4)
    for form in ("fits", "zarr", "webdataset"):
        out = run_export(tmp_path / "c", tmp_path / form, format=form)
        back = run_import(out, tmp_path / f"{form}-back", format=form)
        np.testing.assert_array_equal(back.image, image[..., 4:16, 4:16])
        np.testing.assert_array_equal(back.catalog["x0"], [9, 10, 11, 12])
        np.testing.assert_array_equal(back.catalog["y0"], [5, 6, 7, 8])


def test_fits_round_trip_without_projection_and_with_names_of_ones_own(tmp_path: Path) -> None:
    """Bands keep the names that their user gave them; the pixel scale needs no projection."""
    rng = np.random.default_rng(4)
    image = rng.normal(size=(3, 3, 12, 12)).astype(np.float32)
    image[1, 2] = np.nan
    bands = ("DECAM_g", "VIS", "sum of all")
    table = {"id": ["a", "b", "c"], "ra": [1.0, 2.0, 3.0], "dec": [4.0, 5.0, 6.0], "label": [0, 1, -1]}
    psf = np.stack([np.outer(*[np.exp(-0.5 * (np.arange(9) - 4.0) ** 2 / s)] * 2) for s in (1, 2, 3)])
    write_cutouts(
        tmp_path / "c", image, bands, table, variance=np.full_like(image, 2.5), psf=psf, pixel_scale=0.263,
        class_map={0: "nonlens", 1: "lens"},
    )  # fmt: skip
    out = run_export(tmp_path / "c", tmp_path / "f", format="fits")
    run_import(out, tmp_path / "back", format="fits")
    first, back = (cutouts_of(open_artefact(tmp_path / name), 0) for name in ("c", "back"))
    assert (back.bands, back.pixel_scale) == (bands, 0.263)
    for name in ("image", "mask", "psf_index"):
        np.testing.assert_array_equal(getattr(back, name), getattr(first, name))
    np.testing.assert_array_equal(back.variance[:, :2], first.variance[:, :2])
    np.testing.assert_allclose(back.psf, first.psf, rtol=1e-6)
    for name in ("id", "ra", "dec", "label"):
        np.testing.assert_array_equal(back.catalog[name], first.catalog[name])


def test_mmu_round_trip(tmp_path: Path) -> None:
    first = make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "mmu", format="mmu")
    files = sorted(out.rglob("*.hdf5"))
    assert all(f.name == "001-of-001.hdf5" and f.parent.name.startswith("healpix=") for f in files)
    with h5py.File(files[0]) as file:
        n = len(file["object_id"])
        assert file["image_array"].shape == (n, 3, 21, 21)
        assert file["image_ivar"].shape == file["image_mask"].shape == file["image_array"].shape
        assert file["image_band"][0].tolist() == [b"g", b"r", b"i"]
        # Gaussians of sigma 2, 2.4 and 2.8 px: FWHM 2.3548 sigma, 0.2 arcsec per pixel.
        np.testing.assert_allclose(
            file["image_psf_fwhm"][1], 2.3548 * 0.2 * np.array([2.0, 2.4, 2.8]), rtol=0.01
        )
        np.testing.assert_allclose(file["image_scale"][:], 0.2)
    run_import(out, tmp_path / "back", format="mmu", gaussian_psf=True)  # our files say that they are in nJy
    before, after = whole(tmp_path / "c"), whole(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, image in before.items():
        good = np.isfinite(image)
        np.testing.assert_array_equal(after[name][good], image[good])
    back = shard_reader.unpack_cutouts(artefact.open_artefact(tmp_path / "back").read(0))
    k = back.catalog["id"].tolist().index(str(first.catalog["id"][3]))
    np.testing.assert_allclose(back.variance[k], first.variance[3], rtol=1e-5)
    assert set(np.unique(back.catalog["label"])) == {0, 1}


def test_deeplense_round_trip(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "dl", format="deeplense", nside=32768)
    folders = {p.name for p in out.iterdir() if p.is_dir()}
    assert folders <= {f"{s}_{k}" for s in ("train", "validation", "test") for k in ("lenses", "nonlenses")}
    one = np.load(next(iter(out.rglob("*.npy"))))
    assert one.shape == (3, 21, 21)
    assert one.dtype == np.float32
    batch = run_import(out, tmp_path / "back", format="deeplense", pixel_scale=0.2)
    assert isinstance(batch, TensorBatch)
    names = (out / "catalog.csv").read_text().splitlines()
    assert len(names) == 1 + 12
    ours = whole(tmp_path / "c")
    for line in names[1:]:
        file, _, number = line.partition(",")
        name = next(k for k in ours if f",{k}," in line)
        np.testing.assert_array_equal(np.load(out / file), np.nan_to_num(ours[name], nan=0.0))
        assert ("_lenses" in file) == (int(name.split("/")[2].rstrip("é")) % 2 == 1)
        assert number


def test_webdataset_round_trip(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "wds", format="webdataset", rows_per_file=5)
    tars = sorted(out.glob("*.tar"))
    assert [t.name for t in tars] == ["000000.tar", "000001.tar", "000002.tar"]
    again = run_export(tmp_path / "c", tmp_path / "wds2", format="webdataset", rows_per_file=5)
    assert all(t.read_bytes() == (again / t.name).read_bytes() for t in tars)
    ours = whole(tmp_path / "c")
    webdataset = pytest.importorskip("webdataset")
    seen = {}
    for row in webdataset.WebDataset([str(t) for t in tars], shardshuffle=False).decode():
        seen[row["json"]["id"]] = (row["image.npy"], row["cls"], row["json"]["label"])
    assert seen.keys() == ours.keys()
    for name, (image, label, same) in seen.items():
        np.testing.assert_array_equal(image, np.nan_to_num(ours[name], nan=0.0))
        assert label == same
    with tarfile.open(tars[0]) as tar:
        assert all("/" not in m.name and m.mtime == 0 for m in tar)


def test_zarr_round_trip(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "z", format="zarr", rows_per_file=4)
    root = zarr.open_group(str(out / "data.zarr"), mode="r")
    assert json.loads((out / "data.zarr" / "zarr.json").read_text())["zarr_format"] == 3
    ours = whole(tmp_path / "c")
    ids = root["catalog/id"][:]
    for k, name in enumerate(ids):
        np.testing.assert_array_equal(root["image"][k], ours[str(name)])
    assert root.attrs["bands"] == ["g", "r", "i"]
    assert root["valid"].dtype == np.uint8
    # What xarray needs: names of axes, and all metadata in one place.
    assert root["image"].metadata.dimension_names == ("row", "band", "y", "x")
    assert root["psf"].metadata.dimension_names == ("row", "band", "psf_y", "psf_x")
    assert root["catalog/id"].metadata.dimension_names == ("row",)
    record = json.loads((out / "data.zarr" / "zarr.json").read_text())
    assert {"image", "psf", "catalog/id"} <= record["consolidated_metadata"]["metadata"].keys()


def test_export_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c", labels=False)
    with pytest.raises(DataError, match="has no label"):
        run_export(tmp_path / "c", tmp_path / "dl", format="deeplense")
    assert not (tmp_path / "dl").exists()
    write_cutouts(tmp_path / "n", np.ones((3, 1, 9, 9), np.float32), ("g",))
    with pytest.raises(DataError, match="no position"):
        run_export(tmp_path / "n", tmp_path / "m", format="mmu")
    deeplense_tree(tmp_path / "in", np.random.default_rng(0), 1)
    run_import(tmp_path / "in", tmp_path / "t", format="deeplense")
    with pytest.raises(DataError, match="can only be written from cutouts"):
        run_export(tmp_path / "t", tmp_path / "f", format="fits")


def test_a_split_is_no_path(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    index = open_artefact(tmp_path / "c").index()
    column = next(n for n in index.column_names if index[n].to_pylist()[0] not in ("", None)
                  and "/" in str(index[n].to_pylist()[0]))  # fmt: skip
    with pytest.raises(DataError, match="letters, digits"):
        run_export(tmp_path / "c", tmp_path / "dl", format="deeplense", split_column=column)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_files_that_are_nothing_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert (
        run(
            [
                "import",
                str(tmp_path / name),
                "-o",
                str(tmp_path / "t"),
                "--format",
                "arrays",
                "--bands",
                "gri",
            ]
        )
        == 3
    )


def test_export_again_is_done(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    config = ExportConfig.make({"source": tmp_path / "c", "output": tmp_path / "z", "format": "webdataset"})
    assert not export(config).done_before
    assert export(config).done_before
    with pytest.raises(ConfigError, match="rows_per_file"):
        export(config.model_copy(update={"rows_per_file": 3}))


def test_named_mask_planes_mean_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    mask = np.array([[1, 2, 4, 8], [0, 0, 0, 3]], np.int32)
    header = fits.Header({"MP_SAT": 0, "HIERARCH MP_DETECTED": 1, "MP_CR": 2})  # bit 3 has no name
    image = fits.ImageHDU(ramp(2, 4), fits.Header({"BUNIT": "nJy"}), name="IMAGE_g")
    hdus = [fits.PrimaryHDU(), image, fits.ImageHDU(mask, header, name="MASK_g")]
    fits.HDUList(hdus).writeto(tmp_path / "in" / "a.fits")
    batch = run_import(tmp_path / "in", tmp_path / "out", format="fits", bands="g", pixel_scale=0.2)
    found = {name: (batch.mask[0, 0] & batch.bits(name) != 0).ravel().nonzero()[0].tolist()
             for name in ("SAT", "DETECTED", "CR", "BAD")}  # fmt: skip
    assert found == {"SAT": [0, 7], "DETECTED": [1, 7], "CR": [2], "BAD": [3]}


def test_a_rejected_visit_is_no_bad_pixel(tmp_path: Path) -> None:
    image = ramp(2, 1, 8, 8)
    mask = np.zeros(image.shape, np.uint32)
    mask[0, 0, 1, 1], mask[0, 0, 2, 2] = 1, 2
    write_cutouts(
        tmp_path / "c", image, ("i",), {"id": ["a", "b"], "ra": [1.0, 2.0], "dec": [3.0, 4.0]},
        mask=mask, mask_planes=("REJECTED", "SAT"), variance=np.ones_like(image), pixel_scale=0.2,
    )  # fmt: skip
    out = run_export(tmp_path / "c", tmp_path / "mmu", format="mmu")
    with h5py.File(next(out.rglob("*.hdf5"))) as file:
        assert sum(int(m.sum()) for m in file["image_mask"][:]) == 1


def stamps(root: Path, form: str) -> Path:
    """Sources of eight rows."""
    import h5py
    import numpy as np
    from astropy.io import fits

    image = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    root.mkdir()
    if form == "arrays":
        with h5py.File(root / "all.h5", "w") as file:
            file["image"] = image
        return root / "all.h5"
    for k in range(8):
        if form == "deeplense":
            np.save(root / f"{k}.npy", image[k])
        else:
            fits.PrimaryHDU(image[k], fits.Header({"BANDS": "gri", "BUNIT": "nJy"})).writeto(
                root / f"{k}.fits"
            )
    return root


def importing(source: Path, form: str, out: Path, *more: str) -> list[str]:
    """A command line that imports `stamps`; the output comes last."""
    facts = [
        "--bands",
        "gri",
        "--pixel-scale",
        "0.2",
        "--into",
        "tensors",
        "--set",
        "rows_per_shard=2",
        *more,
    ]
    return ["import", str(source), "--format", form, *facts, "-o", str(out)]


@pytest.mark.parametrize("form", ["arrays", "deeplense", "fits"])
@pytest.mark.parametrize("how", ["flipped", "replaced"])
def test_import_refuses_a_file_that_changes_between_hash_and_read(
    form: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The change comes after the first shard was committed; a flip by hand leaves size and times alone."""
    from ripple.stages.formats import import_cutouts

    source = stamps(tmp_path / "in", form)
    victim = source if source.is_file() else sorted(source.iterdir())[-1]
    whole = victim.read_bytes()
    argv = importing(source, form, tmp_path / "out")
    write, done = import_cutouts._write_unit, []

    def then(*arguments: Any) -> None:
        write(*arguments)
        if not done:
            damaged = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
            if how == "replaced":
                (tmp_path / "other").write_bytes(damaged)
                (tmp_path / "other").rename(victim)
            else:
                victim.write_bytes(damaged)
        done.append(True)

    with monkeypatch.context() as patched:
        patched.setattr(import_cutouts, "_write_unit", then)
        assert run(argv) == 4
    assert str(victim) in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    victim.write_bytes(whole)
    assert run(argv) == 0
    assert run([*argv[:-1], str(tmp_path / "again")]) == 0
    names = [f"shard-{k:05d}.h5" for k in range(4)]
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_rot_without_a_trace_in_a_store_is_found_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ripple.storage import files

    source = stamps(tmp_path / "in", "arrays")
    monkeypatch.setattr(files, "_mark", lambda status: (0, 0, status.st_size))  # times tell nothing
    argv = importing(source, "arrays", tmp_path / "out", "--unit", "none")
    from ripple.stages.formats import import_cutouts

    write = import_cutouts._write_unit

    def then(*arguments: Any) -> None:
        write(*arguments)
        data = bytearray(source.read_bytes())
        data[-40] ^= 1 << arguments[1]
        source.write_bytes(data)

    monkeypatch.setattr(import_cutouts, "_write_unit", then)
    assert run(argv) == 4
    assert f"{source} changed" in capsys.readouterr().err
    assert not (tmp_path / "out" / ".journal").exists()


# What catalogues refuse, imports refuse ----------------------------------------------------------------


def _npz(path: Path, rows: int, **columns: Any) -> Path:
    np.savez(path, image=ramp(rows, 3, 16, 16), **columns)
    return path


def _imported(tmp_path: Path, source: Path, **options: Any) -> Any:
    options = {"format": "arrays", "bands": ("g", "r", "i"), "pixel_scale": 0.2, "unit": "nJy"} | options
    run_import(source, tmp_path / "out", **options)
    return open_artefact(tmp_path / "out")


def test_labels_of_arrays_are_read_as_those_of_catalogues(tmp_path: Path) -> None:
    one_hot = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    found = _imported(tmp_path, _npz(tmp_path / "a.npz", 3, label=one_hot), classes=("lens", "nonlens"))
    assert found.index()["label"].to_pylist() == [0, 1, -1]
    assert found.attributes["class_map"] == {"0": "lens", "1": "nonlens"}
    text = _npz(tmp_path / "b.npz", 3, label=np.array(["lens", "nonlens", ""]))
    run_import(text, tmp_path / "b", format="arrays", bands=("g", "r", "i"), pixel_scale=0.2, unit="nJy")
    named = open_artefact(tmp_path / "b")
    assert named.index()["label"].to_pylist() == [1, 0, -1]
    assert named.attributes["class_map"] == {"0": "nonlens", "1": "lens"}
    with pytest.raises(DataError, match=r"label 0\.9.* in row 2"):
        _imported(tmp_path / "c", _npz(tmp_path / "c.npz", 3, label=np.array([0, 1, 0.9])))


def test_ids_of_arrays_keep_their_digits(tmp_path: Path) -> None:
    ids = np.array([12547118600189071360, 12547118600189071361], np.uint64)
    parents = np.array([2**63 + 5, 7], np.uint64)
    found = _imported(tmp_path, _npz(tmp_path / "a.npz", 2, id=ids, parent=parents))
    assert found.index()["id"].to_pylist() == ["12547118600189071360", "12547118600189071361"]
    assert found.index()["parent"].to_pylist() == [2**63 + 5, 7]
    with pytest.raises(DataError, match="at most 53 bits"):
        _imported(tmp_path / "b", _npz(tmp_path / "b.npz", 2, id=ids.astype(float)))


def test_positions_of_arrays_are_numbers(tmp_path: Path) -> None:
    source = _npz(tmp_path / "a.npz", 2, ra=np.array(["a", "b"]), dec=np.zeros(2))
    with pytest.raises(DataError, match=r"'ra' is of type <U1.*in deg ICRS"):
        _imported(tmp_path, source)


def test_imported_positions_and_ids_are_checked(tmp_path: Path) -> None:
    nan = float("nan")
    source = _npz(
        tmp_path / "a.npz", 6,
        id=np.array(["a", "b", "c", "d", "a", "f"]),
        ra=np.array([10.0, 400.0, 10.0, nan, 20.0, -30.0]),
        dec=np.array([5.0, 5.0, 95.0, 5.0, 5.0, 5.0]),
        label=np.array([1, 1, 1, 1, 1, 0]),
    )  # fmt: skip
    index = _imported(tmp_path, source).index()
    assert index["status"].to_pylist() == ["ok", "rejected", "rejected", "rejected", "rejected", "ok"]
    assert index["reason"].to_pylist()[1:5] == ["bad_position"] * 3 + ["duplicate"]
    assert "id a is also that of row 0" in index["detail"].to_pylist()[4]
    assert index["ra"].to_pylist()[5] == 330.0  # as in a catalogue that counts from -180


def test_two_files_of_one_band_are_one_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    header = fits.Header({"BUNIT": "nJy", "CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600})
    for name in ("a_g", "a_r", "b_g", "b-g", "b_r"):
        fits.writeto(tmp_path / "in" / f"{name}.fits", ramp(16, 16), header)
    run_import(tmp_path / "in", tmp_path / "out", format="fits", bands=("g", "r"), pixel_scale=0.2)
    index = open_artefact(tmp_path / "out").index()
    assert index["status"].to_pylist() == ["ok", "rejected"]
    assert (
        "two pictures are the image of g: b-g.fits, HDU 0 and b_g.fits, HDU 0"
        in index["detail"].to_pylist()[1]
    )


@pytest.mark.parametrize(("card", "classes", "label"), [
    (1, (), 1), (True, (), 1), ("ring", ("arc", "ring"), 1), ("1", (), 1), (0.9, (), None),
    ("lens", (), None),
])  # fmt: skip
def test_label_cards(tmp_path: Path, card: Any, classes: tuple[str, ...], label: int | None) -> None:
    header = fits.Header({"BUNIT": "nJy", "LABEL": card})
    (tmp_path / "in").mkdir()
    pixels = ramp(16, 16)
    fits.writeto(tmp_path / "in" / "a.fits", pixels, header)
    fits.writeto(tmp_path / "in" / "b.fits", pixels, fits.Header({"BUNIT": "nJy"}))
    run_import(
        tmp_path / "in", tmp_path / "out", format="fits", bands=("g",), pixel_scale=0.2, classes=classes
    )
    index = open_artefact(tmp_path / "out").index()
    status = "ok" if label is not None else "rejected"
    assert (index["status"].to_pylist()[0], index["label"].to_pylist()[0]) == (status, label or -1)


def test_bit_31_of_a_mask_sets_no_other_plane(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.int32)
    mask[3, 4] = np.int32(-(2**31))
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(ramp(16, 16), fits.Header({"BUNIT": "nJy"}), "IMAGE"),
        fits.ImageHDU(mask, fits.Header({"MP_SAT": 31}), "MASK"),
    ]
    (tmp_path / "in").mkdir()
    fits.HDUList(hdus).writeto(tmp_path / "in" / "a.fits")
    run_import(tmp_path / "in", tmp_path / "out", format="fits", bands=("g",), pixel_scale=0.2)
    batch = shard_reader.unpack_cutouts(open_artefact(tmp_path / "out").shard_path(0).read_bytes())
    assert set(np.unique(batch.mask).tolist()) == {0, 1 << batch.mask_planes.index("SAT")}


def test_a_folder_is_a_class_only_when_the_map_says_so(tmp_path: Path) -> None:
    for folder in ("lens/batch1", "nonlens/batch1", "random"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        np.save(tmp_path / "in" / folder / "x.npy", np.ones((3, 16, 16), np.float32))
    run_import(tmp_path / "in", tmp_path / "out", format="deeplense")
    found = open_artefact(tmp_path / "out")
    assert found.index()["label"].to_pylist() == [1, 0, -1]
    assert any("have no label, as random/x.npy" in note for note in found.attributes["notes"])
    assert any("g, r, i at 0.168 arcsec" in note for note in found.attributes["notes"])
    with pytest.raises(DataError, match=r"1 images lie in no folder of a class, as random/x\.npy"):
        run_import(tmp_path / "in", tmp_path / "b", format="deeplense", classes=("lens", "nonlens"))


def test_class_names_survive_fits(tmp_path: Path) -> None:
    """Labels of another order than usual keep their meaning."""
    table = {"label": np.array([0, 1, -1, 0]), "id": np.arange(4)}
    classes = {0: "Lentille é, 1", 1: "lens"}
    write_cutouts(tmp_path / "c", ramp(4, 1, 9, 9), "g", table, class_map=classes)
    out = run_export(tmp_path / "c", tmp_path / "f", format="fits")
    run_import(out, tmp_path / "back", format="fits", bands=("g",), pixel_scale=0.2)
    found = open_artefact(tmp_path / "back")
    assert found.attributes["class_map"] == {"0": "Lentille é, 1", "1": "lens"}
    assert found.index()["label"].to_pylist() == [0, 1, -1, 0]
    run_import(out, tmp_path / "b", format="fits", bands=("g",), pixel_scale=0.2, classes=("lens", "arc"))
    # Another map than the file's is refused row by row; the row without a label has nothing to refuse.
    index = open_artefact(tmp_path / "b").index()
    assert index["status"].to_pylist() == ["rejected", "rejected", "ok", "rejected"]
    assert "its classes are Lentille é, 1, lens, not lens, arc" in index["detail"].to_pylist()[0]


# The format by the files -------------------------------------------------


def test_the_format_follows_from_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cutouts(tmp_path / "c")
    sources = {form: run_export(tmp_path / "c", tmp_path / form, format=form) for form in FORMS}
    for form, source in sources.items():
        run_import(source, tmp_path / f"{form}-named", format=form)
        capsys.readouterr()
        run_import(source, tmp_path / f"{form}-found")
        assert f"import: {source} was taken for {form}, by {source}" in capsys.readouterr().err
        named, found = (open_artefact(tmp_path / f"{form}-{how}") for how in ("named", "found"))
        assert [s.sha256 for s in found.shards] == [s.sha256 for s in named.shards]
        assert found.manifest["config"]["format"] == form
    np.savez(tmp_path / "a.npz", image=ramp(3, 2, 16, 16))
    run_import(tmp_path / "a.npz", tmp_path / "a", bands="gi", unit="nJy", pixel_scale=0.2)
    deeplense_tree(tmp_path / "d", np.random.default_rng(0))
    run_import(tmp_path / "d", tmp_path / "t")
    (one,) = sources["mmu"].rglob("*.hdf5")
    run_import(one, tmp_path / "one")


#: Exports that say what they are.
FORMS = ("fits", "zarr", "webdataset", "mmu")


def test_a_format_is_never_guessed_between_two(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")
    out = run_export(tmp_path / "c", tmp_path / "f", format="fits")
    np.save(out / "more.npy", ramp(3, 16, 16))
    with pytest.raises(ConfigError, match=r"can be deeplense \(.*more\.npy\) and fits \(.*\.fits\)"):
        run_import(out, tmp_path / "o")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("nothing")
    with pytest.raises(ConfigError, match="do not say which format") as err:
        run_import(tmp_path / "texts", tmp_path / "o")
    assert "deeplense, arrays, fits, mmu, zarr, webdataset" in err.value.hint
    with pytest.raises(DataError, match="no such file or folder"):
        run_import(tmp_path / "absent", tmp_path / "o")
    assert not (tmp_path / "o").exists()
