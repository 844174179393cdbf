"""Which rows failed and why, rows by id, pictures of chosen rows, and how far a directory is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ripple
from ripple.cli import run


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    flux = np.random.default_rng(0).normal(size=(30, 3, 16, 16))
    flux[2, 1] = np.nan
    flux[7] = np.nan
    mask = np.zeros(flux.shape, np.uint32)
    mask[4, :, 5:9, 5:9] = 1
    table = {"id": [f"obj{k}" for k in range(30)], "ra": np.arange(30.0), "dec": np.zeros(30)}
    ripple.write_cutouts(
        tmp_path / "c", flux, "gri", table, mask=mask, mask_planes=("SAT",), rows_per_shard=8
    )
    return tmp_path / "c"


def test_failures_are_listed(cutouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(cutouts), "--failures", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["id"], r["status"], r["reason"]) for r in rows] == [
        ("obj7", "rejected", "no_dataset"), ("obj2", "partial", "missing_band")
    ]  # fmt: skip
    assert run(["show", str(cutouts), "--failures"]) == 0
    shown = capsys.readouterr()
    assert "obj7" in shown.out
    assert "2 rows" in shown.err


def test_lists_are_written(cutouts: Path, tmp_path: Path) -> None:
    assert run(["show", str(cutouts), "--failures", "-o", str(tmp_path / "f.csv")]) == 0
    assert (tmp_path / "f.csv").read_text().splitlines()[1].startswith("7,obj7,7,0,rejected,no_dataset")
    argv = [
        "show",
        str(cutouts),
        "--columns",
        "id,x",
        "--rows",
        "obj3,obj4",
        "-o",
        str(tmp_path / "f.parquet"),
    ]
    assert run(argv) == 0
    table = pq.read_table(tmp_path / "f.parquet")
    assert (table.column_names, table["id"].to_pylist()) == (["id", "x"], ["obj3", "obj4"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "obj333"], "has no row 'obj333'; did you mean"),
        (["--columns", "staus"], "did you mean 'status'"), (["--rgb", "gri"], "--rgb needs --picture"),
        (["--picture", "p.png", "--rgb", "giz"], "three of its bands"),
        (["--picture", "p.png", "--mask", "SATT"], "no mask plane 'SATT'"),
        (["--picture", "p.png", "--rows", "obj7x"], "has no row"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_named(
    argv: list[str], message: str, cutouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", str(cutouts), *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_of_chosen_rows(cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.png"
    assert run(["show", str(cutouts), "--picture", str(out), "--rows", "obj4,obj20", "--mask", "SAT"]) == 0
    assert "2 rows are drawn" in capsys.readouterr().err
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 90)
    assert yellow.sum() > 20  # the outline of the mask


def test_status_of_what_is_finished_and_of_nothing(
    cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", str(cutouts), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert (facts["state"], facts["kind"], facts["rejected"]) == ("finished", "cutouts", 1)
    assert run(["status", str(tmp_path)]) == 0  # as of the output of `run`
    assert "finished" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert run(["status", str(tmp_path / "empty")]) == 3


SLOW = """
import sys, time
import ripple.stages.preprocess.preprocess as p
make = p.make_shard
def slow(task):
    time.sleep(0.7)
    return make(task)
p.make_shard = slow
from ripple.cli import main
main(sys.argv[1:])
"""


def test_status_while_it_runs_and_after_a_kill(cutouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    argv = ["preprocess", str(cutouts), "-o", str(out), "--psf", "none", "--workers", "0"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *argv], stderr=subprocess.DEVNULL)

    def status() -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "ripple", "status", str(out), "--json"], capture_output=True, text=True
        )
        facts: dict[str, object] = json.loads(done.stdout).get("facts", {})
        return facts

    try:
        for _ in range(200):
            if out.is_dir() and len(list(out.glob("shard-*"))) >= 1:
                break
            time.sleep(0.1)
        running = status()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert running["state"] == "running"
    assert f"pid {process.pid} on" in str(running["written by"])
    assert running["memory_bytes"] > 1e7  # type: ignore[operator]
    killed = status()
    assert killed["state"] == "interrupted"
    assert str(killed["units"]).endswith("of 4")
    assert run(argv) == 0
    assert status()["state"] == "finished"
