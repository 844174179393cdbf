"""Tables of targets: formats, columns, units, conditions, duplicates."""

from __future__ import annotations

import gzip
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from astropy import units
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.cli import run
from ripple.errors import CatalogueError, ConfigError, Reason
from ripple.stages.plan.select import columns_of, matching
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import Columns, Targets, duplicates, from_table

RA, DEC = [150.1, 150.2, 359.99], [2.2, -2.3, 89.0]


def make(columns: dict[str, object], given: Columns = Columns(), **kwargs: object) -> Targets:  # noqa: B008
    table = UserTable.of(pa.table(columns))
    return from_table(table, given, source={"name": "table"}, **kwargs)  # type: ignore[arg-type]


def example() -> Table:
    return Table(
        {
            "objectId": np.array([11, 12, 2**60]), "coord_ra": RA, "coord_dec": DEC,
            "mag": [20.5, np.nan, 22.0], "flag": [True, False, True], "name": ["a", "b", "ü"],
            "label": [1, 0, -1],
        }
    )  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "ecsv", "fits", "vot", "parquet", "tsv", "csv.gz"])
def test_every_format_gives_the_same_targets(tmp_path: Path, form: str) -> None:
    path, table = tmp_path / f"t.{form}", example()
    if form == "parquet":
        pyarrow.parquet.write_table(pa.table({n: table[n].tolist() for n in table.colnames}), path)
    elif form == "tsv":
        table.write(path, format="ascii.tab")
    else:
        kind = {"csv": "ascii.csv", "csv.gz": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits"}
        if form == "csv.gz":
            text = io.StringIO()
            table.write(text, format="ascii.csv")
            path.write_bytes(gzip.compress(text.getvalue().encode()))
            return check_example(path)
        if form == "fits":
            table["name"] = ["a", "b", "u"]  # FITS text is ASCII
        table.write(path, format=kind.get(form, "votable"))
    check_example(path)


def check_example(path: Path) -> None:
    found = from_table(read_table(path), Columns(), source={"name": path.name})
    assert found.id.tolist() == [11, 12, 2**60]
    np.testing.assert_array_equal(found.ra, RA)
    np.testing.assert_array_equal(found.dec, DEC)
    assert found.extra.column_names == ["mag", "flag", "name", "label"]
    assert found.extra["label"].to_pylist() == [1, 0, -1]
    assert np.isnan(found.extra["mag"].to_numpy()[1])
    assert found.extra["name"].to_pylist()[:2] == ["a", "b"]


def test_units_of_the_table_count(tmp_path: Path) -> None:
    table = Table({"id": [1], "ra": [np.pi], "dec": [0.1]}, units={"ra": units.rad, "dec": units.rad})
    table.write(tmp_path / "t.ecsv")
    found = from_table(read_table(tmp_path / "t.ecsv"), Columns(), source={})
    assert found.ra[0] == pytest.approx(180.0)
    assert found.dec[0] == pytest.approx(np.degrees(0.1))


def test_hours_are_never_guessed() -> None:
    columns = {"id": [1, 2], "ra": [3.5, 23.9], "dec": [1.0, 2.0]}
    with pytest.raises(CatalogueError, match=r"between 0 and 24.*--ra-unit"):
        make(columns)
    assert make(columns, Columns(ra_unit="deg")).ra.tolist() == [3.5, 23.9]
    assert make(columns, Columns(ra_unit="hour")).ra.tolist() == [52.5, 358.5]


@pytest.mark.parametrize("text", ["03:32:30.6", "3h32m30.6s", "03 32 30.6", " +3h 32m 30.6s "])
def test_sexagesimal(text: str) -> None:
    found = make({"id": [1], "ra": [text], "dec": ["-00:06:36"]})
    assert found.ra[0] == pytest.approx(15 * (3 + 32 / 60 + 30.6 / 3600), abs=1e-12)
    assert found.dec[0] == pytest.approx(-0.11, abs=1e-12)
    assert any("sexagesimal hours" in note for note in found.notes)


@settings(max_examples=40)
@given(st.floats(0, 359.99), st.floats(-89.99, 89.99))
def test_sexagesimal_agrees_with_astropy(ra: float, dec: float) -> None:
    from astropy.coordinates import Angle

    texts = (
        Angle(ra, "deg").to_string(unit="hourangle", sep=":", precision=9),
        Angle(dec, "deg").to_string(unit="deg", sep=":", precision=8),
    )
    found = make({"id": [1], "ra": [texts[0]], "dec": [texts[1]]})
    assert abs((found.ra[0] - ra + 180) % 360 - 180) < 1e-11
    assert abs(found.dec[0] - dec) < 1e-11


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ra": [10.0, np.nan], "dec": [1.0, 2.0]}, r"not a number in 1 of 2 rows, row 1"),
        ({"ra": [100.0, 400.0], "dec": [1.0, 2.0]}, r"right ascension outside .* row 1 .*ra 400"),
        ({"ra": [100.0, 200.0], "dec": [1.0, -91.0]}, r"declination outside .* row 1"),
        ({"ra": ["12:00:00", "noon"], "dec": [1.0, 2.0]}, r"'noon' is neither .* row 1"),
        (
            {"ra": ["53.1", "53.2", "noon"], "dec": [1.0, 2.0, 3.0]},
            r"'noon' cannot be read as a number, row 2",
        ),
        ({"ra": ["53.1", None], "dec": [1.0, 2.0]}, r"None cannot be read as a number, row 1"),
        ({"ra": ["53.1", "03:32:30"], "dec": [1.0, 2.0]}, r"'03:32:30' cannot be read as a number, row 1"),
        ({"ra": ["12:61:00"], "dec": [1.0]}, r"60 or more, row 0"),
        ({"x": [1.0], "dec": [1.0]}, r"no column looks like ra .*columns: x, dec"),
        ({"ra": pa.array([], pa.float64()), "dec": pa.array([], pa.float64())}, "no rows"),
        ({"id": pa.array([1, None]), "ra": [100.0, 200.0], "dec": [1.0, 2.0]}, "id is empty, row 1"),
        ({"ra": [100.0], "dec": [1.0], "label": ["arc"]}, r"label 'arc' in row 0.*--classes"),
        ({"ra": [True], "dec": [1.0]}, "a column of bool cannot be read as an angle"),
    ],
)
def test_bad_tables_name_their_rows(columns: dict[str, object], message: str) -> None:
    with pytest.raises(CatalogueError, match=message) as err:
        make(columns)
    assert err.value.exit_code == 3


def test_rows_keep_their_number_after_select() -> None:
    with pytest.raises(CatalogueError, match="row 2"):
        make({"ra": [100.0, 200.0, np.nan], "dec": [1.0, 2.0, 3.0], "m": [9, 1, 1]}, select="m < 5")


def test_columns_named_recognised_and_renamed() -> None:
    columns = {
        "ID": [1], "RAJ2000": [100.0], "DEJ2000": [5.0], "tract": [9], "truth": [1],
        "m": pa.array([None], pa.int64()), "vector": [[1.0, 2.0]], "stamp": [41],
    }  # fmt: skip
    found = make(columns, Columns(label="truth", size="stamp"))
    assert found.id.tolist() == [1]
    assert found.size is not None
    assert found.size.tolist() == [41]
    assert found.extra.column_names == ["input_tract", "label", "m"]
    assert found.extra["m"].to_pylist() == [-1]
    with pytest.raises(CatalogueError, match=r"no column 'truht' for label; did you mean 'truth'"):
        make(columns, Columns(label="truht"))
    with pytest.raises(CatalogueError, match="whole numbers of pixels, row 0"):
        make({"ra": [100.0], "dec": [1.0], "s": [0.5]}, Columns(size="s"))


def test_numbers_as_text_are_degrees() -> None:
    found = make({"id": [1, 2], "ra": [" 53.25", "+1e2 "], "dec": ["-.5", "20."]})
    assert found.ra.tolist() == [53.25, 100.0]
    assert found.dec.tolist() == [-0.5, 20.0]


def test_without_ids_the_row_number_is_used_and_said() -> None:
    found = make({"ra": [100.0, 200.0], "dec": [1.0, 2.0]})
    assert found.id.tolist() == [0, 1]
    assert "no column looks like id" in found.notes[0]


@pytest.mark.parametrize("ids", [["../../x", "\x1b[31m", "=1+1"], [2**64 - 1, 5, 6]])
def test_strange_ids_survive(ids: list[object]) -> None:
    kind = pa.uint64() if isinstance(ids[0], int) else pa.string()
    found = make({"id": pa.array(ids, kind), "ra": [100.0, 200.0, 300.0], "dec": [1.0, 2.0, 3.0]})
    assert found.id.tolist() == ids


def test_duplicates_by_id_and_by_place() -> None:
    arcsec = 1 / 3600
    ra = np.array([10.0, 10.0 + 0.1 * arcsec, 50.0, 359.9999999, 0.0000001, 10.0])
    dec = np.array([0.0, 0.0, 1.0, -5.0, -5.0, 20.0])
    found = duplicates(np.array([1, 2, 3, 4, 5, 3]), ra, dec, 0.2)
    assert list(found) == [1, 4, 5]
    assert all(reason is Reason.DUPLICATE for reason, _ in found.values())
    assert "0.100 arcsec from row 0 (id 1)" in found[1][1]
    assert found[5][1] == "id 3 is also that of row 2"
    assert list(duplicates(np.array([1, 2, 3, 4, 5, 3]), ra, dec, 0.0)) == [5]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_duplicates_agree_with_comparing_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    ra, dec = 359.9999 + rng.integers(0, 8, n) * 1e-4, rng.integers(0, 8, n) * 1e-4
    ids = rng.integers(0, 60, n)
    ra %= 360
    found = duplicates(ids, ra, dec, 0.4)
    wanted = set()
    for k in range(n):
        gap = np.hypot((ra[:k] - ra[k] + 180) % 360 - 180, dec[:k] - dec[k]) * 3600
        if (gap < 0.4).any() or (ids[:k] == ids[k]).any():
            wanted.add(k)
    assert set(found) == wanted


def test_a_million_identical_places_do_not_explode() -> None:
    found = duplicates(np.arange(5000), np.full(5000, 10.0), np.full(5000, 1.0), 0.2)
    assert len(found) == 4999


TABLE = pa.table(
    {
        "mag": [20.0, 22.0, None, float("nan")], "n": [1, 2, 3, 4], "s": ["a", "b", "c", "a"],
        "ok": [True, False, True, None],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("mag < 21", [0]), ("mag < 21 or n == 3", [0, 2]), ("not ok", [1]), ("n in (1, 4)", [0, 3]),
        ("n not in [1, 4]", [1, 2]), ("1 < n <= 3", [1, 2]), ("(n > 1) & ~(s == 'b')", [2, 3]),
        ("n / 2 > 1 AND NOT s == 'a'", [2]), ("abs(n - 3) == 1", [1, 3]), ("-n < -3", [3]),
        ("s == 'AND'", []),
        ("isnull(mag)", [2]), ("isfinite(mag) and mag ** 2 > 450", [1]), ("mag(1000 * n) < 23", [2, 3]),
        ("ok == True", [0, 2]), ("9**9**9 > n", [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_conditions(expression: str, rows: list[int]) -> None:
    assert np.flatnonzero(matching(TABLE, expression).to_numpy()).tolist() == rows


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')", "n.__class__", "[n for n in (1,)]", "lambda: 1", "n = 3", "n <", "",
        "n",
        "f'{n}'", "mag if ok else n", "n @ n", "open('x')", "mag(n, n)", "s[0] == 'a'", "n in n", "(n := 3)",
        "print(n)", "None", "n is None", "(" * 500 + "n" + ")" * 500, "n" * 5000, "n > 1j", "*n",
        "True < False", "'a' * 10**9 == s",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(expression: str) -> None:
    with pytest.raises((ConfigError, CatalogueError)):
        matching(TABLE, expression)


def test_conditions_name_unknown_columns_and_wrong_types() -> None:
    with pytest.raises(CatalogueError, match="no column 'magn'; did you mean 'mag'"):
        matching(TABLE, "magn < 3")
    with pytest.raises(CatalogueError, match="--select"):
        matching(TABLE, "s < 3")
    assert columns_of("abs(a - b) < 3 and mag(f) < 22") == ["a", "b", "f"]


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x01\x02", b"<html>no</html>", b"a,a\n1,2\n", b"SIMPLE  = F", b"PAR1xx"]
)
def test_files_that_are_no_tables(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(CatalogueError):
        from_table(read_table(path), Columns(), source={"name": "t"})
    with pytest.raises(CatalogueError, match="No such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(CatalogueError, match="not a HATS"):
        read_table(tmp_path)


def test_damaged_tables_are_errors_with_a_name(tmp_path: Path) -> None:
    """Text that is not UTF-8 in Parquet, and a FITS card that cannot be parsed; found by fuzzing."""
    path = tmp_path / "t.parquet"
    table = pa.table({"id": ["lens" * 9, "b"], "ra": [1.0, 2.0], "dec": [0.0, 0.0]})
    pa.parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"lenslens", b"\xff\xfe\xffslens"))
    with pytest.raises(CatalogueError, match=r"t\.parquet: cannot be read as a table"):
        read_table(path)
    path = tmp_path / "t.fits"
    Table({"id": [1, 2], "ra": [1.0, 2.0], "dec": [0.0, 0.0]}).write(path)
    whole = path.read_bytes()
    at = whole.index(b"TFORM1")
    path.write_bytes(whole[:at] + b"TFORM1  = 'K".ljust(80) + whole[at + 80 :])
    with pytest.raises(CatalogueError, match=r"t\.fits: cannot be read as a table"):
        read_table(path)


def test_a_hats_catalogue(tmp_path: Path) -> None:
    lsdb = pytest.importorskip("lsdb", reason="lsdb (extra `hats`) is not installed")
    import pandas as pd

    rng = np.random.default_rng(4)
    frame = pd.DataFrame(
        {"objectId": np.arange(900), "ra": rng.uniform(50, 60, 900), "dec": rng.uniform(-30, -20, 900)}
    )
    lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec").write_catalog(tmp_path / "cat")
    whole = from_table(read_table(tmp_path / "cat"), Columns(), source={"name": "cat"})
    assert sorted(whole.id.tolist()) == list(range(900))
    order = np.argsort(whole.id)
    np.testing.assert_array_equal(whole.ra[order], frame["ra"])
    table = read_table(tmp_path / "cat", cone=(55.0, -25.0, 2.0)).columns
    gap = np.hypot((table["ra"].to_numpy() - 55) * np.cos(np.radians(25)), table["dec"].to_numpy() + 25)
    assert 0 < len(gap) < 300
    assert gap.max() < 2.02


def test_a_catalogue_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ripple.errors import CatalogueError
    from ripple.stages.plan import tables

    path = tmp_path / "t.csv"
    path.write_text("id,ra,dec\n1,53.0,-28.0\n")
    read = tables._read_file

    def then(*arguments: Any) -> Any:
        found = read(*arguments)
        path.write_text("id,ra,dec\n1,54.0,-28.0\n")
        return found

    monkeypatch.setattr(tables, "_read_file", then)
    with pytest.raises(CatalogueError, match=r"t\.csv changed while it was read"):
        tables.read_table(path)


def test_a_pipe_is_no_catalogue(tmp_path: Path) -> None:
    from ripple.errors import CatalogueError
    from ripple.stages.plan.tables import read_table

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(CatalogueError, match="not a regular file"):
        read_table(tmp_path / "pipe.csv")


def test_an_object_table_of_other_content_under_the_same_uuid_is_refused(
    sky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from lsst.daf.butler import Butler

    shutil.copytree(sky, tmp_path / "sky")
    repo = tmp_path / "sky" / "repo"
    argv = [
        "fetch",
        "--repo",
        str(repo),
        "--collections",
        "mini",
        "--bands",
        "g",
        "--size",
        "16",
        "--workers",
        "0",
        "-o",
        str(tmp_path / "out"),
    ]
    assert run(argv) == 0
    assert run(argv) == 0  # the same bytes: finished
    with Butler.from_config(str(repo), collections="mini") as butler:
        (ref,) = butler.query_datasets("object", collections="mini")
        path = Path(butler.getURI(ref).ospath)
        ra = np.asarray(butler.get(ref)["coord_ra"], np.float64)
    data = bytearray(path.read_bytes())
    at = data.find(ra[:4].tobytes())
    assert at > 0
    data[at] ^= 1  # a target moves by less than anybody sees, and no checksum of Parquet tells
    path.write_bytes(data)
    assert run(argv) == 2
    assert f"inputs.targets.datasets.{ref.id}:" in capsys.readouterr().err


def test_the_digest_of_a_table_is_that_of_its_values() -> None:
    import pyarrow as pa

    from ripple.stages.plan.tables import table_digest

    values = {"i": [1, 2, None], "x": [0.5, None, 1.5], "s": ["a", None, "bc"], "b": [True, False, None]}
    whole = pa.table(values)
    parts = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert table_digest(parts) == table_digest(whole.take([0, 1, 2])) == table_digest(whole)
    others = [
        whole.slice(1),
        whole.rename_columns(["i", "y", "s", "b"]),
        pa.table(values | {"s": ["ab", None, "c"]}),
        pa.table(values | {"i": [1, 2, 0]}),
        pa.table(values | {"s": ["a", "", "bc"]}),
        pa.table(values | {"b": [True, False, False]}),
    ]
    assert len({table_digest(t) for t in [whole, *others]}) == 7


# Tables in memory ------------------------------------------------------------------------------------


def test_tables_in_memory_keep_units_masks_and_frames() -> None:
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from astropy.table import MaskedColumn, QTable, Table

    want = np.array([53.16, 150.1]), np.array([-27.79, 2.2])
    sky = SkyCoord(*want, unit="deg", frame="icrs")
    tables = [
        QTable({"name": ["a", "b"], "ra": sky.ra.to(u.rad), "dec": sky.dec.to(u.rad)}),
        QTable({"name": ["a", "b"], "RA": sky.ra.to(u.hourangle), "Dec": sky.dec.to(u.arcmin)}),
        Table({"name": np.array([b"a", b"b"]), "where": sky.galactic}),
        {"name": ["a", "b"], "ra": want[0].astype(">f8"), "dec": want[1]},
        pa.table({"name": ["a", "b"], "ra": want[0], "dec": want[1]}),
    ]
    for table in tables:
        found = from_table(UserTable.in_memory(table), Columns(ra_unit=None), source={})
        np.testing.assert_allclose(found.ra, want[0], atol=1e-9)
        np.testing.assert_allclose(found.dec, want[1], atol=1e-9)
        assert found.id.tolist() == ["a", "b"]
    masked = Table({"ra": MaskedColumn([53.16, 150.1], mask=[False, True]), "dec": want[1]})
    with pytest.raises(CatalogueError, match="not a number in 1 of 2 rows, row 1"):
        from_table(UserTable.in_memory(masked), Columns(), source={})
    mixed = {"ra": [100.0, 101.0], "dec": [1.0, 2.0], "x": np.array(["a", 1], object)}
    for bad in (mixed, mixed | {"x": np.array([1j, 2j])}):
        with pytest.raises(CatalogueError, match="column 'x' of type"):
            UserTable.in_memory(bad)
    with pytest.raises(CatalogueError, match="different lengths"):
        UserTable.in_memory({"ra": [1.0], "dec": [1.0, 2.0]})


def test_labels_of_catalogues_bring_their_names() -> None:
    found = make({"ra": [100.0, 200.0, 210.0], "dec": [1.0, 2.0, 3.0], "label": ["lens", None, "nonlens"]})
    assert found.extra["label"].to_pylist() == [1, -1, 0]
    assert found.classes == ("nonlens", "lens")
    assert any("1 of label 0 (nonlens), 1 of label 1 (lens), 1 without label" in n for n in found.notes)
    with pytest.raises(CatalogueError, match=r"label 0\.9 in row 1"):
        make({"ra": [100.0, 200.0], "dec": [1.0, 2.0], "label": [1.0, 0.9]})
