"""Names that are too long, and standard files that are closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toys import write_toys

from ripple.cli import run

COMMAND = [sys.executable, "-c", "import sys; from ripple.cli import main; main(sys.argv[1:])"]


@pytest.mark.parametrize("verb", ["verify", "show", "preprocess", "report", "export"])
def test_names_that_are_too_long_are_named(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--format", "zarr"] if verb == "export" else []
    out = [] if verb in ("verify", "show") else ["-o", "out"]
    assert run([verb, "x" * 300, *more, *out]) == 3
    assert "x" * 300 in capsys.readouterr().err.replace("\n", "")


def test_closed_standard_files(tmp_path: Path) -> None:
    toys = write_toys(tmp_path / "toys", shards=1, rows=20)
    for closed in ("2>&-", ">&-", "<&- >&- 2>&-"):
        line = f'exec "$@" {closed}'
        argv = ["bash", "-c", line, "bash", *COMMAND, "verify", str(toys), "--json"]
        assert subprocess.run(argv, check=False, capture_output=True).returncode == 0, closed
