"""Shards whose workers die or never answer stop nobody else's; the run ends with their names and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool_tasks
import pytest
from cutout_artefacts import digest, write
from stampmaker import make_batch

from ripple.errors import WorkerError
from ripple.stages.inject import inject
from ripple.stages.inject.config import InjectConfig
from ripple.stages.preprocess import preprocess
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.storage.artefact import verify


@pytest.mark.parametrize(
    ("module", "model", "fault", "told", "more"),
    [
        (preprocess, PreprocessConfig, pool_tasks.preprocess_without_shard_1, "SIGKILL", {}),
        pytest.param(
            inject, InjectConfig, pool_tasks.inject_without_shard_1, "no answer", {"deadline": 8},
            marks=pytest.mark.slow,  # two deadlines
        ),
    ],
)  # fmt: skip
def test_the_others_are_committed(
    module: Any, model: Any, fault: Any, told: str, more: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    verb = getattr(module, model.verb)
    cutouts = write(tmp_path / "cutouts", make_batch(14, "gri", 32, 6), 6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"cutouts": str(cutouts), "workers": 1} | more
    verb(model.make(options | {"output": str(whole), "workers": 0}))
    with monkeypatch.context() as patched:
        patched.setattr(module, "make_shard", fault)
        with pytest.raises(WorkerError, match=f"1 of 3 shards .*shard 1: .*{told}.*run again"):
            verb(model.make(options | {"output": str(cut)}))
    assert sorted(p.name for p in cut.glob("shard-*")) == ["shard-00000.h5", "shard-00002.h5"]
    assert not (cut / "manifest.json").exists()
    verb(model.make(options | {"output": str(cut)}))
    assert verify(cut) == []
    assert digest(cut) == digest(whole)
