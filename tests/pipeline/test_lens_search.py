"""`LensSearchTask` writes the rows of `ripple search` on its patch, and refuses what does not fit by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from searches import model_for, write_model

from ripple.cli import run
from ripple.errors import ConfigError
from ripple.learn.model.contract import ArchitectureRecord
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_cutouts

pytest.importorskip("lsst.pipe.base")

from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset
from lsst.pipe.base import InvalidQuantumError, Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

from ripple.pipeline import LensSearchConfig

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "configs" / "pipelines" / "lens_search.yaml"
DIMENSIONS = ("band", "skymap", "tract", "patch")
TRACT = "skymap='ripple_mini_v1' AND tract=5063"


@pytest.fixture(scope="module")
def fields(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return model_for(sky, tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def model(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", fields)


@pytest.fixture(scope="module")
def patches(sky: Path) -> list[int]:
    with Butler.from_config(str(sky / "repo")) as butler:
        return sorted({ref.dataId["patch"] for ref in butler.query_datasets("deep_coadd", "mini")})


@pytest.fixture(scope="module")
def searched(
    sky: Path, model: Path, patches: list[int], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """What the command line finds in each patch."""
    root = tmp_path_factory.mktemp("searched")
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--tract", "5063"]
    for patch in patches:
        output = str(root / str(patch))
        assert run(["search", str(model), *where, "--patch", str(patch), "-o", output, "--workers", "0"]) == 0
    return {patch: root / str(patch) for patch in patches}


@pytest.fixture
def repo(sky: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to write into."""
    return Path(shutil.copytree(sky / "repo", tmp_path / "repo"))


def execute(
    repo: Path, model: Path, where: str = TRACT, inputs: tuple[str, ...] = ("mini",), **options: Any
) -> Butler:
    """Run the pipeline in this process; the Butler of what it wrote."""
    pipeline = Pipeline.from_uri(str(PIPELINE))
    for name, value in {"model": str(model), **options}.items():
        pipeline.addConfigOverride("lensSearch", name, value)
    butler = SimplePipelineExecutor.prep_butler(str(repo), inputs=list(inputs), output="u/someone/lenses")
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler)
    executor.run(register_dataset_types=True)
    return Butler.from_config(str(repo), collections="u/someone/lenses")


def table(butler: Butler, kind: str, patch: int) -> pa.Table:
    data_id = {"skymap": "ripple_mini_v1", "tract": 5063, "patch": patch}
    return butler.get(kind, data_id, storageClass="ArrowTable")


def assert_same(ours: pa.Table, theirs: pa.Table) -> None:
    """Same columns, types and bits; nulls and NaN where the other has them."""
    assert ours.column_names == theirs.column_names
    for name in theirs.column_names:
        one, other = ours[name].combine_chunks(), theirs[name].combine_chunks()
        assert one.type == other.type, name
        if pa.types.is_floating(other.type):
            assert one.is_null().equals(other.is_null()), name
            values = [column.fill_null(0).to_numpy() for column in (one, other)]
            np.testing.assert_array_equal(*values, err_msg=name, strict=True)
        else:
            assert one.equals(other), name


def assert_rows_of_command_line(butler: Butler, searched: dict[int, Path]) -> None:
    for patch, directory in searched.items():
        assert_same(table(butler, "lens_scores", patch), pq.read_table(directory / "scores.parquet"))
        assert_same(table(butler, "lens_targets", patch), pq.read_table(directory / "index.parquet"))


def test_rows_are_those_of_the_command_line(
    sky: Path, repo: Path, model: Path, searched: dict[int, Path], tmp_path: Path
) -> None:
    """Also in the patch that lacks a band, of which the border of its neighbour knows a part."""
    butler = execute(repo, model, keep=3)
    assert_rows_of_command_line(butler, searched)
    assert any("partial" in table(butler, "lens_targets", p)["status"].to_pylist() for p in searched)
    # The cutouts are those of fetch.
    patch, directory = next(iter(searched.items()))
    best = pq.read_table(directory / "scores.parquet", columns=["id", "ra", "dec"]).slice(0, 3)
    pq.write_table(best, tmp_path / "best.parquet")
    where = [
        "--repo",
        str(sky / "repo"),
        "--collections",
        "mini",
        "--targets",
        str(tmp_path / "best.parquet"),
    ]
    shape = ["--bands", "gri", "--size", "40", "--margin", "0", "--workers", "0"]
    assert run(["fetch", *where, *shape, "-o", str(tmp_path / "cut")]) == 0
    data_id = {"skymap": "ripple_mini_v1", "tract": 5063, "patch": patch}
    kept = butler.get("lens_cutouts", data_id)
    assert kept["id"].tolist() == best["id"].to_pylist()
    batch = map_cutouts(tmp_path / "cut" / open_artefact(tmp_path / "cut").shards[0].name)
    for k, row in enumerate(open_artefact(tmp_path / "cut").index()["row"].to_pylist()):
        for b, band in enumerate("gri"):
            for plane in ("image", "variance", "mask"):
                np.testing.assert_array_equal(kept[f"{plane}_{band}"][k], getattr(batch, plane)[row, b])


def test_windows_on_a_grid_need_no_catalogue(
    sky: Path, repo: Path, model: Path, patches: list[int], tmp_path: Path
) -> None:
    butler = execute(repo, model, f"{TRACT} AND patch={patches[0]}", grid=60.0, separation=60.0)
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--tract", "5063", "--grid", "60"]
    few = ["--patch", str(patches[0]), "--separation", "60"]  # arcsec: few places to refine
    argv = ["search", str(model), *where, *few, "-o", str(tmp_path / "found")]
    assert run([*argv, "--workers", "0"]) == 0
    detections = pq.read_table(tmp_path / "found" / "detections.parquet")
    assert detections.num_rows
    assert_same(table(butler, "lens_detections", patches[0]), detections)


SMALL = {"architecture": ArchitectureRecord(name="d4cnn", bands=3, size=400, outputs=1, width=1)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": ("u", "g", "r")}, "the model takes bands u,g,r, and there is no deep_coadd"),
        ({"pixel_scale": 0.168}, "the survey has pixels of 0.2 arcsec, the model takes 0.168"),
        ({"size": 400, **SMALL}, "the cutouts of the model have 412 px with their margins"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(
    repo: Path, fields: dict[str, Any], patches: list[int], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = write_model(tmp_path / "other", fields, **changes)
    with pytest.raises(InvalidQuantumError, match=f"ContractError: {said}"):
        execute(repo, other, f"{TRACT} AND patch={patches[0]}", bands=[])


def test_a_patch_without_targets_has_no_work(repo: Path, model: Path, patches: list[int]) -> None:
    butler = execute(repo, model, f"{TRACT} AND patch={patches[0]}", select="i_cModelFlux > 1e12")
    assert not butler.query_datasets("lens_scores", explain=False)


def test_other_dataset_types_and_storage_classes(
    repo: Path, model: Path, searched: dict[int, Path], patches: list[int]
) -> None:
    """As in releases whose coadds are ExposureF: the class is never asked for, RIPPLe reads the files."""
    with Butler.from_config(str(repo), writeable=True, run="afw") as butler:
        kind = DatasetType("afw_coadd", DIMENSIONS, "ExposureF", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        formatter = "lsst.images.formatters.GenericFormatter"  # that of afw is not installed
        butler.ingest(
            *(
                FileDataset(butler.getURI(ref), DatasetRef(kind, ref.dataId, run="afw"), formatter=formatter)
                for ref in butler.query_datasets("deep_coadd", "mini")
            ),
            transfer="copy",
        )
    options = {
        "coadd_storage_class": "ExposureF",
        "connections.coadd": "afw_coadd",
        "connections.lens": "afw",
    }
    found = execute(repo, model, f"{TRACT} AND patch={patches[0]}", inputs=("afw", "mini"), **options)
    assert_same(
        table(found, "afw_scores", patches[0]), pq.read_table(searched[patches[0]] / "scores.parquet")
    )


def test_options_that_contradict_each_other() -> None:
    config = LensSearchConfig()
    with pytest.raises(ConfigError, match="no model"):
        config.search(5063, 1, "out")
    config.model, config.keep, config.keep_above = "model", 3, 0.5
    with pytest.raises(ConfigError, match="exclude each other"):
        config.search(5063, 1, "out")
    config.keep = 0
    assert config.search(5063, 1, "out").keep == "P>0.500000000"


def shell(directory: Path, command: str, *arguments: str, **env: str) -> None:
    """Run a command of the installed packages, and show what it said where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [command, *arguments],
        cwd=directory,
        # bps writes its files below $PWD.
        env={**os.environ, "PATH": path, "PWD": str(directory), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
def test_pipetask_with_two_processes(
    repo: Path, model: Path, searched: dict[int, Path], tmp_path: Path
) -> None:
    where = ["-b", str(repo), "-i", "mini", "-o", "u/someone/lenses", "-p", str(PIPELINE), "-d", TRACT]
    options = ["-c", f"lensSearch:model={model}", "-j", "2", "--register-dataset-types"]
    shell(tmp_path, "pipetask", "run", *where, *options)
    butler = Butler.from_config(str(repo), collections="u/someone/lenses")
    assert_rows_of_command_line(butler, searched)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bps_with_parsl(repo: Path, model: Path, searched: dict[int, Path], tmp_path: Path) -> None:
    where = ["-b", str(repo), "-i", "mini", "-o", "u/someone/lenses", "-p", str(PIPELINE), "-d", TRACT]
    config = ROOT / "configs" / "bps" / "parsl_local.yaml"
    shell(tmp_path, "bps", "submit", str(config), *where, MODEL=str(model), USER="someone")
    butler = Butler.from_config(str(repo), collections="u/someone/lenses")
    assert_rows_of_command_line(butler, searched)
