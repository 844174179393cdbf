"""Verbs on a Dask cluster that loses a worker write the same bytes as without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dask_clusters import losing_a_worker
from models import make_model
from searches import model_for, write_model
from toys import write_toys

from ripple.cli import run

pytest.importorskip("distributed")


def contents(directory: Path) -> dict[str, bytes]:
    """Files of an artefact, without measurements and the lock."""
    files = (p for p in directory.iterdir() if p.is_file() and p.name not in ("metrics.json", ".lock"))
    return {path.name: path.read_bytes() for path in files}


def assert_same_with_dask(argv: list[str], root: Path, *here: str) -> None:
    """A command line writes the same with `--dask` as with the options `here`."""
    assert run([*argv, "-o", str(root / "here"), *here]) == 0
    with losing_a_worker() as address:
        assert run([*argv, "-o", str(root / "dask"), "--dask", address]) == 0
    ours, theirs = contents(root / "dask"), contents(root / "here")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert run(["verify", str(root / "dask")]) == 0


def test_score(tmp_path: Path) -> None:
    toys, model = write_toys(tmp_path / "toys", shards=4, rows=50), make_model(tmp_path / "model")
    assert_same_with_dask(["score", str(model), str(toys)], tmp_path, "--threads", "1")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["preprocess", "inject"])
def test_cutouts(one_of_each: dict[str, Path], tmp_path: Path, verb: str) -> None:
    assert_same_with_dask([verb, str(one_of_each["cutouts"])], tmp_path, "--workers", "0")


@pytest.mark.slow
def test_search(sky: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", model_for(sky, tmp_path))
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--tract", "5063"]
    assert_same_with_dask(["search", str(model), *where], tmp_path, "--workers", "0")
