"""Two models on the same rows: differences with intervals, and never on rows that one of them has seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import SMALL
from toys import write_toys

from ripple.cli import run
from ripple.stages.compare.compare import compare
from ripple.stages.compare.config import CompareConfig
from ripple.stages.report.report import ranked_table
from ripple.storage.artefact import open_artefact, verify


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of one set of rows by a network that was trained and by one that hardly was."""
    root = tmp_path_factory.mktemp("compare")
    write_toys(root / "toys", shards=2, rows=200)
    settings = ["--width", "2", "--threads", "1", "--nside", str(SMALL["nside"]), "--draws", "20"]
    for name, epochs in (("good", "6"), ("poor", "1")):
        lr = "0.01" if name == "good" else "1e-6"
        argv = [
            "train",
            str(root / "toys"),
            *settings,
            "--epochs",
            epochs,
            "--lr",
            lr,
            "-o",
            str(root / name),
        ]
        assert run(argv) == 0
        argv = [
            "score",
            str(root / name),
            str(root / "toys"),
            "--threads",
            "1",
            "-o",
            str(root / f"s-{name}"),
        ]
        assert run(argv) == 0
    return root


def test_differences_have_intervals(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scored / "comparison"
    argv = ["compare", str(scored / "s-poor"), str(scored / "s-good"), "-o", str(out), "--set", "draws=50"]
    assert run([*argv, "--json"]) == 0
    capsys.readouterr()
    assert verify(out) == []
    found = json.loads((out / "comparison.json").read_text())
    pair = found["differences"][0]
    assert (pair["a"], pair["b"]) == ("s-poor", "s-good")
    low, high = pair["auroc"]["interval"]
    assert low <= pair["auroc"]["value"] <= high
    values = [found["models"][name]["auroc"]["value"] for name in ("s-poor", "s-good")]
    assert pair["auroc"]["value"] == pytest.approx(values[1] - values[0], abs=1e-6)
    page = (out / "index.html").read_text()
    assert "ROC, logarithmic" in page
    assert page.count("<article") == min(24, found["rows"])
    assert run(argv) == 0  # done before


def test_only_rows_that_nobody_has_seen_count(scored: Path) -> None:
    config = CompareConfig.make(
        {"scores": [str(scored / "s-poor"), str(scored / "s-good")], "output": scored / "c2", "draws": 20}
    )
    compare(config)
    found = json.loads((scored / "c2" / "comparison.json").read_text())
    split = np.array(ranked_table(open_artefact(scored / "s-good"))["split"].to_pylist())
    assert found["rows"] == (split == "test").sum() < len(split)
    assert found["left_out"]["seen, or perhaps seen, by s-good"] == (split != "test").sum()


def test_what_cannot_be_compared(
    scored: Path, one_of_each: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(scored / "s-good"), "-o", str(tmp_path / "c")]) == 2
    # A model of unknown training: every row may have been seen.
    argv = ["compare", str(scored / "s-good"), str(one_of_each["scores"]), "-o", str(tmp_path / "c")]
    assert run(argv) == 3
    assert "no row is left" in capsys.readouterr().err
