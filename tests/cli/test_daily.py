"""The command line of daily work: logs, errors for programs, what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ripple.cli import run
from ripple.runtime.extras import EXTRAS
from ripple.runtime.log import Pulse
from ripple.runtime.summary import Summary, rate, size


@pytest.mark.parametrize(
    ("package", "argv"),
    [("torch", ["train", "tensors", "-o", "m"]), ("torch", ["score", "m", "t", "-o", "s"])],
)
def test_a_verb_whose_extra_is_missing_names_it(package: str, argv: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from ripple.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "torch is not installed: the extra 'learn' has it" in done.stderr
    assert "pip install 'ripple-lsst[learn]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_extra_is_described() -> None:
    """The list in the code is that of pyproject.toml, but for extras of developers and all together."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"]) - {"all", "dev", "bench", "docs"}
    assert known == set(EXTRAS)


def test_cutting_needs_no_torch(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    """fetch, preprocess, report of cutouts and the Python API run where PyTorch is not installed."""
    hidden = "torch timm sklearn safetensors captum onnx"
    code = (
        f"import sys\nfor n in {hidden!r}.split(): sys.modules[n] = None\n"
        "from ripple.cli import main; main(sys.argv[1:])"
    )
    sky = one_of_each["sky"]
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    for argv in (
        ["fetch", *where, "--bands", "gri", "--size", "32", "--workers", "0", "-o", "c"],
        ["preprocess", "c", "-o", "t", "--workers", "0"],
        ["show", "t"],
        ["verify", "t"],
        ["doctor"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True
        )  # The environment lacks a required package for doctor only where it is one of the core.
        assert done.returncode == 0, (argv, done.stderr)


def test_an_error_is_an_object_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(tmp_path / "nothing"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)["error"]
    assert found["code"] == 3
    assert "no such directory" in found["message"]
    assert set(found) == {"code", "class", "message", "hint"}


def test_a_log_has_a_line_per_event(one_of_each: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "ripple.log"
    assert run(["verify", str(one_of_each["cutouts"]), "--log", str(log)]) == 0
    assert run(["show", str(tmp_path / "nothing"), "--log", str(log)]) == 3
    lines = log.read_text().splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) ", line) for line in lines
    )
    assert lines[-1].endswith("exit 3")
    assert any("ERROR" in line and "no such directory" in line for line in lines)
    assert run(["show", str(tmp_path), "--log", str(tmp_path / "no" / "x.log")]) == 6


def test_quiet_and_verbose(one_of_each: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["fetch", "--help"]
    assert run(argv) == 0
    assert "--log FILE" in capsys.readouterr().out
    assert run(["verify", str(one_of_each["cutouts"]), "-v"]) == 0
    assert "INFO exit 0" in capsys.readouterr().err
    assert run(["show", str(one_of_each["cutouts"]), "-q"]) == 0
    assert "cutouts" in capsys.readouterr().out  # an answer is not chatter


def test_progress_in_a_log() -> None:
    pulse = Pulse("fetch", 2000, "rows")
    pulse.done = 500
    assert pulse.line(10.0) == "fetch: 500 of 2,000 rows, 50 rows/s, 30 s left"


def test_numbers_have_their_units_in_json() -> None:
    record = Summary("x", "out", {"rate": rate(30, 0.2), "on disk": size(1536), "rows": 30}).record()
    assert record["facts"] == {"rate_rows_per_s": 150.0, "on_disk_bytes": 1536, "rows": 30}
    assert (str(rate(1, 20.0)), str(rate(3, 2.0))) == ("20.0 s per row", "1.5 rows/s")


def test_bytes_for_people() -> None:
    assert [str(size(v)) for v in (12, 1234, 5_678_000, 9e9, 4.2e12, 7e15)] == [
        "12 B", "1.2 kB", "5.7 MB", "9.0 GB", "4.2 TB", "7000.0 TB",
    ]  # fmt: skip
