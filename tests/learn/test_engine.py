"""ONNX Runtime gives the scores of PyTorch, and is used where it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import make_model
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
    monkeypatch.setattr(extras, "missing", lambda _: ["onnxruntime"])
    assert engine.chosen("auto", 10**6, CPU) == "torch"
    with pytest.raises(ConfigError, match="onnxruntime is not installed"):
        engine.chosen("onnx", 1, CPU)
