"""One bad row of a catalogue never stops the others, and never goes unnamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ripple.cli import run
from ripple.errors import CatalogueError
from ripple.stages.plan.tables import read_table
from ripple.stages.plan.targets import Columns, from_table
from ripple.storage.artefact import open_artefact

GOOD = [f"{k},{100 + k},{k / 10}" for k in range(60)]
BAD = {5: "bad5,105,-127", 11: "bad11,abc,1.0", 17: "bad17,,1.0", 23: "bad23,123", 31: "bad31,131,1.0,9,9"}


def table(folder: Path, lines: list[str]) -> Path:
    path = folder / "t.csv"
    path.write_text("id,ra,dec\n" + "\n".join(lines) + "\n")
    return path


def mixed() -> list[str]:
    return [BAD.get(k, line) for k, line in enumerate(GOOD)]


def test_bad_rows_are_rejected_by_name(tmp_path: Path) -> None:
    targets = from_table(read_table(table(tmp_path, mixed())), Columns(), source={"name": "t.csv"})
    assert len(targets) == 60
    # A row with too many cells has its position in the first ones.
    assert sorted(targets.rejected) == [5, 11, 17, 23]
    said = {k: text for k, (_, text) in targets.rejected.items()}
    assert said[5].startswith("row 5 of the table: ra '105', dec -127") or "dec -127" in said[5]
    assert "'abc'" in said[11]
    assert "None" in said[23]
    assert {reason.value for reason, _ in targets.rejected.values()} == {"bad_position"}
    good = np.setdiff1d(np.arange(60), [5, 11, 17, 23])
    np.testing.assert_allclose(targets.ra[good], 100.0 + good)
    assert targets.id[31] == "bad31"


def test_strict_and_too_many(tmp_path: Path) -> None:
    path = table(tmp_path, mixed())
    with pytest.raises(CatalogueError, match="in 3 of 60 rows, rows 11, 17, 23"):
        from_table(read_table(path), Columns(), source={"name": "t.csv"}, strict=True)
    many = [line if k % 4 else f"{k},{100 + k},95" for k, line in enumerate(GOOD)]
    with pytest.raises(CatalogueError, match="in 15 of 60 rows, rows 0, 4, 8, 12, 16"):
        from_table(read_table(table(tmp_path, many)), Columns(), source={"name": "t.csv"})
    with pytest.raises(CatalogueError, match="15 rows have another number of columns"):
        read_table(table(tmp_path, [line if k % 4 else f"{k},{k}" for k, line in enumerate(GOOD)]))


def test_fetch_goes_on(
    one_of_each: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sky = one_of_each["sky"]
    truth = pq.read_table(sky / "truth.parquet")
    lines = [
        f"{k},{r},{d}"
        for k, (r, d) in enumerate(zip(*(truth[n].to_pylist() for n in ("ra", "dec")), strict=True))
    ]
    lines = (lines * 3)[:30] if len(lines) < 30 else lines[:30]
    lines[3] = "lost,nan,nan"
    path = table(tmp_path, lines)
    where = ["--repo", str(sky / "repo"), "--collections", "mini", "--targets", str(path)]
    argv = ["fetch", *where, "--bands", "gri", "--size", "32", "--workers", "0", "-o", str(tmp_path / "c")]
    assert run(argv) == 0
    index = open_artefact(tmp_path / "c").index()
    assert index.num_rows == 30
    assert index["reason"].to_pylist()[3] == "bad_position"
    assert "ok" in index["status"].to_pylist()
    assert "which rows, and why: ripple show" in capsys.readouterr().err
    assert run([*argv[:-1], str(tmp_path / "d"), "--strict"]) == 3
