"""`ripple consensus`: fuse grades, and write candidates with their probabilities.

OUT/candidates.parquet, .csv, .fits, .vot, .reg   candidates, the most probable lens first
OUT/tests.csv                              the hidden tests
OUT/graders.csv                            what is known about each grader
OUT/second-round.csv                       the objects on which graders disagree most
OUT/index.html                             all of it as a page
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import ConfigError, InputError
from ripple.report.cards import csv_bytes
from ripple.runtime.summary import Summary
from ripple.stages.consensus.config import ConsensusConfig
from ripple.stages.consensus.exports import fits, regions, votable
from ripple.stages.consensus.page import calibration_note, graders, grades_text, page
from ripple.stages.consensus.panel import Panel, gather
from ripple.storage.candidates import KIND, TABLE, TESTS
from ripple.storage.directory import write_directory
from ripple.storage.files import write_new
from ripple.storage.parquet import parquet_bytes
from ripple.vetting.consensus import Fused, fuse, logit
from ripple.vetting.session import Session, open_session


def consensus(config: ConsensusConfig) -> Summary:
    """Fuse the grades of GRADES, and write candidates.

    Raises
    ------
    InputError
        No grades, or grades of different scores.
    ConfigError
        `with_scores` where the network gives no probability.
    """
    start = time.perf_counter()
    if not config.grades:
        raise ConfigError("consensus: no grades", hint="give directories that ripple vet wrote")
    sessions = [open_session(path) for path in config.grades]
    panel = gather(sessions)
    network = network_evidence(sessions, panel) if config.with_scores else None
    fused = fuse(panel.level, panel.truth, network, seed=config.seed)
    inputs: Json = {
        "scores": sessions[0].manifest["inputs"]["scores"],
        "grades": [[s.manifest["digest"], digest] for s, digest in zip(sessions, panel.digests, strict=True)],
    }
    tests = panel.truth[panel.tests]
    table, order = candidates(sessions, panel, fused)

    def build(directory: Path) -> None:
        for name, data in files(sessions, panel, fused, config, table, order).items():
            write_new(directory / name, data)

    fresh = write_directory(config.output, KIND, config, inputs, build)
    facts = {
        "candidates": table.num_rows,
        "graders": len(panel.graders),
        "grades": int((panel.level >= 0).sum()),
        "hidden tests": len(tests),
        "share of lenses": f"{fused.share:.3f}",
        "page": str(config.output / "index.html"),
    }
    notes = [calibration_note(fused, tests)]
    if panel.told:
        notes.append(f"{panel.told:,} grades of tests are left out: their truth was told (vet --training)")
    return Summary(
        "consensus", str(config.output), facts, seconds=time.perf_counter() - start, done_before=not fresh,
        notes=tuple(notes),
    )  # fmt: skip


def network_evidence(sessions: Sequence[Session], panel: Panel) -> NDArray[np.float64]:
    """Log odds of the network without the prevalence at which it states them.

    Raises
    ------
    ConfigError
        The scores have no probability at a stated prevalence.
    """
    stated = sessions[0].facts.get("prevalence")
    p = _column(sessions, panel, "probability")
    if stated is None or not np.isfinite(p).all():
        raise ConfigError(
            "--with-scores: the scores have no calibrated probability at a stated prevalence",
            hint="score with --prevalence, or leave it out",
        )
    return np.asarray(logit(p) - logit(float(stated)))


def _column(sessions: Sequence[Session], panel: Panel, name: str) -> NDArray[np.float64]:
    parts = [s.numbers(name) for s in sessions]
    return np.array([parts[k][row] for k, row in panel.place.tolist()], np.float64)


def candidates(sessions: Sequence[Session], panel: Panel, fused: Fused) -> tuple[pa.Table, NDArray[np.int64]]:
    """The candidates that somebody graded, the most probable lens first, and their objects of the panel."""
    rows = panel.candidates
    # Equally probable ones by rank.
    rows = rows[np.argsort(-fused.probability[rows], kind="stable")]
    if not len(rows):
        raise InputError("only hidden tests were graded so far", hint="grade more objects")
    return table_of(sessions, panel, fused, rows), rows


def table_of(sessions: Sequence[Session], panel: Panel, fused: Fused, rows: NDArray[np.int64]) -> pa.Table:
    """Objects with position, probability, interval and grades."""
    ids = [s.objects["id"].to_pylist() for s in sessions]
    given = panel.level >= 0
    value = np.where(given, panel.level, 0).astype(np.float64)
    count = np.maximum(given.sum(axis=1), 1)
    mean = value.sum(axis=1) / count
    spread = np.sqrt(np.where(given, (value - mean[:, None]) ** 2, 0.0).sum(axis=1) / count)
    columns: dict[str, object] = {"id": [ids[k][row] for k, row in panel.place[rows].tolist()]}
    for name in ("ra", "dec"):
        columns[name] = _column(sessions, panel, name)[rows]
    columns |= {"probability": fused.probability[rows], "low": fused.low[rows], "high": fused.high[rows]}
    columns |= {"mean_grade": mean[rows], "disagreement": spread[rows], "graded_by": given.sum(axis=1)[rows]}
    columns |= {
        "grades": [grades_text(panel, at) for at in rows.tolist()],
        "class": [panel.kinds[at] for at in rows.tolist()],
        "notes": [panel.notes[at] for at in rows.tolist()],
        "rank": _column(sessions, panel, "rank")[rows].astype(np.int64),
        "score": _column(sessions, panel, "score")[rows],
        "network_probability": _column(sessions, panel, "probability")[rows],
    }
    return pa.table(columns)


def second_round(table: pa.Table, most: int) -> pa.Table:
    """Where graders differ by a grade or more in the root mean square, or the interval leaves it open.

    The objects on which they differ most come first.
    """
    spread, low, high = (table[name].to_numpy() for name in ("disagreement", "low", "high"))
    wanted = np.flatnonzero((spread >= 1.0) | ((low < 0.5) & (high > 0.5)))
    order = np.lexsort((-(high - low)[wanted], -spread[wanted]))
    return table.take(wanted[order][:most])


def files(
    sessions: Sequence[Session], panel: Panel, fused: Fused, config: ConsensusConfig, table: pa.Table,
    order: NDArray[np.int64],
) -> dict[str, bytes]:  # fmt: skip
    """Name -> bytes of all files."""
    tests = panel.tests
    held = table_of(sessions, panel, fused, tests)
    truth = pa.array(["lens" if t else "not a lens" for t in panel.truth[tests].tolist()], pa.string())
    known = pa.Table.from_pylist(list(graders(panel, fused)))
    digest = panel.digests[0][:16]
    inputs = "grades " + " ".join(str(s.manifest["digest"])[:16] for s in sessions)
    return {
        TABLE: parquet_bytes(table),
        "candidates.csv": csv_bytes(table),
        "candidates.vot": votable(table),
        "candidates.fits": fits(table),
        "candidates.reg": regions(table),
        TESTS: csv_bytes(held.append_column("truth", truth)),
        "graders.csv": csv_bytes(known),
        "second-round.csv": csv_bytes(second_round(table, config.second_round)),
        "index.html": page(sessions, panel, fused, table, order[: config.top], digest, inputs),
    }
