"""`ripple consensus`: from grades on disk to candidates that others can read."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from tensorsets import make_scores, make_tensors

from ripple.cli import run
from ripple.errors import ConfigError, InputError
from ripple.stages.consensus.config import ConsensusConfig
from ripple.stages.consensus.consensus import consensus, network_evidence
from ripple.stages.consensus.panel import gather
from ripple.stages.vet.config import VetConfig
from ripple.stages.vet.vet import grader_queue, write_session
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.directory import write_directory
from ripple.vetting.consensus import fuse
from ripple.vetting.session import KIND, Session, open_session
from ripple.vetting.store import Given, GradeStore

HOSTILE = ["<script>alert(1)</script>", "a} {b", 'x"#;y', "=1+1"]


def session_of(scores: Path, output: Path, **options: object) -> tuple[Session, VetConfig]:
    """What `ripple vet` writes before it serves."""
    config = VetConfig.make({"scores": scores, "output": output, "repeat": 0.2} | options)
    found = open_artefact(scores, "scores")
    write_directory(output, KIND, config, {"scores": found.digest}, lambda d: write_session(d, found, config))
    return open_session(output), config


def grade_all(session: Session, config: VetConfig, skill: dict[str, float], *, source: str = "one") -> None:
    """Every grader grades every object: right with a probability."""
    rank = session.objects["rank"].to_pylist()
    lens = [TRUTH[k] for k in rank]
    with closing(GradeStore(session.directory)) as store:
        for name, right in skill.items():
            rng = np.random.default_rng(len(name))
            queue = grader_queue(session, config, name)
            store.join(name, queue)
            grades = [("A" if lens[k] else "X") if rng.random() < right else "C" for k in queue.tolist()]
            notes = ["a <b>note</b>" if k == 0 else "" for k in queue.tolist()]
            kinds = ["spiral" if g == "X" else "" for g in grades]
            given = [
                Given(p, g, k, n, 2.0) for p, (g, k, n) in enumerate(zip(grades, kinds, notes, strict=True))
            ]
            store.add(name, given, source)  # type: ignore[arg-type]


TRUTH: dict[int, bool] = {}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("consensus")
    tensors = make_tensors(root / "tensors", (150, 150), size=16, dtype=np.float32, ids=HOSTILE)
    made = make_scores(root / "scores", tensors, evaluate=False)
    table = pq.read_table(made / "scores.parquet")
    TRUTH.update(zip(table["rank"].to_pylist(), (v == 1 for v in table["label"].to_pylist()), strict=True))
    return made


@pytest.fixture(scope="module")
def graded(scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    session, config = session_of(scores, tmp_path_factory.mktemp("graded") / "grades")
    grade_all(session, config, {"ann": 0.95, "bob": 0.8, "careless": 0.4})
    return session.directory


def test_candidates_in_every_format(graded: Path, tmp_path: Path) -> None:
    out = tmp_path / "candidates"
    assert run(["consensus", str(graded), "-o", str(out)]) == 0
    table = pq.read_table(out / "candidates.parquet")
    p = table["probability"].to_numpy()
    assert (np.diff(p) <= 0).all()
    assert ((p >= 0) & (p <= 1)).all()
    lens = np.array([TRUTH[k] for k in table["rank"].to_pylist()])
    assert lens[: lens.sum()].mean() > 0.95
    assert set(table["graded_by"].to_pylist()) == {3}
    session = open_session(graded)
    hidden = session.objects.filter(pa.array(session.truth >= 0))
    assert len(hidden) > 20
    assert not set(hidden["id"].to_pylist()) & set(table["id"].to_pylist())

    rows = list(csv.DictReader((out / "candidates.csv").read_text().splitlines()))
    assert [float(r["probability"]) for r in rows] == pytest.approx(p.tolist())
    assert {"'=1+1"} <= {r["id"] for r in rows} | {
        "'=1+1" if i == "=1+1" else i for i in hidden["id"].to_pylist()
    }
    votable = Table.read(out / "candidates.vot")
    np.testing.assert_array_equal(np.asarray(votable["ra"]), table["ra"].to_numpy())
    assert str(votable["dec"].unit) == "deg"
    lines = (out / "candidates.reg").read_text().splitlines()
    assert lines[1] == "icrs"
    assert len(lines) == 2 + table.num_rows
    assert all(line.count("{") == line.count("}") == 1 and line.count("#") == 1 for line in lines[2:])
    tests = list(csv.DictReader((out / "tests.csv").read_text().splitlines()))
    assert len(tests) == len(hidden)
    assert {r["truth"] for r in tests} == {"lens", "not a lens"}
    assert verify(out) == []
    assert run(["show", str(out)]) == 0
    assert run(["verify", str(out)]) == 0
    (out / "stray").write_text("x")
    assert len(verify(out)) == 1


def test_the_page_says_who_is_how_good(graded: Path, tmp_path: Path) -> None:
    consensus(ConsensusConfig.make({"grades": [graded], "output": tmp_path / "c"}))
    page = (tmp_path / "c/index.html").read_text()
    assert "<script>alert" not in page
    assert "<b>note" not in page
    for text in (
        "Krippendorff",
        "calibration error",
        "ann",
        "careless",
        "Agreement of pairs",
        "second-round.csv",
    ):
        assert text in page, text
    known = {r["grader"]: r for r in csv.DictReader((tmp_path / "c/graders.csv").read_text().splitlines())}
    assert set(known) == {"ann", "bob", "careless"}
    assert known["ann"]["seconds"] == "2.0"
    same, twice = map(int, known["ann"]["same"].split(" of "))
    assert twice > 30
    assert same / twice > 0.75
    assert float(known["ann"]["finds"].split()[0]) > 0.9
    again = list(csv.DictReader((tmp_path / "c/second-round.csv").read_text().splitlines()))
    assert 0 < len(again) <= 50
    assert [float(r["disagreement"]) for r in again] == sorted(
        (float(r["disagreement"]) for r in again), reverse=True
    )


def test_again_is_done_and_more_grades_are_other_inputs(scores: Path, tmp_path: Path) -> None:
    session, config = session_of(scores, tmp_path / "g")
    grade_all(session, config, {"ann": 0.9})
    base = {"grades": [tmp_path / "g"], "output": tmp_path / "c"}
    first = consensus(ConsensusConfig.make(base))
    assert not first.done_before
    assert "hidden tests that were left out" in first.notes[0]
    assert consensus(ConsensusConfig.make(base)).done_before
    consensus(ConsensusConfig.make(base | {"output": tmp_path / "d"}))
    for name in ("candidates.parquet", "candidates.vot", "candidates.reg", "index.html", "tests.csv"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes(), name
    grade_all(session, config, {"bob": 0.7})
    with pytest.raises(ConfigError, match="different options or inputs"):
        consensus(ConsensusConfig.make(base))


def test_graders_at_two_places_are_one_panel(scores: Path, tmp_path: Path) -> None:
    for name, skill in (("home", {"ann": 0.95}), ("lab", {"bob": 0.9, "cleo": 0.9})):
        session, config = session_of(scores, tmp_path / name)
        grade_all(session, config, skill)
    config = ConsensusConfig.make({"grades": [tmp_path / "home", tmp_path / "lab"], "output": tmp_path / "c"})
    assert consensus(config).facts["graders"] == 3
    grades = pq.read_table(tmp_path / "c/candidates.parquet")["grades"].to_pylist()
    assert all(text.startswith("ann ") and ", bob " in text and ", cleo " in text for text in grades)


def test_what_was_told_in_training_does_not_count(scores: Path, tmp_path: Path) -> None:
    session, config = session_of(scores, tmp_path / "g")
    grade_all(session, config, {"ann": 1.0}, source="training")
    done = consensus(ConsensusConfig.make({"grades": [tmp_path / "g"], "output": tmp_path / "c"}))
    assert done.facts["hidden tests"] == 0
    assert "their truth was told" in done.notes[1]
    assert "not calibrated" in done.notes[0]


def test_the_word_of_the_network_is_without_its_prevalence(graded: Path) -> None:
    session = open_session(graded)
    session = replace(session, facts={**session.facts, "prevalence": 0.1})
    panel = gather([session])
    found = network_evidence([session], panel)
    p = np.array(session.objects["probability"].to_pylist())
    np.testing.assert_allclose(found, np.log(p / (1 - p)) - np.log(0.1 / 0.9))
    with_it, without = fuse(panel.level, panel.truth, found), fuse(panel.level, panel.truth)
    lens = np.array([TRUTH[k] for k in session.objects["rank"].to_pylist()])
    apart = [
        np.log(f.probability[lens]).mean() - np.log(f.probability[~lens]).mean() for f in (with_it, without)
    ]
    assert apart[0] > apart[1]


def test_few_tests_are_not_called_a_calibration(scores: Path, tmp_path: Path) -> None:
    session, config = session_of(scores, tmp_path / "g")
    with closing(GradeStore(session.directory)) as store:
        store.join("ann", grader_queue(session, config, "ann"))
        store.add("ann", [Given(place, "B") for place in range(20)], "one")
    done = consensus(ConsensusConfig.make({"grades": [tmp_path / "g"], "output": tmp_path / "c"}))
    assert done.facts["hidden tests"] == 8
    assert done.notes[0].startswith("Only 8 hidden tests")


def test_what_cannot_be_fused_is_said(
    scores: Path, graded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session_of(scores, tmp_path / "empty")
    for grades, message in (
        ([tmp_path / "empty"], "nobody has graded"), ([], "no grades"), ([scores], "not grades"),
    ):  # fmt: skip
        with pytest.raises((InputError, ConfigError), match=message):
            consensus(ConsensusConfig.make({"grades": grades, "output": tmp_path / "c"}))
    with pytest.raises(ConfigError, match="--with-scores"):
        consensus(ConsensusConfig.make({"grades": [graded], "output": tmp_path / "c", "with_scores": True}))
    assert run(["consensus", str(graded), "-o", str(tmp_path / "c"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["graders"] == 3
