"""Signals: at safe places, in time, and never dropped."""

import signal
import subprocess
import sys
import time

import pytest

from ripple import interrupt
from ripple.errors import Interrupted
from ripple.interrupt import Late, stoppable


def stopped(signum: signal.Signals, *, safe: bool) -> None:
    """A verb that is signalled once, with or without a safe place after that."""
    with stoppable() as stop:
        signal.raise_signal(signum)
        assert stop.signum == signum  # nothing was raised here
        if safe:
            stop.check()
        time.sleep(60)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_safe_place(signum: signal.Signals) -> None:
    before = signal.getsignal(signum), signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted) as caught:
        stopped(signum, safe=True)
    assert caught.value.code == 128 + signum
    assert (signal.getsignal(signum), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_end_is_a_safe_place() -> None:
    with pytest.raises(Interrupted), stoppable():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_without_a_safe_place_is_raised_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "GRACE", 0.05)
    with pytest.raises(Late) as caught:
        stopped(signal.SIGTERM, safe=False)
    assert caught.value.signum == signal.SIGTERM


DROPPED = """
import signal, sys, time
from ripple import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts with &

class Thing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def slow(**_):
    thing = Thing()
    del thing  # Python drops what is raised here
    time.sleep(60)

cli.group.main = slow
cli.main([])
"""


def test_an_interrupt_that_python_drops_comes_again() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert "interrupted by signal 2" in done.stderr
    assert "Traceback" not in done.stderr
