"""`ripple compare`: rankings of the same rows by several models, with intervals of the differences.

Rows that one of the models was trained on, or may have been, are left out of every number: on them the other
model would look worse than it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError
from ripple.learn.evaluation.intervals import row_weights, unresolved
from ripple.learn.evaluation.metrics import (
    Curve,
    auroc,
    confusion,
    curve,
    pr_auc,
    ranked,
    threshold_at_fpr,
    tpr_at_fpr,
)
from ripple.report.cards import Card, Table, Tile, data_uri, render
from ripple.report.cutout_pictures import pictures_of_rows
from ripple.report.plots import Line, line_plot
from ripple.runtime.summary import Summary
from ripple.sky.splits import sky_cells
from ripple.stages.compare.config import CompareConfig
from ripple.stages.report.figures import numbers
from ripple.stages.report.report import ranked_table, tensor_artefacts, with_truth
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.directory import write_directory
from ripple.storage.files import write_new

Float = NDArray[np.float64]
#: Verdict of a row on which a model may be judged.
UNSEEN = "test"


@dataclass(frozen=True, slots=True)
class Common:
    """Rows that all models have scored and none has seen.

    Parameters
    ----------
    names
        Of the M models.
    score, rank
        `(M, N)` scores, and ranks among these rows, from 1.
    label
        `(N,)` 1 lens, 0 not, -1 unknown.
    cell
        `(N,)` cell of sky; -1 without a position.
    table
        N rows of the first scores.
    left_out
        Why rows were left out -> how many.
    """

    names: tuple[str, ...]
    score: Float
    rank: NDArray[np.int64]
    label: NDArray[np.int64]
    cell: NDArray[np.int64]
    table: pa.Table
    left_out: dict[str, int]


def compare(config: CompareConfig) -> Summary:
    """Write a page and `comparison.json`.

    Raises
    ------
    ConfigError
        Fewer than two scores, or other names than scores.
    DataError
        No row is in all of them and unseen by all.
    """
    start = time.perf_counter()
    if len(config.scores) < 2:
        raise ConfigError("compare: give two or more directories of scores")
    artefacts = [open_artefact(Path(path), "scores") for path in config.scores]
    if config.names and len(config.names) != len(artefacts):
        raise ConfigError(f"compare: {len(config.names)} names for {len(artefacts)} scores")
    common = common_rows(artefacts, config)
    found = differences(common, config)

    def build(directory: Path) -> None:
        write_new(directory / "index.html", _page(artefacts[0], common, found, config))
        write_new(directory / "comparison.json", json.dumps(found, indent=1, sort_keys=True).encode())

    inputs = {f"scores {k}": artefact.digest for k, artefact in enumerate(artefacts)}
    fresh = write_directory(config.output, "page", config, inputs, build)
    facts: dict[str, Any] = {"rows": len(common.label)}
    facts |= {f"left out, {why}": n for why, n in common.left_out.items()}
    for name in common.names:
        facts[f"AUROC {name}"] = _said(found["models"][name].get("auroc"))
    for pair in found["differences"]:
        facts[f"{pair['b']} - {pair['a']}"] = f"AUROC {_said(pair.get('auroc'))}"
    return Summary(
        "compare", str(config.output), facts, seconds=time.perf_counter() - start, done_before=not fresh
    )


def common_rows(artefacts: Sequence[Artefact], config: CompareConfig) -> Common:
    """The rows that can be compared; see `Common`."""
    names = config.names or _short_names(config.scores)
    tables = [with_truth(ranked_table(a), a.attributes.get("lens_labels", [1])) for a in artefacts]
    ids = [[str(v) for v in table["id"].to_pylist()] for table in tables]
    places = [{name: k for k, name in enumerate(column)} for column in ids]
    shared = [name for name in ids[0] if all(name in place for place in places[1:])]
    left_out = {"not in all": len(set().union(*ids)) - len(shared)}
    rows = np.array([[place[name] for name in shared] for place in places], np.int64).reshape(len(places), -1)
    unseen = np.ones(len(shared), bool)
    for k, table in enumerate(tables):
        known = table["split"].to_pylist() if "split" in table.column_names else [""] * table.num_rows
        seen = np.array(known)[rows[k]] != UNSEEN
        left_out[f"seen, or perhaps seen, by {names[k]}"] = int(seen.sum())
        unseen &= ~seen
    if not unseen.any():
        counts = ", ".join(f"{n:,} {why}" for why, n in left_out.items())
        raise DataError(f"compare: no row is left that all models scored and none may have seen: {counts}")
    rows = rows[:, unseen]
    score = np.stack([numbers(table, "score")[r] for table, r in zip(tables, rows, strict=True)])
    first = tables[0].take(rows[0])
    label = numbers(first, "label") if "label" in first.column_names else np.full(first.num_rows, -1.0)
    cell = sky_cells(numbers(first, "ra"), numbers(first, "dec"), config.nside)
    rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1) + 1
    return Common(
        tuple(names), score, rank, np.nan_to_num(label, nan=-1).astype(np.int64), cell, first, left_out
    )


def _short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """The last parts of paths that tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{path} ({k + 1})" for k, path in enumerate(paths))


METRICS: dict[str, Callable[[Curve], float]] = {"auroc": auroc, "pr_auc": pr_auc}


def differences(common: Common, config: CompareConfig) -> dict[str, Any]:
    """Metrics of each model, and of each pair the difference with its 95 % interval, as JSON values.

    All models see the same replicates of cells of sky, so that what is hard in a replicate is hard for all.
    """
    known = common.label >= 0
    label, score = common.label[known], common.score[:, known]
    out: dict[str, Any] = {
        "rows": len(common.label), "labelled": int(known.sum()), "lenses": int((label == 1).sum()),
        "left_out": common.left_out, "models": {name: {} for name in common.names}, "differences": [],
    }  # fmt: skip
    pairs = [(a, b) for a in range(len(score)) for b in range(a + 1, len(score))]
    if len(np.unique(label)) < 2:
        out["note"] = "the common rows have labels of one class, or none: only ranks are compared"
        metrics: dict[str, Callable[[Curve], float]] = {}
    else:
        metrics = dict(METRICS)
        if why := unresolved(config.fpr, float((label == 0).sum())):
            out["note"] = f"no true positive rate at a false positive rate of {config.fpr:g}: {why}"
        else:
            metrics[f"tpr@{config.fpr:g}"] = lambda c: tpr_at_fpr(c, config.fpr)
    values = np.array([[metric(curve(label, s)) for metric in metrics.values()] for s in score])
    drawn = _replicates(label, score, common.cell[known], metrics, config) if metrics else np.zeros((0,))
    for k, name in enumerate(common.names):
        for j, metric in enumerate(metrics):
            out["models"][name][metric] = _measure(values[k, j], drawn[:, k, j])
        if f"tpr@{config.fpr:g}" in metrics:
            threshold = threshold_at_fpr(curve(label, score[k]), config.fpr)
            out["models"][name]["confusion"] = dict(confusion(label, score[k], threshold))
    for a, b in pairs:
        entry: dict[str, Any] = {"a": common.names[a], "b": common.names[b]}
        for j, metric in enumerate(metrics):
            entry[metric] = _measure(values[b, j] - values[a, j], drawn[:, b, j] - drawn[:, a, j])
        entry["rank_correlation"] = float(np.corrcoef(common.rank[a], common.rank[b])[0, 1])
        out["differences"].append(entry)
    return out


def _replicates(
    label: NDArray[np.int64],
    score: Float,
    cell: NDArray[np.int64],
    metrics: dict[str, Callable[[Curve], float]],
    config: CompareConfig,
) -> Float:
    """`(draws, M, metrics)` values in replicates of cells of sky that have both classes."""
    out = []
    rankings = [ranked(label, s) for s in score]
    for weight in row_weights(cell, config.draws, config.seed):
        if not weight[label == 1].sum() or not weight[label == 0].sum():
            continue
        curves = [rows.curve(weight[rows.order]) for rows in rankings]
        out.append([[metric(c) for metric in metrics.values()] for c in curves])
    return np.array(out).reshape(-1, len(score), len(metrics))


def _measure(value: float, drawn: Float) -> dict[str, Any]:
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    interval = [round(float(low), 6), round(float(high), 6)] if np.isfinite(low + high) else None
    return {"value": round(float(value), 6), "interval": interval}


def _said(measure: dict[str, Any] | None) -> str:
    if measure is None:
        return "no labels"
    interval = measure["interval"]
    return f"{measure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


# The page ------------------------------------------------------------


def _page(first: Artefact, common: Common, found: dict[str, Any], config: CompareConfig) -> bytes:
    models = found["models"]
    metrics = [name for name in next(iter(models.values())) if name != "confusion"]
    head = ("model", *metrics)
    rows = tuple((name, *(_said(models[name][m]) for m in metrics)) for name in common.names)
    apart = tuple(
        (f"{p['b']} - {p['a']}", *(_said(p[m]) for m in metrics), f"{p['rank_correlation']:.3f}")
        for p in found["differences"]
    )
    tables = [
        Table("Models", head, rows),
        Table("Differences on the same rows, 95 %", ("pair", *metrics, "rank correlation"), apart),
        Table("Left out", ("why", "rows"), tuple((why, f"{n:,}") for why, n in common.left_out.items())),
    ]
    for name in common.names:
        if table := models[name].get("confusion"):
            cells = tuple((key.replace("_", " "), f"{value:,.4g}") for key, value in table.items())
            tables.append(Table(f"{name} at a false positive rate of {config.fpr:g}", ("", "rows"), cells))
    return render(
        "compare.html.j2",
        title="Models compared",
        digest=first.digest[:16],
        lead=f"{len(common.label):,} rows that all models scored and none was trained on.",
        facts=[Tile("models", str(len(common.names))), Tile("lenses", f"{found['lenses']:,}")],
        plots=_plots(common) if metrics else [],
        tables=tables,
        cards=_moved(first, common, config),
        cards_note="The rows whose rank differs most between two of the models.",
        note=found.get("note", ""),
        provenance=[f"{name}" for name in common.names],
    )


def _plots(common: Common) -> list[str]:
    """ROC with a linear and a logarithmic axis, and precision against completeness, of all models."""
    known = common.label >= 0
    curves = [curve(common.label[known], s[known]) for s in common.score]
    styles = [f"c{k % 8 + 1}" for k in range(len(curves))]
    roc = [
        Line(c.fpr, c.tpr, name, style, steps=True)
        for c, name, style in zip(curves, common.names, styles, strict=True)
    ]
    precision = [
        Line(c.tpr, c.tp / np.maximum(c.tp + c.fp, 1), name, style)
        for c, name, style in zip(curves, common.names, styles, strict=True)
    ]
    least = 1 / max(c.negatives for c in curves)
    unit = (0.0, 1.0)
    fpr, tpr = "false positive rate", "true positive rate"
    return [
        line_plot("ROC", fpr, tpr, roc, x_range=unit, y_range=unit),
        line_plot("ROC, logarithmic", fpr, tpr, roc, x_range=(least, 1.0), y_range=(0.0, 1.0), log_x=True),
        line_plot("Purity of these rows", "completeness", "purity", precision, x_range=unit, y_range=unit),
    ]


def _moved(first: Artefact, common: Common, config: CompareConfig) -> list[Card]:
    """Cards of the rows whose rank differs most."""
    gap = common.rank.max(axis=0) / np.maximum(common.rank.min(axis=0), 1)  # by ratio: the top matters most
    chosen = np.argsort(-gap, kind="stable")[: config.moved]
    table = common.table.take(chosen)
    shard, row = (numbers(table, name).astype(np.int64) for name in ("shard", "row"))
    drawn = pictures_of_rows(tensor_artefacts(first), shard, row, stretch=8.0, softening=8.0)
    truth = {1: "lens", 0: "nonlens"}
    return [
        Card(
            id=str(table["id"][k].as_py()),
            rank=k + 1,
            ra=float(numbers(table, "ra")[k]),
            dec=float(numbers(table, "dec")[k]),
            picture=data_uri(picture),
            width=picture.shape[1],
            height=picture.shape[0],
            truth=truth.get(int(common.label[n]), "unknown"),
            extra=tuple(f"{name}: rank {common.rank[m, n]:,}" for m, name in enumerate(common.names)),
        )
        for k, (n, picture) in enumerate(zip(chosen.tolist(), drawn.images, strict=True))
    ]
