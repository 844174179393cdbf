"""Fixtures shared by tests: one small simulated survey per session, and the reference data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from models import make_model
from toys import write_toys

from ripple.cli import run

# What a shell starts with `&` ignores SIGINT, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated survey of two patches: `sky/repo` (collection `mini`) and `sky/truth.parquet`."""
    from ripple.stages.simulate.config import SimulateConfig
    from ripple.stages.simulate.simulate import simulate

    path = tmp_path_factory.mktemp("survey") / "sky"
    simulate(
        SimulateConfig.make({"output": str(path), "patches": 2, "targets": 24, "bands": ["g", "r", "i"]})
    )
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Files made by the LSST pipelines; the tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the reference data (../shared/data) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def one_of_each(sky: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artefact of each kind, by the real verbs, and a model."""
    root = tmp_path_factory.mktemp("edges")
    out = {name: root / name for name in ("sky", "cutouts", "tensors", "toys", "model", "scores")}
    out["sky"] = sky
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(sky / "truth.parquet")]
    shape = ["--bands", "gri", "--size", "32", "--margin", "4", "--workers", "0"]
    assert run(["fetch", *where, *shape, "-o", str(out["cutouts"])]) == 0
    argv = ["preprocess", str(out["cutouts"]), "-o", str(out["tensors"]), "--psf", "none", "--workers", "0"]
    assert run(argv) == 0
    write_toys(out["toys"], shards=1, rows=80)
    make_model(out["model"])
    argv = ["score", str(out["model"]), str(out["toys"]), "-o", str(out["scores"]), "--threads", "1"]
    assert run(argv) == 0
    return out
