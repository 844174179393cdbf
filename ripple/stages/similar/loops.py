"""Compiled loops over embeddings. Importing this module loads numba: import it inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# The order of a sum may change, so that it becomes vector instructions; callers know the error of any order.
_compile: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}
)


@_compile
def cosines(vector: Any, query: Any, out: Any) -> None:
    """Product of a query `(F,)` float32 with the direction of each vector `(N, F)` int8, into `(N,)` float32.

    A vector of zeros has no direction: 0.
    """
    for n in range(vector.shape[0]):
        row = vector[n]
        product, square = np.float32(0), np.float32(0)
        for k in range(len(row)):
            value = np.float32(row[k])
            product += value * query[k]
            square += value * value
        out[n] = product / np.sqrt(square) if square > 0 else np.float32(0)
