"""Outputs that cannot be written, and text from outside on the terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ripple.cli import run

VERBS = (
    "simulate", "locate", "fetch", "preprocess", "inject", "train", "score", "explain", "report", "run",
    "show", "import", "export", "import-model", "export-model",
)  # fmt: skip


def writers(one_of_each: dict[str, Path], out: Path) -> dict[str, list[str]]:
    """Every verb that takes an output, with inputs that are good."""
    sky, model, toys = one_of_each["sky"], str(one_of_each["model"]), str(one_of_each["toys"])
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    chain = (
        out.parent.parent / "chain.yaml"
        if out.parent.is_file()
        else one_of_each["model"].parent / "chain.yaml"
    )
    chain.write_text("simulate: {patches: 2, targets: 4, bands: [g]}\n")
    place = ["--targets", str(sky / "truth.parquet"), "--skymap", "lsst_cells_v2"]
    source = ["--format", "arrays", "--bands", "gri", "--pixel-scale", "0.2", "--into", "tensors"]
    return {
        "simulate": ["simulate", str(out), "--patches", "2", "--targets", "4", "--bands", "g"],
        "locate": ["locate", *place, "-o", f"{out}.csv"],
        "fetch": ["fetch", *where, "--bands", "gri", "--size", "32", "--workers", "0", "-o", str(out)],
        "preprocess": ["preprocess", str(one_of_each["cutouts"]), "--workers", "0", "-o", str(out)],
        "inject": ["inject", str(one_of_each["cutouts"]), "--workers", "0", "-o", str(out)],
        "train": ["train", toys, "--epochs", "1", "--threads", "1", "--nside", "512", "-o", str(out)],
        "score": ["score", model, toys, "--threads", "1", "-o", str(out)],
        "explain": ["explain", model, toys, "-o", str(out)],
        "report": ["report", str(one_of_each["scores"]), "--top", "3", "-o", str(out)],
        "run": ["run", "-c", str(chain), "-o", str(out)],
        "show": ["show", str(one_of_each["cutouts"]), "--picture", f"{out}.png"],
        "import": ["import", str(one_of_each["model"].parent / "stamps.npz"), *source, "-o", str(out)],
        "export": ["export", toys, "--format", "webdataset", "-o", str(out)],
        "import-model": ["import-model", f"{model}/model.safetensors", "--sidecar", f"{model}/side.yaml",
                         "-o", str(out)],
        "export-model": ["export-model", model, "--format", "pt2", "-o", f"{out}/net.pt2"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def sources(one_of_each: dict[str, Path]) -> dict[str, Path]:
    """`one_of_each`, with what `import` and `import-model` take."""
    import numpy as np

    np.savez(
        one_of_each["model"].parent / "stamps.npz",
        image=np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32),
    )
    contract = json.loads((one_of_each["model"] / "model.json").read_text())["contract"]
    (one_of_each["model"] / "side.yaml").write_text(
        json.dumps({k: v for k, v in contract.items() if k != "members"})
    )
    return one_of_each


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["below a file", "a file", "no permission"])
def test_an_output_that_cannot_be_made_is_refused_by_name(
    verb: str, place: str, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o555)
    if place == "no permission":
        # Root may write anywhere but into /sys.
        out = (Path("/sys") if os.geteuid() == 0 else tmp_path / "closed") / "out"
    else:
        out = tmp_path / "file" / "out" if place == "below a file" else tmp_path / "file"
        if place == "a file" and verb in ("locate", "show"):
            pytest.skip("writes a file")
    code = run(writers(sources, out)[verb])
    said = capsys.readouterr().err.replace("\n", "")
    assert code == 6, said
    assert str(out) in said or str(out.parent) in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"fetch": 5}', b'{"fetch": {}}', b"\xff", b"[" * 100_000])
def test_damaged_memory_of_a_chain_is_refused_before_it_runs(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain.yaml").write_text("simulate: {patches: 2, targets: 4, bands: [g]}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_bytes(data)
    assert run(["run", "-c", str(tmp_path / "chain.yaml"), "-o", str(tmp_path / "out")]) == 4
    assert str(tmp_path / "out" / "run.json") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_doctor_shows_text_of_the_environment_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ripple.stages import doctor

    hostile = "/srv/[red]x[/] \x1b[31m[/nothing]"
    monkeypatch.setattr(doctor, "environment", lambda: [doctor.Check("[bold]n[/]", "note", hostile)])
    assert run(["doctor"]) == 0
    assert "[bold]n[/] /srv/[red]x[/] \\x1b[31m[/nothing]" in " ".join(capsys.readouterr().out.split())


def test_locate_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = ["a\x1b[31m", "b\nc", "é"]
    pq.write_table(pa.table({"id": ids, "ra": [53.0] * 3, "dec": [-28.0] * 3}), tmp_path / "t.parquet")
    where = ["locate", "--targets", str(tmp_path / "t.parquet"), "--skymap", "lsst_cells_v2"]
    assert run(where) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 4
    assert "\x1b" not in said
    assert "a\\x1b[31m" in said
    assert "é" in said
    assert run([*where, "-o", str(tmp_path / "out.parquet")]) == 0  # a file keeps them
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ids
