"""How far apart two rows are, as a network sees them: the one definition, computed where the features are.

The distance of two feature vectors is the chord of their directions on the unit sphere and `LENGTH` times the
logarithm of the ratio of their lengths, in quadrature. Directions tell classes apart, also unknown ones;
lengths tell what is no galaxy at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weight of the lengths of feature vectors beside their directions.
LENGTH = 0.2
#: Rows at a time: their products with a bank of 4,096 rows are 4 MB, which stay in the cache of a CPU.
TOGETHER = 256
#: Rows whose distances are computed beyond those asked for.
SPARE = 3


def placed(features: Tensor) -> Tensor:
    """Places `(..., F + 1)` float32 of features `(..., F)`: their straight distances are those of rows."""
    x = features.float()
    # No features at all: somewhere far away, and not a NaN.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.cat([x / length, LENGTH * length.log()], -1)


def nearest(places: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank.

    Parameters
    ----------
    places
        `(M, F + 1)` of the rows of the bank, from `placed`.
    features
        `(n, F)`, on the same device.
    count
        How many; all M where there are fewer.

    Returns
    -------
    Distances `(n, count)` float32, good to 1e-6, and rows of the bank `(n, count)` int64, the nearest first.
    """
    # |x - y|² but for |x|², which does not change the order, as one product; `torch.cdist` either takes 8 to
    # 25 times as long on a CPU, or gives the distance of a row to itself as 1e-3.
    square = torch.linalg.vector_norm(places, dim=1).square()
    count, found = min(count, len(places)), []
    for x in placed(features).split(TOGETHER):
        rough = torch.addmm(square, x, places.T, alpha=-2)
        row = rough.topk(min(count + SPARE, len(places)), largest=False).indices.sort().values
        # Differences of squares lose small distances, and with them the order of the first few rows.
        exact = torch.linalg.vector_norm(x[:, None] - places[row], dim=2)
        distance, order = exact.sort(stable=True)  # of equal ones the first row of the bank
        found.append((distance[:, :count], row.gather(1, order)[:, :count]))
    distances, rows = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(rows)


def to_neighbour(places: Tensor, features: Tensor, neighbour: int) -> Tensor:
    """Distance `(n,)` to the `neighbour`-th nearest row of the bank (Sun et al. 2022, ICML 162, 20827).

    The mean over the members: a network may see an unknown class as one that it knows, and others, trained
    from other weights, do so with other rows (`scripts/bench/configs/gap-unknown.yaml`).

    Parameters
    ----------
    places
        `(E, M, F + 1)` of training rows, of each of E members, from `placed`.
    features
        `(E, n, F)`, on the same device.
    neighbour
        Counts from 1; the farthest row when the bank is smaller.
    """
    each = [nearest(ours, theirs, neighbour)[0][:, -1] for ours, theirs in zip(places, features, strict=True)]
    return torch.stack(each).mean(0)
