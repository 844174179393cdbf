"""Fixtures shared by tests: one small simulated survey per session, and the reference data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

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
