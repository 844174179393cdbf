"""Plots as PNG: training, ROC, precision-recall, completeness, reliability."""

from __future__ import annotations

from typing import Any

from ripple.learn.evaluation.evaluate import Evaluation, LensEvaluation
from ripple.learn.evaluation.slices import Slice
from ripple.report.plots import figure_png


def training_curves(histories: list[list[dict[str, float]]], evaluation: Evaluation) -> bytes:
    """Loss and validation metrics by epoch, and the evaluation when there is one, as PNG.

    Parameters
    ----------
    histories
        Per member, one record per epoch.
    evaluation
        From `evaluate.evaluate`; without "curves" only the training is drawn.
    """
    figure, axes = _figure(2 if "curves" in evaluation else 1)
    for history in histories:
        epoch = [r["epoch"] for r in history]
        # The same colours for all members: the scatter between them is what is to be seen.
        axes[0].plot(epoch, [r["loss"] for r in history], color="C0")
        axes[0].plot(epoch, [r["val_loss"] for r in history], color="C1")
        if "val_pr_auc" in history[0]:  # regression has losses only
            axes[1].plot(epoch, [r["val_pr_auc"] for r in history], color="C2")
            axes[1].plot(epoch, [r["val_auroc"] for r in history], color="C3")
    _label(axes[0], "epoch", "loss: training (blue), validation (orange)")
    _label(axes[1], "epoch", "validation PR-AUC (green), AUROC (red)")
    if "curves" in evaluation:
        _ranking(axes[2:], evaluation)
    return figure_png(figure)


def evaluation_curves(evaluation: LensEvaluation, slices: list[Slice]) -> bytes:
    """ROC, precision-recall, reliability and completeness by slice as PNG."""
    figure, axes = _figure(2)
    _ranking((axes[0], axes[1]), evaluation)
    rows = evaluation["reliability"]
    axes[2].plot([0, 1], [0, 1], color="0.7")  # perfectly calibrated
    axes[2].plot([r["probability"] for r in rows], [r["fraction"] for r in rows], "o-")
    _label(axes[2], "probability", "fraction of lenses")
    for name in dict.fromkeys(s["column"] for s in slices if "completeness" in s):
        part = [s for s in slices if s["column"] == name and "completeness" in s]
        axes[3].plot(range(len(part)), [s["completeness"]["value"] for s in part], "o-", label=name)
    if axes[3].lines:
        axes[3].legend(fontsize=7)
    _label(axes[3], "bin, low to high", "completeness at the operating point")
    return figure_png(figure)


def _ranking(axes: Any, evaluation: LensEvaluation) -> None:
    points = evaluation["curves"]
    # A logarithmic axis has no 0: points without a false positive are drawn at half of one.
    floor = 0.5 / max(evaluation["nonlenses"], 1)
    axes[0].plot([max(f, floor) for f in points["fpr"]], points["tpr"])
    axes[0].set_xscale("log")
    auroc = evaluation["metrics"]["auroc"]["value"]
    _label(axes[0], f"false positive rate (AUROC {auroc:.4f})", "true positive rate")
    axes[1].plot(points["tpr"], points["precision"])
    pr_auc = evaluation["metrics"]["pr_auc"]["value"]
    _label(axes[1], f"completeness (PR-AUC {pr_auc:.4f})", "purity in this set")


def _figure(rows: int) -> tuple[Any, Any]:
    # The object interface: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Fixed margins: a layout that measures every text costs more than the drawing.
    inch = 1 / (3.6 * rows)
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.6 * inch, "top": 1 - 0.15 * inch}
    figure = Figure(figsize=(9, 3.6 * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 2, gridspec_kw={**margins, "wspace": 0.2, "hspace": 0.25}).ravel()


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
