"""A network that sees how wide the PSF is: wherever it is trained, scored or explained, widths reach it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import SMALL
from toys import BANDS, toy_batch, write_batches

from ripple.errors import ConfigError, ContractError, DataError
from ripple.imaging.batch import TensorBatch
from ripple.learn.config import ExplainConfig, ExportModelConfig, ScoreConfig, TrainConfig
from ripple.learn.data.conditions import Ranges, conditions
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.data.psf_input import (
    TOLERANCE,
    beyond_seen,
    broadened,
    psf_widths,
    seen_widths,
    with_widths,
)
from ripple.learn.embedding.config import EmbedConfig
from ripple.learn.embedding.embed import embed
from ripple.learn.evaluation.perturb import disturbances, flux_cutouts
from ripple.learn.explain.explain import explain
from ripple.learn.model.contract import Contract
from ripple.learn.model.exchange import export_model
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.forward import mean_outputs
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train

SIZE = 16
PLAIN = {
    "method": "asinh", "scope": "dataset", "softening": 3.0, "offset": dict.fromkeys(BANDS, 0.0),
    "scale": dict.fromkeys(BANDS, 1.0),
}  # fmt: skip


def blurred(rows: int, seed: int) -> TensorBatch:
    """Round sources: stars (0) as wide as the PSF, 0.9 to 1.3 arcsec, and galaxies (1) wider by 15 %."""
    rng = np.random.default_rng(seed)
    batch = toy_batch(
        rows, seed, first=rows * seed, size=SIZE, lens=0.5, psf_fwhm=float("nan"), normalization=PLAIN
    )
    psf = rng.uniform(0.9, 1.3, (rows, 3)).astype(np.float32)
    sigma = psf * np.where(batch.catalog["label"] == 1, 1.15, 1.0)[:, None] / 2.3548 / 0.2
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    source = np.exp(-(x**2 + y**2) / (2 * sigma[..., None, None] ** 2))
    image = 20 * source + rng.normal(0, 0.1, source.shape)
    columns = {f"psf_fwhm_{b}": psf[:, k] for k, b in enumerate(BANDS)}
    columns |= {f"noise_{b}": np.full(rows, 0.1, np.float32) for b in BANDS}
    return replace(batch, image=np.arcsinh(image).astype(np.float32), catalog={**batch.catalog, **columns})


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    batches = [blurred(300, seed) for seed in range(2)]
    return write_batches(tmp_path_factory.mktemp("psf") / "tensors", batches)


@pytest.fixture(scope="module")
def models(tensors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training with and without the widths."""
    root, out = tmp_path_factory.mktemp("models"), {}
    for how in ("none", "width"):
        options: dict[str, Any] = {"tensors": [str(tensors)], "output": str(root / how), "psf_input": how}
        train(TrainConfig.make(SMALL | {"epochs": 6, "shift": 0} | options))
        out[how] = root / how
    return out


def contract(model: Path) -> Contract:
    return load_model(model).contract


def test_widths_are_those_that_the_tensors_have() -> None:
    fwhm = np.array([0.8, 1.0, np.nan], np.float32)
    columns = {"psf_fwhm_g": fwhm, "psf_fwhm_r": fwhm + 0.1}
    np.testing.assert_allclose(psf_widths(columns, ("r", "g")), [[0.9, 0.8], [1.1, 1.0], [0, 0]], rtol=1e-6)
    # Matched to 1.25 arcsec: the sharpening is the ratio of the PSF before to that.
    matched = columns | {"psf_sharpening_g": fwhm / 1.25}
    np.testing.assert_allclose(psf_widths(matched, ("g",)), [[1.25], [1.25], [0]], rtol=1e-6)
    with pytest.raises(DataError, match="no column 'psf_fwhm_i'"):
        psf_widths(columns, ("i",))


def test_planes_follow_the_bands_and_other_conditions(tensors: Path) -> None:
    dataset = TensorDataset(tensors, psf_input="width")
    ranges = Ranges(seeing=0.9, drop_band=0.5)
    plain, other = (
        next(Loader(dataset, batch_size=600, shuffle=False, conditions=how).epoch(0))
        for how in (None, conditions(ranges, dataset))
    )
    width, broad = (batch["image"][:, 3:, 0, 0] for batch in (plain, other))
    np.testing.assert_allclose(width, dataset.psf)
    assert float(plain["image"][:, 3:].std((2, 3)).max()) == 0
    lost = other["image"][:, :3].abs().amax((2, 3)) == 0
    assert 0.4 < float(lost.any(1).float().mean()) < 0.6
    assert (broad[lost] == 0).all()
    # In quadrature the same seeing is added to all bands of a row, at most that of the option.
    added = torch.where(lost, torch.nan, broad**2 - width**2).sqrt()
    assert float(added.nan_to_num(0).max()) < 0.9
    spread = added.nan_to_num(-9).amax(1) - added.nan_to_num(9).amin(1)
    assert float(spread.abs().max()) < 1e-3


def test_knowing_the_psf_tells_galaxies_from_stars(models: dict[str, Path], tensors: Path) -> None:
    """Their widths overlap: 0.9 x 1.15 is a narrow galaxy and 1.3 a wide star."""
    found = {how: contract(model).metrics["auroc"]["value"] for how, model in models.items()}
    assert found["width"] > 0.95
    assert found["width"] > found["none"] + 0.05
    assert contract(models["width"]).planes == ("g", "r", "i", "PSF of g", "PSF of r", "PSF of i")
    assert contract(models["width"]).architecture.bands == 6


def test_scores_see_the_widths_of_the_rows(models: dict[str, Path], tensors: Path, tmp_path: Path) -> None:
    model = load_model(models["width"])
    options = {"model": str(models["width"]), "tensors": [str(tensors)], "output": str(tmp_path / "s")}
    score(ScoreConfig.make(options | {"stress": True, "stress_rows": 20, "attacked_rows": 2, "draws": 20}))
    table = pq.read_table(tmp_path / "s" / "scores.parquet").sort_by("id")
    dataset = TensorDataset(tensors, psf_input="width")
    order = np.argsort(np.asarray(dataset.column("id")))
    wanted = mean_outputs(model.nets, dataset, dataset.rows, torch.device("cpu"))[order, 0]
    np.testing.assert_allclose(table["score"].to_numpy(), 1 / (1 + np.exp(-wanted)), atol=1e-5)
    embed(EmbedConfig.make(options | {"output": str(tmp_path / "e")}))
    explain(ExplainConfig.make(options | {"output": str(tmp_path / "x"), "top": 1, "steps": 4, "points": 20}))
    # An empty sky seen by the same PSF is what explanations compare with: widths have no share of their own.
    assert all("PSF of r" not in page.read_text() for page in (tmp_path / "x").glob("*.html"))
    export_model(ExportModelConfig(model=models["width"], output=tmp_path / "m.pt2", format="pt2"))
    with pytest.raises(ConfigError, match="widths of the PSFs"):
        export_model(
            ExportModelConfig(model=models["width"], output=tmp_path / "n.pt2", with_preprocess=True)
        )


def test_disturbances_tell_of_the_psf_what_a_pipeline_would(models: dict[str, Path]) -> None:
    batch, cpu = blurred(6, 3), torch.device("cpu")
    s = flux_cutouts(batch, np.arange(6), contract(models["width"]), cpu)
    assert s.psf is not None
    names = disturbances(BANDS)
    wider, lost, same = (names[name].psf(s.psf) for name in ("seeing + 0.5 arcsec", "r missing", "noise x 2"))
    torch.testing.assert_close(wider, (s.psf**2 + 0.25).sqrt())
    torch.testing.assert_close(lost, s.psf * torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(same, s.psf)


def test_tensors_that_do_not_tell_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    batch = blurred(40, 7)
    bare = {k: v for k, v in batch.catalog.items() if not k.startswith("psf_fwhm")}
    other = write_batches(tmp_path / "t", [replace(batch, catalog=bare)])
    options = {"model": str(models["width"]), "tensors": [str(other)], "output": str(tmp_path / "s")}
    with pytest.raises(ContractError, match="psf_input is not known, the model takes width"):
        score(ScoreConfig.make(options))
    given = {"tensors": [str(other)], "output": str(tmp_path / "m"), "psf_input": "width"}
    with pytest.raises(DataError, match="psf_fwhm_g"):
        train(TrainConfig.make(SMALL | given))
    unknown = {f"psf_fwhm_{b}": np.full(40, np.nan, np.float32) for b in BANDS}
    none = write_batches(tmp_path / "n", [replace(batch, catalog={**batch.catalog, **unknown})])
    with pytest.raises(DataError, match="no row has a PSF"):
        train(TrainConfig.make(SMALL | given | {"tensors": [str(none)]}))
    with pytest.raises(ConfigError, match="blur broadens images"):
        TrainConfig.make(SMALL | given | {"blur": 1.0})


def test_further_training_takes_the_input_from_the_model(models: dict[str, Path], tensors: Path) -> None:
    base = {"tensors": [str(tensors)], "output": str(tensors.parent / "more"), "init": str(models["width"])}
    with pytest.raises(ConfigError, match=r"--psf-input none, but .* has width"):
        train(TrainConfig.make(SMALL | base | {"psf_input": "none", "width": 2}))
    train(TrainConfig.make(SMALL | base | {"epochs": 1}))
    assert contract(tensors.parent / "more").psf_input == "width"


def test_rows_with_a_psf_that_the_network_has_not_seen_get_no_verdict(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A network that is told of a wider PSF than any in training answers anything."""
    batch = blurred(40, 7)
    wide = {
        f"psf_fwhm_{b}": np.where(np.arange(40) < 10, np.float32(1.6), batch.catalog[f"psf_fwhm_{b}"])
        for b in BANDS
    }
    other = write_batches(tmp_path / "t", [replace(batch, catalog={**batch.catalog, **wide})])
    for (low, high), seen in zip(contract(models["width"]).psf_seen, [(0.9, 1.3)] * 3, strict=True):
        assert low == pytest.approx(seen[0] / 1.05, abs=0.01)
        assert high == pytest.approx(seen[1] * 1.05, abs=0.01)
    options = {"model": str(models["width"]), "tensors": [str(other)], "output": str(tmp_path / "s")}
    score(ScoreConfig.make(options))
    table = pq.read_table(tmp_path / "s" / "scores.parquet").sort_by("index")
    np.testing.assert_array_less(1.6 / 1.37, table["ood"].to_numpy()[:10])
    assert (table["abstain"].to_numpy()[:10] == 1).all()
    assert (table["ood"].to_numpy()[10:] < 1.1).mean() > 0.8


def test_widths_beyond_those_that_were_seen() -> None:
    shown = np.array([[0.7, 0.0], [0.9, 0.0]], np.float32)
    seen = seen_widths(np.concatenate([shown, broadened(torch.from_numpy(shown), 0.5).numpy()]))
    assert seen[0] == pytest.approx((0.7 / TOLERANCE, np.hypot(0.9, 0.5) * TOLERANCE), abs=1e-3)
    width = np.array([[0.7, 0.0], [2.0, 0.0], [0.3, 0.0], [0.0, 0.0]], np.float32)
    ratio = beyond_seen(width, seen)
    assert (ratio > 1).tolist() == [False, True, True, True]
    assert ratio[1] == pytest.approx(2.0 / seen[0][1])
    assert seen[1] == (0.0, 0.0)
    assert np.isinf(beyond_seen(np.array([[0.8, 0.9]], np.float32), seen)).all()


def test_planes_are_appended_as_they_are() -> None:
    image, width = torch.randn(2, 3, 4, 5), torch.tensor([[0.7, 0.8, 0.9], [1.0, 0.0, 1.2]])
    out = with_widths(image, width)
    assert out.shape == (2, 6, 4, 5)
    assert torch.equal(out[:, :3], image)
    assert torch.equal(out[:, 3:], width[:, :, None, None].expand(2, 3, 4, 5))
