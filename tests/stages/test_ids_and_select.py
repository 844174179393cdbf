"""Ids come back exactly as the table has them, and `--select` computes like Python."""

from __future__ import annotations

import math
import operator
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ripple.errors import CatalogueError, ConfigError
from ripple.stages.plan.select import matching
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import Columns, Targets, from_table

BIG = 12547118600189071360


def targets(table: UserTable, **columns: str) -> Targets:
    return from_table(table, Columns(**columns), source={"name": "t"}, duplicate_radius=0.0)


def csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# Ids ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        ([str(BIG), str(BIG + 1), str(BIG + 2)], [BIG, BIG + 1, BIG + 2]),
        (["000123", "0123", "123"], ["000123", "0123", "123"]),
        (["12E34", "12E35", "7"], ["12E34", "12E35", "7"]),
        (["-5", "0", "9223372036854775807"], [-5, 0, 2**63 - 1]),
        (["18446744073709551616", "1", "2"], ["18446744073709551616", "1", "2"]),
        (["2024-01-05", "true", "NaN"], ["2024-01-05", "true", "NaN"]),
        (["1.0", "2", "3"], ["1.0", "2", "3"]),
    ],
)
def test_ids_of_text_files_are_what_the_file_says(tmp_path: Path, ids: list[str], want: list[Any]) -> None:
    rows = [f"{name},{150 + k},2.5" for k, name in enumerate(ids)]
    for header, named in (
        ("object_id,ra,dec", {}),
        ("# object_id,ra,dec", {}),
        ("mine,ra,dec", {"id": "mine"}),
    ):
        path = csv(tmp_path / "t.csv", header, *rows)
        found = targets(read_table(path, id_column=named.get("id")), **named)
        assert found.id.tolist() == want
        assert not found.rejected


def test_integers_with_empty_cells_keep_their_digits(tmp_path: Path) -> None:
    """A parent id of 63 bits beside an empty one, and a column beyond 63 bits that is no id."""
    first, last = 4612826987654321567, 4612826987654321569
    rows = [f"1,150,2,{first},{BIG}", "2,151,2,,7", f"3,152,2,{last},{BIG + 1}"]
    path = csv(tmp_path / "t.csv", "id,ra,dec,parentObjectId,flags", *rows)
    extra = targets(read_table(path)).extra
    assert extra["parentObjectId"].to_pylist() == [first, -1, last]
    assert extra["flags"].to_pylist() == [BIG, 7, BIG + 1]
    table = pa.table(
        {"id": [1, 2], "ra": [150.0, 151.0], "dec": [2.0, 2.0], "u": pa.array([2**64 - 1, None], pa.uint64())}
    )
    assert targets(UserTable.of(table)).extra["u"].to_pylist() == ["18446744073709551615", ""]


@pytest.mark.parametrize("values", [[1.5, 2.0], [2.0**53 + 2, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_floating_point_ids_beyond_53_bits_are_refused(values: list[float]) -> None:
    table = pa.table({"id": values, "ra": [150.0, 151.0], "dec": [2.0, 2.0]})
    with pytest.raises(CatalogueError, match="floating-point numbers"):
        targets(UserTable.of(table))
    found = targets(UserTable.of(table.set_column(0, "id", pa.array([1.0, 2.0**53]))))
    assert found.id.tolist() == [1, 2**53]


KINDS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ids_come_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random ids of every type through every format: the same values, as integers or text."""
    kind = data.draw(st.sampled_from([*KINDS, str, bytes]))
    if kind in (str, bytes):
        letters = st.text("0123456789abcXYZ-_.+E", min_size=1, max_size=18).filter(
            lambda s: s not in (".", "-")
        )
        ids: list[Any] = data.draw(st.lists(letters, min_size=2, max_size=6, unique=True))
        column: Any = np.array(ids, "S18" if kind is bytes else "U18")
    else:
        info = np.iinfo(kind)
        ids = data.draw(
            st.lists(st.integers(int(info.min), int(info.max)), min_size=2, max_size=6, unique=True)
        )
        column = np.array(ids, np.dtype(kind).newbyteorder(data.draw(st.sampled_from("<>"))))
    n = len(ids)
    table = Table({"objectId": column, "ra": 150.0 + np.arange(n), "dec": np.zeros(n)})
    form = data.draw(st.sampled_from(["csv", "ecsv", "fits", "votable", "parquet"]))
    # astropy writes no int8 to these, and no unsigned integers of more than 8 bits to VOTable.
    assume(not (form in ("fits", "votable") and kind is np.int8))
    assume(not (form == "votable" and kind in (np.uint16, np.uint32, np.uint64)))
    if form in ("csv", "ecsv", "votable") and kind is bytes:
        table["objectId"] = column.astype(str)
    path = tmp_path_factory.mktemp("ids") / f"t.{form}"
    if form == "parquet":
        # With their type: of 0 and 2^63 pyarrow makes no integers by itself.
        native = pa.array(ids) if kind in (str, bytes) else pa.array(ids, pa.from_numpy_dtype(kind))
        pq.write_table(pa.table({"objectId": native, "ra": table["ra"], "dec": table["dec"]}), path)
    else:
        table.write(path, format={"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(form, form))
    found = targets(read_table(path)).id.tolist()
    assert [str(v) for v in found] == [str(v) for v in ids]


# --select -----------------------------------------------------------

N_G, N_R = [1, 5, 3, 2, 0, 7, 1, 1, 9], [2, 1, 3, 4, 0, 1, 9, 1, 1]
SMALL = pa.table({"n_g": pa.array(N_G, pa.uint8()), "n_r": pa.array(N_R, pa.uint8())})


def rows(table: pa.Table, expression: str) -> list[int]:
    return np.flatnonzero(matching(table, expression).to_numpy()).tolist()


def test_small_integers_do_not_wrap_around() -> None:
    assert rows(SMALL, "n_g - n_r > 0") == [1, 5, 8]
    assert rows(SMALL, "-n_g > -2") == [0, 4, 6, 7]
    area = pa.table({"npix": pa.array([200, 190, 100, 10, -300, 181], pa.int16())})
    assert rows(area, "npix*npix > 30000") == [0, 1, 4, 5]


def test_long_ids_are_compared_exactly() -> None:
    table = pa.table({"id": pa.array([BIG, BIG + 1, BIG + 2, 7], pa.uint64())})
    assert rows(table, f"id in ({BIG + 1},)") == [1]
    assert rows(table, f"id == {BIG + 1}") == [1]
    assert rows(table, "id > 7") == [0, 1, 2]
    assert rows(table, "id > -1") == [0, 1, 2, 3]
    assert rows(table, "id < 7.5") == [3]
    signed = pa.table({"id": pa.array([2**60, 2**60 + 1], pa.int64()), "f": [2.0**60, 2.0**60]})
    assert rows(signed, "id == f") == [0]
    assert rows(signed, "id > f") == [1]
    assert rows(signed, f"id == {float(2**60)!r}") == [0]


def test_overflow_is_an_error_by_name() -> None:
    table = pa.table({"id": pa.array([2**62, 1], pa.int64())})
    for expression in ("id * 4 > 0", "id + id > 0", f"id + {2**70} > 0"):
        with pytest.raises(CatalogueError, match=r"overflow|64 bits"):
            matching(table, expression)
    with pytest.raises(CatalogueError, match="53 bits"):
        matching(table, "id / 3 > 0")


COLUMNS: dict[str, pa.DataType] = {
    "u8": pa.uint8(), "i8": pa.int8(), "u16": pa.uint16(), "i16": pa.int16(), "u32": pa.uint32(),
    "i32": pa.int32(), "i64": pa.int64(), "u64": pa.uint64(), "f32": pa.float32(), "f64": pa.float64(),
}  # fmt: skip
COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def random_table(rng: random.Random, n: int = 12) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Values near the limits of every type, as Arrow has them and as Python has them."""
    columns = {}
    for name, kind in COLUMNS.items():
        if name[0] == "f":
            pool = [0.0, 1.5, -2.25, 7.0, 1e10, 2.0**53, 2.0**60, -(2.0**60), 0.1, rng.uniform(-100, 100)]
        else:
            bits, signed = int(name[1:]), name[0] == "i"
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            pool = [low, high, low + 1, high - 1, 0, 1, 7, min(high, 2**53 + 1), rng.randint(low, high)]
        columns[name] = pa.array([rng.choice(pool) for _ in range(n)], kind)
    table = pa.table(columns)
    return table, table.to_pylist()


def random_expression(rng: random.Random, depth: int = 2) -> str:
    if depth == 0 or rng.random() < 0.3:
        if rng.random() < 0.6:
            return rng.choice([*COLUMNS])
        return rng.choice(
            ["0", "1", "7", "2.5", "0.1", "255", "-3", str(2**53 + 1), str(2**63), "1e10", str(BIG)]
        )
    a, b = random_expression(rng, depth - 1), random_expression(rng, depth - 1)
    return f"({a} {rng.choice('+-*')} {b})" if rng.random() < 0.85 else f"(-{a})"


def test_a_column_may_be_called_class() -> None:
    table = pa.table({"class": ["spiral", "class", "spiral"], "z": [0.1, 0.2, 0.3]})
    assert matching(table, "class == 'spiral' AND z > 0.2").to_pylist() == [False, False, True]
    assert matching(table, "class == 'class'").to_pylist() == [False, True, False]


@pytest.mark.parametrize("seed", range(10))
def test_conditions_equal_those_of_python(seed: int) -> None:
    """500 random conditions a seed; what does not fit into 64 bits is refused, never wrong."""
    rng = random.Random(seed)
    refused = 0
    for _ in range(500):
        table, plain = random_table(rng)
        symbol = rng.choice([*COMPARE])
        left, right = random_expression(rng), random_expression(rng)
        try:
            found = matching(table, f"{left} {symbol} {right}").to_pylist()
        except (CatalogueError, ConfigError) as err:
            if not any(
                word in str(err)
                for word in ("overflow", "64 bits", "two constants", "out of bounds", "not in range")
            ):
                raise
            refused += 1
            continue
        code = compile(f"{left} {symbol} {right}", "c", "eval")
        for row, got in zip(plain, found, strict=True):
            want = eval(code, {}, row)
            assert got == (want and not (isinstance(want, float) and math.isnan(want))), (
                left,
                symbol,
                right,
                row,
            )
    assert refused < 350
