"""Every block of shell and Python in the documents runs, or is in `not_run.yaml` with the reason."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import yaml
from blocks import Block, blocks, made
from foreign import deeplense_tree
from models import SMALL
from repos import add_chain

import ripple
from ripple.cli import group, run
from ripple.imaging.quality.flags import Flag
from ripple.learn.config import TrainConfig
from ripple.learn.training.train import train

BLOCKS = blocks()
NOT_RUN: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "not_run.yaml").read_text())
#: These run by default, the others with `--slow`.
QUICK = ("README.md",)
#: Training on a hundred rows, in blocks of sky small enough for three splits.
QUICKLY = SMALL | {"epochs": 1, "nside": 16384, "guard": 0.0}


def excuse(block: Block, command: str) -> str:
    """The entry of the list that a command, or a block of Python, falls under; empty when it is to run."""
    known = NOT_RUN.get(block.page, {})
    return next((start for start in known if start == "*" or command.startswith(start)), "")


def parts(block: Block) -> list[str]:
    """Commands of shell, without the synopses of the reference; or the block of Python."""
    if block.language == "python":
        return [block.text]
    return [command for command in block.commands if "[OPTIONS]" not in command]


def runnable() -> list[object]:
    """The blocks of which something runs."""
    found = [block for block in BLOCKS if not all(excuse(block, part) for part in parts(block))]
    return [
        pytest.param(
            block, id=f"{block.page}:{block.line}", marks=() if block.page in QUICK else pytest.mark.slow
        )
        for block in found
    ]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents speak of: a survey under the label dp2, targets, the directories of the chain."""
    root = tmp_path_factory.mktemp("documents")
    argv = ["simulate", str(root / "sky"), "--patches", "2", "--targets", "36", "--bands", "griz", "-q"]
    assert run(argv) == 0
    add_chain(root / "sky/repo", "dp2", ["mini"])
    (root / "index.yaml").write_text(yaml.safe_dump({"dp2": str(root / "sky/repo")}))
    truth = pq.read_table(root / "sky/truth.parquet").select(["ra", "dec", "label"])
    ids = pa.array(np.arange(4000, 4000 + truth.num_rows))
    pc.write_csv(truth.slice(0, 9).drop(["label"]), root / "lenses.csv")
    pc.write_csv(truth.append_column("id", ids), root / "named.csv")
    where = ["--repo", str(root / "sky/repo"), "--collections", "mini", "--bands", "griz"]
    cutouts, tensors = str(root / "cutouts"), str(root / "tensors")
    assert run(["fetch", *where, "--targets", str(root / "named.csv"), "-q", "-o", cutouts]) == 0
    assert run(["preprocess", cutouts, "-q", "-o", tensors]) == 0
    train(TrainConfig.make(QUICKLY | {"tensors": [tensors], "output": str(root / "model")}))
    return root


@pytest.fixture(scope="module")
def more(things: Path) -> Path:
    """What only the blocks that take longer speak of."""
    model, tensors, cutouts = (str(things / name) for name in ("model", "tensors", "cutouts"))
    train(TrainConfig.make(QUICKLY | {"tensors": [tensors], "output": str(things / "model-b"), "seed": 3}))
    for name, finder in (("scores", model), ("scores-a", model), ("scores-b", str(things / "model-b"))):
        assert run(["score", finder, tensors, "-q", "-o", str(things / name)]) == 0
    lens = {"theta_E": 1.2, "q": 0.8, "x_source": 0.2, "y_source": 0.1, "R_source": 0.3}
    lens |= {f"mag_{band}": 24.0 for band in "griz"}
    pc.write_csv(pa.Table.from_pylist([lens]), things / "population.csv")
    injected = [str(things / name) for name in ("labelled", "ready", "injected-scores")]
    assert run(["inject", cutouts, "--fraction", "0.5", "-q", "-o", injected[0]]) == 0
    assert run(["preprocess", injected[0], "--model", model, "-q", "-o", injected[1]]) == 0
    assert run(["score", model, injected[1], "-q", "-o", injected[2]]) == 0
    assert run(["export", cutouts, "--format", "fits", "-q", "-o", str(things / "stamps")]) == 0
    same = {"hsc": "stamps", "des": "stamps", "hsc-cutouts": "cutouts", "model-a": "model"}
    for name, target in same.items():
        (things / name).symlink_to(things / target)
    deeplense_tree(things / "lenses", np.random.default_rng(0))
    chain = {
        "fetch": {
            "repo": "dp2", "collections": "dp2", "targets": str(things / "named.csv"), "bands": "gri",
            "size": 32, "workers": 0,
        },
        "preprocess": {"psf": "none", "workers": 0},
        "report": {"source": "{output}/tensors"},
    }  # fmt: skip
    (things / "chain.yaml").write_text(yaml.safe_dump(chain))
    return things


@pytest.mark.parametrize("block", runnable())
def test_blocks_run(
    block: Block, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things: Path = request.getfixturevalue("things" if block.page in QUICK else "more")
    monkeypatch.setenv("DAF_BUTLER_REPOSITORY_INDEX", str(things / "index.yaml"))
    monkeypatch.chdir(tmp_path)
    ours = [part for part in parts(block) if block.language == "sh" and not excuse(block, part)]
    for path in things.iterdir():
        if path.name not in made(ours):
            (tmp_path / path.name).symlink_to(path)
    for part in parts(block):
        if excuse(block, part):
            continue
        if block.language == "python":
            exec(compile(part, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
            continue
        program, *words = shlex.split(part)
        assert program == "ripple", f"{block.page}:{block.line}: {part}: run it, or list it in not_run.yaml"
        assert run(words) == 0, part
    if block.page == "README.md" and "tensors" in made(ours):
        edge = np.uint64(1 << Flag.PSF_EDGE)
        qc = np.asarray(ripple.open("tensors").table()["qc"], np.uint64)
        assert len(qc) > 20
        assert np.count_nonzero(qc & edge) <= len(qc) // 20  # its margin is what PSF matching needs


def test_the_list_has_nothing_that_is_gone() -> None:
    used = {(block.page, excuse(block, part)) for block in BLOCKS for part in parts(block)}
    listed = {(page, start) for page, known in NOT_RUN.items() for start in known}
    assert listed - used == set()
    assert all(reason for known in NOT_RUN.values() for reason in known.values())


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "sh"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_options_exist(block: Block) -> None:
    """Also those of commands that are not run."""
    context = click.Context(group, info_name="ripple", **group.context_settings)
    for command in parts(block):
        _, ours, after = f" {command}".partition(" ripple ")
        if not ours or "..." in command:
            continue
        verb, *words = shlex.split(after)
        found = group.get_command(context, verb)
        assert found is not None, command
        found.make_context(verb, words, parent=context)
