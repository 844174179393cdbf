"""`ripple match`: known lenses against a search.

OUT/known.csv, known.parquet   each known lens, and what became of it
OUT/index.html                 recovered and missed by reference and grade, with the reasons
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ripple.config import Json
from ripple.errors import ConfigError, InputError
from ripple.report.cards import Table, Tile, csv_bytes, render
from ripple.runtime.summary import Summary
from ripple.stages.match.config import MatchConfig
from ripple.stages.match.known import JOINT, Known, Lens, read_known
from ripple.stages.match.verdicts import Miss, Verdict, of_search, verdicts
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.candidates import KIND as CANDIDATES
from ripple.storage.directory import write_directory
from ripple.storage.files import hash_file, write_new
from ripple.storage.manifest import read_manifest
from ripple.storage.parquet import parquet_bytes


def match(config: MatchConfig) -> Summary:
    """Say which known lenses a search has recovered, and why it missed the others.

    Raises
    ------
    ConfigError
        Not one directory of scores, of candidates, or one of each.
    InputError
        The sources do not belong together, or the table cannot be used.
    """
    start = time.perf_counter()
    scores, candidates = _sources(config)
    known = read_known(config)
    found = verdicts(known.lenses, of_search(scores, candidates), config)
    inputs: Json = {"known": hash_file(config.known)[1] if config.known.is_file() else str(config.known.name)}
    inputs |= {"scores": scores.digest} if scores else {}
    inputs |= {"candidates": read_manifest(candidates)["digest"]} if candidates else {}
    table = _table(known.lenses, found)

    def build(directory: Path) -> None:
        write_new(directory / "known.parquet", parquet_bytes(table))
        write_new(directory / "known.csv", csv_bytes(table))
        write_new(directory / "index.html", page(known, found, inputs))

    fresh = write_directory(config.output, "page", config, inputs, build)
    missed = Counter(str(v.miss) for v in found if v.miss)
    facts = {"known lenses": len(known.lenses), "recovered": sum(v.miss is None for v in found)}
    notes = [*known.notes, *cleaning(known)]
    if scores is None:
        notes.append("without the scores, what was not graded cannot be told from what was not searched")
    return Summary(
        "match", str(config.output), facts, dict(missed.most_common()), time.perf_counter() - start,
        done_before=not fresh, notes=tuple(notes),
    )  # fmt: skip


def _sources(config: MatchConfig) -> tuple[Artefact | None, Path | None]:
    scores: list[Artefact] = []
    candidates: list[Path] = []
    for path in config.sources:
        kind = read_manifest(path)["kind"]
        if kind == CANDIDATES:
            candidates.append(path)
        elif kind == "scores":
            scores.append(open_artefact(path, "scores"))
        else:
            raise InputError(f"{path} contains {kind}", hint="give scores, candidates, or both")
    if not config.sources or len(scores) > 1 or len(candidates) > 1:
        raise ConfigError("match: give one directory of scores, one of candidates, or one of each")
    return (scores[0] if scores else None), (candidates[0] if candidates else None)


def cleaning(known: Known) -> list[str]:
    """What was done to the table of known lenses."""
    said = []
    if known.clusters:
        said.append(f"{known.clusters:,} cluster candidates of NSCS are left out: no galaxy lenses")
    if known.merged:
        said.append(f"{known.merged:,} rows are the same lens as an earlier row")
    if known.without_position:
        said.append(f"{known.without_position:,} rows have no usable position")
    return said


def _table(lenses: Sequence[Lens], found: Sequence[Verdict]) -> pa.Table:
    """One row per known lens."""
    joint = JOINT.join
    return pa.table(
        {
            "name": [lens.names[0] if lens.names else "" for lens in lenses],
            "names": [joint(lens.names) for lens in lenses],
            "ra": pa.array([lens.ra for lens in lenses], pa.float64()),
            "dec": pa.array([lens.dec for lens in lenses], pa.float64()),
            "references": [joint(lens.references) for lens in lenses],
            "grades": [joint(lens.grades) for lens in lenses],
            "rows": pa.array([lens.rows for lens in lenses], pa.int64()),
            "recovered": pa.array([v.miss is None for v in found], pa.bool_()),
            "missed_because": [str(v.miss or "") for v in found],
            "detail": [v.detail for v in found],
            "id": [v.id for v in found],
            "separation": pa.array([v.separation for v in found], pa.float64()),
            "rank": pa.array([v.rank for v in found], pa.int64()),
            "probability": pa.array([v.probability for v in found], pa.float64()),
        }
    )


def page(known: Known, found: Sequence[Verdict], inputs: Json) -> bytes:
    """`index.html`."""
    recovered = sum(v.miss is None for v in found)
    tables = [
        _counts("By grade", "grade", [lens.grades for lens in known.lenses], found),
        _counts("By reference", "reference", [lens.references for lens in known.lenses], found),
        _missed(known.lenses, found),
    ]
    covered = sum(v.miss is not Miss.NOT_COVERED for v in found)
    return render(
        "explain.html.j2",
        title="Known lenses", digest=str(inputs["known"])[:16],
        lead=f"{len(known.lenses):,} known lenses from {known.rows:,} rows. {'; '.join(cleaning(known))}",
        facts=[Tile("recovered", f"{recovered:,}", f"of {covered:,} that are covered")],
        pictures=[], pictures_title="", pictures_note="", plots=[], plots_title="", plots_note="",
        neighbours=[], neighbours_note="", tables=tables,
        links=[{"name": "known.csv", "note": "known.csv: each lens and what became of it"}],
        provenance=[f"{name} {str(value)[:16]}" for name, value in inputs.items()],
    )  # fmt: skip


def _counts(title: str, what: str, words: Sequence[tuple[str, ...]], found: Sequence[Verdict]) -> Table:
    """Recovered and missed by a word of the lenses; a lens with several words counts for each."""
    by: dict[str, list[Verdict]] = {}
    for mine, verdict in zip(words, found, strict=True):
        for word in mine or ("not given",):
            by.setdefault(word, []).append(verdict)
    rows = []
    for word, mine_ in sorted(by.items(), key=lambda item: (-len(item[1]), item[0])):
        why = Counter(v.miss for v in mine_)
        rows.append((word, f"{len(mine_):,}", *(f"{why[miss]:,}" for miss in (None, *Miss))))
    return Table(title, (what, "lenses", "recovered", *map(str, Miss)), tuple(rows))


def _missed(lenses: Sequence[Lens], found: Sequence[Verdict], most: int = 500) -> Table:
    """Every miss with its reason, but for those that are not covered."""
    rows = [
        (lens.names[0] if lens.names else "–", f"{lens.ra:.5f} {lens.dec:+.5f}", str(v.miss), v.detail)
        for lens, v in zip(lenses, found, strict=True)
        if v.miss not in (None, Miss.NOT_COVERED)
    ]
    note = f"The first {most} of {len(rows):,}; known.csv has all." if len(rows) > most else ""
    return Table(
        "Missed where there are data",
        ("lens", "position", "because", "detail"),
        tuple(rows[:most]),
        note=note,
    )
