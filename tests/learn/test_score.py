"""Scoring: ranks, splits, resume, ensembles, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import make_model
from toys import write_toys

from ripple.cli import run
from ripple.errors import ConfigError, DataError, IntegrityError, Interrupted
from ripple.learn.config import ScoreConfig
from ripple.learn.model import calibrate
from ripple.learn.model.calibrate import Calibration, sigmoid
from ripple.learn.model.provenance import Split
from ripple.learn.model.weights import load_model, save_model
from ripple.learn.scoring import ranking
from ripple.learn.scoring import score as scoring
from ripple.learn.scoring.score import outputs, score
from ripple.sky.splits import sky_cells
from ripple.storage.artefact import open_artefact, verify


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "tensors", shards=4, rows=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


def config(model: Path, toys: Path, output: Path, **changes: Any) -> ScoreConfig:
    fields = {"model": str(model), "tensors": [str(toys)], "output": str(output), "draws": 20}
    return ScoreConfig.make(fields | changes)


def test_scores_are_those_of_the_network_and_ranked(model: Path, toys: Path, tmp_path: Path) -> None:
    score(config(model, toys, tmp_path / "s", top=7))
    table = pq.read_table(tmp_path / "s" / "scores.parquet")
    assert table.column_names[:11] == list(ranking.SCORE_COLUMNS)
    assert table["rank"].to_pylist() == list(range(1, 201))
    assert (np.diff(table["score"].to_numpy()) <= 0).all()
    from ripple.storage.shard_reader import map_tensors

    net = load_model(model).nets[0]
    for record in table.slice(0, 5).to_pylist():
        batch = map_tensors(open_artefact(toys).shard_path(record["shard"]))
        assert batch.catalog["id"][record["row"]] == record["id"]
        with torch.inference_mode():
            logit = net(torch.from_numpy(batch.image[[record["row"]]].astype(np.float32)))
        assert record["score"] == pytest.approx(float(sigmoid(logit.item())), rel=1e-5)
        assert record["theta_E"] is not None
    top = list(csv.DictReader((tmp_path / "s" / "top.csv").open()))
    assert [int(r["id"]) for r in top] == table["id"].to_pylist()[:7]
    assert verify(tmp_path / "s") == []
    assert score(config(model, toys, tmp_path / "s", top=7)).done_before
    with pytest.raises(ConfigError, match=r"score.top: 7 -> 8"):
        score(config(model, toys, tmp_path / "s", top=8))
    top_csv = (tmp_path / "s" / "top.csv").read_bytes()
    (tmp_path / "s" / "top.csv").write_bytes(top_csv.replace(b",", b";", 1))
    assert any("top.csv" in problem for problem in verify(tmp_path / "s"))
    (tmp_path / "s" / "top.csv").write_bytes(top_csv)
    data = bytearray((tmp_path / "s" / "scores.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "s" / "scores.parquet").write_bytes(data)
    assert any("scores.parquet" in problem for problem in verify(tmp_path / "s"))


def test_resume_goes_on_after_the_last_shard(
    model: Path, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config(model, toys, tmp_path / "whole"))
    original, calls = scoring.score_shard, []

    def broken(*given: Any, **named: Any) -> Any:
        calls.append(named["number"])
        if len(calls) == 3:
            raise Interrupted(15)
        return original(*given, **named)

    monkeypatch.setattr(scoring, "score_shard", broken)
    with pytest.raises(Interrupted):
        score(config(model, toys, tmp_path / "cut"))
    score(config(model, toys, tmp_path / "cut"))
    assert calls == [0, 1, 2, 2, 3]
    for path in (tmp_path / "whole").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    digests = [open_artefact(tmp_path / name).digest for name in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_the_sorted_table_in_pieces_is_the_table_at_once(
    model: Path, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config(model, toys, tmp_path / "once"))
    monkeypatch.setattr(ranking, "PIECE", 17)
    score(config(model, toys, tmp_path / "pieces"))
    once, pieces = (pq.read_table(tmp_path / n / "scores.parquet") for n in ("once", "pieces"))
    assert once.schema == pieces.schema
    for name in once.column_names:
        np.testing.assert_array_equal(once[name].to_numpy(), pieces[name].to_numpy())
    indexes = [open_artefact(tmp_path / name).index() for name in ("once", "pieces")]
    assert indexes[0].equals(indexes[1])


def test_averaging_over_the_square_makes_a_plain_network_invariant(tmp_path: Path) -> None:
    found = load_model(make_model(tmp_path / "m", name="resnet18"))
    image = torch.randn(2, 3, 32, 32)
    mean = outputs(found, image)[0].mean(1)
    turned = outputs(found, image.rot90(1, (-2, -1)).flip(-1))[0].mean(1)
    np.testing.assert_allclose(mean, turned, atol=1e-4)
    plain = outputs(found, image, tta=False)[0]
    assert plain.shape == (2, 1, 1)
    assert outputs(found, image)[0].shape == (2, 8, 1)
    assert (outputs(found, image)[0][:, 0] - plain[:, 0]).abs().max() < 1e-5


def test_ensembles_give_a_mean_and_a_spread(toys: Path, tmp_path: Path) -> None:
    score(config(make_model(tmp_path / "m", members=3), toys, tmp_path / "s"))
    table = pq.read_table(tmp_path / "s" / "shard-00000.parquet")
    from ripple.storage.shard_reader import map_tensors

    image = torch.from_numpy(map_tensors(open_artefact(toys).shard_path(0)).image.astype(np.float32))
    with torch.inference_mode():
        logits = np.stack([net(image).numpy()[:, 0] for net in load_model(tmp_path / "m").nets])
    np.testing.assert_allclose(table["score"].to_numpy(), sigmoid(logits.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(table["spread"].to_numpy(), sigmoid(logits).std(0), atol=1e-5)
    assert table["spread"].to_numpy().max() > 0


def test_only_unseen_sky_is_judged(toys: Path, tmp_path: Path) -> None:
    table = open_artefact(toys).index()
    cells = sky_cells(table["ra"].to_numpy(), table["dec"].to_numpy(), 256)
    used = np.unique(cells)
    sky = Split(
        by="sky", nside=256, cells_nside=256, placed=True, train=tuple(used[:2].tolist()),
        validation=tuple(used[2:3].tolist()),
    )  # fmt: skip
    score(config(make_model(tmp_path / "m", split=sky), toys, tmp_path / "s", evaluate=True))
    scores = pq.read_table(tmp_path / "s" / "scores.parquet").to_pydict()
    expected = dict(zip(table["id"].to_pylist(), np.searchsorted(used, cells), strict=True))
    for name, split in zip(scores["id"], scores["split"], strict=True):
        assert split == {0: "train", 1: "train", 2: "validation"}.get(int(expected[name]), "test")
    metrics = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    assert metrics["evaluation"]["rows"] == scores["split"].count("test")
    assert metrics["judged"] == {"rows": scores["split"].count("test"), "split": "test"}
    columns = {s["column"] for s in metrics["slices"]}
    assert {"theta_E", "arc_sb", "psf_g", "flagged"} <= columns
    assert metrics["visible"]["arc_sb_below"] == 26.0
    assert (tmp_path / "s" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_completeness_counts_lenses_that_quality_rejected(model: Path, tmp_path: Path) -> None:
    """Every third row is rejected, and so is a lens that has no row at all."""
    accept = (np.arange(90) % 3 > 0).astype(np.uint8)
    tensors = write_toys(tmp_path / "t", shards=1, rows=90, catalog_extra={"accept": accept})
    index = open_artefact(tensors).index()
    label = index["label"].to_numpy()
    score(config(model, tensors, tmp_path / "s", evaluate=True))
    found = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    lenses, kept = int(label.sum()), int(label[accept == 1].sum())
    table = found["evaluation"]["confusion"]
    assert table["tp"] + table["fn"] == kept < lenses
    stages = found["stages"]
    assert stages["asked"] == lenses
    assert stages["accepted"]["value"] == pytest.approx(kept / lenses, abs=1e-6)
    assert stages["completeness"]["value"] == pytest.approx(table["tp"] / lenses, abs=1e-6)
    assert stages["found"]["value"] == pytest.approx(table["tp"] / kept, abs=1e-6)
    assert run(["report", str(tmp_path / "s"), "--top", "1", "-o", str(tmp_path / "page")]) == 0
    assert "both: completeness" in (tmp_path / "page" / "index.html").read_text()


def test_evaluation_without_unseen_labels_is_refused_before_any_score(toys: Path, tmp_path: Path) -> None:
    table = open_artefact(toys).index()
    cells = np.unique(sky_cells(table["ra"].to_numpy(), table["dec"].to_numpy(), 256))
    sky = Split(by="sky", nside=256, cells_nside=256, placed=True, train=tuple(cells.tolist()))
    with pytest.raises(DataError, match="0 lenses and 0 non-lenses"):
        score(config(make_model(tmp_path / "m", split=sky), toys, tmp_path / "s", evaluate=True))
    assert not (tmp_path / "s").exists()


def test_misfits_and_damage_write_no_score(
    model: Path, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_model(tmp_path / "m", bands=("i", "r", "g"))
    assert run(["score", str(other), str(toys), "-o", str(tmp_path / "s")]) == 3
    assert "bands is ('g', 'r', 'i')" in capsys.readouterr().err
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (other / "model.safetensors").write_bytes(bytes(data))
    assert run(["score", str(other), str(toys), "-o", str(tmp_path / "s"), "--reorder-bands"]) == 4
    assert not (tmp_path / "s").exists()
    bad = write_toys(tmp_path / "bad", shards=1, rows=20)
    data = bytearray((bad / "shard-00000.h5").read_bytes())
    data[-5000] ^= 1
    (bad / "shard-00000.h5").write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"shard-00000\.h5"):
        score(config(model, bad, tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_reordered_bands_score_the_same(model: Path, tmp_path: Path) -> None:
    plain = write_toys(tmp_path / "plain", shards=1, rows=10)
    net = load_model(model)
    weights = dict(net.nets[0].state_dict())
    key = "backbone.stem.weight"
    weights[key] = weights[key][:, [2, 1, 0]]
    save_model(tmp_path / "m", net.contract.model_copy(update={"bands": ("i", "r", "g")}), [weights])
    score(config(model, plain, tmp_path / "a"))
    score(config(tmp_path / "m", plain, tmp_path / "b", reorder_bands=True))
    a, b = (pq.read_table(tmp_path / n / "shard-00000.parquet")["score"].to_numpy() for n in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_several_artefacts_and_rejected_targets_keep_the_law(model: Path, toys: Path, tmp_path: Path) -> None:
    second = write_toys(tmp_path / "t", shards=2, rows=10, seed=3)
    score(config(model, toys, tmp_path / "s", tensors=[str(toys), str(second)]))
    found = open_artefact(tmp_path / "s", "scores")
    assert found.manifest["counts"]["asked"] == 220
    assert verify(tmp_path / "s") == []


def test_prevalence_moves_probabilities_and_not_ranks(model: Path, toys: Path, tmp_path: Path) -> None:
    calibration = Calibration(method="temperature", scale=0.5, offset=0.1, prevalence=0.3, rows=100)
    calibrated = make_model(tmp_path / "m", calibration=calibration)
    score(config(calibrated, toys, tmp_path / "a"))
    score(config(calibrated, toys, tmp_path / "b", prevalence=0.5))
    a, b = (pq.read_table(tmp_path / n / "scores.parquet") for n in "ab")
    assert a["id"].equals(b["id"])
    # By hand: temperature, then the odds of another sky; without an option those of 6 lenses in 10,006.
    logit = np.log(a["score"].to_numpy() / (1 - a["score"].to_numpy()))
    odds = np.exp(0.5 * logit + 0.1) * 0.7 / 0.3
    for table, prevalence in ((a, 6 / 10006), (b, 0.5)):
        want = odds * prevalence / (1 - prevalence)
        np.testing.assert_allclose(table["probability"].to_numpy(), want / (1 + want), rtol=1e-4)
        own = table["probability_at_training_prevalence"].to_numpy()
        np.testing.assert_allclose(own, sigmoid(0.5 * logit + 0.1), rtol=1e-4)
        assert float(table.schema.metadata[b"prevalence of probability"]) == pytest.approx(
            prevalence, rel=1e-5
        )
    named = {
        b"prevalence of probability": b"0.00059964",
        b"prevalence of probability_at_training_prevalence": b"0.3",
    }
    assert open_artefact(tmp_path / "a").index().schema.metadata.items() >= named.items()
    assert open_artefact(tmp_path / "a").attributes["prevalence"] == pytest.approx(6 / 10006)


def test_calibration_is_judged_at_the_mix_of_the_rows(model: Path, toys: Path, tmp_path: Path) -> None:
    """Labels drawn from the calibrated probabilities: no --prevalence makes the calibration look bad."""
    known = Calibration(method="temperature", scale=0.5, offset=0.1, prevalence=0.3, rows=100)
    calibrated = make_model(tmp_path / "m", calibration=known)
    found = []
    for k, prevalence in enumerate((None, 1e-5, 0.5)):
        out = tmp_path / str(k)
        score(config(calibrated, toys, out, evaluate=True, prevalence=prevalence))
        report = json.loads((out / "evaluation.json").read_text())
        found.append(report["evaluation"]["metrics"]["ece"]["value"])
        assert report["prevalence"]["judged"] == pytest.approx(report["evaluation"]["lenses"] / 200)
    assert found[0] == found[1] == found[2]


def test_a_model_without_a_prevalence_has_no_probability(
    model: Path, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(config(model, toys, tmp_path / "s"))
    table = pq.read_table(tmp_path / "s" / "scores.parquet")
    assert table["probability"].null_count == table["spread"].null_count == 200  # one invariant network
    assert open_artefact(tmp_path / "s").attributes["prevalence"] is None
    argv = ["score", str(model), str(toys), "--prevalence", "0.01", "-o", str(tmp_path / "t")]
    assert run(argv) == 2
    assert "states no prevalence of its own" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "t").exists()


def test_an_isotonic_map_is_not_moved_where_its_rows_end(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-2, 2, 400)
    known = calibrate.fit("isotonic", truth, (rng.random(400) < sigmoid(truth)).astype(int))
    assert known.resolves(0.1)
    assert not known.resolves(6e-4)
    plain = calibrate.fit("temperature", truth, (rng.random(400) < sigmoid(truth)).astype(int))
    assert plain.resolves(6e-4)
    moved = known.probability(truth, prevalence=6e-4)
    smooth = known.model_copy(update={"method": "temperature"}).probability(truth, prevalence=6e-4)
    np.testing.assert_array_equal(moved, smooth)
    model = make_model(tmp_path / "m", calibration=known)
    assert run(["score", str(model), str(toys), "--threads", "1", "-o", str(tmp_path / "s")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "do not resolve a prevalence of 0.0006, which needs 5,000" in said


def test_scores_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from ripple.storage.manifest import content_digest, render

    model, toys = make_model(tmp_path / "model"), write_toys(tmp_path / "toys", shards=1, rows=20)
    scores = tmp_path / "scores"
    assert run(["score", str(model), str(toys), "--threads", "1", "-o", str(scores)]) == 0
    table = pq.read_table(scores / "scores.parquet")
    columns = {name: table[name] for name in table.column_names}
    minus = pa.array([-1] * len(table), pa.int64())
    wrong = [
        {k: v for k, v in columns.items() if k != "rank"},
        columns | {"row": minus},
        columns | {"score": pa.array(["x"] * len(table))},
        None,
    ]
    for k, content in enumerate(wrong):
        if content is None:
            (scores / "scores.parquet").write_bytes(b"no table")
        else:
            pq.write_table(pa.table(content), scores / "scores.parquet")
        manifest = json.loads((scores / "manifest.json").read_bytes())
        data = (scores / "scores.parquet").read_bytes()
        manifest["attributes"]["sorted"]["sha256"] = hashlib.sha256(data).hexdigest()
        manifest["files"]["scores.parquet"] = [len(data), hashlib.sha256(data).hexdigest()]
        manifest["digest"] = content_digest(manifest)
        (scores / "manifest.json").write_bytes(render(manifest))
        assert run(["report", str(scores), "-o", str(tmp_path / f"page-{k}")]) == 4
        assert "scores.parquet" in capsys.readouterr().err
    (scores / "scores.parquet").unlink()
    assert run(["score", str(model), str(toys), "--threads", "1", "-o", str(scores)]) == 4
    (model / "model.safetensors").unlink()
    assert "scores.parquet" in capsys.readouterr().err
