"""`ripple completeness`: the selection function of a finder, from scores of rows with painted arcs.

    OUT/index.html             heat maps, calibration, losses
    OUT/completeness.json      the same numbers, null with a reason where there are too few rows
    OUT/completeness.parquet   the smooth function on a grid

Rows that quality control rejects count as lost: a list of candidates does not have them either. So do lenses
that never became a row, where a catalogue of all of them is given, and rows that people graded down.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import CatalogueError
from ripple.learn.evaluation.intervals import Estimate
from ripple.runtime.summary import Summary
from ripple.stages.completeness import function, yields
from ripple.stages.completeness.bins import Bin, bin_edges, binned, fraction, parse_bins, poisson_rate
from ripple.stages.completeness.config import CompletenessConfig
from ripple.stages.completeness.page import Result, page
from ripple.stages.completeness.rows import OVER_SEEING, STATED, Rows, open_scores, read_rows
from ripple.stages.plan.tables import read_table
from ripple.storage.candidates import read_candidates
from ripple.storage.directory import write_directory
from ripple.storage.files import write_new
from ripple.storage.parquet import parquet_bytes

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """The rows of which all columns are known: `(N, D)` values and `(N,)` whether they were found."""

    values: Float
    found: NDArray[np.bool_]


def completeness(config: CompletenessConfig) -> Summary:
    """Write the selection function.

    Raises
    ------
    ConfigError
        Options that contradict each other, or scores that are missing.
    DataError
        The scores have no painted rows, not the columns, or none on unseen sky.
    RippleError
        As listed in `ripple.errors`.
    """
    start = time.perf_counter()
    bins = parse_bins(config.bins, config.by)
    artefacts = open_scores(config)
    rows = read_rows(artefacts, config)
    known = known_rows(rows, config.by)
    edges = bin_edges(known.values, config.by, bins)
    cells = binned(known.values, known.found, edges, least=config.least, interval=config.interval)
    fitted, why = _fitted(known, config)
    said = statement(rows, config)
    listed, catalogue = _catalogue(config, rows)
    lost = losses(rows, config.interval, listed)
    found: Json = {
        "of": config.of, "cut": rows.cut, "by": list(config.by), "interval": config.interval,
        "notes": list(rows.notes), "left_out": rows.left_out,
        "without_values": int((rows.lens & rows.used).sum()) - len(known.found),
        "outside_bins": len(known.found) - sum(cell.rows for cell in cells),
        "losses": lost, "false_positives": false_positives(rows, config.area_deg2),
        "footprint": footprint(rows, lost, config),
        "edges": {name: edge.tolist() for name, edge in zip(config.by, edges, strict=True)},
        "bins": [bin_record(cell, config.least) for cell in cells],
        "function": function_record(fitted, known.found, why), "statement": said,
    }  # fmt: skip
    table, result = None, Result(found, edges, cells, known.values, fitted)
    if fitted is not None:
        table = grid_table(fitted, known.values, config.by)

    def build(directory: Path) -> None:
        write_new(directory / "completeness.json", json.dumps(found, indent=1, sort_keys=True).encode())
        write_new(directory / "index.html", page(result, artefacts[0].digest))
        if table is not None:
            write_new(directory / "completeness.parquet", parquet_bytes(table))

    inputs = {f"scores {k}": artefact.digest for k, artefact in enumerate(artefacts)}
    if catalogue:
        inputs["catalogue"] = catalogue
    if config.candidates:
        inputs["candidates"] = read_candidates(Path(config.candidates)).digest
    fresh = write_directory(config.output, "page", config, inputs, build)
    return _summary(config, found, rows.notes, time.perf_counter() - start, fresh=fresh)


def known_rows(rows: Rows, by: tuple[str, ...]) -> Known:
    """The lens rows that count and have all columns."""
    values = np.stack([rows.columns[name] for name in by], axis=1)
    keep = rows.lens & rows.used & np.isfinite(values).all(axis=1)
    return Known(values[keep], rows.found[keep])


def _fitted(known: Known, config: CompletenessConfig) -> tuple[function.Fit | None, str]:
    """The smooth function, or None and why there is none."""
    if why := function.unfit(known.found):
        return None, why
    fit = function.fit(known.values, known.found, config.by, config.fit, config.folds, config.seed)
    return fit, ""


def losses(rows: Rows, interval: str, listed: frozenset[str] | None = None) -> Json:
    """What became of the lens rows: rejected by quality and why, scored low, graded down, found.

    Parameters
    ----------
    rows
        All rows.
    interval
        Of the shares.
    listed
        Ids of all lenses there were, rows or not; None: nobody said.
    """
    mine = rows.lens & rows.used
    total = int(mine.sum())
    why = Counter(name for k in np.flatnonzero(mine & ~rows.passed) for name in rows.why[k])
    masks = {"rejected": ~rows.passed, "scored_low": rows.passed & ~rows.above}
    if rows.graded is not None:
        masks["not_graded"] = rows.above & np.isnan(rows.graded)
        masks["graded_down"] = rows.above & ~np.isnan(rows.graded) & ~rows.found
    counts = {name: int((mine & mask).sum()) for name, mask in {**masks, "found": rows.found}.items()}
    out: Json = {
        "rows": total,
        "rejected_by": dict(sorted(why.items(), key=lambda item: (-item[1], item[0]))),
        **{name: {"rows": n, **fraction(n, total, interval).as_dict()} for name, n in counts.items()},
    }
    if listed is None:
        return out
    absent = listed - rows.ids
    # Of all ids: whether a lens is in a catalogue has nothing to do with the sky the model was trained on.
    there = fraction(len(listed) - len(absent), len(listed), "clopper-pearson")
    found = fraction(counts["found"], total, "clopper-pearson")
    out["not_in_catalogue"] = {
        "of": len(listed), "rows": len(absent), "without_pixels": len(absent & rows.pixelless),
        **fraction(len(absent), len(listed), interval).as_dict(),
    }  # fmt: skip
    return out | {"in_catalogue": there.as_dict(), "overall": yields.chain([there, found]).as_dict()}


def footprint(rows: Rows, lost: Json, config: CompletenessConfig) -> Json:
    """What `losses` are worth in the area that was given: nobody else knows from which sky the rows are."""
    share, overall = _shares(lost)
    mine, area = rows.lens & rows.used, config.area_deg2
    return {
        "area_deg2": area,
        "source": None if area is None else "given (--area-deg2)",
        "effective_area_deg2": yields.effective_area(overall, area),
        "effective_volume": yields.effective_volume(rows.z_lens[mine], rows.found[mine], area, share),
        "lenses": yields.expected(overall, area, config.density),
    }


def _catalogue(config: CompletenessConfig, rows: Rows) -> tuple[frozenset[str] | None, str]:
    """Ids of `--catalogue`, and the SHA-256 of its file; None and nothing without."""
    if not config.catalogue:
        return None, ""
    table = read_table(Path(config.catalogue))
    if "id" not in table.columns.column_names:
        raise CatalogueError(
            f"{config.catalogue}: no column 'id'", hint="give the ids of all lenses there were"
        )
    listed = frozenset(str(v) for v in table.columns["id"].to_pylist() if v is not None)
    if not listed & (rows.ids | rows.pixelless):
        raise CatalogueError(
            f"{config.catalogue}: none of its ids is a lens of the scores", hint="give the ids of the targets"
        )
    return listed, table.sha256


def _shares(lost: Json) -> tuple[Estimate, Estimate]:
    """Share of the lenses that became rows, 1 where nobody said, and of those that were found in the end."""
    if "overall" not in lost:
        return Estimate(1.0, 1.0, 1.0), _estimate(lost["found"])
    return _estimate(lost["in_catalogue"]), _estimate(lost["overall"])


def _estimate(said: Json) -> Estimate:
    return Estimate(said["value"], said["low"], said["high"])


def false_positives(rows: Rows, area: float | None) -> Json:
    """Rows above the cut that are no known lenses and were not painted, per row and per deg².

    The rows that count are a share of all; they are taken to come from that share of the area.
    """
    mine = rows.other & rows.used
    total, found = int(mine.sum()), int((mine & rows.found).sum())
    kinds = Counter(rows.kind[k] for k in np.flatnonzero(mine & rows.found) if rows.kind[k])
    out: Json = {"rows": total, "found": found, "by_class": dict(sorted(kinds.items()))}
    if not total:
        return out | {"per_deg2": {"value": None, "reason": "every row was painted or is a lens"}}
    out["rate"] = fraction(found, total, "clopper-pearson").as_dict()
    if area is None:
        return out | {"per_deg2": {"value": None, "reason": yields.NO_AREA}}
    share = area * total / rows.asked
    return out | {"area_deg2": round(share, 9), "per_deg2": poisson_rate(found, share).as_dict()}


def bin_record(cell: Bin, least: int) -> Json:
    """A bin as JSON values."""
    known = cell.completeness
    measure: Json = (
        {"value": None, "reason": f"{cell.rows} rows, fewer than {least}"}
        if known is None
        else dict(known.as_dict())
    )
    return {
        "low": list(cell.low), "high": list(cell.high), "rows": cell.rows, "found": cell.found,
        "completeness": measure,
    }  # fmt: skip


def function_record(fitted: function.Fit | None, found: NDArray[np.bool_], why: str) -> Json:
    """The smooth function as JSON values: which kind, and how well it is calibrated."""
    if fitted is None:
        return {"kind": None, "reason": why}
    said, seen, error = function.calibration(fitted.held_out, found)
    return {
        "kind": fitted.kind, "table": "completeness.parquet",
        "loss": {name: round(value, 6) for name, value in fitted.loss.items()},
        "calibration": {
            "predicted": said.round(6).tolist(), "observed": seen.round(6).tolist(), "error": round(error, 6)
        },
    }  # fmt: skip


def grid_table(fitted: function.Fit, values: Float, by: tuple[str, ...]) -> pa.Table:
    """The function on a grid: the columns, `completeness`, and `rows_near`, 0 where it is a guess."""
    points, near = function.grid(values)
    columns: dict[str, Any] = {name: points[:, k] for k, name in enumerate(by)}
    # Six digits: the last ones of a float differ between processors.
    columns["completeness"] = np.round(np.clip(fitted.function(points), 0.0, 1.0), 6)
    return pa.table({**columns, "rows_near": near})


def statement(rows: Rows, config: CompletenessConfig) -> Json:
    """The arc S/N and the Einstein radius over seeing that a completeness of `level` needs."""
    known = known_rows(rows, STATED)
    if why := function.unfit(known.found):
        nothing = {name: {"value": None, "reason": why} for name in STATED}
        return {"level": config.level, "needs": nothing, "text": f"No statement: {why}."}
    fit = function.train("logistic", known.values, known.found, STATED)
    low, high = function.crossing_limits(
        known.values, known.found, STATED, level=config.level, draws=config.draws, seed=config.seed
    )
    needs: dict[str, Json] = {}
    for k, name in enumerate(STATED):
        at = function.crossing(fit, known.values, k, config.level)
        needs[name] = _need(Estimate(at, float(low[k]), float(high[k])), config.level)
    return {"level": config.level, "needs": needs, "text": _sentence(needs, config.level)}


def _need(at: Estimate, level: float) -> Json:
    """A crossing as JSON; a limit beyond the rows is null."""
    if not np.isfinite(at.value):
        where = "above" if at.value < 0 else "below"
        return {"value": None, "reason": f"completeness is {where} {level:g} all along the rows"}
    limits = {k: round(v, 6) if np.isfinite(v) else None for k, v in (("low", at.low), ("high", at.high))}
    return {"value": round(at.value, 6), **limits}


def _sentence(needs: dict[str, Json], level: float) -> str:
    words = {"arc_snr": "arc_snr > {}", OVER_SEEING: "theta_E > {} x seeing"}
    said, rest = [], []
    for name, need in needs.items():
        if need["value"] is None:
            rest.append(f"{name}: {need['reason']}")
            continue
        low, high = ("beyond the rows" if need[k] is None else f"{need[k]:.3g}" for k in ("low", "high"))
        said.append(words[name].format(f"{need['value']:.3g} [{low}, {high}]"))
    first = f"Needs {' and '.join(said)} for C = {level:g}." if said else f"No limit for C = {level:g}."
    return first + "".join(f" {text}." for text in rest)


def _summary(
    config: CompletenessConfig, found: Json, notes: tuple[str, ...], seconds: float, *, fresh: bool
) -> Summary:
    lost, false = found["losses"], found["false_positives"]
    whole, lenses = lost["found"], found["footprint"]["lenses"]
    facts: Json = {
        "rows": lost["rows"], "rejected": lost["rejected"]["rows"], "scored low": lost["scored_low"]["rows"],
        "found": whole["rows"], "cut": found["cut"],
        "completeness": f"{whole['value']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]",
        "false positives": f"{false['found']:,} of {false['rows']:,}",
        "statement": found["statement"]["text"],
    }  # fmt: skip
    if "not_in_catalogue" in lost:
        facts["not in catalogue"] = lost["not_in_catalogue"]["rows"]
    if "graded_down" in lost:
        facts["graded down"] = lost["graded_down"]["rows"]
    if lenses["value"] is not None:
        low, high = lenses["counts"]
        facts["lenses in the footprint"] = f"{lenses['value']:.3g}, {low:,} to {high:,}"
    return Summary(
        "completeness", str(config.output), facts, notes=notes, seconds=seconds, done_before=not fresh
    )
