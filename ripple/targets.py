"""Targets: positions on the sky to cut out, and the columns that travel with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Targets:
    """N positions in input order, and what the user said about them.

    Parameters
    ----------
    id
        `(N,)` int64 or str.
    ra, dec
        `(N,)` float64 deg ICRS.
    extra
        Arrow table of N rows with the user's other columns, `label` among them when given; may be without
        columns.
    size
        `(N,)` int32 pixels when the table gives sizes.
    rejected
        Row -> reason and text, for rows that are refused already (duplicates).
    source
        What the positions were read from, JSON values, with a digest where there is one.
    """

    id: NDArray[Any]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    extra: pa.Table
    size: NDArray[np.int32] | None = None
    rejected: dict[int, tuple[Reason, str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ra)
