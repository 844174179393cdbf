"""The rules of trust: no pickle is loaded, repositories stay as they are, no security rule is silenced."""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ripple.errors import IntegrityError
from ripple.learn.model.exchange import read_state
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "ripple").rglob("*.py"))
#: Files that may write a repository: the simulation, and nothing else.
WRITERS = {"write_repository.py"}


class Bomb:
    """Unpickled, it touches a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def digests(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def poison(repo: Path, canary: Path) -> None:
    """A `skyMap` dataset as the Rubin repositories have it, but with code in its pickle."""
    from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset
    from lsst.daf.butler.formatters.pickle import PickleFormatter

    path = repo.parent / "skyMap.pickle"
    path.write_bytes(pickle.dumps(Bomb(canary)))
    with Butler.from_config(str(repo), writeable=True, run="mini") as butler:
        kind = DatasetType("skyMap", ("skymap",), "SkyMap", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        (record,) = butler.query_dimension_records("skymap")
        data_id = butler.registry.expandDataId({"skymap": record.name}, dimensions=kind.dimensions)
        ref = DatasetRef(kind, data_id, run="mini")
        butler.ingest(FileDataset(str(path), [ref], formatter=PickleFormatter), transfer="copy")


def test_a_sky_map_with_code_in_it_is_never_unpickled(sky: Path, tmp_path: Path) -> None:
    shutil.copytree(sky / "repo", tmp_path / "repo")
    canary = tmp_path / "CANARY"
    poison(tmp_path / "repo", canary)
    before = digests(tmp_path / "repo")
    values = {
        "repo": str(tmp_path / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
        "bands": ["g", "r"], "size": 32, "output": str(tmp_path / "out"), "workers": 0,
    }  # fmt: skip
    fetch(FetchConfig.make(values))
    fetch(
        FetchConfig.make(
            values | {"targets": None, "grid": 300.0, "tract": [5063], "output": str(tmp_path / "grid")}
        )
    )
    assert not canary.exists()
    # And the repository is as it was, to the byte.
    assert digests(tmp_path / "repo") == before
    # The bomb is live: what must not happen would have shown.
    pickle.loads((tmp_path / "skyMap.pickle").read_bytes())
    assert canary.exists()


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Calls of a function or method by its last name."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called == name:
                    yield path, node


def keyword(call: ast.Call, name: str) -> Any:
    found = [k.value for k in call.keywords if k.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_repositories_are_opened_read_only() -> None:
    opened = list(calls("from_config"))
    assert opened
    for path, call in opened:
        assert keyword(call, "writeable") is (path.name in WRITERS), f"{path}:{call.lineno}"


def test_torch_state_is_read_with_weights_only() -> None:
    loads = [(p, c) for p, c in calls("load") if ast.unparse(c.func) == "torch.load"]
    assert [p.name for p, _ in loads] == ["exchange.py"]
    assert all(keyword(call, "weights_only") is True for _, call in loads)


class Intruder(torch.nn.Module):
    """A program that overwrites a file while it is loaded."""

    def __init__(self, canary: str) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(10))
        self.canary = canary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.w, self.canary, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.canary, self.training = state[1], state[2]
        self.w = torch.from_file(state[1], True, 10).fill_(65.0) + state[0]


def test_torchscript_that_runs_when_loaded_is_refused(tmp_path: Path) -> None:
    """`torch.jit.load` calls `__setstate__`, which can write files: found by trying it."""
    canary = tmp_path / "CANARY"
    torch.jit.save(torch.jit.script(Intruder(str(canary))), str(tmp_path / "model.pt"))
    canary.unlink(missing_ok=True)
    with pytest.raises(IntegrityError, match=r"model\.pt: .* would run code"):
        read_state(tmp_path / "model.pt")
    assert not canary.exists()
    torch.jit.load(str(tmp_path / "model.pt"))
    assert canary.exists()


def test_nothing_unpickles_evaluates_or_goes_through_a_shell() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in {
                "eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "os.system",
                "yaml.load", "yaml.unsafe_load",
            }, f"{path}:{node.lineno}"  # fmt: skip
            assert keyword(node, "shell") is not True, f"{path}:{node.lineno}"
            assert keyword(node, "allow_pickle") is not True, f"{path}:{node.lineno}"


def test_security_rules_are_on_and_exceptions_say_why() -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "S",
        "--ignore",
        "S101",
        str(ROOT / "ripple"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"noqa: S\d", line):
                assert re.search(r"noqa: S\d+(, ?\w+)* - \w+", line), f"{path}:{number} gives no reason"
