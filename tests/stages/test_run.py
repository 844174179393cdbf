"""The chain from one file: done once, left alone when done, redone from where it was broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pages import write_page

from ripple.cli import run
from ripple.errors import ConfigError
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.formats.config import ImportConfig
from ripple.stages.formats.import_cutouts import import_cutouts
from ripple.stages.run import CHAIN, _clear, read_chain, run_chain
from ripple.storage.writer import _line

TINY = """
simulate: {patches: 2, targets: 36, bands: [g, r, i], seed: 5, lens_fraction: 0.4}
fetch:
  targets: "{output}/sky/truth.parquet"
  label_column: label
  bands: [g, r, i]
  size: 32
  margin: 8
  workers: 1
preprocess: {psf: match}
train: {epochs: 2, width: 4, draws: 50, patience: 2, nside: 8192, fractions: [0.4, 0.3, 0.3]}
score: {evaluate: true, draws: 50}
report:
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("chain")
    config, out = directory / "tiny.yaml", directory / "out"
    config.write_text(TINY)
    outcome = run_chain(config, {"output": str(out)})
    assert [s.verb for s in outcome.summaries] == [name for name in CHAIN if name != "inject"]
    assert not any(s.done_before for s in outcome.summaries)
    return config, out


def test_sky_becomes_ranked_candidates(chain: tuple[Path, Path]) -> None:
    _, out = chain
    index = pq.read_table(out / "cutouts" / "index.parquet")
    scores = pq.read_table(out / "scores" / "scores.parquet")
    assert index.num_rows == 72
    assert 0 < scores.num_rows <= 72
    assert sorted(scores["rank"].to_pylist()) == list(range(1, scores.num_rows + 1))
    assert set(scores["id"].to_pylist()) <= set(index["id"].to_pylist())
    page = (out / "report" / "index.html").read_text()
    assert "Content-Security-Policy" in page
    assert json.loads((out / "model" / "model.json").read_text())["contract"]["bands"] == ["g", "r", "i"]


def test_running_again_does_nothing_and_says_so(chain: tuple[Path, Path]) -> None:
    config, out = chain
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    outcome = run_chain(config, {"output": str(out)})
    assert outcome.done_before
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_deleted_stage_is_redone_and_those_after_it_if_it_has_changed(
    chain: tuple[Path, Path], tmp_path: Path
) -> None:
    config, out = chain
    scores = (out / "scores" / "scores.parquet").read_bytes()
    for softening, later in ((None, True), (2.5, False), (None, False)):
        sections = yaml.safe_load(config.read_text())
        if softening is not None:
            sections["preprocess"] = (sections["preprocess"] or {}) | {"softening": softening}
        (tmp_path / "chain.yaml").write_text(yaml.safe_dump(sections))
        shutil.rmtree(out / "tensors")
        outcome = run_chain(tmp_path / "chain.yaml", {"output": str(out)})
        assert [s.done_before for s in outcome.summaries] == [True, True, False, later, later, later]
        assert ((out / "scores" / "scores.parquet").read_bytes() == scores) == (softening is None)


def test_changing_one_option_says_what_follows_and_redo_keeps_the_former_one(
    chain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, made = chain
    out = tmp_path / "out"
    shutil.copytree(made, out)
    sections = yaml.safe_load(config.read_text())
    sections["preprocess"]["softening"] = 4.0
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(sections))
    argv = ["run", "-c", str(tmp_path / "chain.yaml"), "-o", str(made)]
    assert run([*argv, "--dry-run", "--json"]) == 0
    states = {s["stage"]: (s["action"], s["why"]) for s in json.loads(capsys.readouterr().out)}
    assert states["preprocess"] == ("changed", "preprocess.softening: 3.0 -> 4.0")
    assert states["train"][0] == states["report"][0] == "follows"
    assert not list(made.glob("*.old-*"))
    argv[-1] = str(out)
    sections = {"preprocess": sections["preprocess"]}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(sections))
    before = (out / "tensors" / "manifest.json").read_bytes()
    assert run(argv) == 2
    assert "--redo moves it aside" in capsys.readouterr().err
    assert (out / "tensors" / "manifest.json").read_bytes() == before
    assert run([*argv, "--redo"]) == 0
    assert "tensors.old-1" in capsys.readouterr().err
    assert (out / "tensors.old-1" / "manifest.json").read_bytes() == before
    assert run(["show", str(out / "tensors"), "--json"]) == 0


def test_check_reports_all_errors_with_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fetch:\n  bands: gri\n  sise: 64\npreprocess:\n  psf: wide\nfly:\nreport: {top: 0}\n")
    assert run(["run", "-c", str(path), "--check"]) == 2
    said = capsys.readouterr().err
    for part in (
        "line 3: fetch: unknown key 'sise'", "line 5: preprocess: 'psf'", "line 6: unknown section 'fly'",
        "line 7: report: 'top'",
    ):  # fmt: skip
        assert part in said, (part, said)
    path.write_text("fetch: {bands: gri, collections: mini, size: 12.8 arcsec}\nexport: {format: mmu}\n")
    assert run(["run", "-c", str(path), "--check"]) == 0


def test_words_in_braces(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fetch: {targets: '{outptu}/t.csv'}\n")
    with pytest.raises(ConfigError, match=r"\{outptu\} in .* stands for nothing; did you mean 'output'"):
        read_chain(path, {"output": "o"})
    path.write_text("fetch: {targets: '{here}/t.csv', bands: gri, collections: 'a, b'}\n")
    options = read_chain(path, {"output": "o"}).options["fetch"]
    assert options["targets"] == str(tmp_path.resolve() / "t.csv")
    made = FetchConfig.make(options)
    assert (made.bands, made.collections) == (("g", "r", "i"), ("a", "b"))


def test_a_chain_with_painted_lenses(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("fetch: {bands: gri}\ninject: {fraction: 0.5}\npreprocess:\n")
    options = read_chain(path, {"output": "o"}).options
    assert list(options) == ["fetch", "inject", "preprocess"]
    assert options["inject"] == {"cutouts": "o/cutouts", "output": "o/labelled", "fraction": 0.5}
    assert options["preprocess"]["cutouts"] == "o/labelled"


@pytest.mark.parametrize("text", ["run: [a]", "run: 5", "run: word"])
def test_a_section_run_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="'run' must be a mapping"):
        run_chain(path, {"output": str(tmp_path / "out")})


def test_the_deeplense_protocol_runs_on_a_small_tree(tmp_path: Path) -> None:
    """`deeplense-test2.yaml` of the benchmarks, but for the size of the network and of the training."""
    rng, counts = np.random.default_rng(0), {"train_lenses": 20, "train_nonlenses": 60}
    for folder, count in (counts | {"test_lenses": 6, "test_nonlenses": 30}).items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for k in range(count):
            image = rng.normal(size=(3, 32, 32)) + (2 if "_lenses" in folder else 0)
            np.save(tmp_path / "data" / folder / f"{k}.npy", image)
    out = tmp_path / "out"
    source = {"source": tmp_path / "data", "output": out / "tensors", "format": "deeplense"}
    import_cutouts(ImportConfig.make(source))
    sections = yaml.safe_load(
        (Path(__file__).parents[2] / "scripts" / "bench" / "configs" / "deeplense-test2.yaml").read_text()
    )
    sections["train"] |= {"network": "d4cnn", "width": 2, "epochs": 2, "seeds": 1, "draws": 20, "lr": 0.01}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sections))
    run_chain(tmp_path / "small.yaml", {"output": str(out)})
    contract = json.loads((out / "model" / "model.json").read_text())["contract"]
    rows = contract["training"]["rows"]
    assert rows["test"] == {"0": 30, "1": 6}
    assert rows["train"]["1"] + rows["validation"]["1"] == 20
    assert rows["train"]["0"] + rows["validation"]["0"] == 60
    scores = pq.read_table(out / "scores" / "scores.parquet")
    names = scores["split"].to_pylist()
    assert names.count("test") == 36
    assert names.count("validation") == sum(rows["validation"].values()) > 4
    evaluation = json.loads((out / "scores" / "evaluation.json").read_text())["evaluation"]
    assert (evaluation["lenses"], evaluation["nonlenses"]) == (6, 30)
    assert run(["report", str(out / "scores"), "-o", str(out / "report")]) == 0
    assert "Shortcut gates" in (out / "report" / "index.html").read_text()
    for name in ("tensors", "model", "scores", "report"):
        assert run(["verify", str(out / name)]) == 0


def page(directory: Path) -> None:
    write_page(directory, lambda d: (d / "index.html").write_bytes(b"page") and None)


def test_run_clears_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    page(tmp_path / "report")
    assert _clear(tmp_path / "report")
    assert not (tmp_path / "report").exists()

    (tmp_path / "cutouts").mkdir()
    (tmp_path / "cutouts" / ".journal").write_bytes(_line({"verb": "fetch"}))
    assert _clear(tmp_path / "cutouts")
    assert not (tmp_path / "cutouts").exists()

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    page(tmp_path / "far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for name in ("model", "thesis", "link"):
        assert not _clear(tmp_path / name)
        assert (tmp_path / name).exists()
