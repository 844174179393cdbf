"""Known lenses against a search: every reason of a miss is planted, and named."""

from __future__ import annotations

import csv
import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorsets import make_scores, make_tensors, parquet

from ripple.cli import run
from ripple.config import Config
from ripple.errors import CatalogueError, ConfigError, InputError
from ripple.stages.consensus.config import ConsensusConfig
from ripple.stages.consensus.consensus import consensus
from ripple.stages.match.config import MatchConfig
from ripple.stages.match.known import groups, is_nscs, read_known
from ripple.stages.match.match import match
from ripple.stages.vet.config import VetConfig
from ripple.stages.vet.vet import grader_queue, write_session
from ripple.storage import files
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.checksums import listed
from ripple.storage.directory import write_directory
from ripple.storage.writer import ArtefactWriter, create
from ripple.vetting.session import KIND, open_session
from ripple.vetting.store import Given, GradeStore

ARCSEC = 1 / 3600
ROWS = 400


class ScoresConfig(Config):
    """Stands for the options of `score`."""

    verb: ClassVar[str] = "score"

    tensors: tuple[Path, ...] = ()


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 rows, 10 arcsec apart along a line at dec -30, in the order of rank; four more without pixels."""
    directory = tmp_path_factory.mktemp("match") / "scores"
    writer = create(
        directory, kind="scores", config=ScoresConfig(), inputs={"model": "0" * 64, "tensors": []}, units=1,
        suffix=".parquet",
    )  # fmt: skip
    assert isinstance(writer, ArtefactWriter)
    k = np.arange(ROWS)
    rejected = (k == 340) | (k == 30)
    table = pa.table({
        "id": [f"row {n}" for n in k], "ra": 50 + 10 * k * ARCSEC, "dec": np.full(ROWS, -30.0),
        "score": 1 - k / ROWS, "shard": np.zeros(ROWS, np.int32), "row": k.astype(np.int32), "rank": k + 1,
    })  # fmt: skip
    without = [
        ("outside", "the box leaves the survey"),
        ("no_dataset", ""),
        ("bad_psf", "i: broken"),
        ("seam", "r"),
    ]
    ra = [60.0, 60.1, 60.2, 60.3]
    index = pa.table({
        "index": np.arange(ROWS + 4), "id": [*(f"row {n}" for n in k), *(f"lost {n}" for n in range(4))],
        "ra": np.concatenate([table["ra"].to_numpy(), ra]), "dec": np.full(ROWS + 4, -30.0),
        "status": np.where(np.append(rejected, [True] * 4), "rejected", "ok"),
        "reason": [*np.where(rejected, "quality", ""), *(r for r, _ in without)],
        "detail": [*np.where(rejected, "saturated", ""), *(d for _, d in without)],
        "shard": np.append(np.zeros(ROWS, np.int32), [-1] * 4).astype(np.int32),
        "row": np.append(k, [-1] * 4).astype(np.int32),
    })  # fmt: skip
    with writer:
        writer.commit(0, parquet(table), ROWS, {})
        data = parquet(table)
        files.write_atomic(directory / "scores.parquet", data)
        attributes = {
            "rows": ROWS, "sorted": {"name": "scores.parquet", "sha256": hashlib.sha256(data).hexdigest()},
            "model": {"origin": "made up"}, "bands": ["i"], "output": "lens",
        }  # fmt: skip
        writer.finish(index, {}, attributes, files=listed(directory, ("scores.parquet",)))
    return directory


def at(rank: float, off: float = 0.3) -> tuple[float, float]:
    """A position `off` arcsec north of the row of a rank."""
    return 50 + 10 * (rank - 1) * ARCSEC, -30 + off * ARCSEC


#: Name -> position, and what should be said: the reason (None: recovered) and a part of the detail.
PLANTED: dict[str, tuple[tuple[float, float], str | None, str]] = {
    "best": (at(1), None, "rank 1"),
    "last of the top": (at(300, 1.4), None, "rank 300"),
    "rejected but in the top": (at(31), None, "rank 31"),
    "low": (at(333), "low score", "rank 333 of 400, below --top 300"),
    "saturated": (at(341), "rejected", "quality: saturated"),
    "between rows": (at(10.5), "no object", "no row within 1.5 arcsec; the nearest is"),
    "just beyond": (at(20, 1.6), "no object", "the nearest is 1.6 away"),
    "far away": ((200.0, 40.0), "not covered", "no pixels within 60 arcsec"),
    "two minutes off": ((50.0, -30 - 120 * ARCSEC), "not covered", "no pixels within 60 arcsec"),
    "edge": ((60.0, -30.0), "not covered", "outside: the box leaves the survey"),
    "hole": ((60.1, -30.0), "not covered", "no_dataset"),
    "broken": ((60.2, -30.0), "rejected", "bad_psf: i: broken"),
    "seam": ((60.3, -30.0), "rejected", "seam: r"),
}


def catalogue(path: Path, rows: list[tuple[str, float, float, str, str]]) -> Path:
    """A table as lenscat writes it."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["name", "RA [deg]", "DEC [deg]", "zlens", "type", "grading", "ref"])
        out.writerows(
            [name, repr(ra), repr(dec), "-", "galaxy", grade, ref] for name, ra, dec, grade, ref in rows
        )
    return path


def test_every_reason_is_named(scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(name, *where, "confident", "paper A") for name, (where, _, _) in PLANTED.items()]
    rows.insert(0, ("NSCSJ1", *at(5), "probable", "Lopes"))
    rows.append(("best|B1|", at(1)[0], at(1, 1.9)[1], "probable", "paper B|paper A"))
    rows.append(("no position", float("nan"), 3.0, "probable", "paper B"))
    known = catalogue(tmp_path / "known.csv", rows)
    argv = ["match", str(scores), "--known", str(known), "-o", str(tmp_path / "m"), "--json"]
    assert run(argv) == 0
    said = json.loads(capsys.readouterr().out)
    found = {r["name"]: r for r in pq.read_table(tmp_path / "m/known.parquet").to_pylist()}
    assert set(found) == set(PLANTED)
    for name, (_, reason, detail) in PLANTED.items():
        assert (found[name]["missed_because"] or None) == reason, (name, found[name])
        assert found[name]["recovered"] == (reason is None)
        assert detail in found[name]["detail"], (name, found[name])
    assert found["best"]["names"] == "best|B1"
    assert (found["best"]["references"], found["best"]["grades"], found["best"]["rows"]) == (
        "paper A|paper B", "confident|probable", 2,
    )  # fmt: skip
    assert found["last of the top"]["separation"] == pytest.approx(1.4, abs=0.01)
    assert said["facts"] == {"known lenses": 13, "recovered": 3}
    assert said["rejections"] == {"not covered": 4, "rejected": 3, "no object": 2, "low score": 1}
    notes = " ".join(said["notes"])
    assert "1 cluster candidates of NSCS" in notes
    assert "1 rows are the same lens" in notes
    assert "1 rows have no usable position" in notes
    page = (tmp_path / "m/index.html").read_text()
    for text in ("paper B", "confident", "of 9 that are covered", "quality: saturated"):
        assert text in page, text
    assert verify(tmp_path / "m") == []


def test_columns_limits_and_clusters_are_options(scores: Path, tmp_path: Path) -> None:
    rows = [("NSCSJ1", *at(5), "probable", "Lopes"), ("low", *at(333), "A", "x")]
    known = catalogue(tmp_path / "known.csv", rows)
    base = {"sources": [scores], "known": known, "reference_column": "type", "grade_column": "ref"}
    match(MatchConfig.make(base | {"output": tmp_path / "m", "top": 350, "keep_nscs": True}))
    found = pq.read_table(tmp_path / "m/known.parquet").to_pylist()
    assert [(r["name"], r["recovered"], r["references"], r["grades"]) for r in found] == [
        ("NSCSJ1", True, "galaxy", "Lopes"), ("low", True, "galaxy", "x"),
    ]  # fmt: skip
    with pytest.raises(CatalogueError, match="no column 'nam'"):
        match(MatchConfig.make(base | {"output": tmp_path / "n", "name_column": "nam"}))
    with pytest.raises(ConfigError, match="one directory of scores"):
        match(MatchConfig.make(base | {"output": tmp_path / "n", "sources": []}))
    with pytest.raises(InputError):
        match(MatchConfig.make(base | {"output": tmp_path / "n", "sources": [tmp_path / "m"]}))


def test_joined_names_and_chains_of_duplicates() -> None:
    assert is_nscs(("NSCSJ151403-190219",))
    assert is_nscs(("NSCS J1", "nscs2"))
    assert not is_nscs(("NSCS J1", "SDSSJ2"))
    assert not is_nscs(())
    ra = np.array([10.0, 10 + 1.5 * ARCSEC, 10 + 3.0 * ARCSEC, 10 + 6 * ARCSEC, 359.9999, 0.0001])
    assert groups(ra, np.zeros(6), 2.0).tolist() == [0, 0, 0, 1, 2, 2]
    assert len(set(groups(ra, np.zeros(6), 0.0).tolist())) == 6


# With candidates ----------------------------------------------------


@pytest.fixture(scope="module")
def vetted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scores of which one person graded the best 60: A for even ranks, X for odd ones; tests rightly."""
    root = tmp_path_factory.mktemp("vetted")
    tensors = make_tensors(root / "tensors", (200, 200), size=16, dtype=np.float32)
    made = make_scores(root / "scores", tensors, evaluate=False)
    values = {"scores": made, "output": root / "grades", "top": 60, "repeat": 0.0}
    config, found = VetConfig.make(values), open_artefact(made, "scores")
    write_directory(
        root / "grades", KIND, config, {"scores": found.digest}, lambda d: write_session(d, found, config)
    )
    session = open_session(root / "grades")
    rank = session.objects["rank"].to_pylist()
    with closing(GradeStore(root / "grades")) as store:
        queue = grader_queue(session, config, "ann")
        store.join("ann", queue)
        truth = session.truth
        good = [truth[k] == 1 if truth[k] >= 0 else rank[k] % 2 == 0 for k in queue.tolist()]
        store.add("ann", [Given(p, "A" if g else "X") for p, g in enumerate(good)], "one")
    consensus(ConsensusConfig.make({"grades": [root / "grades"], "output": root / "candidates"}))
    return {"root": root, "scores": made, "candidates": root / "candidates", "grades": root / "grades"}


def lenses_at(vetted: dict[str, Path], path: Path, ids: list[str]) -> Path:
    table = pq.read_table(vetted["scores"] / "scores.parquet").to_pylist()
    by_id: dict[str, Any] = {r["id"]: r for r in table}
    return catalogue(path, [(i, by_id[i]["ra"], by_id[i]["dec"], "A", "x") for i in ids])


def test_graded_down_and_hidden_tests(vetted: dict[str, Path], tmp_path: Path) -> None:
    session = open_session(vetted["grades"])
    ids, rank, truth = session.objects["id"].to_pylist(), session.objects["rank"].to_pylist(), session.truth
    up = next(i for i, r, t in zip(ids, rank, truth, strict=True) if t < 0 and r % 2 == 0)
    down = next(i for i, r, t in zip(ids, rank, truth, strict=True) if t < 0 and r % 2 == 1)
    test = next(i for i, t in zip(ids, truth, strict=True) if t == 1)
    later = next(
        r["id"] for r in pq.read_table(vetted["scores"] / "scores.parquet").to_pylist() if r["id"] not in ids
    )
    known = lenses_at(vetted, tmp_path / "known.csv", [up, down, test, later])
    base = {"known": known, "radius": 0.5, "merge": 0.1, "top": 400}
    match(
        MatchConfig.make(
            base | {"sources": [vetted["scores"], vetted["candidates"]], "output": tmp_path / "both"}
        )
    )
    both = {r["name"]: r for r in pq.read_table(tmp_path / "both/known.parquet").to_pylist()}
    assert {name: r["missed_because"] for name, r in both.items()} == {
        up: "", down: "graded down", test: "", later: "",
    }  # fmt: skip
    assert "as a hidden test" in both[test]["detail"]
    assert both[up]["probability"] > 0.5 > both[down]["probability"]
    assert np.isnan(both[later]["probability"])
    match(MatchConfig.make(base | {"sources": [vetted["candidates"]], "output": tmp_path / "graded"}))
    alone = {r["name"]: r for r in pq.read_table(tmp_path / "graded/known.parquet").to_pylist()}
    assert alone[later]["missed_because"] == "no object"
    assert [alone[n]["missed_because"] for n in (up, down, test)] == ["", "graded down", ""]


def test_candidates_of_other_scores_are_refused(
    scores: Path, vetted: dict[str, Path], tmp_path: Path
) -> None:
    known = catalogue(tmp_path / "known.csv", [("a", 100.0, 2.0, "A", "x")])
    with pytest.raises(InputError, match="other scores"):
        match(MatchConfig.make({
            "sources": [scores, vetted["candidates"]], "known": known, "output": tmp_path / "m",
        }))  # fmt: skip


def test_the_table_may_lack_everything_but_positions(tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text("ra,dec\n10.5,-3\n110,4\n")
    known = read_known(MatchConfig.make({"sources": ["x"], "known": tmp_path / "known.csv", "output": "y"}))
    assert [(lens.names, lens.ra, lens.dec) for lens in known.lenses] == [((), 10.5, -3.0), ((), 110.0, 4.0)]
