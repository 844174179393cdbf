"""Verdicts on many rows behave as the dictionary that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ripple.errors import Reason
from ripple.storage.outcomes import Verdicts

VERDICTS = [(Reason.DUPLICATE, "a"), (Reason.NO_PATCH, "b"), (Reason.NO_PATCH, "c")]
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 19), max_size=8, unique=True), st.sampled_from(VERDICTS)))


def made(steps: list[tuple[list[int], tuple[Reason, str]]]) -> tuple[Verdicts, dict[int, tuple[Reason, str]]]:
    found, plain = Verdicts(20), {}
    for rows, verdict in steps:
        found.add(rows, verdict)
        for row in rows:
            plain.setdefault(row, verdict)
    return found, plain


@given(STEPS, STEPS)
def test_they_are_a_dictionary(steps: list, more: list) -> None:
    (found, plain), (other, others) = made(steps), made(more)
    assert dict(found) == plain
    assert list(found) == sorted(plain)
    assert np.flatnonzero(found.mask).tolist() == sorted(plain)
    grouped = {int(row): verdict for rows, verdict in found.groups() for row in rows}
    assert grouped == plain
    assert sum(found.reasons().values()) == len(found) == len(plain)
    assert dict(found.without(other)) == {k: v for k, v in plain.items() if k not in others}
    assert Verdicts(20, plain) == found


def test_rows_beyond_have_none() -> None:
    found = Verdicts(3, {1: VERDICTS[0]})
    assert 1 in found
    assert 7 not in found
    assert -1 not in found
    with pytest.raises(KeyError):
        found[2]
