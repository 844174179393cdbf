"""Keeping the promise of `--memory`: how many workers may work at a time, planned and then observed."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ripple.errors import ConfigError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
#: A worker before it has read anything: interpreter and libraries.
IDLE_WORKER = 250 << 20
#: Private memory that libraries of a worker reserve and do not use: PyTorch 2 GiB on a machine of two cores.
RESERVED = 2 << 30
_SAMPLE_SECONDS = 0.2


def parse_bytes(text: str) -> int:
    """Bytes of `4GiB`, `500MB` or a plain number.

    Raises
    ------
    ConfigError
        The text is not a size, or not positive.
    """
    # 15 digits are all that a float can hold.
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]i?|)b?\s*", text.lower())
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < value < 1 << 60:
        raise ConfigError(f"memory {text!r} cannot be read as a size", hint="write it like 4GiB or 500MB")
    return value


@dataclass
class MemoryWatch:
    """Watches the resident memory of this process and its children, and says how many workers fit.

    Parameters
    ----------
    budget
        Bytes for all processes together.
    per_worker
        Estimate for one worker; what workers report replaces it when it is larger.
    """

    budget: int
    per_worker: int
    peak: int = 0
    own: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()

    def allowed(self) -> int:
        """Workers that fit into the budget beside this process; at least one."""
        # One worker always: a run that is slow and large is better than none.
        return max(1, (self.budget - self.own) // self.per_worker)

    def most(self) -> int:
        """Hard limit of a worker in bytes: the larger of the budget and twice what it is expected to need.

        Beyond what libraries reserve: the limit also counts private memory that is never touched.
        """
        return max(self.budget, 2 * self.per_worker) + RESERVED

    def learn(self, worker_peak: int) -> None:
        """Raise the estimate to the peak that a worker reported."""
        self.per_worker = max(self.per_worker, worker_peak)

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        me = psutil.Process()
        self.own = me.memory_info().rss
        # RSS counts shared pages in every process, so the sum is an upper bound.
        total = self.own
        for child in _children(me):
            with suppress(psutil.Error):  # it may just have ended
                total += psutil.Process(child).memory_info().rss
        self.peak = max(self.peak, total)


def _children(me: psutil.Process) -> list[int]:
    """Process ids of the children of this process."""
    try:
        # Linux lists them by thread; psutil reads the parent of every process of the machine instead.
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:  # a thread has just ended
        lists = []
    return [int(pid) for text in lists for pid in text.split()] or [c.pid for c in me.children()]
