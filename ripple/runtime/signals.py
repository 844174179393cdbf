"""SIGINT and SIGTERM: handled at safe places, where nothing is half written, and never lost.

Python may raise the exception of a signal in a destructor or a callback of a C library and drop it there, so
that the command goes on as if nothing had happened. Long verbs therefore only note a signal and check for it
at safe places; one that is not handled soon is raised wherever the program is, which is as safe as a kill:
what is committed stays. Where nothing can be raised because the main thread waits in C (SQLite for a
lock, a file system that hangs), another thread ends the command line.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ripple.errors import Interrupted

#: Seconds a noted signal waits for the next safe place.
GRACE = 5.0
#: Seconds until an exception that Python dropped is raised again.
RAISE_AGAIN = 0.05
#: Seconds after which a command line that was signalled ends, and seconds after a second signal.
LAST = 9.0
LAST_AGAIN = 0.5


class Late(KeyboardInterrupt):
    """A signal for which no safe place came in time.

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
        self._alarm: tuple[Any, tuple[float, float]] | None = None

    def note(self, signum: int, _frame: FrameType | None) -> None:
        """Handler of SIGINT and SIGTERM."""
        if self.signum:
            # The default action ends the process at once, and its exit status says by which signal.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        # Other code may use the alarm: it is borrowed only now, and restored by `give_back`.
        self._alarm = signal.signal(signal.SIGALRM, self.late), signal.setitimer(signal.ITIMER_REAL, GRACE)

    def give_back(self) -> None:
        """Restore the alarm as it was before the signal."""
        if self._alarm is not None:
            handler, timer = self._alarm
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, *timer)

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
    both = (signal.SIGINT, signal.SIGTERM)
    # An ignored signal stays ignored: SIGINT in what a shell starts with `&`, SIGTERM below some schedulers.
    heard = [signum for signum in both if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, stop.note) for signum in heard}
    try:
        yield stop
        stop.check()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        stop.give_back()


def guard() -> None:
    """From now on no signal is lost in this process: for the main thread of a command line, once.

    A KeyboardInterrupt that Python drops is raised again. What has not ended `LAST` seconds after a signal,
    or `LAST_AGAIN` seconds after a second one, is ended with the exit code of the first.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # The C handler writes to this socket at once, even while the main thread is inside a C call.
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    # A forked child would write its signals into the parent's socket.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1) and None)
    threading.Thread(target=_end_in_time, args=(ours,), daemon=True).start()
    kept = sys.unraisablehook

    def hook(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN)
        else:
            kept(what)

    signal.signal(signal.SIGALRM, Stop().late)
    sys.unraisablehook = hook


def _end_in_time(signals: socket.socket) -> None:
    """End the process in time; C code writes the number of each signal to the other end as it comes."""
    first = _next_signal(signals, None)
    if _next_signal(signals, time.monotonic() + LAST):
        time.sleep(LAST_AGAIN)
    with suppress(OSError):  # it may be closed, or a pipe that nobody reads
        os.set_blocking(2, False)
        os.write(
            2, f"ripple: {Interrupted(first)}; the command did not stop in time and was ended\n".encode()
        )
    os._exit(128 + first)


def _next_signal(signals: socket.socket, end: float | None) -> int:
    """The next SIGINT or SIGTERM; 0 when there is none until `end`, of the monotonic clock."""
    while True:
        signals.settimeout(None if end is None else max(end - time.monotonic(), 1e-3))
        try:
            number = signals.recv(1)[0]
        except TimeoutError:
            return 0
        if number in (signal.SIGINT, signal.SIGTERM):
            return number
