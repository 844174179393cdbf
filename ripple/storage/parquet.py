"""Parquet files that say what their columns are: units and descriptions as astropy and TOPCAT look for them.

The metadata of a file have, beside what the caller gives, `table_meta_yaml` and `table::len::COLUMN`, which
`astropy.table.Table.read` understands, and `IVOA.VOTable-Parquet.content`, which TOPCAT and astropy's
`parquet.votable` understand.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

#: Column -> unit and description of the columns that RIPPLe writes.
COLUMNS: dict[str, tuple[str, str]] = {
    "index": ("", "position among the requested rows, from 0"),
    "id": ("", "identifier"),
    "ra": ("deg", "right ascension, ICRS"),
    "dec": ("deg", "declination, ICRS"),
    "tract": ("", "tract of the sky map"),
    "patch": ("", "patch of the tract, sequential"),
    "x": ("pix", "position in the tract"),
    "y": ("pix", "position in the tract"),
    "status": ("", "ok, partial or rejected"),
    "reason": ("", "why a row is not ok"),
    "detail": ("", "the file or value behind the reason"),
    "bands": ("", "bands that have data"),
    "no_data": ("", "share of pixels without data"),
    "shard": ("", "number of the shard, -1 for none"),
    "row": ("", "row in the shard, -1 for none"),
    "accept": ("", "1 where no quality flag rejects the row"),
    "qc": ("", "quality flags, see the reference"),
    "noise_from": ("", "where the noise comes from: variance, or pixels where a band has none"),
    "norm_offset": ("nJy", "what normalisation subtracted"),
    "norm_scale": ("nJy", "what normalisation divided by"),
    "psf_jump": ("", "change of the PSF across a border of cells in the cutout"),
    "cutout": ("", "position of the cutout, masked where there is none"),
    "score": ("", "output of the network, 0 to 1"),
    "probability": ("", "probability of a lens at the stated prevalence"),
    "probability_at_training_prevalence": ("", "probability of a lens among rows like those of training"),
    "spread": ("", "scatter of the scores of an ensemble"),
    "scored_by": ("", "members of a committee that have a score of the row"),
    "rank": ("", "1 is the best"),
    "split": ("", "what the model used this sky for: train, validation, test or unknown"),
    "ood": ("", "distance to the training data; above 1 the row is unlike them"),
    "abstain": ("", "1 where the model gives no verdict"),
    "label": ("", "class of the row: 1 lens, 0 not, -1 unknown, where the classes have no other names"),
}
COLUMNS |= {f"score_{k}": ("", f"score of member {k} of a committee") for k in range(1, 10)}
#: The same for columns of each band, `noise_g` and so on.
_OF_BANDS: dict[str, tuple[str, str]] = {
    "noise": ("nJy", "noise of a sky pixel"),
    "psf_fwhm": ("arcsec", "FWHM of the PSF as delivered, pixels included"),
    "psf_fault": ("", "what is wrong with the PSF, 0 for nothing"),
    "psf_jump": ("", "change of the PSF across a border of cells in the cutout"),
    "psf_residual": ("", "by how much the matched PSF misses its target"),
    "psf_sharpening": ("", "FWHM of the PSF over that of its target"),
    "psf_cell_residual": ("", "the same in parts of the cutout that have another PSF"),
    "psf_gain": ("", "noise after matching over noise before"),
    "psf_area": ("", "pixels per independent sample of the noise"),
    "psf_flux": ("", "sum of the matching kernel"),
    "psf_spill": ("", "light of the matched PSF outside the stamp of its target"),
    "psf_edge": ("", "share of the matching kernel beyond the margin of the cutout"),
    "qc_flags": ("", "quality flags of the band"),
    "qc_signal": ("", "brightest block of the centre, in units of its noise"),
    "qc_dip": ("", "depth of the darkest block below zero, in units of its noise"),
    "qc_noise_ratio": ("", "measured noise over that of the variance plane, squared"),
    "qc_background": ("", "what was added to the band, in units of pixel noise"),
    "qc_level": ("nJy", "what was added to the band"),
    "qc_spikes": ("", "number of spikes of one pixel"),
    "qc_registration": ("", "1 where the band is turned or shifted against the others"),
}
_OF_BANDS |= {
    f"qc_{name}": ("", f"share of pixels: {name.replace('_', ' ')}")
    for name in (
        "bad", "no_data", "missing_cell", "saturated", "cosmic_ray", "interpolated", "edge", "suspect",
        "inexact_psf", "centre_bad", "centre_saturated", "centre_cosmic_ray", "centre_interpolated",
    )
}  # fmt: skip
_UCD = {"id": "meta.id;meta.main", "ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main"}

_NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"
_YAML, _LENGTH = b"table_meta_yaml", b"table::len::"
_VOTABLE, _VERSION = b"IVOA.VOTable-Parquet.content", b"IVOA.VOTable-Parquet.version"
_WIDER = {
    pa.int8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.float16(): pa.float32()
}  # fmt: skip
#: Arrow type -> type of a VOTable, which has no unsigned ones but that of a byte.
_VOTABLE_TYPES = {
    "bool": "boolean", "uint8": "unsignedByte", "int16": "short", "int32": "int", "int64": "long",
    "uint64": "long", "float": "float", "double": "double",
    "string": "unicodeChar", "large_string": "unicodeChar",
}  # fmt: skip


def known(name: str, kind: str) -> tuple[str, str]:
    """Unit and description of a column; `kind` is that of its numpy dtype. Empty for the user's own."""
    unit, said = COLUMNS.get(name) or _of_band(name)
    # The user's own columns may have these names, but not as text.
    return (unit if kind == "f" else ""), said


def _of_band(name: str) -> tuple[str, str]:
    stem, _, band = name.rpartition("_")
    unit, said = _OF_BANDS.get(stem, ("", ""))
    return unit, f"{said}, band {band}" if said else ""


class TableWriter:
    """Writes a table in parts; `close` adds what is known of the columns.

    Parameters
    ----------
    sink
        Path, or a file open for writing.
    schema
        Of all parts. Its metadata are kept; those that this class writes are made anew.
    """

    def __init__(self, sink: Any, schema: pa.Schema) -> None:
        mine = (_YAML, _VOTABLE, _VERSION)
        given = schema.metadata or {}
        self._facts = {k: v for k, v in given.items() if k not in mine and not k.startswith(_LENGTH)}
        self.schema = _signed(schema).with_metadata(self._facts)
        self._lengths = {f.name: 1 for f in self.schema if _is_text(f.type)}
        # Without the schema of Arrow, which `close` writes: it has the lengths of all texts in it.
        self._out = pq.ParquetWriter(sink, self.schema, compression="zstd", store_schema=False)

    def write(self, part: pa.Table) -> None:
        """Add rows."""
        for name, most in self._lengths.items():
            found = pc.max(pc.utf8_length(part[name])).as_py()
            self._lengths[name] = max(most, found or 0)
        # Not checked: the bits of a mask stay what they are.
        self._out.write_table(part.cast(self.schema, safe=False).combine_chunks())

    def close(self) -> None:
        """Write the end of the file."""
        columns = [_Column.of(field, self._lengths.get(field.name, 0)) for field in self.schema]
        lengths = {_LENGTH + name.encode(): str(most).encode() for name, most in self._lengths.items()}
        whole = self.schema.with_metadata({**self._facts, **lengths, _YAML: _ecsv(columns, self._facts)})
        said = self._facts | {b"ARROW:schema": base64.b64encode(whole.serialize().to_pybytes())}
        if all(column.kind in _VOTABLE_TYPES for column in columns):
            said |= {_VERSION: b"1.0", _VOTABLE: _votable(columns)}
        self._out.add_key_value_metadata(said)
        self._out.close()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    out = TableWriter(sink, table.schema)
    out.write(table)
    out.close()
    return sink.getvalue()


def _signed(schema: pa.Schema) -> pa.Schema:
    """Numbers in types that VOTables have; bit masks do not use the last bit of an int64."""

    def signed(field: pa.Field) -> pa.Field:
        mask = field.name == "qc" or field.name.startswith("qc_flags_")
        if mask and field.type == pa.uint64():
            return field.with_type(pa.int64())
        return field.with_type(_WIDER.get(field.type, field.type))

    return pa.schema([signed(field) for field in schema])


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its Arrow type by name, and `length`, the letters of its longest text; 0 when it is none."""

    name: str
    kind: str
    length: int
    unit: str
    said: str

    @classmethod
    def of(cls, field: pa.Field, length: int) -> _Column:
        return cls(
            field.name, str(field.type), length, *known(field.name, "f" * pa.types.is_floating(field.type))
        )


def _ecsv(columns: list[_Column], facts: dict[bytes, bytes]) -> bytes:
    """The header that astropy writes into its own Parquet files."""
    names = {"float": "float32", "double": "float64"}
    header: dict[str, Any] = {"datatype": []}
    for column in columns:
        kind = "string" if column.length else names.get(column.kind, column.kind)
        said = {"name": column.name, "unit": column.unit, "datatype": kind, "description": column.said}
        header["datatype"].append({key: value for key, value in said.items() if value or key == "name"})
    if facts:
        header["meta"] = {key.decode(): value.decode() for key, value in facts.items()}
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000).encode()


def _votable(columns: list[_Column]) -> bytes:
    """A VOTable without data: the values are in the file around it."""
    fields = []
    for column in columns:
        attributes = {
            "name": "".join(c if c.isprintable() else "?" for c in column.name),
            "datatype": _VOTABLE_TYPES[column.kind],
            "arraysize": str(column.length or ""),
            "unit": column.unit,
            "ucd": _UCD.get(column.name, ""),
        }
        words = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items() if value)
        fields.append(f"<FIELD{words}><DESCRIPTION>{escape(column.said)}</DESCRIPTION></FIELD>\n")
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<VOTABLE version="1.4" xmlns="{_NAMESPACE}">\n'
    return f"{head}<RESOURCE>\n<TABLE>\n{''.join(fields)}</TABLE>\n</RESOURCE>\n</VOTABLE>\n".encode()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
