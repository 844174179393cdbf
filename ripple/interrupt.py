"""SIGINT and SIGTERM: answered where nothing is half done, and never lost.

Python may raise the exception of a signal in a destructor or a callback of a C library and drop it there, so
that the command goes on as if nobody had asked. Long verbs therefore only note a signal and look at safe
places; one that is not answered soon is raised wherever the program is, which is as safe as a kill: what is
committed stays.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ripple.errors import Interrupted

#: Seconds a noted signal waits for the next safe place.
GRACE = 5.0
#: Seconds until an exception that Python dropped is raised again.
AGAIN = 0.05


class Late(KeyboardInterrupt):
    """A signal whose time for a safe place is over.

    Parameters
    ----------
    signum
        2 (SIGINT) or 15 (SIGTERM).
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__()
        self.signum = signum


class Stop:
    """The first signal is kept for the next safe place; the second ends this process and its workers."""

    def __init__(self) -> None:
        self.signum = 0

    def note(self, signum: int, _frame: FrameType | None) -> None:
        """Handler of SIGINT and SIGTERM."""
        if self.signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def late(self, _signum: int, _frame: FrameType | None) -> None:
        """Handler of SIGALRM."""
        raise Late(self.signum or signal.SIGINT)

    def check(self) -> bool:
        """A safe place: True, or `Interrupted` once a signal has come."""
        if self.signum:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted(self.signum)
        return True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM while the body runs, which calls `check` at its safe places; its end is one.

    In a thread other than the main one, which may not install handlers, nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {signal.SIGINT: stop.note, signal.SIGTERM: stop.note, signal.SIGALRM: stop.late}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield stop
        stop.check()
    finally:
        if stop.signum:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_dropped() -> None:
    """From now on, raise a KeyboardInterrupt that Python drops again, for the whole process."""
    kept = sys.unraisablehook

    def hook(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            kept(what)

    signal.signal(signal.SIGALRM, Stop().late)
    sys.unraisablehook = hook
