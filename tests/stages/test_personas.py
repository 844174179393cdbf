"""Three people on one day: what each of them types, and what each of them sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ripple.cli import run
from ripple.storage.artefact import open_artefact


def ripple(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ripple", *words], cwd=cwd, capture_output=True, text=True, timeout=250
    )


def test_an_astronomer_with_fifty_positions(sky: Path, tmp_path: Path) -> None:
    """Names, a position at the edge, one outside of the survey, one that is no number."""
    truth = pq.read_table(sky / "truth.parquet")
    ra, dec = (np.resize(truth[name].to_numpy(), 46) for name in ("ra", "dec"))
    lines = [f"Gal {k:02d},{r},{d}" for k, (r, d) in enumerate(zip(ra, dec, strict=True))]
    lines[7] = "Lost,nan,nan"
    lines += [f"Far away,{ra[0] + 40},{dec[0]}", f"South,{ra[0]},-89.9"]
    (tmp_path / "mine.csv").write_text("name,ra,dec\n" + "\n".join(lines) + "\n")
    where = [
        "--repo",
        str(sky / "repo"),
        "--collections",
        "mini",
        "--targets",
        "mine.csv",
        "--id-column",
        "name",
    ]
    done = ripple("fetch", *where, "--bands", "gri", "--size", "6.4arcsec", "-o", "cutouts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "which rows, and why: ripple show cutouts --failures" in done.stderr
    listed = ripple("show", "cutouts", "--failures", "--json", cwd=tmp_path)
    failed = {row["id"]: row for row in json.loads(listed.stdout)}
    assert failed["Lost"]["reason"] == "bad_position"
    assert "row 7 of the table" in failed["Lost"]["detail"]
    assert failed["Far away"]["status"] == failed["South"]["status"] == "rejected"
    # The same object twice is one cutout, and says of which row it is the copy.
    again = [row for row in failed.values() if row["reason"] == "duplicate"]
    assert all("row" in row["detail"] for row in again)
    good = [row for row in open_artefact(tmp_path / "cutouts").index().to_pylist() if row["status"] == "ok"]
    ids = ",".join(row["id"] for row in good[:3])
    drawn = ripple("show", "cutouts", "--picture", "p.png", "--rows", ids, "--rgb", "gri", cwd=tmp_path)
    assert "3 rows are drawn in p.png" in drawn.stderr
    assert (tmp_path / "p.png").stat().st_size > 5000
    exported = ripple("export", "cutouts", "--format", "fits", "-o", "fits", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "Gal 00" in (tmp_path / "fits" / "catalog.csv").read_text()


@pytest.mark.slow
def test_an_engineer_with_a_cron_job(sky: Path, tmp_path: Path) -> None:
    """YAML, a log, a kill in the middle, status, the same command again, one option changed, all in JSON."""
    (tmp_path / "chain.yaml").write_text(
        f"fetch:\n  repo: {sky}/repo\n  collections: mini\n  targets: {sky}/truth.parquet\n"
        "  bands: gri\n  size: 32\n  margin: 8\n  workers: 0\npreprocess: {psf: none}\n"
    )
    argv = ["run", "-c", "chain.yaml", "-o", "out", "-q", "--json", "--log", "cron.log"]
    assert ripple("run", "-c", "chain.yaml", "--check", cwd=tmp_path).returncode == 0
    process = subprocess.Popen([sys.executable, "-m", "ripple", *argv], cwd=tmp_path, stdout=subprocess.PIPE)
    for _ in range(300):  # until the fetch has begun
        if (tmp_path / "out" / "cutouts" / ".journal").exists():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = ripple("status", "out", "--json", cwd=tmp_path)
    assert state.returncode == 0, state.stderr
    assert "interrupted" in state.stdout or "finished" in state.stdout
    done = ripple(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    stages = json.loads(done.stdout)
    assert [s["verb"] for s in stages] == ["fetch", "preprocess"]
    assert stages[1]["facts"]["targets"] == stages[0]["facts"]["targets"]
    assert "exit 0" in (tmp_path / "cron.log").read_text().splitlines()[-1]
    text = (tmp_path / "chain.yaml").read_text().replace("psf: none", "psf: none, softening: 5")
    (tmp_path / "chain.yaml").write_text(text)
    refused = ripple(*argv, cwd=tmp_path)
    assert refused.returncode == 2
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == 2
    assert "--redo" in error["hint"]
    plan = ripple("run", "-c", "chain.yaml", "-o", "out", "--dry-run", cwd=tmp_path)
    assert "preprocess.softening: 3.0 -> 5.0" in plan.stdout
    assert ripple(*argv, "--redo", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "tensors.old-1" / "manifest.json").exists()


@pytest.mark.slow
def test_a_student_with_folders_of_npy(tmp_path: Path) -> None:
    """Two networks on 200 stamps, compared on rows that neither has seen, and one of them trained on."""
    rng = np.random.default_rng(1)
    for k in range(200):
        kind = "lenses" if k % 3 == 0 else "nonlenses"
        folder = tmp_path / "stamps" / kind
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.normal(size=(3, 32, 32))
        image[:, 12:20, 12:20] += 2
        if kind == "lenses":
            image[0, 6:8, 8:24] += 2.5
        np.save(folder / f"{k:03d}.npy", image.astype(np.float32))
    argv = ["import", str(tmp_path / "stamps"), "--format", "deeplense", "-o", str(tmp_path / "t")]
    assert run(argv) == 0
    common = [str(tmp_path / "t"), "--threads", "2", "--draws", "20", "--lr", "0.01"]
    for name, network in (("a", "d4cnn"), ("b", "resnet18")):
        more = ["--network", network, "--epochs", "3", *(["--width", "2"] if network == "d4cnn" else [])]
        assert run(["train", *common, *more, "-o", str(tmp_path / name)]) == 0
        assert (
            run(["score", str(tmp_path / name), str(tmp_path / "t"), "-o", str(tmp_path / f"s{name}")]) == 0
        )
    page = ["compare", str(tmp_path / "sa"), str(tmp_path / "sb"), "-o", str(tmp_path / "c")]
    assert run(page) == 0
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["labelled"] > 10
    assert (
        run(["train", *common, "--init", str(tmp_path / "a"), "--epochs", "1", "-o", str(tmp_path / "d")])
        == 0
    )
    contract = json.loads((tmp_path / "d" / "model.json").read_text())["contract"]
    assert contract["architecture"]["name"] == "d4cnn"
    assert contract["architecture"]["width"] == 2


def test_large_cutouts_are_announced(sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody finds twelve gigabytes by surprise."""
    from ripple.stages.fetch import fetch

    said: list[str] = []
    monkeypatch.setattr(fetch, "LARGE", 1e5)
    monkeypatch.setattr(fetch, "say", said.append)
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    argv = ["fetch", *where, "--bands", "g", "--size", "32", "--workers", "0", "-o", str(tmp_path / "c")]
    assert run(argv) == 0
    assert len(said) == 1
    assert re.fullmatch(rf"up to [\d.]+ [kM]B of cutouts will be written to {tmp_path}/c", said[0])
    assert run(argv) == 0  # finished: nothing will be written
    assert len(said) == 1
