"""ONNX Runtime gives the scores of PyTorch, bf16 nearly those; each is used where it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import make_model
from scipy.special import logit
from scipy.stats import spearmanr
from toys import write_toys

from ripple.errors import ConfigError, ContractError
from ripple.learn.config import ScoreConfig
from ripple.learn.scoring import engine
from ripple.learn.scoring.score import score
from ripple.runtime import extras
from ripple.storage.artefact import open_artefact

CPU = torch.device("cpu")


def test_scores_are_those_of_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = write_toys(tmp_path / "tensors", shards=2, rows=40)
    model = make_model(tmp_path / "model", members=2)
    tables = {}
    for name in ("torch", "onnx"):
        output = tmp_path / name
        how = {"model": model, "tensors": [data], "output": output, "engine": name}
        score(ScoreConfig.make(how))
        found = open_artefact(output, "scores")
        assert found.inputs["engine"] == name
        tables[name] = pq.read_table(output / "scores.parquet").sort_by("id")
        assert not list(output.glob(".tmp-*"))
    ours, theirs = (tables[name]["score"].to_numpy() for name in ("onnx", "torch"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # Started with one engine, and gone on with another: the scores would be a mixture.
    with pytest.raises(ConfigError, match="engine"):
        score(ScoreConfig.make({"model": model, "tensors": [data], "output": tmp_path / "onnx"}))


@pytest.mark.parametrize("name", ["d4cnn", "resnet18"])
def test_bf16_ranks_as_fp32_does_and_is_said(tmp_path: Path, name: str) -> None:
    data = write_toys(tmp_path / "tensors", shards=2, rows=60)
    model = make_model(tmp_path / "model", name=name, members=2)
    found = {}
    for precision in ("fp32", "bf16"):
        how = {"model": model, "tensors": [data], "output": tmp_path / precision, "precision": precision}
        score(ScoreConfig.make(how))
        scores = open_artefact(tmp_path / precision, "scores")
        assert scores.manifest["config"]["precision"] == precision
        assert scores.inputs["engine"] == "torch"
        table = pq.read_table(tmp_path / precision / "scores.parquet").sort_by("id")
        found[precision] = logit(table["score"].to_numpy())
    exact, short = found.values()
    assert spearmanr(exact, short).statistic > 0.99
    # 8 bits are 0.4 %, and there are some layers; but no two rows are tied that were not.
    assert 0 < np.std(short - exact) < 0.1 * exact.std()
    assert len(np.unique(short)) == len(np.unique(exact))
    with pytest.raises(ConfigError, match="precision"):  # the other half in other numbers
        score(ScoreConfig.make({"model": model, "tensors": [data], "output": tmp_path / "bf16"}))


def test_other_scores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    data, model = write_toys(tmp_path / "tensors", shards=1, rows=20), make_model(tmp_path / "model")
    monkeypatch.setattr(engine, "largest_difference", lambda *_: 0.1)
    how = {"model": model, "tensors": [data], "output": tmp_path / "s", "engine": "onnx"}
    with pytest.raises(ContractError, match=r"by 0\.1 from"):
        score(ScoreConfig.make(how))


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda _: [])
    assert engine.chosen("auto", 100, CPU) == "torch"  # writing the graph takes longer than it saves
    assert engine.chosen("auto", 10**6, CPU) == "onnx"
    assert engine.chosen("auto", 10**6, torch.device("cuda")) == "torch"
    with pytest.raises(ConfigError, match="on the CPU"):
        engine.chosen("onnx", 1, torch.device("cuda"))
    assert engine.chosen("auto", 10**6, CPU, "bf16") == "torch"
    with pytest.raises(ConfigError, match="--engine onnx computes in fp32, not in bf16"):
        engine.chosen("onnx", 1, CPU, "bf16")
    monkeypatch.setattr(extras, "missing", lambda _: ["onnxruntime"])
    assert engine.chosen("auto", 10**6, CPU) == "torch"
    with pytest.raises(ConfigError, match="onnxruntime is not installed"):
        engine.chosen("onnx", 1, CPU)
