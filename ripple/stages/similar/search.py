"""Exact search: the rows whose directions have the largest cosine with one of some examples.

Every row is looked at. float32 first, with a bound on its error; what may be among the best is computed again
in float64, so that the order does not depend on how the sums were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.stages.similar.query import DIGITS, Query, starts, unit
from ripple.storage.artefact import Artefact
from ripple.storage.embeddings import mapped, taken

#: Which rows of a table to search: `(N,)` bool.
Keep = Callable[[pa.Table], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Hits:
    """The best rows, best first: similarity `(n,)`, number over all shards, and their columns."""

    similarity: NDArray[np.float64]
    number: NDArray[np.int64]
    table: pa.Table

    def best(self, top: int) -> Hits:
        """The first `top` of them; equal similarities in the order of the rows."""
        order = np.lexsort((self.number, -self.similarity))[:top]
        return Hits(self.similarity[order], self.number[order], self.table.take(order))


def nearest(
    artefact: Artefact,
    query: Query,
    top: int,
    columns: tuple[str, ...],
    keep: Keep,
    *,
    without: NDArray[np.int64],
    read: tuple[str, ...] = (),
    above: float = -np.inf,
) -> Hits:
    """The rows that are nearest to an example, and not nearer to a counter-example.

    Parameters
    ----------
    artefact
        Embeddings.
    query
        What is looked for.
    top
        How many.
    columns
        To give of the best rows.
    keep
        Which rows are searched.
    without
        Numbers of rows that are not searched.
    read
        Columns that `keep` needs besides.
    above
        Least similarity.

    Raises
    ------
    IntegrityError
        A shard is damaged.
    """
    from ripple.stages.similar import loops  # loads numba

    single = np.concatenate([query.like, query.unlike]).astype(np.float32)
    slack = 2 * float32_error(single.shape[1])
    first, best = starts(artefact), Hits(np.zeros(0), np.zeros(0, np.int64), pa.table({}))
    for k, shard in enumerate(artefact.shards):
        with mapped(artefact, k, (*columns, *read)) as rows:
            near = np.empty(shard.rows, np.float32)
            loops.nearest(rows.vector, single, len(query.like), slack, near)
            mine = without[(without >= first[k]) & (without < first[k + 1])] - first[k]
            near[mine] = -np.inf
            least = above if len(best.number) < top else max(above, float(best.similarity[-1]))
            # The conditions are looked at for rows that are similar enough only.
            at = np.flatnonzero(near >= max(least - slack, -2.0))  # none that are left out
            at = at[keep(rows.table if len(at) == shard.rows else rows.table.take(at))]
            if len(at) > top:
                at = at[near[at] >= np.partition(near[at], len(at) - top)[len(at) - top] - slack]
            similarity = query.similarity(rows.vector[at])
            good = (similarity >= least) & np.isfinite(similarity)
            at, similarity = at[good], similarity[good]
            names = [name for name in columns if name in rows.table.column_names]
            hits = Hits(similarity, at + first[k], taken(rows.table.select(names), at)).best(top)
        best = _joined(best, hits).best(top)
    return best


def similarities(artefact: Artefact, query: Query, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Similarity of some rows `(n,)`, given by their ids as text.

    NaN for an id that the embeddings do not have, the largest one where several rows have it.

    Raises
    ------
    IntegrityError
        A shard is damaged.
    """
    names = pc.unique(ids)
    out = np.full(len(names), np.nan)
    for k in range(len(artefact.shards)):
        with mapped(artefact, k, ("id",)) as rows:
            place = pc.index_in(pc.cast(rows.table["id"], pa.string()), value_set=names)
            at = np.flatnonzero(place.is_valid().to_numpy())
            which = place.take(at).to_numpy()
            np.fmax.at(out, which, query.similarity(rows.vector[at]))
    return np.asarray(out[pc.index_in(ids, value_set=names).to_numpy()])


def float32_error(features: int) -> float:
    """How far a cosine in float32 can be off.

    F products and sums, each rounded to a part 2**-24, in any order (Higham 2002, Accuracy and Stability of
    Numerical Algorithms, eq. 3.5), as many for the square, and the roundings of query, root and quotient.
    """
    return (2 * features + 8) * 2.0**-24


def _joined(one: Hits, other: Hits) -> Hits:
    if not one.table.num_columns or not len(other.number):
        return other if not one.table.num_columns else one
    return Hits(
        np.concatenate([one.similarity, other.similarity]),
        np.concatenate([one.number, other.number]),
        pa.concat_tables([one.table, other.table], promote_options="default"),
    )


# Pairs --------------------------------------------------------------

#: Rows whose directions are in memory as float32, and rows multiplied at a time: products that stay in the
#: cache of the processor (2 MB) cost a third less.
_PANEL, _TILE = 8192, (1024, 512)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to compare: vectors `(N, F)` int8, their columns, and their numbers `(N,)` over all shards."""

    vector: NDArray[np.int8]
    table: pa.Table
    number: NDArray[np.int64]


def loaded(artefact: Artefact, columns: tuple[str, ...], keep: Keep, read: tuple[str, ...] = ()) -> Part:
    """The rows to compare, in memory.

    Raises
    ------
    IntegrityError
        A shard is damaged.
    """
    first = starts(artefact)
    vectors, tables, numbers = [], [], []
    for k in range(len(artefact.shards)):
        with mapped(artefact, k, (*columns, *read)) as rows:
            at = np.flatnonzero(keep(rows.table))
            names = [name for name in columns if name in rows.table.column_names]
            vectors.append(rows.vector[at])
            tables.append(taken(rows.table.select(names), at))
            numbers.append(at + first[k])
    if not vectors:
        return Part(np.zeros((0, 1), np.int8), pa.table({}), np.zeros(0, np.int64))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return Part(np.concatenate(vectors), table, np.concatenate(numbers))


def one_thread() -> AbstractContextManager[object]:
    """Products on one thread, where the package that can say so is installed (it comes with scikit-learn).

    Tiles are too small to share: on busy cores the waiting of two threads took four times the CPU time.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


def pairs(
    one: NDArray[np.int8], other: NDArray[np.int8], above: float, *, same: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Pairs of rows of at least a similarity, block by block: rows of each, and their cosines.

    Parameters
    ----------
    one, other
        `(N, F)` and `(M, F)`.
    above
        Least cosine.
    same
        `other` is `one`: each pair once, and no row with itself.
    """
    least = above - 2 * float32_error(one.shape[1])
    for i in range(0, len(one), _PANEL):
        left = unit(one[i : i + _PANEL]).astype(np.float32)
        for j in range(i if same else 0, len(other), _PANEL):
            right = unit(other[j : j + _PANEL]).astype(np.float32)
            a, b = _alike(left, right, least)
            a, b = a + i, b + j
            if same:
                a, b = a[a < b], b[a < b]
            cosine = np.round(np.einsum("nf,nf->n", unit(one[a]), unit(other[b])), DIGITS)
            yes = cosine >= above
            yield a[yes], b[yes], cosine[yes]


def _alike(
    left: NDArray[np.float32], right: NDArray[np.float32], least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `left` and of `right` whose product is at least so large."""
    high, wide = _TILE
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = [(np.zeros(0, np.int64),) * 2]
    for i in range(0, len(left), high):
        for j in range(0, len(right), wide):
            product = left[i : i + high] @ right[j : j + wide].T
            if product.max() >= least:  # nearly never, and cheaper to ask than to list
                a, b = np.nonzero(product >= least)
                found.append((a + i, b + j))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])
