"""`ripple plan --search` says beforehand what a search reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from searches import model_for, write_model

from ripple.cli import run


@pytest.fixture(scope="module")
def model(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    return write_model(root / "model", model_for(sky, root))


def where(sky: Path, *more: str) -> list[str]:
    return ["--repo", str(sky / "repo"), "--collections", "mini", *more]


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["plan", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("patch", [(), ("--patch", "1034")])  # the second lacks a band: its neighbour is read
def test_bytes_are_those_of_the_search(
    sky: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], patch: tuple[str, ...]
) -> None:
    selected = where(sky, "--tract", "5063", *patch)
    found = planned(capsys, *selected, "--search", str(model), "--workers", "2")
    assert run(["search", str(model), *selected, "-o", str(tmp_path / "found"), "--workers", "0"]) == 0
    operations = json.loads((tmp_path / "found" / "metrics.json").read_text())["operations"]
    assert found["read_bytes"] == operations["digest"]["bytes"]
    written = sum(path.stat().st_size for path in (tmp_path / "found").iterdir())
    assert found["write_bytes"] == pytest.approx(written, rel=0.2)
    assert found["search"]["rows"] == found["ok"] + found["partial"]
    assert 0 < found["search"]["network_seconds"] < found["search"]["row_seconds"]


def test_what_all_of_dp2_would_cost(sky: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selected = where(sky, "--tract", "5063", "--search", str(model))
    one, ten = (planned(capsys, *selected, "--workers", str(n))["search"]["dp2"] for n in (1, 10))
    assert one["objects"] == 783_000_000
    assert one["stamp_bytes"] == 783_000_000 * 3 * 40 * 40 * 4
    assert 0.01 * one["stamp_bytes"] < one["write_bytes"] < 0.05 * one["stamp_bytes"]
    assert one["days"] * 24 == pytest.approx(one["cpu_hours"], abs=0.2)
    assert ten["days"] * 240 == pytest.approx(ten["cpu_hours"], abs=2)
    assert run(["plan", *selected]) == 0
    said = capsys.readouterr().out
    assert "all 783 million objects with this model" in said
    assert "15.0 TB, which are not written" in said


def test_what_the_model_decides_is_refused(
    sky: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", *where(sky, "--tract", "5063"), "--search", str(model), "--size", "64"]) == 2
    assert "size is that of the model with --search" in capsys.readouterr().err
