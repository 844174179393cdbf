"""Other people's readers read us: the real ones, in environments of their own."""

from __future__ import annotations

import tarfile
import textwrap
from pathlib import Path

import environments
import h5py
import numpy as np
import pytest
from foreign import make_cutouts
from tensorsets import make_tensors

import ripple
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.export import export

ROOT = Path(__file__).resolve().parents[2]


def exported(source: Path, output: Path, **options: object) -> Path:
    export(ExportConfig.make({"source": source, "output": output, **options}))
    return output


def test_the_loop_of_the_multimodal_universe_runs_on_tensors(
    one_of_each: dict[str, Path], tmp_path: Path
) -> None:
    """As their builder for HSC reads a file: each band of each object has flux, ivar, mask, width."""
    tensors = ripple.open(one_of_each["tensors"])
    table = tensors.table()
    examples = []
    for path in sorted(exported(one_of_each["tensors"], tmp_path / "mmu", format="mmu").rglob("*.hdf5")):
        with h5py.File(path) as data:
            order = np.argsort(data["object_id"])
            known = data["object_id"][:][order]
            for key in data["object_id"]:
                i = order[np.searchsorted(known, key)]
                names = ("image_array", "image_ivar", "image_mask", "image_psf_fwhm", "image_scale")
                bands = [[data[name][i][j] for name in names] for j in range(3)]
                examples.append((key, [b.decode("utf-8") for b in data["image_band"][i]], bands))
    assert len(examples) == np.count_nonzero(table["accept"])
    for key, bands, planes in examples[:5]:
        row, shown = tensors[str(key)], table[table["id"] == key][0]
        for j, (image, ivar, mask, width, scale) in enumerate(planes):
            assert bands[j] == row.bands[j]
            np.testing.assert_array_equal(image, row.image[j].astype(np.float32))
            np.testing.assert_array_equal(mask, row.valid[j] == 0)
            assert (ivar[mask] == 0).all()
            assert scale == pytest.approx(0.2)
            assert 0.3 < width < 2
            # asinh of flux over a scale: at the sky its slope is one over that.
            sky = ~mask & (abs(image) < 0.1)
            error = shown[f"noise_{bands[j]}"] / float(shown["norm_scale"])
            np.testing.assert_allclose(1 / np.sqrt(ivar[sky]), error, rtol=0.1)


def test_all_rows_of_a_webdataset_have_the_same_members(tmp_path: Path) -> None:
    make_cutouts(tmp_path / "c")  # rows with a missing band and with a hole among them
    kinds: dict[str, set[str]] = {}
    for path in exported(tmp_path / "c", tmp_path / "w", format="webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                key, _, kind = name.partition(".")
                kinds.setdefault(key, set()).add(kind)
    assert len({frozenset(found) for found in kinds.values()}) == 1
    assert {"image.npy", "missing.npy", "psf.npy", "json", "cls"} <= next(iter(kinds.values()))


# In environments of their own -------------------------------------------------------


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with astropy and pandas, xarray with zarr, `datasets` of Hugging Face; no RIPPLe."""
    directory = tmp_path_factory.mktemp("readers") / "env"
    return environments.environment(
        directory, ["astropy", "pandas", "pyarrow", "xarray", "zarr>=3", "datasets"]
    )


PARQUET = """
import sys, warnings
warnings.simplefilter("error")
from astropy.table import QTable, Table
for path in sys.argv[1:]:
    table = QTable.read(path)
    assert str(table["ra"].unit) == "deg", table.info
    assert table["dec"].info.description == "declination, ICRS"
    assert "objectId" in table.colnames or table["id"].info.description == "identifier"
    again = Table.read(path, format="parquet.votable")
    assert again.colnames == table.colnames and str(again["ra"].unit) == "deg"
    plain = Table.read(path)
    plain.write("table.vot", format="votable", overwrite=True)
    back = Table.read("table.vot")
    for name in plain.colnames:
        theirs = back[name]
        if hasattr(theirs, "filled") and theirs.dtype.kind == "f":
            theirs = theirs.filled(float("nan"))
        assert back[name].unit == plain[name].unit
        assert all(a == b or a != a and b != b for a, b in zip(plain[name], theirs)), (path, name)
print("read", len(sys.argv) - 1)
"""


@pytest.mark.slow
def test_astropy_reads_parquet_with_units(
    readers: Path, one_of_each: dict[str, Path], tmp_path: Path
) -> None:
    files = [one_of_each[kind] / "index.parquet" for kind in ("cutouts", "tensors", "scores")]
    files += [one_of_each["scores"] / "scores.parquet", one_of_each["sky"] / "truth.parquet"]
    assert environments.run(readers, PARQUET, *files, cwd=tmp_path) == "read 5\n"


XARRAY = """
import sys, warnings
warnings.simplefilter("error")
import xarray
found = xarray.open_zarr(sys.argv[1])
assert found["image"].dims == ("row", "band", "y", "x")
assert found["psf"].dims == ("row", "band", "psf_y", "psf_x")
assert {"variance", "mask", "valid"} <= set(found)
assert found.attrs["mask_planes"] and found.attrs["wcs"]
catalog = xarray.open_zarr(sys.argv[1], group="catalog")
assert catalog["ra"].dims == ("row",) and len(catalog["id"]) == len(found["image"])
print(float(found["image"].isel(row=2).sum()), catalog["id"].values[2])
"""


@pytest.mark.slow
def test_xarray_opens_a_zarr_export(readers: Path, tmp_path: Path) -> None:
    batch = make_cutouts(tmp_path / "c")
    out = exported(tmp_path / "c", tmp_path / "z", format="zarr", rows_per_file=4)
    total, name = environments.run(readers, XARRAY, out / "data.zarr", cwd=tmp_path).split()
    assert float(total) == pytest.approx(float(batch.image[2].sum()), rel=1e-5)
    assert name == str(batch.catalog["id"][2])


DATASETS = """
import glob, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import numpy as np
files = sorted(glob.glob(sys.argv[1] + "/*.tar"))
found = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", cache_dir="cache")
assert found.features["json"]["theta_E"].dtype == "float64", found.features
stream = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
rows = list(stream)
for row in rows:
    assert np.isfinite(np.asarray(row["image.npy"])).all()
theta = [row["json"]["theta_E"] for row in found.with_format("numpy")]
print(len(found), len(rows), sum(int(t != t) for t in theta), found[1]["cls"])
"""


@pytest.mark.slow
def test_hugging_face_loads_a_webdataset_export(readers: Path, tmp_path: Path) -> None:
    """The first rows have no Einstein radius, later ones have: a null would hide that it is a number."""
    n = 12
    rng = np.random.default_rng(0)
    theta = np.where(np.arange(n) < 8, np.nan, 1.0)
    ripple.write_cutouts(
        tmp_path / "c", rng.normal(10, 1, (n, 3, 21, 21)).astype(np.float32), "gri",
        {"id": np.arange(n), "ra": np.linspace(10, 11, n), "dec": np.zeros(n), "theta_E": theta,
         "label": np.where(np.arange(n) < 2, -1, 1)},
        rows_per_shard=5,
    )  # fmt: skip
    out = exported(tmp_path / "c", tmp_path / "w", format="webdataset", rows_per_file=4)
    assert environments.run(readers, DATASETS, out, cwd=tmp_path) == "12 12 8 -1\n"


HYRAX = """
import sys
from pathlib import Path
import hyrax
one = hyrax.Hyrax(config_file=sys.argv[1])
one.train()
found = one.infer()
assert len(found) == int(sys.argv[2].rsplit("/", 1)[-1]), len(found)
one.umap()
print("done")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hyrax_trains_infers_and_maps_with_the_configuration_of_the_docstring(tmp_path: Path) -> None:
    """Hyrax has PyTorch and 200 further packages, 2 GB without PyTorch."""
    python = environments.environment(
        tmp_path / "env", ["hyrax==0.13", "-e", f"{ROOT}[learn]"], pinned=("torch", "torchvision", "triton")
    )
    tensors = make_tensors(tmp_path / "t")
    text = (ROOT / "ripple" / "learn" / "data" / "hyrax.py").read_text()
    said = textwrap.dedent(text.split("::\n\n")[1].split("\nHyrax's own")[0])
    # Text among the fields, too.
    said = said.replace("/path/to/tensors", str(tensors)).replace('"label"]', '"label", "id", "ra"]')
    (tmp_path / "config.toml").write_text(f"{said}\n[train]\nepochs = 1\n[data_loader]\nbatch_size = 16\n")
    rows = len(ripple.TensorDataset(tensors))
    assert environments.run(python, HYRAX, tmp_path / "config.toml", Path(str(rows)), cwd=tmp_path).endswith(
        "done\n"
    )
