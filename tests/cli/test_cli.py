"""The command line as a new user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys; from ripple.cli import main; main(sys.argv[1:])"


def cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def test_help_lists_every_verb_with_a_line() -> None:
    from ripple.cli import VERBS

    result = cli("--help")
    assert result.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb}" in result.stdout


@pytest.mark.parametrize("verb", ["fetch", "preprocess", "train", "score", "run", "locate", "plan"])
def test_each_verb_has_an_example_to_copy(verb: str) -> None:
    result = cli(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert f"ripple {verb} " in " ".join(result.stdout.split())
    assert "Example:" in result.stdout


def test_doctor_runs_alone() -> None:
    result = cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    names = {check["name"] for check in json.loads(result.stdout)}
    assert {"python", "extra learn", "numpy", "lsst-images", "lsst.afw", "memory"} <= names


def test_doctor_looks_into_a_repository(sky: Path, tmp_path: Path) -> None:
    good = cli("doctor", "--repo", str(sky / "repo"), "--collections", "mini")
    assert good.returncode == 0, good.stderr
    assert "ripple_mini_v1" in good.stdout
    bad = cli("doctor", "--repo", str(tmp_path / "nowhere"), "--collections", "mini")
    assert bad.returncode == 3
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["fly"], 2), (["fetch", "--sise", "3"], 2), (["show", "nothing-here"], 3)]
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int) -> None:
    result = cli(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_stage_in_the_chain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("simulate: {}\npreproces: {}\n")
    result = cli("run", "-c", "c.yaml", "-o", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'preprocess'" in result.stderr
    (tmp_path / "c.yaml").write_text("simulate: {pathces: 2}\n")
    result = cli("run", "-c", "c.yaml", "-o", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'patches'" in result.stderr
    assert not (tmp_path / "out").exists()
