"""`ripple similar`: rows that look alike to the network, and pairs of rows that look the same."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json, suggest
from ripple.errors import CatalogueError, ConfigError, DataError, InputError
from ripple.report.cards import csv_bytes
from ripple.rubin.regions import Region, parse_region
from ripple.sky.neighbours import arcsec, unit_vectors
from ripple.stages.plan.select import columns_of, matching
from ripple.stages.similar.config import SimilarConfig
from ripple.stages.similar.query import Query, examples_of
from ripple.stages.similar.search import Hits, Keep, Part, loaded, nearest, one_thread, pairs
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.embeddings import KIND, column_names
from ripple.storage.files import write_single
from ripple.storage.parquet import parquet_bytes

#: Columns of the rows that are found, as far as the embeddings have them.
SHOWN = ("id", "score", "ra", "dec", "split", "label")
#: More pairs than these are no duplicates, and would fill the memory.
MOST_PAIRS = 5_000_000
#: Positions closer than this are the same object, arcsec.
SAME = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """What was found: a table, most similar first, and facts about it."""

    table: pa.Table
    facts: Json
    seconds: float


def similar(config: SimilarConfig) -> Found:
    """Find rows, or pairs of rows, that look alike.

    Returns
    -------
    For `--like`: `similarity` and the columns `SHOWN`. For `--to`: `similarity`, `separation` (arcsec), and
    the columns of both rows, those of the second one with `other_` before their names.

    Raises
    ------
    ConfigError
        An id does not exist.
    InputError
        Embeddings by another model, a column that does not exist, or more than `MOST_PAIRS` pairs.
    IntegrityError
        A shard is damaged.
    """
    began = time.perf_counter()
    if config.output is not None:
        suffix_of(config.output)  # refused before anything is read
    artefact = open_artefact(config.embeddings, KIND)
    table, facts = _pairs(artefact, config) if config.to is not None else _like(artefact, config)
    return Found(table, facts, time.perf_counter() - began)


def _like(artefact: Artefact, config: SimilarConfig) -> tuple[pa.Table, Json]:
    source = artefact if config.examples is None else of_same_model(config.examples, artefact)
    known = examples_of(source, (*config.like, *config.unlike))
    query = Query.of([known[i] for i in config.like], [known[i] for i in config.unlike])
    # The examples themselves are no news.
    own = [e.number for e in known.values()] if source.digest == artefact.digest else []
    keep, read = _asked(artefact, config)
    hits = nearest(
        artefact, query, config.top, SHOWN, keep, read=read, without=np.array(own, np.int64),
        above=-np.inf if config.above is None else config.above,
    )  # fmt: skip
    return _ranked(hits), {"rows": artefact.rows, "found": len(hits.number)}


def _ranked(hits: Hits) -> pa.Table:
    columns = {name: hits.table[name] for name in hits.table.column_names}
    return pa.table({"similarity": pa.array(hits.similarity, pa.float64()), **columns})


def of_same_model(path: Path, artefact: Artefact) -> Artefact:
    """Other embeddings, of the model of `artefact`.

    Raises
    ------
    InputError
        Another model made them: what its numbers mean is another thing.
    """
    other = open_artefact(path, KIND)
    digests = [a.attributes["model"]["digest"] for a in (artefact, other)]
    if digests[0] != digests[1]:
        raise InputError(
            f"{path} is by another model ({digests[1][:16]}) than {artefact.directory} ({digests[0][:16]})",
            hint="embed both with one model",
        )
    return other


def _asked(artefact: Artefact, config: SimilarConfig) -> tuple[Keep, tuple[str, ...]]:
    return rows_to_search(artefact, select=config.select, region=config.region, rejected=config.rejected)


def rows_to_search(
    artefact: Artefact, *, select: str | None = None, region: str | None = None, rejected: bool = False
) -> tuple[Keep, tuple[str, ...]]:
    """Which rows are searched, as a function of their table, and the columns that it needs.

    Raises
    ------
    ConfigError, CatalogueError, RegionError
        The condition or the region cannot be read, or there is no such column.
    """
    place = None if region is None else parse_region(region)
    asked = [] if select is None else columns_of(select)
    names = column_names(artefact)
    if missing := [name for name in asked if name not in names]:
        raise CatalogueError(
            f"--select: {artefact.directory} has no column {missing[0]!r}{suggest(missing[0], names)}",
            hint=f"columns: {', '.join(names[:30])}{' ...' if len(names) > 30 else ''}",
        )

    def keep(table: pa.Table) -> NDArray[np.bool_]:
        found = np.ones(table.num_rows, bool)
        if not rejected and "accept" in table.column_names:
            found &= table["accept"].to_numpy() != 0
        if place is not None:
            found &= _inside(place, table)
        if select is not None:
            found &= matching(table, select).to_numpy()
        return found

    return keep, ("accept", "ra", "dec", *asked)


def _inside(region: Region, table: pa.Table) -> NDArray[np.bool_]:
    """Rows in the region; those without a position are not."""
    ra, dec = (table[name].to_numpy() for name in ("ra", "dec"))
    there = np.isfinite(ra) & np.isfinite(dec)
    return np.asarray(there & region.contains(np.where(there, ra, 0.0), np.where(there, dec, 0.0)))


# Pairs --------------------------------------------------------------


def _pairs(artefact: Artefact, config: SimilarConfig) -> tuple[pa.Table, Json]:
    assert config.to is not None
    assert config.above is not None
    other = of_same_model(config.to, artefact)
    same = other.digest == artefact.digest
    one = loaded(artefact, SHOWN, *_asked(artefact, config))
    two = one if same else loaded(other, SHOWN, *rows_to_search(other, rejected=config.rejected))
    found: list[tuple[NDArray[Any], ...]] = []
    with one_thread():
        for part in pairs(one.vector, two.vector, config.above, same=same):
            found.append(part)
            if sum(len(p[0]) for p in found) > MOST_PAIRS:
                raise DataError(
                    f"more than {MOST_PAIRS:,} pairs have a similarity of {config.above:g} or more",
                    hint="give a larger --above",
                )
    empty = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    a, b, cosine = (np.concatenate(part) for part in zip(*found, strict=True)) if found else empty
    order = np.lexsort((b, a, -cosine))
    table = _paired(one, two, a[order], b[order], cosine[order])
    facts: Json = {"rows": len(one.number), "rows of the others": len(two.number), "pairs": table.num_rows}
    if "separation" in table.column_names:
        near = table["separation"].to_numpy() < SAME
        facts[f"pairs within {SAME:g} arcsec"] = int(near.sum())
    if {"split", "other_split"} <= set(table.column_names):
        facts["pairs of training and test"] = int(_across(table).sum())
    return table, facts


def _paired(
    one: Part, two: Part, a: NDArray[np.int64], b: NDArray[np.int64], cosine: NDArray[np.float64]
) -> pa.Table:
    """A row per pair."""
    left, right = one.table.take(a), two.table.take(b)
    columns: dict[str, Any] = {"similarity": pa.array(cosine, pa.float64())}
    names = set(left.column_names) & set(right.column_names)
    if {"ra", "dec"} <= names:
        places = [unit_vectors(t["ra"].to_numpy(), t["dec"].to_numpy()) for t in (left, right)]
        columns["separation"] = arcsec(np.linalg.norm(places[0] - places[1], axis=1))
    columns |= {name: left[name] for name in left.column_names}
    columns |= {f"other_{name}": right[name] for name in right.column_names}
    return pa.table(columns)


def _across(table: pa.Table) -> NDArray[np.bool_]:
    """Pairs of which one row was trained on and the other counts as unseen."""
    one, other = (np.asarray(table[name].to_pylist(), str) for name in ("split", "other_split"))
    seen = [np.isin(split, ("train", "validation")) for split in (one, other)]
    unseen = [split == "test" for split in (one, other)]
    return np.asarray((seen[0] & unseen[1]) | (seen[1] & unseen[0]))


# Files --------------------------------------------------------------


def suffix_of(path: Path) -> str:
    """The ending that says the format.

    Raises
    ------
    ConfigError
        Another one.
    """
    if path.suffix not in (".csv", ".parquet", ".vot"):
        raise ConfigError(
            f"similar: cannot tell the format of {path.name!r}",
            hint="give a name that ends in .csv, .parquet or .vot",
        )
    return path.suffix


def write(table: pa.Table, path: Path) -> None:
    """Write the table as CSV, Parquet or VOTable, by the name of the file.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    match suffix_of(path):
        case ".csv":
            data = csv_bytes(table)
        case ".parquet":
            data = parquet_bytes(table)
        case _:
            from ripple.stages.consensus.exports import votable  # loads astropy.table

            data = votable(_without_nulls(table))
    write_single(path, data)


def _without_nulls(table: pa.Table) -> pa.Table:
    """The table with NaN, and empty text, where a row has no value."""
    for k, column in enumerate(table.columns):
        if not column.null_count:
            continue
        text = pa.types.is_string(column.type)
        filled = column.fill_null("") if text else pa.array(column.to_numpy().astype(np.float64))
        table = table.set_column(k, table.column_names[k], filled)
    return table


def as_records(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values; what is not finite is null."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in r.items()} for r in rows
    ]
