"""Numbers, plots and tables of the page about scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.learn.evaluation.evaluate import ClassEvaluation, LensEvaluation, Stages
from ripple.learn.evaluation.intervals import Measure, Measured
from ripple.learn.evaluation.slices import Slice
from ripple.learn.model.contract import Contract
from ripple.report.cards import Table, Tile
from ripple.report.plots import Line, histogram_plot, line_plot
from ripple.storage.artefact import Artefact


def numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64, NaN where it is null; all NaN when there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def tiles(table: pa.Table, evaluation: LensEvaluation | None) -> list[Tile]:
    """The numbers at the head of the page."""
    # Metric of the evaluation -> name on the page, in this order; "tpr10" is the completeness with fewer than
    # ten false positives.
    names = {
        "auroc": "AUROC",
        "pr_auc": "PR-AUC",
        "tpr_at_fpr_1e-2": "TPR at FPR 1 %",
        "tpr_at_fpr_1e-3": "TPR at FPR 0.1 %",
        "tpr10": "TPR with < 10 false",
        "ece": "calibration error",
    }
    found = [Tile("rows scored", f"{table.num_rows:,}")]
    if evaluation:
        found.append(
            Tile("rows evaluated", f"{evaluation['rows']:,}", f"{evaluation['lenses']:,} true lenses")
        )
    measures = (evaluation.get("metrics") if evaluation else None) or {}
    for key, name in names.items():
        value = measures.get(key)
        if value:
            found.append(_tile(name, value))
    return found


def _tile(name: str, found: Measured) -> Tile:
    if found["value"] is None:
        return Tile(name, "not resolved", found.get("reason", ""))
    between = f"{found['low']:.3f} to {found['high']:.3f}" if "low" in found and "high" in found else ""
    return Tile(name, f"{found['value']:.3f}", between)


def note(evaluation: LensEvaluation | None, split: str = "test", *, elsewhere: bool = False) -> str:
    """The sentence that says on which rows the numbers were measured, or where to find them."""
    if not evaluation and elsewhere:
        return "This is no lens finder: evaluation.json beside the scores has what was measured."
    if not evaluation:
        return "Not evaluated: score with --evaluate on labelled rows."
    where = "of sky that the model was not trained on"
    if split == "unknown":
        where = "(split unknown: these may be training rows)"
    return (
        f"On {evaluation['rows']:,} labelled rows, {evaluation['lenses']:,} of them lenses, {where}. "
        "Ranges are 95 % intervals: exact limits of the counts, or of a bootstrap by cell of the sky where "
        "these are wider."
    )


def plots(table: pa.Table, evaluation: LensEvaluation | None) -> list[str]:
    """ROC, purity against completeness, calibration, and the histogram of scores, as SVG."""
    drawn = []
    # Each part is drawn if the evaluation has it: `score` without labels has none.
    if evaluation and (curves := evaluation.get("curves")):
        fpr, tpr = np.array([0.0, *curves["fpr"]]), np.array([0.0, *curves["tpr"]])
        # Half of one false positive: the least rate that the data can tell from zero, on a logarithmic axis.
        least = max(0.5 / max(evaluation["nonlenses"], 1), 1e-7)
        chance = np.geomspace(least, 1, 50)  # a straight line is a curve on this axis
        drawn.append(
            line_plot(
                "ROC",
                "false positive rate",
                "true positive rate",
                [Line(chance, chance, "chance", "faint"), Line(np.maximum(fpr, least), tpr, "network")],
                x_range=(least, 1.0),
                y_range=(0.0, 1.0),
                log_x=True,
            )
        )
        # A random ranking has the share of lenses as its purity, at every completeness.
        share = evaluation["lenses"] / evaluation["rows"]
        drawn.append(
            line_plot(
                "Purity and completeness",
                "completeness",
                "purity",
                [
                    Line([0, 1], [share, share], "chance", "faint"),
                    Line(curves["tpr"], curves["precision"], "network"),
                ],
                x_range=(0.0, 1.0),
                y_range=(0.0, 1.0),
            )
        )
    if evaluation and (points := evaluation.get("reliability")):
        drawn.append(
            line_plot(
                "Calibration",
                "predicted probability",
                "fraction of lenses",
                [
                    Line([0, 1], [0, 1], "perfect", "faint"),
                    Line([p["probability"] for p in points], [p["fraction"] for p in points], "network"),
                ],
                x_range=(0.0, 1.0),
                y_range=(0.0, 1.0),
            )
        )
    groups = _score_groups(table)
    drawn.append(
        histogram_plot("Scores", "score", groups, x_range=_score_range(groups), log_y=table.num_rows > 0)
    )
    return drawn


def _score_groups(table: pa.Table) -> list[tuple[str, NDArray[np.float64]]]:
    """Scores of lenses and others, on sky that the model was not trained on where that is known."""
    score, label = numbers(table, "score"), numbers(table, "label")
    if not (label >= 0).any():  # NaN or -1: no labels
        return [("all", score)]
    unseen = np.ones(len(score), bool)
    if "split" in table.column_names:
        names = np.array(table["split"].to_pylist())
        unseen = names == ("test" if (names == "test").any() else "unknown")
    return [("not a lens", score[unseen & (label == 0)]), ("lens", score[unseen & (label == 1)])]


def _score_range(groups: list[tuple[str, NDArray[np.float64]]]) -> tuple[float, float] | None:
    """0 to 1 for probabilities; None, for the range of the data, when scores are logits."""
    values = np.concatenate([v for _, v in groups])
    inside = len(values) and values.min() >= 0 and values.max() <= 1
    return (0.0, 1.0) if inside else None


def tables(
    artefact: Artefact, evaluation: LensEvaluation | None, slices: list[Slice], model: Contract | None
) -> list[Table]:
    """The tables of slices, shortcuts and rejected rows."""
    found = _slice_tables(slices)
    # The shortcuts are those of the training set, recorded in the contract of the model.
    measures = (evaluation.get("metrics") if evaluation else None) or {}
    found += _gate_table(model.gates if model else {}, measures)
    index = artefact.index()
    rejected = Counter(
        reason or "unknown"
        for reason, status in zip(index["reason"].to_pylist(), index["status"].to_pylist(), strict=True)
        if status == "rejected"
    )
    rows = tuple((reason, f"{count:,}") for reason, count in rejected.most_common())
    total = sum(rejected.values())
    found.append(
        Table(
            "Rejected rows",
            ("reason", "rows"),
            rows or (("none", "0"),),
            note=f"{total:,} of {index.num_rows:,} targets; those with pixels have a score as well.",
        )
    )
    return found


def class_note(evaluation: ClassEvaluation, split: str) -> str:
    """The sentence about a model of several classes."""
    where = "of sky that the model was not trained on"
    if split == "unknown":
        where = "(split unknown: these may be training rows)"
    accuracy = _ranged(evaluation["metrics"]["accuracy"])
    return (
        f"On {evaluation['rows']:,} labelled rows {where}: accuracy {accuracy}. "
        "evaluation.json beside the scores has the rest."
    )


def class_tables(evaluation: ClassEvaluation, names: list[str]) -> list[Table]:
    """The confusion matrix, and how well each class is ranked and calibrated."""
    matrix = evaluation["confusion_matrix"]
    if len(names) != len(matrix):
        return []
    rows = tuple((name, *(f"{n:,}" for n in counts)) for name, counts in zip(names, matrix, strict=True))
    confusion = Table("Confusion matrix", ("true class", *(f"called {n}" for n in names)), rows,
                      note="A class is called where it is the most probable one at the shares of the "
                      "validation rows.")  # fmt: skip
    each = []
    for k, name in enumerate(names):
        known = evaluation["calibration"][str(k)]
        calibration = f"{known['ece']['value']:.3f} ({known['ece_expected']['value']:.3f})"
        each.append((name, f"{sum(matrix[k]):,}", _ranged(evaluation["auroc"].get(str(k))), calibration))
    return [
        confusion,
        Table(
            "By class",
            ("class", "rows", "AUROC against the rest", "calibration error (expected)"),
            tuple(each),
            note="Expected: what calibrated probabilities would show on so few rows.",
        ),
    ]


def stage_table(stages: Stages | None) -> list[Table]:
    """What becomes of the true lenses: those that quality control rejects are missed as well."""
    if not stages:
        return []
    asked = stages["asked"]
    rows = (
        ("accepted by quality control", f"of {asked:,}", _ranged(stages["accepted"])),
        ("above the operating point", "of the accepted", _ranged(stages["found"])),
        ("both: completeness", f"of {asked:,}", _ranged(stages["completeness"])),
    )
    return [Table("True lenses, stage by stage", ("stage", "of", "fraction"), rows)]


# Columns of the truth by which completeness is shown, if it was evaluated in slices of them.
_SLICES = {
    "arc_sb": "arc surface brightness, mag/arcsec²",
    "theta_E": "Einstein radius, arcsec",
    "arc_mag": "arc, mag",
}


def _slice_tables(slices: list[Slice]) -> list[Table]:
    """One table per property, with completeness and AUROC by range of its values."""
    tables = []
    for column, name in _SLICES.items():
        # A slice without lenses has no completeness.
        mine = [s for s in slices if s["column"] == column and s["lenses"]]
        rows = tuple(
            (
                f"{s['low']:g} to {s['high']:g}",
                f"{s['lenses']:,}",
                _ranged(s.get("completeness")),
                _ranged(s.get("auroc")),
            )
            for s in mine
        )
        if rows:
            head = (name, "lenses", "completeness", "AUROC")
            tables.append(
                Table(f"By {name}", head, rows, note="At the operating point chosen on validation sky.")
            )
    return tables


def _ranged(estimate: Measure | None) -> str:
    """A value and its interval, as in `0.912 (0.88–0.94)`."""
    if not estimate:
        return "–"
    return f"{estimate['value']:.3f} ({estimate['low']:.2f}–{estimate['high']:.2f})"


def _gate_table(gates: Json, metrics: Mapping[str, Measured]) -> list[Table]:
    """How well features that should not tell lenses apart (noise, PSF, ...) do so in the training set."""
    entries = gates.get("shortcuts", {})
    rows: list[tuple[str, ...]] = []
    failed: set[int] = set()
    for name, entry in sorted(entries.items() if isinstance(entries, dict) else ()):
        # Models from elsewhere may have a number, a measure with an interval, or anything, which is left out.
        value = entry.get("auroc", entry) if isinstance(entry, dict) else entry
        value = value.get("value") if isinstance(value, dict) else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(entry, dict) and entry.get("passed") is False:  # shown in red
                failed.add(len(rows))
            rows.append((str(name).replace("_", " "), f"{value:.3f}"))
    if not rows:
        return []
    # For comparison, in the last row.
    if "auroc" in metrics:
        rows.append(("the network", f"{metrics['auroc']['value'] or 0.0:.3f}"))
    note = (
        "An AUROC as high as the network's means that the simulation gives its lenses away by this feature."
    )
    head = ("what a model without shapes sees", "AUROC")
    return [Table("Shortcut gates", head, tuple(rows), frozenset(failed), note)]
