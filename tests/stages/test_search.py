"""`ripple search` gives the scores of fetch, preprocess and score, bit for bit, and writes nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from models import make_model

from ripple.cli import run
from ripple.learn.config import ScoreConfig
from ripple.learn.embedding.config import EmbedConfig
from ripple.learn.embedding.embed import embed
from ripple.learn.model.calibrate import Calibration
from ripple.learn.model.contract import ArchitectureRecord, pixels_of
from ripple.learn.scoring.score import score
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.plan import units
from ripple.stages.preprocess import batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.stages.search import search, unit
from ripple.stages.search.detections import local_maxima
from ripple.storage.artefact import open_artefact


def selection(sky: Path) -> dict[str, Any]:
    return {
        "repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
        "label_column": "label", "workers": 0,
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def several_units() -> Iterator[None]:
    """Units of few rows, so that there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_ROWS", 12)
        yield


@pytest.fixture(scope="module")
def three(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cutouts, a model for them that takes the widths of PSFs too, tensors made for it, and their scores."""
    root = tmp_path_factory.mktemp("three")
    shape = {"bands": ["g", "r", "i"], "size": 40, "margin": 6, "output": str(root / "cutouts")}
    fetch(FetchConfig.make(selection(sky) | shape))
    common = {"cutouts": str(root / "cutouts"), "workers": 0}
    preprocess(PreprocessConfig.make(common | {"output": str(root / "first")}))
    made = open_artefact(root / "first")
    make_model(
        root / "model",
        architecture=ArchitectureRecord(name="d4cnn", bands=6, size=40, outputs=1, width=2),
        psf_input="width",
        size=40,
        psf_fwhm=None,
        normalization=made.attributes["normalization"],
        noise_correlation=made.attributes["noise_correlation"],
        pixels=pixels_of(made),
        calibration=Calibration(scale=0.8, offset=0.1, prevalence=0.15),
        threshold=0.0,
    )
    preprocess(PreprocessConfig.make(common | {"output": str(root / "tensors"), "model": root / "model"}))
    what = {"model": root / "model", "tensors": [root / "tensors"]}
    score(ScoreConfig.make({**what, "output": root / "scores"}))
    embed(EmbedConfig.make({**what, "output": root / "embeddings", "rows_per_shard": 1}))
    return root


def found(sky: Path, root: Path, output: Path, *more: str) -> list[str]:
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    return ["search", str(root / "model"), *where, "--label-column", "label", "-o", str(output), *more]


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_the_scores_are_those_of_the_three_verbs(
    sky: Path, three: Path, tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "found"
    if workers == "0":  # cutouts of some rows in memory, then those of others
        monkeypatch.setattr(unit, "AHEAD", 16)
        monkeypatch.setattr(batch, "TOGETHER", 1)
    assert run(found(sky, three, output, "--workers", workers, "--embeddings")) == 0
    ours, theirs = (open_artefact(path, "scores") for path in (output, three / "scores"))
    assert len(ours.shards) == 2
    for name in ("scores.parquet", "index.parquet", "top.csv", *(shard.name for shard in ours.shards)):
        assert (output / name).read_bytes() == (three / "scores" / name).read_bytes(), name
    for name in ("rows", "prevalence", "threshold", "bands", "lens_labels", "members", "model"):
        assert ours.attributes[name] == theirs.attributes[name]
    names = {p.name for p in (three / "scores").iterdir()}
    assert {p.name for p in output.iterdir()} == names | {"embeddings"}
    embedded, by_verb = (open_artefact(path / "embeddings", "embeddings") for path in (output, three))
    assert embedded.attributes == by_verb.attributes
    for name in ("index.parquet", *(shard.name for shard in embedded.shards)):
        assert (embedded.directory / name).read_bytes() == (by_verb.directory / name).read_bytes(), name
    best = str(table(output)["id"][0])
    assert run(["similar", str(embedded.directory), "--like", best, "--rejected"]) == 0
    assert run(["verify", str(embedded.directory)]) == 0
    assert run(["verify", str(output)]) == 0
    assert run(["show", str(output)]) == 0


def test_in_bf16_the_scores_are_those_of_score_in_bf16(
    sky: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--workers", "0", "--precision", "bf16")
    assert run(found(sky, three, tmp_path / "s", *how, "--engine", "onnx")) == 2
    assert "--engine onnx computes in fp32" in capsys.readouterr().err
    assert run(found(sky, three, tmp_path / "s", *how)) == 0
    tensors, again = str(three / "tensors"), str(tmp_path / "again")
    assert run(["score", str(three / "model"), tensors, "-o", again, "--precision", "bf16"]) == 0
    both = [(path / "scores.parquet").read_bytes() for path in (tmp_path / "s", tmp_path / "again")]
    assert both[0] == both[1]
    assert not table(tmp_path / "s")["score"].equals(table(three / "scores")["score"])


def table(scores: Path) -> pa.Table:
    return pq.read_table(scores / "scores.parquet")


#: A search that is killed at its second unit.
KILLED = """
import os, signal, sys
from ripple.cli import run
from ripple.stages.plan import units
from ripple.stages.search import search

units.UNIT_ROWS = 12
make, calls = search.make_shard, []

def dying(task):
    calls.append(task)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(task)

search.make_shard = dying
run(sys.argv[1:])
"""


def test_the_bytes_do_not_depend_on_workers_or_interruption(
    sky: Path,
    three: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = search
    assert run(found(sky, three, tmp_path / "one", "--workers", "0")) == 0
    # What the embeddings need is not in the scores.
    assert run(found(sky, three, tmp_path / "one", "--workers", "0", "--embeddings")) == 2
    assert "searched without --embeddings" in capsys.readouterr().err
    argv = found(sky, three, tmp_path / "two", "--workers", "0")
    # One unit has its scores, and as yet no embeddings.
    assert subprocess.run([sys.executable, "-c", KILLED, *argv]).returncode == -signal.SIGKILL
    assert (tmp_path / "two" / "shard-00000.parquet").exists()
    finish = module.finish_embeddings

    def dying(*what: Any) -> None:
        finish(*what)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "finish_embeddings", dying)
    assert run([*argv, "--embeddings"]) == 130  # the embeddings are finished, the scores are not
    monkeypatch.undo()
    assert run([*argv, "--embeddings"]) == 0
    shards = [f"shard-{k:05d}.arrow" for k in range(2)]
    for name in ("index.parquet", *shards):
        ours, theirs = (path / "embeddings" / name for path in (tmp_path / "two", three))
        assert ours.read_bytes() == theirs.read_bytes()
    for name in ("scores.parquet", "index.parquet", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_best_are_kept_and_can_be_looked_at(
    sky: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    assert run(found(sky, three, output, "--workers", "0", "--keep", "5", "--json")) == 0
    assert "5 of the best" in json.loads(capsys.readouterr().out)["facts"]["kept"]
    kept, best = table(output / "kept" / "scores"), table(output).slice(0, 5)
    assert kept["id"].to_pylist() == best["id"].to_pylist()
    assert kept["score"].to_pylist() == pytest.approx(best["score"].to_pylist(), abs=1e-6)
    assert run(["report", str(output / "kept" / "scores"), "-o", str(tmp_path / "page")]) == 0
    assert run(["report", str(output), "-o", str(tmp_path / "other")]) == 3
    assert "kept/scores" in capsys.readouterr().err
    # Others, asked for later, from scores that are there already, take their place.
    assert run(found(sky, three, output, "--workers", "0", "--keep", "7")) == 0
    assert "are removed" in capsys.readouterr().err
    assert table(output / "kept" / "scores").num_rows == 7
    assert run(found(sky, three, output, "--workers", "0", "--keep", "7")) == 0
    assert "are removed" not in capsys.readouterr().err


def test_what_the_model_decides_is_refused(
    sky: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(found(sky, three, tmp_path / "a", "--set", "size=64")) == 2
    assert "size is that of the model" in capsys.readouterr().err
    assert run(found(sky, three, tmp_path / "a", "--keep", "many")) == 2
    assert not (tmp_path / "a").exists()


def test_tensors_for_a_model_contradict_it_only_by_name(three: Path, tmp_path: Path) -> None:
    argv = ["preprocess", str(three / "cutouts"), "--model", str(three / "model"), "-o", str(tmp_path / "t")]
    assert run([*argv, "--psf", "none"]) == 2
    assert run([*argv, "--psf", "match", "--workers", "0"]) == 0


def blind(sky: Path, root: Path, output: Path, *more: str) -> list[str]:
    truth = pq.read_table(sky / "truth.parquet")
    ra, dec = (float(np.mean(truth[name].to_numpy())) for name in ("ra", "dec"))
    region = f"CIRCLE {ra} {dec} 0.006"
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--region", region, "--grid", "16"]
    return ["search", str(root / "model"), *where, "-o", str(output), "--workers", "0", *more]


def test_a_blind_search_finds_each_place_once(sky: Path, three: Path, tmp_path: Path) -> None:
    """Windows on a grid: none without pixels is a detection, and no two detections are neighbours."""
    output = tmp_path / "blind"
    assert run(blind(sky, three, output, "--keep", "3")) == 0
    found, windows = pq.read_table(output / "detections.parquet"), table(output)
    assert 3 <= found.num_rows < windows.num_rows / 4
    places = SkyCoord(found["ra"].to_numpy(), found["dec"].to_numpy(), unit="deg")
    assert places.match_to_catalog_sky(places, nthneighbor=2)[1].arcsec.min() >= 5
    score = found["score"].to_numpy()
    assert (np.diff(score) <= 0).all()
    # Each has the score of the best window around it, no lower than that of its window of the grid.
    rows = {row["id"]: row for row in windows.to_pylist()}
    for row in found.to_pylist():
        own = rows[row["id"]]
        at = SkyCoord(own["ra"], own["dec"], unit="deg")
        assert own["accept"]
        assert row["score"] >= own["score"] - 1e-6
        assert at.separation(SkyCoord(row["ra"], row["dec"], unit="deg")).arcsec < 0.2 * 16
    kept = table(output / "kept" / "scores")
    assert kept["id"].to_pylist() == found["id"].to_pylist()[:3]
    assert kept["score"].to_pylist() == pytest.approx(score[:3].tolist(), abs=1e-5)
    assert run(["verify", str(output)]) == 0


@pytest.mark.slow
def test_an_interrupted_refinement_goes_on(
    sky: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = search.make_shard
    assert run(blind(sky, three, tmp_path / "one")) == 0

    def stopping(task: Any) -> Any:
        if "refined/2" in task.directory:
            raise KeyboardInterrupt
        return make(task)

    monkeypatch.setattr(search, "make_shard", stopping)
    assert run(blind(sky, three, tmp_path / "two")) == 130
    assert not (tmp_path / "two" / "manifest.json").exists()
    monkeypatch.undo()
    assert run(blind(sky, three, tmp_path / "two")) == 0
    for name in ("detections.parquet", "scores.parquet", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_local_maxima_are_the_best_around() -> None:
    ra = 150 + np.array([0.0, 1, 2, 3, 10, 10.5]) / 3600
    kept = local_maxima(ra, np.zeros(6), 2.5)
    # Best first: 0 suppresses 1 and 2; 3 is 3 arcsec from 0, and 2 is gone; 4 suppresses 5.
    assert kept.tolist() == [True, False, False, True, True, False]
