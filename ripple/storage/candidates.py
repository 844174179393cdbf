"""What `ripple consensus` wrote, read back: graded candidates, and the hidden tests among them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ripple.storage.checksums import parse_listing, read_verified
from ripple.storage.files import parse_parquet
from ripple.storage.manifest import MANIFEST, read_manifest

KIND = "candidates"
TABLE, TESTS = "candidates.parquet", "tests.csv"
_NUMBERS = ("ra", "dec", "rank", "probability")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Graded objects.

    Parameters
    ----------
    digest, scores
        Of the candidates, and of the scores that were graded.
    table
        One row per candidate: `id`, `ra`, `dec` (deg ICRS), `probability`, `low`, `high`, `class`, ...
    tests
        `id`, `ra`, `dec`, `rank`, `probability` of the hidden tests, whose truth was known before.
    """

    digest: str
    scores: str
    table: pa.Table
    tests: pa.Table


def read_candidates(directory: Path) -> Candidates:
    """Read and verify candidates.

    Raises
    ------
    InputError
        Not a directory of candidates.
    IntegrityError
        A file is damaged.
    """
    manifest = read_manifest(directory, KIND)
    files = parse_listing(directory / MANIFEST, manifest["files"])
    table = parse_parquet(read_verified(directory / TABLE, files[TABLE]))
    text = read_verified(directory / TESTS, files[TESTS]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    tests: dict[str, pa.Array] = {"id": pa.array([row["id"] for row in rows], pa.string())}
    for name in _NUMBERS:
        tests[name] = pa.array([float(row[name] or "nan") for row in rows], pa.float64())
    return Candidates(str(manifest["digest"]), str(manifest["inputs"]["scores"]), table, pa.table(tests))
