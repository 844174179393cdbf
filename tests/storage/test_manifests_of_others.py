"""Manifests that others wrote: what readers trust is looked at when they are opened."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ripple.cli import run
from ripple.storage.manifest import content_digest, render

GONE = object()


WRONG: tuple[Any, ...] = (GONE, None, "word", 5, [], ["word"], {}, {"word": 5}, -1, 10**9, True)


#: Keys that readers trust, by kind.
TRUSTED = {
    "cutouts": ("bands", "size", "margin", "class_map", "source_sha256", "notes"),
    "tensors": ("bands", "size", "margin", "class_map"),
    "scores": (
        "bands",
        "rows",
        "sorted",
        "model",
        "evaluation",
        "judged",
        "prevalence",
        "stress",
        "visible",
        "lens_labels",
    ),
}


#: What is right among `WRONG`: the key is optional, or the value means something.
RIGHT = {
    ("size", GONE), ("size", None), ("margin", GONE), ("class_map", GONE), ("class_map", "{}"),
    ("source_sha256", GONE), ("source_sha256", "{}"), ("notes", GONE), ("notes", "[]"), ("notes", "['word']"),
    ("rows", 5), ("rows", 10**9), ("evaluation", GONE), ("evaluation", "{}"), ("evaluation", "{'word': 5}"),
    ("stress", GONE), ("stress", None), ("visible", GONE), ("visible", None), ("lens_labels", GONE),
    ("lens_labels", "[]"), ("judged", GONE), ("judged", None),
    ("prevalence", GONE), ("prevalence", None),
}  # fmt: skip


def readers(kind: str, source: Path, one_of_each: dict[str, Path], out: Path) -> Iterator[list[str]]:
    """The verbs that read a kind."""
    yield ["show", str(source)]
    yield ["verify", str(source)]
    if kind in ("cutouts", "tensors"):
        yield ["show", str(source), "--picture", str(out / "p.png")]
        yield ["export", str(source), "--format", "webdataset", "-o", str(out / "export")]
    if kind == "cutouts":
        yield ["preprocess", str(source), "--psf", "none", "--workers", "0", "-o", str(out / "tensors")]
        yield ["inject", str(source), "--fraction", "0.1", "--workers", "0", "-o", str(out / "inject")]
    if kind in ("scores", "tensors"):
        yield ["report", str(source), "--top", "3", "-o", str(out / "report")]
    if kind == "scores":
        argv = ["score", str(one_of_each["model"]), str(one_of_each["toys"]), "--threads", "1"]
        yield [*argv, "-o", str(source)]  # finished: the closing screen reads the attributes


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    manifest = {**manifest, "digest": content_digest(manifest)}
    path.write_bytes(render(manifest))


def trial(
    kind: str, source: Path, one_of_each: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> list[int]:
    """Run every reader; an exception that is no error of ours fails the test. Returns the exit codes."""
    codes = []
    for argv in readers(kind, source, one_of_each, out):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        code = run(argv)
        said = capsys.readouterr().err
        assert code in (0, 2, 3, 4, 8), (argv, code)
        assert code in (0, 8) or str(source) in said.replace("\n", ""), (argv, said)
        codes.append(code)
    return codes


def copied(one_of_each: dict[str, Path], kind: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy beside copies of what it was made from, and its manifest."""
    for name in ("cutouts", "tensors", "toys", "scores"):
        shutil.copytree(one_of_each[name], tmp_path / name)
    source = tmp_path / kind
    return source, json.loads((source / "manifest.json").read_bytes())


@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_attributes_of_others_are_refused_by_name(
    kind: str, one_of_each: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(one_of_each, kind, tmp_path)
    for key in TRUSTED[kind]:
        for value in WRONG:
            manifest = copy.deepcopy(whole)
            if value is GONE:
                manifest["attributes"].pop(key, None)
            else:
                manifest["attributes"][key] = value
            reseal(source / "manifest.json", manifest)
            known = value if value is GONE or not isinstance(value, list | dict) else repr(value)
            right = (key, known) in RIGHT or (kind == "scores" and (key, value) == ("bands", ["word"]))
            if right and not isinstance(value, bool):
                codes = {run(["show", str(source)])}
                assert codes == {0}, (key, value)
                continue
            codes = set(trial(kind, source, one_of_each, tmp_path / "out", capsys))
            assert 4 in codes, (key, value, codes)


@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_attributes_that_nobody_calculates_with_may_be_anything(
    kind: str, one_of_each: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(one_of_each, kind, tmp_path)
    for value in ("\x1b[31mred", {"a": {"b": [[None, -1]]}}):
        manifest = copy.deepcopy(whole)
        for key in {*manifest["attributes"]} - {*TRUSTED[kind]} | {"of a later version"}:
            manifest["attributes"][key] = value
        reseal(source / "manifest.json", manifest)
        assert set(trial(kind, source, one_of_each, tmp_path / "out", capsys)) <= {0, 8}


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_the_rest_of_a_manifest_is_looked_at_when_it_is_opened(
    kind: str, every: int, one_of_each: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, whole = copied(one_of_each, kind, tmp_path)
    wanted = [
        "config",
        "inputs",
        "counts",
        "index",
        "shards",
        "attributes",
        "software",
        "verb",
        "kind",
        "suffix",
    ]
    places: list[tuple[Any, ...]] = [(key,) for key in wanted]
    places += [("counts", k) for k in ("asked", "ok", "partial", "rejected")]
    places += [("index", k) for k in ("rows", "bytes", "sha256")]
    places += [("shards", 0, k) for k in ("name", "rows", "bytes", "sha256", "extra")]
    if kind == "scores":
        places += [("inputs", "model"), ("inputs", "tensors"), ("config", "tensors"),
                   ("attributes", "sorted", "name"), ("attributes", "sorted", "sha256"),
                   ("attributes", "model", "origin")]  # fmt: skip
    for at, place in enumerate(places):
        for value in (*WRONG, "../../etc/passwd", 10**400, -(10**30))[at % every :: every]:
            manifest = copy.deepcopy(whole)
            inside = manifest
            for key in place[:-1]:
                inside = inside[key]
            if value is GONE:
                del inside[place[-1]]
            else:
                inside[place[-1]] = value
            reseal(source / "manifest.json", manifest)
            for argv in readers(kind, source, one_of_each, tmp_path / "out"):
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                (tmp_path / "out").mkdir()
                code = run(argv)
                said = capsys.readouterr().err.replace("\n", "")
                assert code in (0, 2, 3, 4, 8), (argv, code)
                named = (
                    str(source),
                    str(one_of_each["toys"]),
                    "word: no such directory",
                )  # of `config.tensors`
                assert code in (0, 8) or any(name in said for name in named), (argv, said)
                if code == 4:
                    break  # it is opened in one place


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("margin", 15, "margin"), ("margin", 0, "size"), ("size", 24, "size"), ("size", [32, 16], "size"),
     ("bands", ["g", "r"], "bands"), ("bands", ["g", "r", "i", "z"], "bands"),
     ("bands", ["g", "g", "r"], "twice"), ("bands", ["i", "r", "g"], "bands")],
)  # fmt: skip
def test_attributes_are_held_against_the_shards(
    one_of_each: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: Any,
    word: str,
) -> None:
    source, manifest = copied(one_of_each, "cutouts", tmp_path)
    manifest["attributes"] |= {key: value} | ({"size": None} if value == 15 else {})
    if value == 15:  # 40 pixels are there
        manifest["attributes"]["margin"] = 20
    reseal(source / "manifest.json", manifest)
    for argv in readers("cutouts", source, one_of_each, tmp_path / "out"):
        if argv[0] in ("preprocess", "inject", "export") or "--picture" in argv:
            (tmp_path / "out").mkdir(exist_ok=True)
            assert run(argv) == 4, argv
            said = capsys.readouterr().err
            assert str(source) in said
            assert word in said
