"""A function that ends its worker as a damaged file may end a C library."""

from __future__ import annotations

import os
import signal


def segfault(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
