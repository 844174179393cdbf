"""docs/explanation/foreign-readers.md is run: from raw FITS files to the score of `ripple score`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from models import SMALL, make_model
from toys import BANDS, toy_images

from ripple.config import Config
from ripple.errors import ConfigError, ContractError
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.convolve import FILL
from ripple.learn.config import ExportModelConfig, ScoreConfig, TrainConfig
from ripple.learn.model.contract import load_contract
from ripple.learn.model.exchange import FluxToScore, export_model
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.export import export
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors
from ripple.storage.shard_writer import pack_cutouts
from ripple.storage.writer import ArtefactWriter, create

PAGE = Path(__file__).parents[2] / "docs/explanation/foreign-readers.md"
ROWS, SIDE = 240, 36


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CutoutBatch]:
    return toys(tmp_path_factory.mktemp("page") / "cutouts", SIDE, 0)


def toys(directory: Path, side: int, margin: int) -> tuple[Path, CutoutBatch]:
    """Toys in nJy, with holes of several sizes and Gaussian PSFs of different widths."""
    rng = np.random.default_rng(0)
    label = (rng.random(ROWS) < 0.4).astype(np.int64)
    image = 10 * toy_images(label, rng, side)[0]
    # As pipelines do: what is clearly brighter than the noise of 3 nJy is flagged.
    mask = np.where(image > 9, 2, 0).astype(np.uint32)
    image[0, 0, 10:12, 14:20] = np.nan
    image[0, 1, 0:16, 0:16] = np.nan  # deeper than six pixels: the middle gets the mean
    y, x = np.mgrid[-8:9, -8:9]
    psf = np.stack([np.exp(-(x**2 + y**2) / (2 * s**2)) for s in (1.6, 1.9, 2.3)]).astype(np.float32)
    index = np.arange(ROWS)
    batch = CutoutBatch(
        bands=BANDS, image=image, variance=np.full(image.shape, 9, np.float32),
        mask=mask, mask_planes=("NO_DATA", "DETECTED"),
        psf=psf / psf.sum((1, 2), keepdims=True), psf_index=np.tile(np.arange(3, dtype=np.int32), (ROWS, 1)),
        catalog={
            "index": index, "id": index + 1, "ra": rng.uniform(53, 53.5, ROWS),
            "dec": rng.uniform(-28, -27.5, ROWS), "label": label,
        },
    )  # fmt: skip
    writer = create(directory, kind="cutouts", config=Config(), inputs={"repo": "none"}, units=1)
    assert isinstance(writer, ArtefactWriter)
    with writer:
        writer.commit(0, pack_cutouts(batch, {}), ROWS, {})
        columns: dict[str, Any] = {name: batch.catalog[name] for name in batch.catalog}
        columns |= {"status": ["ok"] * ROWS, "reason": [""] * ROWS}
        columns |= {"shard": np.zeros(ROWS, np.int32), "row": index.astype(np.int32)}
        names = {"0": "nonlens", "1": "lens"}
        facts = {"bands": list(BANDS), "size": side - 2 * margin, "margin": margin, "class_map": names}
        writer.finish(pa.table(columns), {}, facts)
    return directory, batch


def tensors(cutouts: Path, output: Path, **options: Any) -> Path:
    common = {"cutouts": str(cutouts), "output": str(output), "size": 32, "workers": 0, "registration": False}
    preprocess(PreprocessConfig.make(common | options))
    return output


def trained(data: Path, output: Path, **options: Any) -> Path:
    changes = {"tensors": [str(data)], "output": str(output), "guard": 0.0} | options
    train(TrainConfig.make(SMALL | changes))
    return output


def scored(model: Path, data: Path, output: Path) -> Any:
    score(ScoreConfig.make({"model": str(model), "tensors": [str(data)], "output": str(output)}))
    return pq.read_table(output / "scores.parquet").sort_by("id")


@pytest.mark.parametrize("network", ["d4cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_the_page_gives_the_scores(
    cutouts: tuple[Path, CutoutBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    pytest.importorskip("onnxscript")
    directory, batch = cutouts
    data = tensors(directory, tmp_path / "tensors", psf="none", scope="dataset")
    model = trained(data, tmp_path / "model", network=network, seeds=2)
    table = scored(model, data, tmp_path / "scores")
    for name, whole in (("finder", False), ("flux", True)):
        export_model(ExportModelConfig(model=model, output=tmp_path / f"{name}.onnx", with_preprocess=whole))
    code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for row in (0, 1, 7):
        for b, band in enumerate(BANDS):
            fits.writeto(f"stamp-{band}.fits", batch.image[row, b], overwrite=True)
        found: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), found)
        want = table["score"][row].as_py()
        assert found["score"] == pytest.approx(want, abs=1e-5)
        assert float(found["again"][0]) == pytest.approx(want, abs=1e-5)
        assert found["probability"] == pytest.approx(table["probability"][row].as_py(), rel=1e-4)


@pytest.mark.slow
def test_the_page_gives_the_scores_of_the_default_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    margin = 10
    directory, batch = toys(tmp_path / "cutouts", 32 + 2 * margin, margin)
    data = tensors(directory, tmp_path / "tensors", dtype="float32")
    model = trained(data, tmp_path / "model")
    want = scored(model, data, tmp_path / "scores")["score"]
    export_model(ExportModelConfig(model=model, output=tmp_path / "finder.onnx"))
    # Exports have no margin: this is the same sky, asked for as larger cutouts.
    larger, _ = toys(tmp_path / "larger", 32 + 2 * margin, 0)
    export(ExportConfig(source=larger, output=tmp_path / "fits", format="fits"))
    _, code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for row in (0, 1, 7, 30):
        shutil.copy(next((tmp_path / "fits").rglob(f"{batch.catalog['id'][row]}.fits")), "cutout.fits")
        found: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), found)
        noise = map_tensors(open_artefact(data).shard_path(0)).catalog
        np.testing.assert_allclose(found["noise"], [noise[f"noise_{b}"][row] for b in BANDS], rtol=1e-4)
        assert found["score"] == pytest.approx(want[row].as_py(), abs=1e-5)


def test_pixels_of_other_options_are_refused(cutouts: tuple[Path, CutoutBatch], tmp_path: Path) -> None:
    """A model of matched PSFs used to score tensors without matching, without a word."""
    matched = tensors(cutouts[0], tmp_path / "match", psf="match")
    plain = tensors(cutouts[0], tmp_path / "none", psf="none")
    model = trained(matched, tmp_path / "model")
    pixels = load_contract(model).pixels
    options = {"psf_tolerance": 0.003, "noise_correlation": "measured"}
    assert pixels == {"psf": "match", "margin": 0, "fill": FILL, **options}
    with pytest.raises(ContractError, match=r"pixels\.psf is none, the model takes match") as err:
        scored(model, plain, tmp_path / "s")
    assert "preprocess as the tensors of the model were: psf match" in err.value.hint
    with pytest.raises(ContractError, match="pixels is"):
        trained(matched, tmp_path / "both", tensors=[str(matched), str(plain)])


@pytest.mark.parametrize("scope", ["row", pytest.param("band", marks=pytest.mark.slow)])
def test_fluxes_and_noise_give_the_scores(
    cutouts: tuple[Path, CutoutBatch], tmp_path: Path, scope: str
) -> None:
    data = tensors(cutouts[0], tmp_path / "tensors", psf="none", scope=scope)
    model = trained(data, tmp_path / "model", epochs=1)
    want = scored(model, data, tmp_path / "scores")["score"].to_numpy()
    batch = map_tensors(open_artefact(data).shard_path(0))
    noise = torch.from_numpy(np.stack([batch.catalog[f"noise_{b}"] for b in BANDS], 1).astype(np.float32))
    scale = noise.numpy() if scope == "band" else np.median(noise.numpy(), axis=1, keepdims=True)
    flux = np.sinh(batch.image.astype(np.float64)) * 3 * scale[..., None, None]
    with torch.inference_mode():
        found = FluxToScore(load_model(model)).eval()(torch.from_numpy(flux.astype(np.float32)), noise)
    np.testing.assert_allclose(found.numpy(), want, atol=1e-5)


def test_a_normalisation_by_the_pixels_of_a_row_cannot_be_written(tmp_path: Path) -> None:
    how = {"method": "zscale", "scope": "row", "softening": 3.0, "unit": "nJy"}
    model = make_model(tmp_path / "m", normalization=how)
    with pytest.raises(ConfigError, match="--with-preprocess: normalisation 'zscale' with scope 'row'"):
        export_model(ExportModelConfig(model=model, output=tmp_path / "x.onnx", with_preprocess=True))
