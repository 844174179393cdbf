"""Random tables through every format and in memory: ids, labels and positions come back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from ripple.cli import run
from ripple.errors import CatalogueError
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import Columns, from_table

ROWS = 30
FORMATS = ("csv", "ecsv", "fits", "vot", "parquet", "memory")
#: Of every width; FITS and VOTable have no unsigned integers of some widths, which astropy shifts or widens.
KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">i4", ">i8", "text", "bytes", "f8")


def random_ids(rng: np.random.Generator, kind: str) -> tuple[Any, list[Any]]:
    """A column of distinct ids, and what they are."""
    if kind in ("text", "bytes"):
        words = [f"{'0' * int(rng.integers(3))}{k}{'abcE7 .'[int(rng.integers(7))]}{k}" for k in range(ROWS)]
        return np.array(words, dtype="S" if kind == "bytes" else "U"), words
    if kind == "f8":
        whole = rng.choice(2**53, ROWS, replace=False).astype(np.float64)
        return whole, whole.astype(np.int64).tolist()
    info = np.iinfo(kind)
    low, high = int(info.min), int(info.max)
    picked: set[int] = set()
    while len(picked) < ROWS:
        picked.add(min(high, max(low, low + int(rng.integers(2**63)) * 2 % (high - low + 1))))
    values = list(picked)
    return np.array(values, dtype=kind), values


def random_labels(rng: np.random.Generator, kind: str) -> tuple[Any, list[int]]:
    """A column of labels, and what they are."""
    want = rng.integers(-1, 2, ROWS)
    if kind == "text":
        return np.array(["", "nonlens", "lens"])[want + 1], want.tolist()
    if kind == "masked":
        return MaskedColumn(np.maximum(want, 0), mask=want < 0), want.tolist()
    if kind == "f4":
        return np.where(want < 0, np.nan, want).astype(np.float32), want.tolist()
    if kind == "?":
        return np.maximum(want, 0).astype(bool), np.maximum(want, 0).tolist()
    return want.astype(kind), want.tolist()


def written(table: Table, form: str, directory: Path) -> UserTable:
    """The table after a way through a file, or in memory."""
    path = directory / f"t.{form}"
    match form:
        case "memory":
            return UserTable.in_memory(table)
        case "csv":
            table.write(path, format="ascii.csv")
        case "parquet":
            plain = {
                name: pa.array(
                    np.char.decode(np.asarray(c)) if c.dtype.kind == "S"
                    else np.asarray(c).astype(c.dtype.newbyteorder("=")),
                    mask=np.asarray(c.mask) if hasattr(c, "mask") else None,
                )
                for name, c in table.columns.items()
            }  # fmt: skip
            pyarrow.parquet.write_table(pa.table(plain), path)
        case "vot":
            table.write(path, format="votable")
        case _:
            table.write(path, format={"ecsv": "ascii.ecsv", "fits": "fits"}[form])
    return read_table(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_tables_come_back(tmp_path: Path, form: str, seed: int) -> None:
    rng = np.random.default_rng([seed, FORMATS.index(form)])
    for number, kind in enumerate(KINDS):
        ids, want = random_ids(rng, kind)
        label_kind = ["i2", "i8", ">i4", "f4", "?", "text", "masked"][(number + seed) % 7]
        labels, known = random_labels(rng, label_kind)
        ra, dec = rng.uniform(0, 360, ROWS), rng.uniform(-90, 90, ROWS)
        table = Table({"id": ids, "ra": ra, "dec": dec, "label": labels})
        directory = tmp_path / str(number)
        directory.mkdir()
        if form == "vot" and kind in ("i1", "u2", "u4", "u8"):
            continue  # VOTable has no such types
        if form == "fits" and kind == "i1":  # astropy writes these as true and false
            with pytest.raises(CatalogueError, match="true and false are no ids"):
                from_table(written(table, form, directory), Columns(), source={})
            continue
        found = from_table(written(table, form, directory), Columns(), source={"name": kind})
        if form == "csv" and kind == "f8":  # as the file writes them, which are no integers
            assert list(map(float, found.id.tolist())) == [float(v) for v in want]
        else:
            assert found.id.tolist() == want, kind
        np.testing.assert_array_equal(found.ra, ra)
        np.testing.assert_array_equal(found.dec, dec)
        assert found.extra["label"].to_pylist() == known, label_kind


@pytest.mark.parametrize("form", ["parquet", "fits", "memory"])
def test_float_ids_that_lost_digits_are_refused(tmp_path: Path, form: str) -> None:
    table = Table({"id": [2.0**53 + 2, 7.0], "ra": [100.0, 101.0], "dec": [0.0, 1.0]})
    with pytest.raises(CatalogueError, match="at most 53 bits, row 0"):
        from_table(written(table, form, tmp_path), Columns(), source={})


def test_a_fits_file_with_several_tables_asks_which(tmp_path: Path) -> None:
    path = tmp_path / "t.fits"
    tables = [Table({"ra": [100.0 + k], "dec": [1.0]}, meta={"EXTNAME": name}) for k, name in enumerate("AB")]
    fits.HDUList([fits.PrimaryHDU(), *map(fits.table_to_hdu, tables)]).writeto(path)
    with pytest.raises(CatalogueError, match=r"2 tables; the tables are 1 A, 2 B .*--hdu"):
        read_table(path)
    for name in ("b", "2"):
        assert read_table(path, hdu=name).columns["ra"].to_pylist() == [101.0]
    with pytest.raises(CatalogueError, match="no table 'C'"):
        read_table(path, hdu="C")
    (tmp_path / "t.csv").write_text("ra,dec\n100,1\n")
    with pytest.raises(CatalogueError, match="no FITS file"):
        read_table(tmp_path / "t.csv", hdu="A")


@pytest.mark.parametrize("option", ["--hdu", "--id-column", "--select"])
def test_locate_reads_options_of_tables_only_with_one(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["locate", "53.1", "-27.8", "--skymap", "lsst_cells_v2", option, "2"]) == 2
    assert f"{option} needs --targets" in capsys.readouterr().err
