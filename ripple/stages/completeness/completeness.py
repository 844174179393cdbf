"""`ripple completeness`: the selection function of a finder, from scores of rows with painted arcs.

    OUT/index.html             heat maps, calibration, losses
    OUT/completeness.json      the same numbers, null with a reason where there are too few rows
    OUT/completeness.parquet   the smooth function on a grid

Rows that quality control rejects count as lost: a list of candidates does not have them either.
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
from ripple.learn.evaluation.intervals import Estimate
from ripple.runtime.summary import Summary
from ripple.stages.completeness import function
from ripple.stages.completeness.bins import Bin, bin_edges, binned, fraction, parse_bins, poisson_rate
from ripple.stages.completeness.config import CompletenessConfig
from ripple.stages.completeness.page import Result, page
from ripple.stages.completeness.rows import OVER_SEEING, STATED, Rows, open_scores, read_rows
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
    found: Json = {
        "of": config.of, "cut": rows.cut, "by": list(config.by), "interval": config.interval,
        "notes": list(rows.notes), "left_out": rows.left_out,
        "without_values": int((rows.lens & rows.used).sum()) - len(known.found),
        "outside_bins": len(known.found) - sum(cell.rows for cell in cells),
        "losses": losses(rows, config.interval), "false_positives": false_positives(rows, config.area_deg2),
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


def losses(rows: Rows, interval: str) -> Json:
    """What became of the lens rows: rejected by quality and why, scored low, found."""
    mine = rows.lens & rows.used
    total, rejected, found = (int(m.sum()) for m in (mine, mine & ~rows.passed, mine & rows.found))
    why = Counter(name for k in np.flatnonzero(mine & ~rows.passed) for name in rows.why[k])
    counts = {"rejected": rejected, "scored_low": total - rejected - found, "found": found}
    return {
        "rows": total,
        "rejected_by": dict(sorted(why.items(), key=lambda item: (-item[1], item[0]))),
        **{name: {"rows": n, **fraction(n, total, interval).as_dict()} for name, n in counts.items()},
    }


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
        return out | {"per_deg2": {"value": None, "reason": "no area was given (--area-deg2)"}}
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
    whole = lost["found"]
    facts: Json = {
        "rows": lost["rows"], "rejected": lost["rejected"]["rows"], "scored low": lost["scored_low"]["rows"],
        "found": whole["rows"], "cut": found["cut"],
        "completeness": f"{whole['value']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]",
        "false positives": f"{false['found']:,} of {false['rows']:,}",
        "statement": found["statement"]["text"],
    }  # fmt: skip
    return Summary(
        "completeness", str(config.output), facts, notes=notes, seconds=seconds, done_before=not fresh
    )
