"""Limits of memory and signals that were there before us stay."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from ripple.errors import ConfigError
from ripple.runtime.memory import parse_bytes
from ripple.runtime.signals import stoppable


@pytest.mark.parametrize("text", ["9" * 400, "99999999TiB", "1" * 16])
def test_sizes_beyond_all_machines_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a size"):
        parse_bytes(text)


def test_a_lower_limit_of_the_user_stays() -> None:
    code = (
        "import os, resource; from ripple.runtime.worker import limit_memory; "
        f"resource.setrlimit(resource.RLIMIT_DATA, ({2 << 30}, {2 << 30})); "
        f"limit_memory(os.getpid(), {8 << 30}); print(resource.getrlimit(resource.RLIMIT_DATA)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 << 30


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum == 0
    finally:
        signal.signal(signal.SIGINT, before)
