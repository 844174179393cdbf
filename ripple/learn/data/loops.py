"""Compiled loops that gather rows from memory. Importing this module loads numba.

A row is given by its address, so that one call, outside the interpreter lock, fills a batch from any number
of mapped files. glibc's `memcpy`, which uses `rep movsb` for rows of some pages, takes twice as long.

Callers check what they pass: a wrong address crashes the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np import numpy_support
from numpy.typing import NDArray

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
# `nogil`: reading threads fill batches at the same time as the network computes.
_compile: _Decorator = numba.njit(cache=True, nogil=True)
_emit: _Decorator = intrinsic
carray: Callable[..., Any] = numpy_support.carray

#: Bytes of a pixel -> the unsigned type that `copy` moves them as.
WORD: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@_emit
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """`address` as a pointer to items of the type of the array `like`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@_emit
def _float16(context: Any, bits: Any) -> Any:
    """The float32 of the same value as the float16 with these bits: one instruction."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@_compile
def _copy(address: Any, like: Any, out: Any) -> None:
    for i in range(address.size):
        source = carray(_pointer(address[i], like), (out.shape[1],))
        for j in range(out.shape[1]):
            out[i, j] = source[j]


@_compile
def _widen(address: Any, like: Any, out: Any) -> None:
    for i in range(address.size):
        source = carray(_pointer(address[i], like), (out.shape[1],))
        for j in range(out.shape[1]):
            out[i, j] = _float16(source[j])


def copy(address: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Fill `out[i]` from `address[i]`.

    Parameters
    ----------
    address
        `(n,)` where each row begins.
    out
        `(n, words)` uint8, uint16 or uint32, C-contiguous.
    """
    _copy(address, np.empty(0, out.dtype), out)  # the empty array only carries the type


def widen(address: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Fill `out[i]` with the float16 numbers at `address[i]`, exactly.

    Parameters
    ----------
    address
        `(n,)` where each row begins.
    out
        `(n, numbers)` float32, C-contiguous.
    """
    _widen(address, np.empty(0, np.uint16), out)


_loading = threading.Lock()
#: (loop, type of the rows) -> the thread that compiles it; alive until it is ready.
_compilations: dict[tuple[str, str], threading.Thread] = {}


def loaded(loop: Callable[..., None], dtype: np.dtype[Any]) -> bool:
    """Whether a loop has been compiled for rows of a type."""
    thread = _compilations.get((loop.__name__, dtype.str))
    return thread is not None and not thread.is_alive()


def load(loop: Callable[..., None], dtype: np.dtype[Any]) -> None:
    """Compile a loop, or load it from numba's cache, for rows of a type, in a thread.

    This takes numba a second of processor time, ten without a cache: too much to wait for before the first
    batch.
    """
    key = loop.__name__, dtype.str
    with _loading:
        if key not in _compilations:
            # A call with no rows compiles the loop and does nothing else.
            nothing = np.empty(0, np.int64), np.empty((0, 0), dtype)
            _compilations[key] = threading.Thread(target=loop, args=nothing, name="ripple-row-loops")
            _compilations[key].start()


def _finish_compiling_before_fork() -> None:
    """Wait for the compiler: a lock that it holds would stay closed in the child for ever."""
    _loading.acquire()
    for thread in _compilations.values():
        thread.join()


os.register_at_fork(
    before=_finish_compiling_before_fork, after_in_parent=_loading.release, after_in_child=_loading.release
)
