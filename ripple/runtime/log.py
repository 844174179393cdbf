"""What a command says while it runs: how much, and a log file with a line per event."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from ripple.errors import WriteError

LOGGER = logging.getLogger("ripple")
# Without a handler of its own, Python would print errors a second time.
LOGGER.addHandler(logging.NullHandler())
#: Seconds between two lines about progress in a log.
EVERY = 60.0


def open_log(path: Path) -> None:
    """Append events to a file: time in UTC, level, message.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    try:
        handler = logging.FileHandler(path, delay=False)
    except OSError as err:
        raise WriteError(f"{path}: {err.strerror}", hint="--log needs a file that can be written") from None
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.setLevel(logging.DEBUG)
    LOGGER.addHandler(handler)
    _lower(logging.DEBUG)


def speak(verbose: int) -> None:
    """Set what appears on stderr: -1 only errors, 0 progress and summary, 1 events as well, 2 details."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    global _quiet
    _quiet = verbose < 0
    if verbose > 0:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        handler.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
        LOGGER.addHandler(handler)
        _lower(handler.level)


def say(line: str) -> None:
    """A line about what is going on: on stderr unless only errors are wanted, and in the log."""
    if not quiet():
        print(line, file=sys.stderr, flush=True)
    LOGGER.debug(line)


def quiet() -> bool:
    """Whether only errors are wanted."""
    return _quiet or other_rank()


def other_rank() -> bool:
    """Whether `torchrun` started this process beside the first one, which speaks for all."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def close() -> None:
    """Forget handlers and levels; for a process that runs several command lines."""
    global _quiet
    _quiet = False
    for handler in LOGGER.handlers[1:]:
        LOGGER.removeHandler(handler)
        handler.close()
    LOGGER.setLevel(logging.WARNING)


def _lower(level: int) -> None:
    LOGGER.setLevel(min(LOGGER.level or level, level))


_quiet = False


class Pulse:
    """A line about progress in the log once a minute."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.start = self.last = time.monotonic()

    def beat(self, n: float) -> None:
        """Count `n` more; logs when the last line is a minute old."""
        self.done += n
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            LOGGER.info(self.line(now - self.start))

    def line(self, seconds: float) -> str:
        """How far, how fast, how long still."""
        rate = self.done / max(seconds, 1e-9)
        of = f" of {self.total:,.0f}" if self.total else ""
        left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total and rate else ""
        return f"{self.label}: {self.done:,.0f}{of} {self.unit}, {rate:,.3g} {self.unit}/s{left}"
