"""`ripple show` and `ripple verify` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import make_model
from PIL import Image
from stampmaker import make_batch
from toys import write_toys

import ripple
from ripple.cli import run
from ripple.learn.config import ScoreConfig
from ripple.learn.scoring.score import score
from ripple.runtime.profile import Profile
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.show import operations


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    flux = np.random.default_rng(0).normal(size=(30, 3, 16, 16))
    flux[2, 1] = np.nan
    ripple.write_cutouts(tmp_path / "c", flux, "gri", rows_per_shard=8)
    return tmp_path / "c"


def test_show_as_json(cutouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(cutouts), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["kind"] == "cutouts"
    assert found["facts"]["rows"] == 30
    assert found["facts"]["shards"] == 4
    assert found["rejections"] == {"partial: missing_band": 1}


def test_show_for_people(cutouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(cutouts)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "missing_band" in shown.out
    assert "…" not in shown.out  # in a pipe nothing is cut
    assert run(["show", str(cutouts / "nothing")]) == 3
    assert "no such directory" in capsys.readouterr().err


def test_a_model_says_what_data_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/howto/other-surveys.md sends people here for."""
    model = make_model(tmp_path / "model", members=2, threshold=0.25)
    assert run(["show", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["network"] == "d4cnn, 2 members"
    assert facts["bands"] == "g, r, i"
    assert facts["pixels"] == "32 x 32 of 0.2 arcsec, nJy"
    assert facts["PSF"] == "1.2 arcsec"
    assert facts["normalisation"] == "method asinh softening 3.0"
    assert facts["threshold"] == "0.25"


def test_metrics_table(cutouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(cutouts), "--metrics"]) == 3
    operations = {"decode": {"calls": 3, "seconds": 1.25, "bytes": 10}, "cut": {"calls": 1, "seconds": 2.0}}
    (cutouts / "metrics.json").write_text(json.dumps({"operations": operations}))
    assert run(["show", str(cutouts), "--metrics", "--json"]) == 0
    assert [row["operation"] for row in json.loads(capsys.readouterr().out)] == ["cut", "decode"]
    assert run(["show", str(cutouts), "--metrics"]) == 0
    assert "1.250" in capsys.readouterr().out


def test_metrics_picture(cutouts: Path, tmp_path: Path) -> None:
    timeline = {"seconds": [1.0, 1.5, 4.0], "rows": [8, 16, 30], "bytes": [10_000, 20_000, 30_000]}
    operations = {"decode": {"calls": 3, "seconds": 1.25, "bytes": 10}, "cut": {"calls": 1, "seconds": 2.0}}
    for metrics in ({"operations": operations, "timeline": timeline}, {"operations": operations}):
        (cutouts / "metrics.json").write_text(json.dumps(metrics))
        assert run(["show", str(cutouts), "--metrics", "--picture", str(tmp_path / "p.png")]) == 0
        with Image.open(tmp_path / "p.png") as picture:
            assert picture.size[0] > 1000


def test_picture(cutouts: Path, tmp_path: Path) -> None:
    assert run(["show", str(cutouts), "--picture", str(tmp_path / "p.png")]) == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size[0] > picture.size[1] > 300
    first = (tmp_path / "p.png").read_bytes()
    assert run(["show", str(cutouts), "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes() == first


def test_verify(cutouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(cutouts)]) == 0
    capsys.readouterr()
    shard = cutouts / "shard-00002.h5"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run(["verify", str(cutouts)]) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "shard-00002.h5: damaged" in message


def test_costs_name_every_step_of_preprocess_and_score(tmp_path: Path) -> None:
    tensors = write_toys(tmp_path / "tensors", shards=2, rows=20)
    score(ScoreConfig(model=make_model(tmp_path / "model"), tensors=(tensors,), output=tmp_path / "scores"))
    costs = {row["operation"]: row for row in operations(tmp_path / "scores")}
    assert set(costs) == {"engine", "read", "network", "distances", "table", "pack", "write", "rank"}
    assert sum(row["share"] for row in costs.values()) == pytest.approx(1)
    profile = Profile()
    preprocess_batch(make_batch(n=4, margin=8), PreprocessConfig.make({}), DataConstants(margin=8), profile)
    steps = {"kernels", "quality", "fill", "match", "registration", "normalise"}
    assert set(profile.operations) == steps
