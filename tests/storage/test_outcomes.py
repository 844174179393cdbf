"""Outcomes of many rows behave as the dictionary that they stand for."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ripple.errors import Reason
from ripple.storage.outcomes import OK, STATUSES, Outcome, Outcomes

SOME = [
    Outcome("partial", Reason.MISSING_BAND, "no r"),
    Outcome("partial", Reason.OUTSIDE, "part of the box"),
    Outcome("rejected", Reason.NO_PATCH, "b"),
    Outcome("rejected", Reason.NO_PATCH, "c"),
]
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 19), max_size=8, unique=True), st.sampled_from(SOME)))


def made(steps: list[tuple[list[int], Outcome]]) -> tuple[Outcomes, list[Outcome]]:
    """The outcomes, and what they must be: the first, unless a graver one follows."""
    found, plain = Outcomes(20), [OK] * 20
    for rows, outcome in steps:
        found.add(rows, outcome)
        for row in rows:
            if STATUSES.index(outcome.status) > STATUSES.index(plain[row].status):
                plain[row] = outcome
    return found, plain


@given(STEPS, STEPS)
def test_they_are_a_list(steps: list, more: list) -> None:
    (found, plain), (other, others) = made(steps), made(more[:3])
    assert [found[row] for row in range(20)] == plain
    grouped = {int(row): outcome for rows, outcome in found.groups() for row in rows}
    assert grouped == {row: outcome for row, outcome in enumerate(plain) if outcome is not OK}
    for status in STATUSES:
        assert found.count(status) == sum(outcome.status == status for outcome in plain)
    assert sum(found.reasons().values()) == len(grouped)
    assert Outcomes.read_record(20, json.loads(json.dumps(found.record()))) == found
    columns = {name: column.to_pylist() for name, column in found.columns().items()}
    assert columns["detail"] == [outcome.detail for outcome in plain]
    assert Outcomes.read_columns(columns) == found
    if others != plain:
        assert found != other
    found.put([*range(20)], other)
    assert found == other
