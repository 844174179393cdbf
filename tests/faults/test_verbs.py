"""The gate for whole verbs: a few trials of each row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import rows
import verbs


@pytest.mark.slow
@pytest.mark.parametrize("row", verbs.VERB_ROWS, ids=lambda r: f"{r.number}-{r.name[:40]}")
def test_verb_row(row: rows.Row, sky: Path, tmp_path: Path) -> None:
    verbs.SKY = sky
    tally = row.run(row.gate, int(os.environ.get("FAULT_SEED", "0")), tmp_path)
    print(tally)
    assert tally.clean, tally
