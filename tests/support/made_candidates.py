"""Candidates as `ripple consensus` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ripple.config import Config
from ripple.report.cards import csv_bytes
from ripple.storage.directory import write_directory
from ripple.storage.files import write_new
from ripple.storage.parquet import parquet_bytes


class GradesConfig(Config):
    """Stands for the options of `consensus`."""

    verb: ClassVar[str] = "consensus"


def write_candidates(
    directory: Path, rows: list[dict[str, Any]], tests: list[dict[str, Any]], scores: str = "0" * 64
) -> Path:
    """Candidates as `ripple consensus` writes them, with the columns that training reads."""
    schema = pa.schema([
        ("id", pa.string()), ("ra", pa.float64()), ("dec", pa.float64()), ("probability", pa.float64()),
        ("low", pa.float64()), ("high", pa.float64()), ("class", pa.string()), ("rank", pa.int64()),
    ])  # fmt: skip
    table, held = (pa.Table.from_pylist(each, schema) for each in (rows, tests))

    def build(partial: Path) -> None:
        write_new(partial / "candidates.parquet", parquet_bytes(table))
        write_new(partial / "tests.csv", csv_bytes(held))

    write_directory(directory, "candidates", GradesConfig(), {"scores": scores, "grades": []}, build)
    return directory


def grade(name: str, p: float, *, half: float = 0.05, kind: str = "", **place: float) -> dict[str, Any]:
    found = {"ra": float("nan"), "dec": float("nan"), "rank": 1} | place
    return {"id": name, "probability": p, "low": p - half, "high": p + half, "class": kind, **found}
