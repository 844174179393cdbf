"""The gate for source files and whole verbs: a few trials of each row; all but the gating ones are slow."""

from __future__ import annotations

import os
from pathlib import Path

import catalogues  # noqa: F401 - adds its rows to those of verbs
import changes  # noqa: F401 - the same
import foreign_fuzz  # noqa: F401 - the same
import fuzz  # noqa: F401 - the same
import learning  # noqa: F401 - the same
import loading  # noqa: F401 - the same
import network  # noqa: F401 - the same
import other_verbs  # noqa: F401 - the same
import payloads  # noqa: F401 - the same
import pytest
import recount  # noqa: F401 - the same
import rows
import searching  # noqa: F401 - the same
import soak  # noqa: F401 - the same
import sources
import training_state  # noqa: F401 - the same
import trees  # noqa: F401 - the same
import verbs
import workers  # noqa: F401 - the same


def judged(row: rows.Row, directory: Path) -> None:
    tally = row.run(row.gate, int(os.environ.get("FAULT_SEED", "0")), directory)
    print(tally)
    if tally.skipped:
        pytest.skip(tally.skipped)
    assert tally.trials
    assert tally.clean, tally


def name(row: rows.Row) -> str:
    return f"{row.number}-{row.name[:40]}"


def marked(found: list[rows.Row]) -> list[object]:
    return [pytest.param(r, id=name(r), marks=[] if r.gating else pytest.mark.slow) for r in found]


@pytest.mark.parametrize("row", marked(sources.SOURCE_ROWS))
def test_source_row(row: rows.Row, tmp_path: Path) -> None:
    judged(row, tmp_path)


@pytest.mark.parametrize("row", marked(verbs.VERB_ROWS))
def test_verb_row(row: rows.Row, sky: Path, tmp_path: Path) -> None:
    verbs.SKY = sky
    judged(row, tmp_path)
