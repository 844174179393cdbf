"""The script for the day a GPU is at hand runs to its end without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench/gpu.py"


@pytest.mark.parametrize(
    ("parts", "networks"),
    [
        ("agreement,first batch,speed", "d4cnn:1"),
        pytest.param("speed,two ranks", "d4cnn:2,resnet18,convnextv2_atto", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1200)
def test_it_runs_to_its_end(tmp_path: Path, parts: str, networks: str) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--device",
        "cpu",
        "--rows",
        "512",
        "--size",
        "32",
        "--batch",
        "64",
    ]
    command += ["--repeat", "1", "--seconds", "1000", "--parts", parts, "--networks", networks]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "gpu.json")], capture_output=True, text=True, env=alone
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["parts"]) == parts.split(",")
    assert result["left_out"] == []
    for record in result["parts"].get("agreement", []):
        assert record["difference"] < 1e-5
    rows = len(result["parts"]["speed"])
    assert rows == 6 * len(networks.split(","))
    assert all(record["exit"] == 0 for record in result["parts"].get("two ranks", []))
