"""The worker's side of `ripple.runtime.pool`: a loop over tasks, and what may come back from it.

A worker reads files from anywhere, with much C code. What it sends is therefore not trusted to name a
function: the parent makes values, arrays and objects of our classes out of it, nothing else.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ripple.errors import RippleError

# In the parent ------------------------------------------------------

#: What numpy needs for arrays, dtypes and scalars.
_NUMPY = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class _Results(pickle.Unpickler):
    """Values, arrays, and objects of classes in ripple; anything else could run code in the parent."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        if module.startswith("ripple.") and "." not in name:
            found = super().find_class(module, name)
            # A function, or a class that a module of ours merely imported, is refused.
            if isinstance(found, type) and found.__module__.startswith("ripple."):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a result")


def receive(connection: Connection) -> Any:
    """The next message of a worker.

    Raises
    ------
    EOFError, OSError
        The worker is gone.
    UnpicklingError
        The message is not a pickle, or calls something that is not a class of RIPPLe.
    """
    data = connection.recv_bytes()
    try:
        return _Results(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as err:  # noqa: BLE001 - a damaged pickle may raise anything
        raise pickle.UnpicklingError(f"{type(err).__name__}: {err}") from None


def limit_memory(pid: int, most: int) -> None:
    """Bound the private memory of a running worker; only Linux can do this."""
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


# In the worker ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failed:
    """An exception in the worker, as text: no foreign exception class has to unpickle in the parent.

    Parameters
    ----------
    message
        One line.
    detail
        Traceback.
    """

    message: str
    detail: str


def serve() -> None:
    """The loop of a worker process: `argv` holds the socket and the parent's pid."""
    handle, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with_parent(parent)
    connection = Connection(handle)
    with suppress(EOFError, ConnectionError):  # the parent has ended this worker
        function, prepare = connection.recv()
        if prepare is not None:
            prepare()
        connection.send("ready")
        while True:
            connection.send(_attempt(function, connection.recv()))


def _attempt(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except RippleError as err:
        return err
    except MemoryError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        most = resource.getrlimit(resource.RLIMIT_DATA)[0]
        limit = f", limit {most} bytes" if most != resource.RLIM_INFINITY else ""
        return Failed(f"out of memory: peak resident {peak} bytes{limit}", traceback.format_exc())
    except Exception as err:  # noqa: BLE001 - one odd unit must not end a run of days; the parent reports it
        text = " ".join(str(err).split())[:300]
        return Failed(f"{type(err).__name__}: {text}", traceback.format_exc())


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    # It may have died between our start and the call above, which then waits for a death gone by.
    if os.getppid() != parent:
        os._exit(1)
