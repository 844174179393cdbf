"""Which objects are graded, in which order, and where the hidden tests are."""

from __future__ import annotations

import numpy as np
import pytest

from ripple.vetting.queue import APART, choose, needed, queue

LABEL = np.full(2000, -1, np.int8)
LABEL[5:1500:10] = 1
LABEL[7:1500:6] = 0


def drawn(grader: str = "ann", **options: object) -> tuple[np.ndarray, np.ndarray]:
    """A queue of 300 candidates, and which of its places are tests."""
    chosen = choose(LABEL, 300, tests=True, seed=1)
    rows = np.sort(np.concatenate([chosen.candidates, chosen.tests]))
    how = {"order": "shuffle", "repeat": 0.0, "seed": 1} | options
    places = queue(np.linspace(1, 0, len(rows)), np.isin(rows, chosen.tests), grader=grader, **how)  # type: ignore[arg-type]
    return places, np.isin(rows, chosen.tests)[places]


def test_tests_rank_as_well_as_the_candidates() -> None:
    chosen = choose(LABEL, 300, tests=True, seed=1)
    assert len(chosen.candidates) == 300
    assert len(set(chosen.candidates) & set(chosen.tests)) == 0
    assert (LABEL[chosen.tests] == chosen.truth).all()
    assert [(chosen.truth == kind).sum() for kind in (1, 0)] == [needed(300) // 2] * 2
    assert np.median(chosen.tests) < 320
    assert len(choose(LABEL, 300, tests=False, seed=1).tests) == 0


def test_at_most_half_of_what_is_known_is_hidden() -> None:
    label = np.array([1, 0, -1, 1, 0, 0, 0, -1, -1, 1], np.int8)
    chosen = choose(label, 100, tests=True, seed=3)
    assert sorted(LABELS := label[chosen.tests].tolist()) == [0, 0, 1], LABELS
    assert len(chosen.candidates) == 7


def test_shares_of_tests_fall_from_40_to_10_per_cent() -> None:
    places, test = drawn()
    assert sorted(places) == list(range(len(places)))
    assert [test[k : k + 20].sum() for k in (0, 20, 40, 60, 80)] == [8, 6, 4, 2, 2]


@pytest.mark.parametrize("order", ["rank", "uncertain"])
def test_candidates_keep_their_order(order: str) -> None:
    places, test = drawn(order=order)
    candidates = places[~test]
    wanted = np.abs(np.linspace(1, 0, len(places))[candidates] - 0.5) if order == "uncertain" else candidates
    assert (np.diff(wanted) >= -1e-12).all()


def test_similar_first_and_what_is_not_embedded_last() -> None:
    value = np.array([0.2, np.nan, 0.9, 0.5, np.nan, 0.9])
    places = queue(value, np.zeros(6, bool), order="similar", repeat=0, seed=1, grader="ann")
    assert places.tolist() == [2, 5, 3, 0, 1, 4]


def test_disagreement_first_then_a_shuffle_of_the_rest() -> None:
    value = np.full(400, np.nan)
    value[:100] = 0.0  # others agree
    value[[30, 40, 200]] = 0.5, 1.5, 1.0
    orders = [
        queue(value, np.zeros(400, bool), order="disagree", repeat=0, seed=1, grader=name).tolist()
        for name in ("ann", "bob", "ann")
    ]
    assert all(order[:3] == [40, 200, 30] and sorted(order) == list(range(400)) for order in orders)
    assert orders[0] == orders[2] != orders[1]
    assert np.mean(np.array(orders[0][3:103]) < 100) < 0.5


def test_graders_have_different_orders_and_every_start_gives_the_same() -> None:
    assert (drawn("ann")[0] == drawn("ann")[0]).all()
    assert (drawn("ann")[0] != drawn("bob")[0]).any()


def test_second_looks_come_later() -> None:
    places, _ = drawn(repeat=0.1)
    seen: dict[int, int] = {}
    gaps = []
    for place, k in enumerate(places.tolist()):
        if k in seen:
            gaps.append(place - seen[k])
        seen.setdefault(k, place)
    assert len(gaps) == round(0.1 * len(seen))
    assert min(gaps) >= APART
