"""Several models of the same objects as one ranking: the arithmetic by hand, and what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import make_model
from toys import write_toys

import ripple
from ripple.cli import run
from ripple.config import Config
from ripple.errors import ConfigError, ContractError, DataError
from ripple.stages.committee.combine import mean_logit, mean_rank, spread, verdict
from ripple.stages.committee.committee import committee
from ripple.stages.committee.config import CommitteeConfig
from ripple.stages.report.report import ranked_table
from ripple.stages.vet.config import VetConfig
from ripple.stages.vet.vet import write_session
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.directory import write_directory
from ripple.storage.files import hash_file, write_atomic
from ripple.storage.parquet import parquet_bytes
from ripple.storage.writer import ArtefactWriter, create
from ripple.vetting.session import open_session


class MadeConfig(Config):
    """Stands for the options of `score`."""

    verb: ClassVar[str] = "score"
    seed: int = 0


def write_scores(
    directory: Path, ids: list[str], score: list[float], *, model: str = "0", **given: Any
) -> Path:
    """Scores of one shard, with columns and attributes of `given`."""
    n, seed = len(ids), len(directory.name)
    attributes = {k: given.pop(k) for k in ("prevalence", "output", "lens_labels") if k in given}
    own = {k: given.pop(k) for k in list(given) if k.startswith("p_")}
    table = pa.table(
        {
            "id": ids, "ra": np.arange(n) / 100 + 53, "dec": np.full(n, -28.0), "score": score,
            "probability": pa.array([None] * n, pa.float32()), **own, "qc": np.zeros(n, np.uint64),
            "split": ["test"] * n, "shard": np.zeros(n, np.int32), "row": np.arange(n, dtype=np.int32),
        } | given
    )  # fmt: skip
    inputs = {"model": model * 64, "scores": score}
    writer = create(
        directory, kind="scores", config=MadeConfig(seed=seed), inputs=inputs, units=1, suffix=".parquet"
    )
    assert isinstance(writer, ArtefactWriter)
    with writer:
        writer.commit(0, parquet_bytes(table), n, {})
        ranked = table.sort_by([("score", "descending")]).append_column("rank", pa.array(np.arange(1, n + 1)))
        write_atomic(directory / "scores.parquet", parquet_bytes(ranked))
        size, digest = hash_file(directory / "scores.parquet")
        known = {"rows": n, "sorted": {"name": "scores.parquet", "sha256": digest}, "bands": ["g", "r"]}
        known |= {"model": {"digest": model * 64, "origin": f"model {model}"}, **attributes}
        words = {"index": np.arange(n), "status": ["ok"] * n, "reason": [""] * n}
        index = pa.table({**words, **{name: table[name] for name in ("id", "ra", "dec", "shard", "row")}})
        writer.finish(index, {}, known, files={"scores.parquet": [size, digest]})
    return directory


def combined(output: Path, *members: Path, **options: Any) -> pa.Table:
    """The table of a committee, by id."""
    committee(CommitteeConfig.make({"scores": [str(m) for m in members], "output": str(output), **options}))
    return ranked_table(open_artefact(output)).sort_by("id")


# The arithmetic -----------------------------------------------------


def test_the_mean_logit_is_that_of_the_members_that_are_there() -> None:
    values = np.array([[0.9, 0.2, np.nan, 1.0, np.nan], [0.5, 0.2, 0.7, 0.5, np.nan]])
    found = mean_logit(values)
    odds = np.sqrt(0.9 / 0.1)  # the other odds are 1
    np.testing.assert_allclose(found[:3], [odds / (1 + odds), 0.2, 0.7], rtol=1e-12)
    assert 0.99999 < found[3] < 1  # one member's certainty counts, but is not all
    assert np.isnan(found[4])


def test_ranks_of_members_of_any_scale() -> None:
    values = np.array([[0.1, 0.2, 0.3, 0.4], [0.91, 0.92, 0.92, np.nan]])
    first, second = np.array([1, 3, 5, 7]) / 8, np.array([1, 4, 4]) / 6
    np.testing.assert_allclose(mean_rank(values), [*(first[:3] + second) / 2, first[3]])
    np.testing.assert_allclose(mean_rank(values), mean_rank(values**9))


def test_the_spread_needs_two() -> None:
    found = spread(np.array([[0.2, 0.3], [0.6, np.nan], [0.4, np.nan]]))
    assert found[0] == pytest.approx(np.std([0.2, 0.6, 0.4]))
    assert np.isnan(found[1])


def test_what_one_member_has_seen_the_committee_has() -> None:
    one = np.array(["test", "test", "test", "validation", "odd"])
    other = np.array(["test", "train", "unknown", "unknown", "test"])
    assert verdict([one, other]).tolist() == ["test", "train", "unknown", "validation", "unknown"]


# The artefact -------------------------------------------------------


def test_rows_are_found_by_id_and_lie_where_those_of_the_first_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = {"ra": np.array([53.02, 53.01, 53.00, 53.04]), "split": ["train", "test", "test", "test"]}
    one = write_scores(tmp_path / "one", list("abcd"), [0.9, 0.2, 0.5, 0.6], z=np.arange(4.0))
    two = write_scores(tmp_path / "other", list("cbae"), [0.5, 0.2, 0.5, 0.9], model="1", **at)
    found = combined(tmp_path / "both", one, two)
    assert found["id"].to_pylist() == list("abcd")
    assert found["score"].to_pylist() == pytest.approx([0.75, 0.2, 0.5, 0.6], rel=1e-12)
    assert found["score_1"].to_pylist() == [0.9, 0.2, 0.5, 0.6]
    assert found["score_2"].to_pylist() == [0.5, 0.2, 0.5, None]
    assert found["spread"].to_pylist() == pytest.approx([0.2, 0, 0, None], abs=1e-7)
    assert found["scored_by"].to_pylist() == [2, 2, 2, 1]
    assert found["split"].to_pylist() == ["test", "test", "train", "test"]
    assert (found["row"].to_pylist(), found["z"].to_pylist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert found["probability"].null_count == 4
    notes = open_artefact(tmp_path / "both").attributes["notes"]
    assert [note.partition(":")[0] for note in notes] == [
        "member 2 has no score of 1 rows",
        "1 rows of member 2 are not among those of member 1 and are left out",
        "no probability",
    ]
    # These have no tensors, as those of a search.
    assert run(["report", str(tmp_path / "both"), "-o", str(tmp_path / "page")]) == 3
    assert "a search keeps no pictures of its rows" in capsys.readouterr().err
    again = combined(tmp_path / "rank", one, two, rule="rank")
    ranks = [(7 / 8 + 4 / 6) / 2, (1 / 8 + 1 / 6) / 2, (3 / 8 + 4 / 6) / 2, 5 / 8]
    assert again["score"].to_pylist() == pytest.approx(ranks, rel=1e-12)


def test_probabilities_only_at_one_prevalence(tmp_path: Path) -> None:
    def member(name: str, prevalence: float | None, model: str) -> Path:
        p = pa.array([0.1, 0.5], pa.float32())
        said = {} if prevalence is None else {"prevalence": prevalence, "probability": p}
        return write_scores(tmp_path / name, ["a", "b"], [0.5, 0.9], model=model, **said)

    one, two = member("one", 1e-3, "1"), member("two", 1e-3, "2")
    found = combined(tmp_path / "both", one, two)
    assert found["probability"].to_pylist() == pytest.approx([0.1, 0.5])
    assert open_artefact(tmp_path / "both").attributes["prevalence"] == 1e-3
    with pytest.raises(ContractError, match=r"one source in 1,000 .*one source in 100 "):
        combined(tmp_path / "x", one, two, member("three", 1e-2, "3"))
    found = combined(tmp_path / "some", one, member("none", None, "4"))
    assert found["probability"].null_count == 2
    assert open_artefact(tmp_path / "some").attributes.get("prevalence") is None


def test_what_cannot_be_a_committee_is_refused_by_name(tmp_path: Path) -> None:
    one = write_scores(tmp_path / "one", list("abcd"), [0.9, 0.2, 0.5, 0.6])

    def refused(kind: type[Exception], words: str, *members: Path) -> None:
        with pytest.raises(kind, match=words):
            combined(tmp_path / "x", *members)
        assert not (tmp_path / "x").exists()

    refused(ConfigError, "two or more", one)
    refused(ConfigError, "given twice", one, one)
    few = write_scores(tmp_path / "few", list("axyz"), [0.1, 0.2, 0.3, 0.4])
    refused(DataError, "few have 1 of 4 ids in common, fewer than half", one, few)
    twice = write_scores(tmp_path / "twice", list("abca"), [0.1, 0.2, 0.3, 0.4])
    refused(DataError, "twice: 2 rows have the id 'a'", one, twice)
    dec = np.array([-28.0, -28.0, -27.0, -28.0])
    moved = write_scores(tmp_path / "moved", list("abcd"), [0.1, 0.2, 0.3, 0.5], dec=dec)
    refused(DataError, "the id 'c' is another object in .*moved.*3.6e.03 arcsec", one, moved)
    sizes = write_scores(tmp_path / "sizes", list("abcd"), [0.1, 0.2, 0.3, 0.4], output="regression")
    refused(ContractError, "sizes: its model regresses", one, sizes)
    classes = {f"p_{name}": np.zeros(4) for name in ("none", "Ring", "lens")}
    ring = write_scores(
        tmp_path / "ring", list("abcd"), [0.1, 0.2, 0.3, 0.4], output="classes", lens_labels=[1], **classes
    )
    refused(ContractError, "one ranks by 'lens', .*ring by 'ring'", one, ring)
    lens = write_scores(
        tmp_path / "lens", list("abcd"), [0.1, 0.2, 0.3, 0.6], output="classes", lens_labels=[2], **classes
    )
    found = combined(tmp_path / "both", lens, one)
    assert not [name for name in found.column_names if name.startswith("p_")]  # of one model alone


# With everything that reads scores ----------------------------------


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that differ, each with scores of tensors of its own."""
    root = tmp_path_factory.mktemp("committee")
    write_toys(root / "toys-a", shards=2, rows=30)
    write_toys(root / "toys-b", shards=1, rows=30)  # the first half again, in one shard
    for count, name in enumerate("ab", start=1):
        make_model(root / f"model-{name}", members=count)
        argv = ["score", root / f"model-{name}", root / f"toys-{name}", "-o", root / name, "--threads", "1"]
        assert run([str(a) for a in argv]) == 0
    assert run(["committee", str(root / "a"), str(root / "b"), "-o", str(root / "both")]) == 0
    return root


def test_equal_bytes_from_the_same_members(members: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["committee", str(members / "a"), str(members / "b"), "--json"]
    assert run([*argv, "-o", str(members / "again")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["rows"] == 60
    assert "member 2 has no score of 30 rows" in found["notes"][0]
    names = {p.name for p in (members / "both").iterdir() if not p.name.startswith((".", "metrics"))}
    assert {"shard-00001.parquet", "top.csv", "scores.parquet", "index.parquet"} < names
    for name in names:
        assert (members / "again" / name).read_bytes() == (members / "both" / name).read_bytes(), name
    assert run([*argv, "-o", str(members / "again")]) == 0
    assert json.loads(capsys.readouterr().out)["done_before"]
    assert run([*argv, "-o", str(members / "again"), "--rule", "rank"]) == 2


def test_it_is_read_like_other_scores(members: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both, out = members / "both", members / "readers"
    assert verify(both) == []
    assert run(["show", str(both)]) == 0
    assert "rule" in capsys.readouterr().out
    assert run(["show", str(both), "--metrics"]) == 0
    assert run(["report", str(both), "-o", str(out / "page")]) == 0
    assert (out / "page/index.html").read_text().count("<article") == 60
    assert run(["completeness", str(both), "-o", str(out / "c"), "--of", "lenses", "--by", "theta_E"]) == 2
    assert "states no threshold" in capsys.readouterr().err
    argv = ["completeness", str(both), "-o", str(out / "c"), "--of", "lenses", "--by", "theta_E"]
    assert run([*argv, "--top", "20"]) == 0
    known = pq.read_table(both / "scores.parquet").slice(0, 1).select(["id", "ra", "dec"])
    pq.write_table(known, out / "known.parquet")
    argv = ["match", str(both), "--known", str(out / "known.parquet"), "-o", str(out / "m"), "--json"]
    capsys.readouterr()
    assert run(argv) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["recovered"] == 1
    scores = open_artefact(both, "scores")
    config = VetConfig.make({"scores": both, "output": out / "g"})
    write_directory(out / "g", "grades", config, {}, lambda d: write_session(d, scores, config))
    session = open_session(out / "g")
    first = ranked_table(scores)
    assert sorted(session.objects["id"].to_pylist()) == sorted(str(v) for v in first["id"].to_pylist())
    assert np.isfinite(session.pictures(8.0, 8.0).pixels).all()
    table = ripple.open(both).table()  # type: ignore[union-attr]
    assert list(table["rank"][:2]) == [1, 2]


def test_a_committee_can_be_a_member_and_a_function(members: Path) -> None:
    found = ripple.committee([members / "both", members / "b"], output=members / "nested")
    assert isinstance(found, ripple.Scores)
    assert found.rows == 60
