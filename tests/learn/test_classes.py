"""The lens class is found by its name: in tensors, in training, in models from elsewhere, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import SMALL, make_contract, make_model
from toys import toy_batch, write_batches

from ripple.cli import run
from ripple.errors import ConfigError, ContractError, DataError
from ripple.learn.config import ExportModelConfig, ImportModelConfig, ScoreConfig, TrainConfig
from ripple.learn.evaluation.metrics import auroc, curve
from ripple.learn.model.calibrate import ClassCalibration
from ripple.learn.model.contract import ArchitectureRecord
from ripple.learn.model.exchange import export_model, import_model
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.score import score
from ripple.learn.training.loop import initial_network
from ripple.learn.training.train import train
from ripple.stages.report.report import ranked_table, with_truth
from ripple.storage.artefact import open_artefact

RESNET = ArchitectureRecord(name="resnet18", bands=3, size=32, outputs=1, stem="standard")


def tensors(directory: Path, class_map: dict[str, str], lens: int, shards: int = 2) -> Path:
    """Toys whose lenses have the label `lens`; the pixels do not depend on it."""
    batches = []
    for k in range(shards):
        batch = toy_batch(80, 40 + k, first=80 * k)
        label = np.where(batch.catalog["label"] == 1, lens, 1 - lens)
        batches.append(replace(batch, class_map=class_map, catalog={**batch.catalog, "label": label}))
    return write_batches(directory, batches)


def table(model: Path, data: Path, output: Path, **options: Any) -> Any:
    score(ScoreConfig.make({"model": str(model), "tensors": [str(data)], "output": str(output), **options}))
    rows = pq.read_table(output / "scores.parquet").sort_by("id")
    return {name: rows[name].to_numpy() for name in rows.column_names}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same toys with nonlens 0, lens 1 and with lens 0, nonlens 1."""
    root = tmp_path_factory.mktemp("both")
    return (
        tensors(root / "usual", {"0": "nonlens", "1": "lens"}, 1),
        tensors(root / "turned", {"0": "Lenses", "1": "non_lens"}, 0),
    )


def trained(data: Path, output: Path, **changes: Any) -> Path:
    options = {"tensors": [str(data)], "output": str(output), **SMALL, **changes}
    train(TrainConfig.make(options))
    return output


@pytest.mark.parametrize("task", ["lens", "classes"])
def test_the_order_of_the_classes_changes_nothing(both: tuple[Path, Path], tmp_path: Path, task: str) -> None:
    usual, turned = both
    models = [trained(data, tmp_path / data.name, task=task, epochs=5) for data in both]
    maps = [load_model(m).contract.class_map for m in models]
    found = table(models[0], usual, tmp_path / "s0", evaluate=task == "lens")
    again = table(models[1], turned, tmp_path / "s1", evaluate=task == "lens")
    if task == "lens":
        assert maps == [{"0": "nonlens", "1": "lens"}, {"0": "non_lens", "1": "Lenses"}]
        np.testing.assert_array_equal(found["score"], again["score"])
        np.testing.assert_array_equal(found["label"], again["label"])
        a, b = (json.loads((tmp_path / s / "evaluation.json").read_text()) for s in ("s0", "s1"))
        assert a == b
    # A model scores tensors of the other order, and labels are in its own numbers.
    crossed = table(models[0], turned, tmp_path / "s2")
    np.testing.assert_array_equal(crossed["score"], found["score"])
    np.testing.assert_array_equal(crossed["label"], found["label"])
    for t, lens in ((found, 1), (again, 0 if task == "classes" else 1)):
        is_lens = t["label"] == lens
        assert t["score"][is_lens].mean() > t["score"][~is_lens].mean()


def test_a_lens_class_of_another_name(tmp_path: Path) -> None:
    data = tensors(tmp_path / "t", {"0": "arc", "1": "galaxy"}, 0)
    with pytest.raises(ConfigError, match=r"no class is called 'lens'; the classes are 0: arc, 1: galaxy"):
        trained(data, tmp_path / "a")
    contract = load_model(trained(data, tmp_path / "m", lens_class="arc")).contract
    assert (contract.class_map, contract.lens_class) == ({"0": "galaxy", "1": "arc"}, "arc")
    t = table(tmp_path / "m", data, tmp_path / "s")
    assert t["score"][t["label"] == 1].mean() > t["score"][t["label"] == 0].mean()


def test_numbers_are_no_names(tmp_path: Path) -> None:
    data = tensors(tmp_path / "t", {"0": "0", "1": "1"}, 1)
    with pytest.raises(ConfigError, match=r"no class is called 'lens'.*--lens-class"):
        trained(data, tmp_path / "a")
    assert load_model(trained(data, tmp_path / "m", lens_class="1")).contract.class_map["1"] == "1"


def foreign(path: Path, outputs: int) -> torch.nn.Module:
    """A ResNet-18 of somebody else, as a state_dict, TorchScript or ONNX."""
    import timm

    torch.manual_seed(5)
    net = timm.create_model("resnet18", in_chans=3, num_classes=outputs).eval()
    if path.suffix == ".onnx":
        given = (torch.zeros(1, 3, 32, 32),)
        torch.onnx.export(net, given, str(path), dynamo=True, external_data=False, optimize=False)
    elif path.suffix == ".pt":
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), path)
    else:
        torch.save(net.state_dict(), path)
    return net


def sidecar(path: Path, **changes: Any) -> Path:
    record = make_contract(**changes).model_dump(mode="json")
    kept = ("architecture", "bands", "size", "pixel_scale", "unit", "psf_fwhm", "normalization", "output")
    path.write_text(json.dumps({name: record[name] for name in kept} | {"class_map": record["class_map"]}))
    return path


# Each export to ONNX takes long: by default one of them.
@pytest.mark.parametrize(
    ("lens", "outputs", "suffix"),
    [
        pytest.param(
            lens, n, suffix, marks=pytest.mark.slow if suffix == ".onnx" and (lens, n) != (0, 2) else ()
        )
        for lens in (0, 1)
        for n in (1, 2)
        for suffix in (".pth", ".pt", ".onnx")
    ],
)
def test_models_from_elsewhere_give_the_probability_of_a_lens(
    both: tuple[Path, Path], tmp_path: Path, suffix: str, outputs: int, lens: int
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    source = tmp_path / f"net{suffix}"
    net = foreign(source, outputs)
    classes = {str(lens): "lens", str(1 - lens): "nonlens"}
    side = sidecar(tmp_path / "side.json", architecture=RESNET, class_map=classes)
    import_model(ImportModelConfig(source=source, sidecar=side, output=tmp_path / "m"))
    image = torch.from_numpy(toy_batch(80, 40).image)
    with torch.inference_mode():
        logit = net(image)
        two = logit if outputs == 2 else torch.cat([0 * logit, logit], 1)  # one logit is about label 1
        want = two.softmax(1)[:, lens].numpy()
    t = table(tmp_path / "m", both[0], tmp_path / "s", tta=False)
    np.testing.assert_allclose(t["score"][:80], want, atol=1e-5)


@pytest.mark.parametrize("lens", [0, 1])
def test_heads_of_classes_rank_the_lens(both: tuple[Path, Path], tmp_path: Path, lens: int) -> None:
    net = foreign(tmp_path / "net.pth", 2)
    classes = {str(lens): "lens", str(1 - lens): "nonlens"}
    arch = RESNET.model_copy(update={"outputs": 2})
    side = sidecar(tmp_path / "s.json", architecture=arch, class_map=classes, output="classes")
    import_model(ImportModelConfig(source=tmp_path / "net.pth", sidecar=side, output=tmp_path / "m"))
    with torch.inference_mode():
        want = net(torch.from_numpy(toy_batch(80, 40).image)).softmax(1)[:, lens].numpy()
    t = table(tmp_path / "m", both[0], tmp_path / "s", tta=False)
    np.testing.assert_allclose(t["score"][:80], want, atol=1e-5)
    np.testing.assert_allclose(t["p_lens"][:80], want, atol=1e-5)


def test_substructure_is_ranked_by_what_is_not_its_absence(tmp_path: Path) -> None:
    arch = ArchitectureRecord(name="d4cnn", bands=3, size=32, outputs=3, width=1)
    classes = {"0": "sphere", "1": "no", "2": "vort"}
    model = make_model(tmp_path / "m", architecture=arch, class_map=classes, output="classes")
    batch = replace(toy_batch(20, 3), class_map=classes)
    t = table(model, write_batches(tmp_path / "t", [batch]), tmp_path / "s")
    np.testing.assert_allclose(t["score"], 1 - t["p_no"], atol=1e-6)


def test_a_binary_head_without_a_map_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(tmp_path / "net.pth", 1)
    side = sidecar(tmp_path / "s.json", architecture=RESNET, class_map={})
    arguments = ["import-model", str(tmp_path / "net.pth"), "--sidecar", str(side), "-o", str(tmp_path / "m")]
    assert run(arguments) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "class_map is missing" in said
    assert "{0: nonlens, 1: lens} if it means a lens, {0: lens, 1: nonlens} if not" in said
    record = json.loads(side.read_text()) | {"class_map": {"0": "arc", "1": "galaxy"}}
    side.write_text(json.dumps(record))
    with pytest.raises(ContractError, match="no class is called 'lens'"):
        import_model(ImportModelConfig(source=tmp_path / "net.pth", sidecar=side, output=tmp_path / "m"))
    assert run([*arguments, "--lens-class", "arc"]) == 0
    assert load_model(tmp_path / "m").contract.class_map == {"0": "galaxy", "1": "arc"}


@pytest.mark.parametrize("network", [pytest.param("resnet18", marks=pytest.mark.slow), "d4cnn"])
def test_round_trip_of_a_trained_model(both: tuple[Path, Path], tmp_path: Path, network: str) -> None:
    pytest.importorskip("onnxscript")
    model = trained(both[1], tmp_path / "m", network=network, epochs=1)
    out = tmp_path / "out" / "net.onnx"
    export_model(ExportModelConfig(model=model, output=out))
    import_model(ImportModelConfig(source=out, sidecar=out.with_suffix(".json"), output=tmp_path / "again"))
    first = table(model, both[1], tmp_path / "s0")
    again = table(tmp_path / "again", both[1], tmp_path / "s1")
    np.testing.assert_allclose(again["score"], first["score"], atol=1e-5)
    np.testing.assert_array_equal(again["label"], first["label"])
    assert load_model(tmp_path / "again").contract.class_map == load_model(model).contract.class_map


def test_names_that_differ_are_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    other = tensors(tmp_path / "t", {"0": "star", "1": "lens"}, 1)
    with pytest.raises(ContractError, match="class_map"):
        table(make_model(tmp_path / "m"), other, tmp_path / "s")
    three = replace(toy_batch(80, 1), class_map={"0": "no", "1": "sphere", "2": "vort"})
    with pytest.raises((ConfigError, DataError), match="two classes"):
        trained(write_batches(tmp_path / "three", [three]), tmp_path / "m3")


def three_kinds(directory: Path, rows: int = 160) -> Path:
    """Toys of three classes with text for names: no arc, a lens, and a lens of a third colour, a spiral."""
    batches = []
    for k in range(3):
        batch = toy_batch(rows, 70 + k, first=rows * k, lens=0.5)
        label = np.asarray(batch.catalog["label"]).copy()
        spiral = (label == 1) & (np.arange(rows) % 4 > 0)
        batch.image[spiral, 0] *= 1.6
        label[spiral] = 2
        names = {"0": "elliptical", "1": "lens", "2": "spiral"}
        batches.append(replace(batch, class_map=names, catalog={**batch.catalog, "label": label}))
    return write_batches(directory, batches)


def test_three_classes_are_ranked_by_the_lens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half ellipticals, an eighth lenses, the rest spirals: ranks, shares, calibration, the page."""
    data = three_kinds(tmp_path / "t")
    model = trained(data, tmp_path / "m", task="classes", epochs=15, width=3)
    known = load_model(model).contract.class_calibration
    assert sum(known.shares) == pytest.approx(1)
    t = table(model, data, tmp_path / "s", evaluate=True)
    np.testing.assert_array_equal(np.sort(t["rank"]), np.arange(1, 481))
    lens = t["label"] == 1
    assert auroc(curve(lens.astype(int), t["score"])) > 0.8
    # The column of the lens class at the survey's density, and the others in their own proportion.
    p = np.stack([t[f"p_{name}"] for name in ("elliptical", "lens", "spiral")], 1)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(t["probability"], t["p_lens"])
    other = table(model, data, tmp_path / "o", prevalence=0.5)
    odds = [x["p_lens"] / (1 - x["p_lens"].astype(float)) for x in (other, t)]
    plain = (t["p_lens"] > 1e-5) & (other["p_lens"] < 0.999)
    np.testing.assert_allclose((odds[0] / odds[1])[plain], 10_000 / 6, rtol=0.02)
    np.testing.assert_array_equal(other["rank"], t["rank"])
    report = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    assert set(report["evaluation"]["calibration"]) == {"0", "1", "2"}
    assert report["prevalence"]["scores"] == pytest.approx(6 / 10006)
    assert run(["report", str(tmp_path / "s"), "--top", "3", "-o", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Confusion matrix" in page
    assert "called spiral" in page
    assert "one source in 1,668 is a lens" in page


def test_rank_by_another_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = ArchitectureRecord(name="d4cnn", bands=3, size=32, outputs=3, width=1)
    names = {"0": "elliptical", "1": "lens", "2": "spiral"}
    known = ClassCalibration(shares=(0.5, 0.2, 0.3))
    model = make_model(
        tmp_path / "m", architecture=arch, class_map=names, output="classes", class_calibration=known
    )
    data = three_kinds(tmp_path / "t", rows=20)
    t = table(model, data, tmp_path / "s", rank_by="spiral")
    order = np.argsort(t["rank"])
    assert (np.diff(t["score"][order]) <= 0).all()
    assert open_artefact(tmp_path / "s").attributes["lens_labels"] == [2]
    # Nobody said how common spirals are: no probability, but that of the validation rows.
    assert np.isnan(t["probability"]).all()
    np.testing.assert_array_equal(t["probability_at_training_prevalence"], t["p_spiral"])
    with_shares = table(model, data, tmp_path / "p", rank_by="spiral", prevalence=0.3)
    np.testing.assert_allclose(with_shares["probability"], t["p_spiral"], rtol=1e-5)
    argv = ["score", str(model), str(data), "-o", str(tmp_path / "x"), "--rank-by"]
    assert run([*argv, "quasar"]) == 2
    assert "no class is called 'quasar'" in " ".join(capsys.readouterr().err.split())
    finder = make_model(tmp_path / "f")
    with pytest.raises(ConfigError, match="--rank-by needs a model with classes"):
        table(finder, data, tmp_path / "y", rank_by="spiral")


def test_a_page_of_evaluated_classes(both: tuple[Path, Path], tmp_path: Path) -> None:
    model = trained(both[1], tmp_path / "m", task="classes")
    table(model, both[1], tmp_path / "s", evaluate=True)
    assert run(["report", str(tmp_path / "s"), "-o", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "evaluation.json beside the scores" in page
    # Label 0 is the lens here, and the page says so of the same rows.
    scores = open_artefact(tmp_path / "s")
    assert scores.attributes["lens_labels"] == [0]
    ranked = ranked_table(scores)
    truth = with_truth(ranked, scores.attributes["lens_labels"])["label"].to_numpy()
    np.testing.assert_array_equal(truth == 1, ranked["label"].to_numpy() == 0)


def test_fine_tuning_keeps_the_outputs_of_each_class(tmp_path: Path) -> None:
    arch = ArchitectureRecord(name="d4cnn", bands=3, size=32, outputs=3, width=2)
    names = {"0": "no", "1": "sphere", "2": "vort"}
    first = make_model(tmp_path / "m", architecture=arch, class_map=names, output="classes")
    head = load_model(first).nets[0].state_dict()["head.bias"]
    config = TrainConfig.make(
        {"tensors": ["x"], "output": str(tmp_path / "o"), "task": "classes", "init": str(first), **SMALL}
    )
    turned = {"0": "vort", "1": "no", "2": "sphere"}
    net = initial_network(config, arch.architecture(), turned)
    torch.testing.assert_close(net.state_dict()["head.bias"], head[[2, 0, 1]])
    weight = load_model(first).nets[0].state_dict()["head.weight"]
    torch.testing.assert_close(net.state_dict()["head.weight"], weight[[2, 0, 1]])
    other = initial_network(config, arch.architecture(), {"0": "a", "1": "b", "2": "no"})
    assert not torch.equal(other.state_dict()["head.weight"], weight)


def test_labels_of_a_sidecar_are_those_of_outputs(tmp_path: Path) -> None:
    foreign(tmp_path / "net.pth", 1)
    side = sidecar(tmp_path / "s.json", architecture=RESNET, class_map={"1": "nonlens", "2": "lens"})
    with pytest.raises(ContractError, match="labels of two classes are 0 and 1"):
        import_model(ImportModelConfig(source=tmp_path / "net.pth", sidecar=side, output=tmp_path / "m"))
