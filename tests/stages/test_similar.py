"""Embeddings: what is written is what the network saw; search is exact, and refuses what cannot be meant."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_embeddings import made_columns, vectors_of, write_embeddings
from models import make_model
from toys import write_toys

import ripple
from ripple.cli import run
from ripple.errors import ConfigError, IntegrityError, Interrupted
from ripple.learn.embedding import embed as embedding
from ripple.learn.embedding.config import EmbedConfig
from ripple.stages.similar import search
from ripple.stages.similar.config import SimilarConfig
from ripple.stages.similar.similar import similar
from ripple.storage.artefact import open_artefact
from ripple.storage.embeddings import directions, mapped, quantise
from ripple.storage.shards import images_of

ROWS, SHARDS = 700, (300, 0, 399, 1)


def cosines(vector: np.ndarray, like: list[int], unlike: list[int] = []) -> np.ndarray:  # noqa: B006
    """The rule in words of numpy: cosine with the nearest of `like`, unless one of `unlike` is nearer."""
    v = vector.astype(np.float64)
    v /= np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)
    out = (v @ v[like].T).max(axis=1)
    other = (v @ v[unlike].T).max(axis=1, initial=-9)
    return np.where(np.round(other, 12) > np.round(out, 12), -9.0, out)


def found(directory: Path, **options: Any) -> pa.Table:
    return similar(SimilarConfig.make({"embeddings": str(directory), **options})).table


def numbers(table: pa.Table, name: str = "id") -> list[int]:
    return [int(i.removeprefix("obj")) for i in table[name].to_pylist()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features in clusters, with some rows twice and one of zeros."""
    rng = np.random.default_rng(3)
    centre = rng.normal(size=(9, 24))
    features = (centre[rng.integers(0, 9, ROWS)] + 0.3 * rng.normal(size=(ROWS, 24))).astype(np.float32)
    features[650], features[17] = features[40], 0
    features[5] = features[300] * 3  # a direction has no length
    return write_embeddings(tmp_path_factory.mktemp("made") / "embeddings", features, SHARDS)


@pytest.fixture(scope="module")
def accepted(made: Path) -> np.ndarray:
    return made_columns(ROWS, np.random.default_rng(1))["accept"] == 1


# What is written ----------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", members=2)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toys(tmp_path_factory.mktemp("toys") / "tensors", shards=4, rows=30)


def embedded(model: Path, source: Path, output: Path, **changes: Any) -> Path:
    fields = {"model": str(model), "tensors": [str(source)], "output": str(output), "threads": 1}
    embedding.embed(EmbedConfig.make(fields | {"rows_per_shard": 60} | changes))
    return output


def test_embeddings_are_the_features_beside_the_scores(model: Path, toys: Path, tmp_path: Path) -> None:
    import torch

    from ripple.learn.model.weights import load_model
    from ripple.learn.scoring.forward import member_outputs
    from ripple.storage.shard_reader import map_tensors

    artefact = open_artefact(embedded(model, toys, tmp_path / "e"), "embeddings")
    assert [s.rows for s in artefact.shards] == [60, 60]
    assert artefact.attributes["features"] == 2 * 16
    source, nets = open_artefact(toys), load_model(model).nets
    with torch.inference_mode():
        image = [torch.from_numpy(map_tensors(source.shard_path(k)).image.astype(np.float32)) for k in (2, 3)]
        latent = torch.cat([member_outputs(nets, i)[1] for i in image], dim=1).numpy()
    direction, length = directions(latent)
    with mapped(artefact, 1, ("id", "score", "length", "shard", "row")) as rows:
        scale = artefact.shards[1].extra["scale"]
        assert np.abs(rows.vector * scale - direction).max() <= scale / 2 * (1 + 1e-4) + 1e-6
        np.testing.assert_allclose(rows.table["length"].to_numpy(), length, rtol=1e-5)
        assert rows.table["row"].to_pylist() == list(range(60))
        ours = dict(zip(rows.table["id"].to_pylist(), rows.table["score"].to_pylist(), strict=True))
    assert run(["score", str(model), str(toys), "--threads", "1", "-q", "-o", str(tmp_path / "s")]) == 0
    scores = pq.read_table(tmp_path / "s" / "scores.parquet")
    theirs = dict(zip(scores["id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    assert ours == {name: theirs[name] for name in ours}
    index = artefact.index().sort_by("index")
    assert index["shard"].to_pylist() == [0] * 60 + [1] * 60
    assert index["row"].to_pylist() == [*range(60), *range(60)]
    for verb in ("verify", "show", "status"):
        assert run([verb, str(tmp_path / "e")]) == 0


def test_an_interrupted_run_resumes_to_the_same_bytes(
    model: Path, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedded(model, toys, tmp_path / "whole")
    original, calls = embedding.embedded, []

    def broken(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted(15)
        return original(*given, **named)

    monkeypatch.setattr(embedding, "embedded", broken)
    with pytest.raises(Interrupted):
        embedded(model, toys, tmp_path / "parts")
    assert run(["status", str(tmp_path / "parts")]) == 0
    calls[:] = [1] * 4
    embedded(model, toys, tmp_path / "parts")
    assert len(calls) == 6  # two shards of tensors were left
    for name in ("manifest.json", "index.parquet", "shard-00000.arrow", "shard-00001.arrow"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()


def test_tensors_that_do_not_fit_are_refused_by_name(
    model: Path, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_toys(tmp_path / "t", shards=1, rows=9, normalization={"method": "zscore"})
    assert run(["embed", str(model), str(other), "-o", str(tmp_path / "e")]) == 3
    assert "normalization" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_own_columns_win_and_sources_join(model: Path, toys: Path, tmp_path: Path) -> None:
    mine = {"vector": np.zeros(9), "length": np.full(9, -1.0)}
    other = write_toys(tmp_path / "t", shards=1, rows=9, seed=5, catalog_extra=mine)
    out = embedded(model, toys, tmp_path / "e", tensors=[str(toys), str(other)])
    artefact = open_artefact(out)
    assert [s.rows for s in artefact.shards] == [60, 60, 9]  # shards of two artefacts stay apart
    with mapped(artefact, 2, ("length",)) as rows:
        assert (rows.table["length"].to_numpy() > 0).all()
    assert run(["verify", str(out)]) == 0
    # The toys have ids from 1000 in both: which of the two is meant is not guessed.
    with pytest.raises(ConfigError, match="2 rows '1003'"):
        found(out, like=["1003"])
    assert found(out, like=["1100"], top=3).num_rows == 3


@given(arrays(np.float32, (7, 5), elements=st.floats(-1e3, 1e3, width=32)))
@settings(max_examples=60, deadline=None)
def test_quantisation_keeps_its_bounds(features: np.ndarray) -> None:
    direction, _ = directions(features[None])
    done = quantise(direction)
    back = done.vector * done.scale
    assert np.abs(back - direction).max() <= done.scale / 2 * (1 + 1e-4)
    # The bound on cosines, docstring of `quantise`, where there is a direction.
    there = np.linalg.norm(direction, axis=1) > 0.5
    s = done.scale * np.sqrt(direction.shape[1])
    unit = back[there] / np.linalg.norm(back[there], axis=1, keepdims=True)
    assert np.abs(unit @ unit.T - direction[there] @ direction[there].T).max(initial=0.0) <= s / (1 - s / 4)


# Search -------------------------------------------------------------


@pytest.mark.parametrize(
    ("like", "unlike"), [([300], []), ([3, 4, 5], []), ([3, 400], [8]), ([40], [650, 99])]
)
@pytest.mark.parametrize("top", [1, 10, 2000])
def test_search_is_the_order_of_numpy(made: Path, like: list[int], unlike: list[int], top: int) -> None:
    ids = {"like": [f"obj{k:05d}" for k in like], "unlike": [f"obj{k:05d}" for k in unlike]}
    got = found(made, **ids, top=top, rejected=True)
    value = np.round(cosines(vectors_of(made), like, unlike), 12)
    order = [k for k in np.lexsort((np.arange(ROWS), -value)) if k not in like + unlike and value[k] > -9]
    assert not unlike or len(order) < ROWS - len(like + unlike)  # some are nearer to a counter-example
    order = order[:top]
    assert numbers(got) == order
    np.testing.assert_allclose(got["similarity"].to_numpy(), value[order], atol=1e-12)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_any_vectors_any_shards(
    tmp_path_factory: pytest.TempPathFactory, seed: int, top: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(90, 3)).astype(np.float32)  # few dimensions: many near ties
    cut = np.sort(rng.integers(0, 91, 2))
    out = write_embeddings(
        tmp_path_factory.mktemp("any") / "e", features, np.diff([0, *cut.tolist(), 90]).tolist()
    )
    like = rng.choice(90, n, replace=False).tolist()
    got = found(out, like=[f"obj{k:05d}" for k in like], top=top, rejected=True)
    value = np.round(cosines(vectors_of(out), like), 12)
    assert numbers(got) == [k for k in np.lexsort((np.arange(90), -value)) if k not in like][:top]


def test_conditions(made: Path, accepted: np.ndarray) -> None:
    columns = made_columns(ROWS, np.random.default_rng(1))
    value = cosines(vectors_of(made), [300])
    value[300] = -9

    def best(keep: np.ndarray, top: int = 7) -> list[int]:
        return np.argsort(-np.where(keep, value, -9.0), kind="stable")[:top].tolist()

    assert numbers(found(made, like=["obj00300"], top=7)) == best(accepted)
    faint = columns["mag_i"] > 20.5
    assert numbers(found(made, like=["obj00300"], top=7, select="mag_i > 20.5")) == best(accepted & faint)
    near = np.hypot((columns["ra"] - 53.5) * np.cos(np.radians(27.5)), columns["dec"] + 27.5) < 0.2
    region = {"region": "CIRCLE 53.5 -27.5 0.2", "rejected": True}
    assert numbers(found(made, like=["obj00300"], top=7, **region)) == best(near)
    some = found(made, like=["obj00300"], above=0.8, rejected=True, top=1000)
    assert sorted(numbers(some)) == np.flatnonzero(value >= 0.8).tolist()
    assert found(made, like=["obj00300"], select="mag_i > 99").num_rows == 0
    assert found(made, like=["obj00300"], select="mag_i > 99").column_names[:2] == ["similarity", "id"]


def test_examples_of_other_embeddings(made: Path, tmp_path: Path) -> None:
    features = vectors_of(made)[[300]].astype(np.float32)
    other = write_embeddings(tmp_path / "o", features, (1,), id=[77])
    got = found(made, like=["77"], examples=str(other), top=2, rejected=True)
    assert sorted(numbers(got)) == [5, 300]  # the row itself, and the one that differs in its length only
    assert min(got["similarity"].to_pylist()) > 0.999
    foreign = write_embeddings(tmp_path / "f", features, (1,), id=[77], model="1")
    with pytest.raises(ripple.errors.InputError, match="by another model"):
        found(made, like=["77"], examples=str(foreign))


@pytest.mark.parametrize("wrong", ["obj0030", "obj00300 ", "300", "", "00300"])
def test_unknown_ids_are_refused_with_near_ones(made: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="has no row") as error:
        found(made, like=[wrong])
    if wrong.startswith("obj"):
        assert "did you mean 'obj00300'" in str(error.value) or "'obj0030" in str(error.value)


def test_whole_numbers_are_ids_as_they_are_written(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    out = write_embeddings(tmp_path / "e", features, (4,), id=[7, -1, 2**62, 70])
    assert found(out, like=["7", "-1", str(2**62)], rejected=True)["id"].to_pylist() == [70]
    for wrong in ("007", "7.0", "+7", str(2**63), "9" * 40, "٧"):
        with pytest.raises(ConfigError, match="has no row"):
            found(out, like=[wrong])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give --like ID"),
        ({"like": ["a"], "to": "x"}, "give --like ID"),
        ({"to": "x"}, "needs --above"),
        ({"to": "x", "above": 0.9, "unlike": ["b"]}, "--unlike belongs to --like"),
        ({"like": ["a"], "unlike": ["a"]}, "given to --like and to --unlike"),
        ({"like": ["a"], "output": "x.fits"}, "cannot tell the format"),
        ({"like": ["obj00300"], "select": "mag > 1"}, "did you mean 'mag_i'"),
        ({"like": ["obj00300"], "region": "CIRCLE 1 2"}, "has 2 numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused(made: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ripple.errors.RippleError, match=said):
        found(made, **options)


# Pairs --------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(8192, 1024, 512), (64, 32, 17), (101, 37, 50)])
def test_near_duplicates_and_their_separation(
    made: Path, blocks: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_PANEL", blocks[0])
    monkeypatch.setattr(search, "_TILE", blocks[1:])
    table = found(made, to=str(made), above=0.95, rejected=True)
    unit = vectors_of(made).astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    value = np.triu(np.round(unit @ unit.T, 12), 1)
    pairs = set(zip(numbers(table), numbers(table, "other_id"), strict=True))
    assert pairs == set(zip(*(k.tolist() for k in np.nonzero(value >= 0.95)), strict=True))
    assert len(pairs) == table.num_rows > 100
    assert {(5, 300), (40, 650)} <= set(zip(numbers(table)[:3], numbers(table, "other_id")[:3], strict=True))
    first = table.slice(0, 1).to_pylist()[0]
    dx = (first["ra"] - first["other_ra"]) * np.cos(np.radians(first["dec"]))
    assert first["separation"] == pytest.approx(3600 * np.hypot(dx, first["dec"] - first["other_dec"]), 0.02)


def test_leaks_between_two_sets(made: Path, tmp_path: Path, accepted: np.ndarray) -> None:
    features = np.random.default_rng(8).normal(size=(50, 24)).astype(np.float32)
    row = int(np.flatnonzero(accepted)[100])
    features[31] = vectors_of(made)[row]
    columns = made_columns(ROWS, np.random.default_rng(1))
    split = ["test" if columns["split"][row] == "train" else "train"] * 50
    place = {name: np.full(50, columns[name][row]) for name in ("ra", "dec")}
    other = write_embeddings(
        tmp_path / "o", features, (20, 30), split=split, accept=np.ones(50, int), **place
    )
    done = similar(SimilarConfig.make({"embeddings": str(made), "to": str(other), "above": 0.99}))
    assert numbers(done.table) == [row]
    assert numbers(done.table, "other_id") == [31]
    assert done.table["separation"].to_pylist()[0] < 0.01
    assert done.facts["pairs of training and test"] == done.facts["pairs within 2 arcsec"] == 1


def test_too_many_pairs_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ripple.stages.similar.similar.MOST_PAIRS", 1000)
    with pytest.raises(ripple.errors.DataError, match=r"more than 1,000 pairs .* larger --above"):
        found(made, to=str(made), above=-0.5)


# Output, damage -----------------------------------------------------


def test_screen_files_and_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["similar", str(made), "--like", "obj00300,obj00005", "--top", "4"]
    assert run(argv) == 0
    screen = capsys.readouterr()
    assert len(screen.out.splitlines()) == 5
    assert "700 rows, 4 found" in screen.err
    assert run([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["id"] in screen.out for row in rows)
    for name in ("a.csv", "a.parquet", "a.vot"):
        assert run([*argv, "-q", "-o", str(tmp_path / name)]) == 0
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == [row["id"] for row in rows]
    from astropy.table import Table

    assert Table.read(tmp_path / "a.vot")["ra"].unit == "deg"
    table = ripple.similar(made, like=["obj00300", "obj00005"], top=4)
    assert list(table["id"]) == [row["id"] for row in rows]
    with pytest.raises(ripple.errors.InputError, match="have no images"):
        images_of(open_artefact(made), 0)


def test_search_loads_no_torch(made: Path) -> None:
    code = (
        "import sys; from ripple.cli import run; "
        f"assert run(['similar', {str(made)!r}, '--like', 'obj00300', '--json']) == 0; "
        "assert 'torch' not in sys.modules and 'lsst' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_damage_is_found_before_anything_is_said(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    out = write_embeddings(tmp_path / "e", features, (25, 15))
    path = out / "shard-00001.arrow"
    data = path.read_bytes()
    for at in np.random.default_rng(1).integers(0, len(data), 40).tolist():
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="shard-00001"):
            found(out, like=["obj00003"])
    assert run(["verify", str(out)]) == 4
    path.write_bytes(data[:-1])
    with pytest.raises(IntegrityError):
        found(out, like=["obj00003"])
    path.write_bytes(data)
    assert found(out, like=["obj00003"]).num_rows > 10


@pytest.mark.parametrize("kind", ["text", "two batches", "other features", "null", "no file", "offsets"])
def test_shards_of_others_are_refused(kind: str, tmp_path: Path) -> None:
    """A manifest with the right checksums says only that the bytes are what somebody wrote."""
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    from ripple.storage import embeddings

    real = embeddings.pack

    def pack(table: pa.Table, quantised: embeddings.Quantised) -> tuple[bytes, dict[str, Any]]:
        data, facts = real(table, quantised)
        reader = pa.ipc.open_file(pa.BufferReader(data))
        whole = reader.read_all()
        batches = [whole.to_batches()[0]]
        if kind == "text":
            batches = [pa.record_batch({"id": ["a"] * 6, "vector": ["b"] * 6})]
        elif kind == "two batches":
            batches = [batches[0].slice(0, 3), batches[0].slice(3)]
        elif kind == "other features":
            flat = pa.array(np.zeros(42, np.int8))
            batches = [
                pa.record_batch({"id": ["a"] * 6, "vector": pa.FixedSizeListArray.from_arrays(flat, 7)})
            ]
        elif kind == "null":
            rows = [None, *([[0] * 8] * 5)]
            batches = [pa.record_batch({"id": ["a"] * 6, "vector": pa.array(rows, pa.list_(pa.int8(), 8))})]
        elif kind == "offsets":
            wild = np.array([0, 9, 2, 3, 4, 5, 6], np.int32)
            ids = pa.StringArray.from_buffers(6, pa.py_buffer(wild), pa.py_buffer(b"abcdefghij"))
            batches = [pa.record_batch({"id": ids, "vector": whole["vector"].chunk(0)})]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batches[0].schema) as out:
            for batch in batches:
                out.write_batch(batch)
        data = b"nothing" * 20 if kind == "no file" else sink.getvalue().to_pybytes()
        return data, facts | {"crc32": embeddings.zlib_ng.crc32(data)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("made_embeddings.pack", pack)
        out = write_embeddings(tmp_path / "e", features, (6,))
    with pytest.raises(IntegrityError, match="shard-00000"):
        found(out, like=["a"])
