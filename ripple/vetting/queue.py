"""Which objects are graded, and in which order each grader sees them, hidden tests among them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["shuffle", "rank", "uncertain", "similar", "disagree"]
Rows = NDArray[np.int64]

#: Objects of a block, and the tests among them in the first, second and third block, and in all later ones:
#: 40, 30, 20 and 10 %, as in Space Warps (Marshall et al. 2016).
BLOCK, TESTS = 20, (8, 6, 4, 2)
#: A second look comes at least so many objects after the first.
APART = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """Positions in the table by rank: candidates, and tests with their `truth`, 1 lens and 0 not."""

    candidates: Rows
    tests: Rows
    truth: NDArray[np.int8]


def choose(label: NDArray[np.int8], top: int, *, tests: bool, seed: int) -> Chosen:
    """The best `top` rows, and labelled rows to hide among them.

    Parameters
    ----------
    label
        `(N,)` by rank: 1 lens, 0 not a lens, -1 unknown.
    top
        Candidates to grade.
    tests
        Whether to hide tests.
    seed
        Of the choice of tests.

    Returns
    -------
    chosen
        Tests are drawn from the labelled rows that rank as well as the candidates, then from the next best:
        tests that are easier than the candidates make everybody look skilled. At most half of the lenses and
        of the others are tests; the rest stay candidates like any other row.
    """
    rng, reach = np.random.default_rng([seed, 1]), min(top, len(label))
    found: list[Rows] = []
    for kind in (1, 0):
        known = np.flatnonzero(label == kind)
        pool = np.concatenate([rng.permutation(known[known < reach]), known[known >= reach]])
        found.append(pool[: min(needed(top) // 2, len(known) // 2)] if tests else pool[:0])
    both = np.concatenate(found)
    truth = np.repeat(np.array([1, 0], np.int8), [len(part) for part in found])
    rest = np.setdiff1d(np.arange(len(label)), both)[:top]
    return Chosen(rest, both, truth)


def needed(candidates: int) -> int:
    """Tests among so many candidates, rounded up to an even number."""
    tests, left, block = 0, candidates, 0
    while left > 0:
        here = TESTS[min(block, len(TESTS) - 1)]
        tests, left, block = tests + here, left - (BLOCK - here), block + 1
    return tests + tests % 2


def queue(
    value: NDArray[np.float64],
    is_test: NDArray[np.bool_],
    *,
    order: Order,
    repeat: float,
    seed: int,
    grader: str,
) -> Rows:
    """Objects in the order in which a grader sees them, some of them twice.

    Parameters
    ----------
    value
        `(N,)` of the objects, which are in order of rank; NaN where it is not known. For `uncertain` the
        probability, for `similar` the similarity, for `disagree` the spread of the grades of others.
    is_test
        `(N,)`.
    order
        Of the candidates: a shuffle, by rank, those nearest to a probability of one half first, the most
        similar ones first, or those first on which others disagree and then the rest in a shuffle.
    repeat
        Share of the objects shown a second time.
    seed, grader
        Every grader has another shuffle, and other places of the tests.
    """
    name = int.from_bytes(hashlib.sha256(grader.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, 2, name])
    candidates = _ordered(np.flatnonzero(~is_test), value, order, rng)
    mixed = _mixed(candidates, rng.permutation(np.flatnonzero(is_test)), rng)
    return _with_second_looks(mixed, round(repeat * len(mixed)), rng)


def _ordered(rows: Rows, value: NDArray[np.float64], order: Order, rng: np.random.Generator) -> Rows:
    # NaN is sorted last: about these nothing is known.
    match order:
        case "shuffle":
            return rng.permutation(rows)
        case "rank":
            return rows
        case "uncertain":
            return rows[np.argsort(np.abs(value[rows] - 0.5), kind="stable")]
        case "similar":
            return rows[np.argsort(-value[rows], kind="stable")]
        case "disagree":
            shuffled = rng.permutation(rows)
            differing = np.where(value[shuffled] > 0, value[shuffled], 0.0)  # also NaN, who nobody graded
            return shuffled[np.argsort(-differing, kind="stable")]


def _mixed(candidates: Rows, tests: Rows, rng: np.random.Generator) -> Rows:
    """Candidates in their order, with tests at random places of each block while both last."""
    out: list[Rows] = []
    block = 0
    while len(candidates):
        count = min(TESTS[min(block, len(TESTS) - 1)], len(tests))
        here, candidates = np.split(candidates, [min(BLOCK - count, len(candidates))])
        size = len(here) + count
        mixed, at = np.empty(size, np.int64), np.zeros(size, bool)
        at[rng.permutation(size)[:count]] = True
        mixed[at], mixed[~at], tests = tests[:count], here, tests[count:]
        out.append(mixed)
        block += 1
    return np.concatenate(out) if out else np.zeros(0, np.int64)


def _with_second_looks(mixed: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Insert `count` second looks, each at least `APART` places after the first."""
    early = len(mixed) - APART
    if early <= 0 or count == 0:
        return mixed
    first = np.sort(rng.choice(early, min(count, early), replace=False))
    # A place after which it comes, in the queue without second looks.
    after = rng.integers(first + APART, len(mixed) + 1)
    return np.insert(mixed, after, mixed[first])
