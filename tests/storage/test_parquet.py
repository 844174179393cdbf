"""Parquet files say what their columns are, in the words that astropy and TOPCAT look for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import votable
from astropy.table import Table, meta

import ripple
from ripple.imaging.quality.flags import Flag
from ripple.storage.parquet import TableWriter, parquet_bytes

FILES = (("cutouts", "index.parquet"), ("tensors", "index.parquet"), ("scores", "index.parquet"),
         ("scores", "scores.parquet"), ("sky", "truth.parquet"))  # fmt: skip


def header_of(path: Path) -> dict[str, dict[str, str]]:
    """Column -> what astropy's own reader of Parquet takes from the metadata."""
    found = meta.get_header_from_yaml(pq.read_schema(path).metadata[b"table_meta_yaml"].decode().split("\n"))
    return {column["name"]: column for column in found["datatype"]}


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_table_has_units_and_descriptions(one_of_each: dict[str, Path], kind: str, name: str) -> None:
    path = one_of_each[kind] / name
    schema, header = pq.read_schema(path), header_of(path)
    assert list(header) == schema.names
    assert header["ra"] == {
        "name": "ra", "unit": "deg", "datatype": "float64", "description": "right ascension, ICRS"
    }  # fmt: skip
    for field in schema:
        if field.type == pa.string():
            longest = max((len(v) for v in pq.read_table(path)[field.name].to_pylist()), default=0)
            assert int(schema.metadata[f"table::len::{field.name}".encode()]) == max(longest, 1)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_the_head_of_a_votable_has_the_same_columns(
    one_of_each: dict[str, Path], kind: str, name: str
) -> None:
    path = one_of_each[kind] / name
    text = pq.read_metadata(path).metadata[b"IVOA.VOTable-Parquet.content"]
    (found,) = votable.parse(io.BytesIO(text), verify="exception").iter_tables()
    assert [field.name for field in found.fields] == pq.read_schema(path).names
    assert found.get_field_by_id_or_name("dec").ucd == "pos.eq.dec;meta.main"
    assert str(found.get_field_by_id_or_name("ra").unit) == "deg"


def test_measures_of_bands_have_their_units(one_of_each: dict[str, Path]) -> None:
    header = header_of(one_of_each["tensors"] / "index.parquet")
    assert header["psf_fwhm_i"]["unit"] == "arcsec"
    assert header["noise_g"]["unit"] == "nJy"
    assert all("description" in header[name] for name in header if name.startswith(("psf_", "qc_")))


@pytest.mark.parametrize("kind", ["cutouts", "tensors", "scores"])
def test_a_table_becomes_a_votable_and_comes_back(one_of_each: dict[str, Path], kind: str) -> None:
    """TOPCAT reads VOTables; these have no unsigned numbers of 64 bits."""
    table = ripple.open(one_of_each[kind]).table()
    text = io.BytesIO()
    table.write(text, format="votable")
    text.seek(0)
    back = Table.read(text, format="votable")
    assert back.colnames == table.colnames
    for name in table.colnames:
        ours, theirs = table[name], back[name]
        assert ours.unit == theirs.unit
        if ours.dtype.kind == "U":
            assert [str(v) for v in theirs] == list(ours)
        else:
            empty = np.nan if ours.dtype.kind == "f" else 0  # NaN and no value are one in a VOTable
            np.testing.assert_array_equal(np.ma.filled(ours, empty), np.ma.filled(theirs, empty))


def test_bit_masks_keep_their_bits() -> None:
    bits = np.array([0, 1 << Flag.CLIPPED, 2**63 + 5], np.uint64)
    back = pq.read_table(io.BytesIO(parquet_bytes(pa.table({"qc": bits, "qc_flags_g": bits, "id": bits}))))
    assert back["qc"].type == back["qc_flags_g"].type == pa.int64()
    assert back["id"].type == pa.uint64()  # an id is a number of the user's
    np.testing.assert_array_equal(back["qc"].to_numpy().view(np.uint64), bits)


def test_parts_give_the_bytes_of_the_whole_and_the_longest_text() -> None:
    whole = pa.table({"id": ["a", "abcdé", None], "x": [1.0, 2.0, 3.0], "ra": ["n", "o", "p"]})
    sink = io.BytesIO()
    out = TableWriter(sink, whole.schema)
    for part in (whole.slice(0, 1), whole.slice(1)):
        out.write(part)
    out.close()
    found = pq.read_schema(io.BytesIO(sink.getvalue())).metadata
    assert found[b"table::len::id"] == b"5"
    assert b"unit: deg" not in found[b"table_meta_yaml"]  # a column of texts is no right ascension
    assert parquet_bytes(whole) == parquet_bytes(whole)
    assert pq.read_table(io.BytesIO(parquet_bytes(whole))).equals(whole)


def test_what_the_caller_says_stays_and_old_descriptions_do_not() -> None:
    table = pa.table({"ra": [1.0], "id": [1]}).replace_schema_metadata({"prevalence of probability": "0.1"})
    once = pq.read_table(io.BytesIO(parquet_bytes(table)))
    twice = pq.read_schema(io.BytesIO(parquet_bytes(once.select(["id"])))).metadata
    assert twice[b"prevalence of probability"] == b"0.1"
    found = meta.get_header_from_yaml(twice[b"table_meta_yaml"].decode().split("\n"))
    assert [column["name"] for column in found["datatype"]] == ["id"]
    assert found["meta"] == {"prevalence of probability": "0.1"}


def test_names_that_xml_cannot_hold_do_no_harm() -> None:
    data = parquet_bytes(pa.table({'a<"&\x01': [1], "when": pa.array([0], pa.timestamp("s"))}))
    # A VOTable has no type for a time, so that there is none.
    assert b"IVOA.VOTable-Parquet.content" not in pq.read_metadata(io.BytesIO(data)).metadata
    text = pq.read_metadata(io.BytesIO(parquet_bytes(pa.table({'a<"&\x01': [1]})))).metadata
    (found,) = votable.parse(io.BytesIO(text[b"IVOA.VOTable-Parquet.content"])).iter_tables()
    assert found.fields[0].name == 'a<"&?'
