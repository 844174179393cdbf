"""The gate: a few trials of every row. `scripts/faults` runs the full counts."""

from __future__ import annotations

import os
from pathlib import Path

import power  # noqa: F401 - adds its row
import pytest
import rows


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda r: f"{r.number}-{r.run.__name__}-{r.name[:30]}")
def test_row(row: rows.Row, tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULT_SEED", "0"))
    tally = row.run(row.gate, seed, tmp_path)
    print(tally)
    if tally.skipped:
        pytest.skip(tally.skipped)
    assert tally.trials
    assert tally.clean, tally
