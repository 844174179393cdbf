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
def nearest(vector: Any, query: Any, likes: int, slack: float, out: Any) -> None:
    """Largest cosine of each vector `(N, F)` int8 with the first `likes` of unit vectors `(K, F)` float32.

    Into `(N,)` float32; minus infinity where one of the others is nearer, by more than `slack`.

    A vector of zeros has no direction: 0.
    """
    value, first = np.empty(vector.shape[1], np.float32), query[0]
    for n in range(vector.shape[0]):
        row = vector[n]
        best, square = np.float32(0), np.float32(0)
        # The first product along with the length: often there is no other.
        for k in range(len(row)):
            number = np.float32(row[k])
            value[k] = number
            best += number * first[k]
            square += number * number
        other = np.float32(-np.inf)
        for q in range(1, query.shape[0]):
            mine = query[q]
            product = np.float32(0)
            for k in range(len(row)):
                product += value[k] * mine[k]
            if q < likes:
                best = max(best, product)
            else:
                other = max(other, product)
        length = np.sqrt(square) if square > 0 else np.float32(1)
        out[n] = best / length if other <= best + np.float32(slack) * length else -np.inf
