"""Signals: at safe places, in time, and never dropped."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from ripple.errors import Interrupted
from ripple.runtime import signals as interrupt
from ripple.runtime.signals import Late, stoppable


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
    timer = signal.getitimer(signal.ITIMER_REAL)[0]  # of pytest, perhaps
    with pytest.raises(Interrupted) as caught:
        stopped(signum, safe=True)
    assert caught.value.code == 128 + signum
    assert (signal.getsignal(signum), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(timer, abs=2)


def test_the_end_is_a_safe_place() -> None:
    with pytest.raises(Interrupted), stoppable():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_without_a_safe_place_is_raised_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "GRACE", 0.05)
    with pytest.raises(Late) as caught:
        stopped(signal.SIGTERM, safe=False)
    assert caught.value.signum == signal.SIGTERM


def test_an_alarm_of_others_is_given_back() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with stoppable():
            time.sleep(0.5)
        assert rung == [1]
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            stopped(signal.SIGTERM, safe=True)
        time.sleep(0.5)
        assert rung == [1, 1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


DEAF = """
import os, signal, sqlite3, sys
from ripple import cli
from ripple.runtime.signals import stoppable

signal.signal(signal.SIGINT, signal.default_int_handler)

def slow(**_):
    with stoppable():
        print("ready", flush=True)
        sqlite3.connect(sys.argv[1], timeout=300).execute("select * from t")

cli.group.main = slow
cli.main([])
"""


@pytest.mark.parametrize(
    ("signals", "most"), [([2], 10), pytest.param([15], 10, marks=pytest.mark.slow), ([15, 15], 3)]
)
def test_waiting_in_c_code_is_no_way_out(signals: list[int], most: float, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as holder:
        holder.execute("create table t (x)")
        holder.commit()
        holder.execute("begin exclusive")
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        child = subprocess.Popen([sys.executable, "-c", DEAF, str(tmp_path / "db")], **options)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.5)
        for signum in signals:
            child.send_signal(signum)
            time.sleep(0.2)  # the kernel merges what comes at once
        _, said = child.communicate(timeout=most)
    assert child.returncode == 128 + signals[0]
    assert f"interrupted by signal {signals[0]}" in said


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
