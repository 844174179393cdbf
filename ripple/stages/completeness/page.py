"""The page of a selection function: heat maps, calibration, losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.config import Json
from ripple.report.cards import Table, Tile, png_uri, render
from ripple.report.plots import Line, figure_png, line_plot
from ripple.stages.completeness.bins import Bin
from ripple.stages.completeness.function import Fit

Float = NDArray[np.float64]
#: Longest table of bins on the page; the JSON has them all.
SHOWN = 200
#: An axis whose values span more than this factor is logarithmic.
DECADE = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What the page shows.

    Parameters
    ----------
    found
        `completeness.json`.
    edges, cells
        Of the bins.
    values
        `(N, D)` columns of the rows.
    fitted
        The smooth function; None when there is none.
    """

    found: Json
    edges: Sequence[Float]
    cells: Sequence[Bin]
    values: Float
    fitted: Fit | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing as a `data:` address, and what it shows."""

    uri: str
    said: str


def page(result: Result, digest: str) -> bytes:
    """The HTML file."""
    found = result.found
    lost, false, there = found["losses"], found["false_positives"], found["footprint"]
    tiles = [
        Tile("completeness", _said(lost["found"]), f"{lost['found']['rows']:,} of {lost['rows']:,} rows"),
        Tile("false positives", f"{false['found']:,}", f"of {false['rows']:,} rows"),
        Tile("false positives per deg²", _said(false["per_deg2"]), false["per_deg2"].get("reason", "")),
        Tile(
            "effective area, deg²",
            _said(there["effective_area_deg2"]),
            there["effective_area_deg2"].get("reason", ""),
        ),
        Tile("lenses in the footprint", _said(there["lenses"]), _counts(there["lenses"])),
    ]
    curves = _curve(result) if len(result.edges) == 1 else []
    return render(
        "completeness.html.j2",
        title="Selection function",
        digest=digest[:16],
        lead=f"{lost['rows']:,} {found['of']} rows; found: {found['cut']}.",
        statement=found["statement"]["text"],
        notes=found["notes"],
        facts=tiles,
        pictures=_maps(result) if len(result.edges) > 1 else [],
        plots=[*curves, *_calibration(found["function"])],
        function=_about(found["function"]),
        tables=[
            _losses(lost),
            *_reasons(lost),
            *_volume(there["effective_volume"]),
            *_classes(false),
            _bins(result),
        ],
        provenance=[f"scores {digest[:16]}"],
    )


def _said(found: Json) -> str:
    if found["value"] is None:
        return "unknown"
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _about(known: Json) -> str:
    if known["kind"] is None:
        return f"No smooth function: {known['reason']}."
    loss = ", ".join(f"{name} {value:.4f}" for name, value in known["loss"].items())
    error = known["calibration"]["error"]
    return (
        f"The smooth function is the {known['kind']} fit; held-out rows: mean difference of predicted and "
        f"observed completeness {error:.3f}, negative log likelihood {loss}."
    )


# Tables ---------------------------------------------------------------


def _losses(lost: Json) -> Table:
    names = {
        "rejected": "rejected by quality", "scored_low": "scored low", "not_graded": "not graded",
        "graded_down": "graded down", "found": "found",
    }  # fmt: skip
    rows = [
        (said, f"{lost[name]['rows']:,}", _said(lost[name])) for name, said in names.items() if name in lost
    ]
    if "overall" not in lost:
        return Table("Stage by stage", ("", "rows", "share, 95 %"), tuple(rows))
    absent = lost["not_in_catalogue"]
    note = (
        f"Not in the catalogue: {absent['rows']:,} of all {absent['of']:,} lenses, {_said(absent)}, of which "
        f"{absent['without_pixels']:,} have no pixels. Found of all: {_said(lost['overall'])}. Bins and "
        "function are of the rows."
    )
    return Table("Stage by stage", ("", "rows", "share, 95 %"), tuple(rows), note=note)


def _counts(lenses: Json) -> str:
    if lenses["value"] is None:
        return str(lenses["reason"])
    low, high = lenses["counts"]
    return f"of {lenses['present']:,.4g} at {lenses['per_deg2']:g} per deg²; a count of {low:,} to {high:,}"


def _volume(found: Json) -> list[Table]:
    if found["value"] is None:
        return []
    rows = tuple(
        (
            f"{s['low']:.3g} to {s['high']:.3g}",
            f"{s['rows']:,}",
            f"{s['volume_gpc3']:.4g}",
            _said(s["completeness"]),
        )
        for s in found["shells"]
    )
    note = f"Effective comoving volume: {_said(found)} Gpc³; {found['cosmology']}."
    return [
        Table("Redshifts of the lenses", ("z_lens", "rows", "Gpc³", "completeness, 95 %"), rows, note=note)
    ]


def _reasons(lost: Json) -> list[Table]:
    rows = tuple((name, f"{n:,}") for name, n in lost["rejected_by"].items())
    return [Table("Rejected by quality", ("flag", "rows"), rows)] if rows else []


def _classes(false: Json) -> list[Table]:
    rows = tuple((name, f"{n:,}") for name, n in false["by_class"].items())
    return [Table("False positives by class", ("class", "rows"), rows)] if rows else []


def _bins(result: Result) -> Table:
    by = result.found["by"]
    rows = []
    for record in result.found["bins"][:SHOWN]:
        between = [f"{a:.4g} to {b:.4g}" for a, b in zip(record["low"], record["high"], strict=True)]
        known = record["completeness"]
        said = known["reason"] if known["value"] is None else _said(known)
        rows.append((*between, f"{record['rows']:,}", f"{record['found']:,}", said))
    more = len(result.found["bins"]) - SHOWN
    note = f"{more:,} more bins are in completeness.json." if more > 0 else ""
    return Table("Bins", (*by, "rows", "found", "completeness, 95 %"), tuple(rows), note=note)


# Plots ----------------------------------------------------------------


def _calibration(known: Json) -> list[str]:
    if known["kind"] is None:
        return []
    at = known["calibration"]
    lines = [Line((0, 1), (0, 1), "perfect", "faint"), Line(at["predicted"], at["observed"], "held-out rows")]
    unit = (0.0, 1.0)
    return [line_plot("Calibration", "predicted completeness", "observed", lines, x_range=unit, y_range=unit)]


def _curve(result: Result) -> list[str]:
    """Completeness over one column: bins with their limits, and the function."""
    name, edge = result.found["by"][0], result.edges[0]
    known = [(cell, cell.completeness) for cell in result.cells if cell.completeness is not None]
    lines = []
    for n, (cell, c) in enumerate(known):
        middle = (cell.low[0] + cell.high[0]) / 2
        lines.append(Line((middle, middle), (c.low, c.high), style="c1"))
        lines.append(Line((cell.low[0], cell.high[0]), (c.value, c.value), "" if n else "bins, 95 %"))
    if result.fitted is not None:
        low, high = np.quantile(result.values[:, 0], (0.005, 0.995))
        x = np.linspace(low, high, 200)
        lines.append(Line(x, result.fitted.function(x[:, None]), "function", "c2"))
    log = _is_log(edge)
    limits = (float(edge[0]), float(edge[-1]))
    return [line_plot("Completeness", name, "found", lines, x_range=limits, y_range=(0.0, 1.0), log_x=log)]


def _is_log(edge: Float) -> bool:
    return bool(edge[0] > 0 and edge[-1] / edge[0] > DECADE)


# Heat maps ------------------------------------------------------------


def _maps(result: Result) -> list[Picture]:
    """The bins and the function over the first two columns; with three, a pair for each bin of the third."""
    by = result.found["by"]
    if len(by) == 2:
        return [_map(result, None)]
    return [_map(result, k) for k in range(len(result.edges[2]) - 1)]


def _map(result: Result, third: int | None) -> Picture:
    by = result.found["by"]
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 if result.fitted is None else 2, squeeze=False)[0]
    drawn = _draw_bins(axes[0], result, third)
    if result.fitted is not None:
        _draw_function(axes[1], result, third)
    for ax in axes:
        _label_axes(ax, result)
    figure.colorbar(drawn, ax=list(axes), label="completeness")
    said = f"Completeness over {by[0]} and {by[1]}"
    if third is not None:
        low, high = result.edges[2][third : third + 2]
        said += f", {by[2]} {low:.4g} to {high:.4g}"
    figure.suptitle(said, fontsize=11)
    return Picture(png_uri(figure_png(figure, 110)), said)


def _draw_bins(ax: Any, result: Result, third: int | None) -> Any:
    """Bins with their numbers; grey where there are too few rows."""
    shape = [len(edge) - 1 for edge in result.edges]
    known = [np.nan if c.completeness is None else c.completeness.value for c in result.cells]
    value = np.array(known).reshape(shape)
    rows = np.array([c.rows for c in result.cells]).reshape(shape)
    if third is not None:
        value, rows = value[:, :, third], rows[:, :, third]
    x, y = result.edges[:2]
    ax.set_facecolor("0.85")
    drawn = ax.pcolormesh(x, y, value.T, vmin=0, vmax=1, cmap="viridis")
    for i in range(shape[0]):
        for j in range(shape[1]):
            at = (_middle(x, i), _middle(y, j))
            text = f"{value[i, j]:.2f}\n{rows[i, j]}" if np.isfinite(value[i, j]) else f"{rows[i, j]}"
            colour = "white" if value[i, j] < 0.6 else "black"  # also black where it is NaN
            ax.text(*at, text, ha="center", va="center", fontsize=6, color=colour, clip_on=True)
    ax.set_title("bins: completeness, and rows", fontsize=9)
    return drawn


def _middle(edge: Float, k: int) -> float:
    """Centre of a bin as it is drawn."""
    low, high = float(edge[k]), float(edge[k + 1])
    return float(np.sqrt(low * high)) if _is_log(edge) else (low + high) / 2


def _draw_function(ax: Any, result: Result, third: int | None) -> None:
    """The function with contours, at the middle of a bin of the third column."""
    assert result.fitted is not None
    low, high = np.quantile(result.values, (0.005, 0.995), axis=0)
    axes = [
        np.geomspace(a, b, 80) if _is_log(edge) and a > 0 else np.linspace(a, b, 80)
        for a, b, edge in zip(low[:2], high[:2], result.edges[:2], strict=True)
    ]
    points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    if third is not None:
        points = np.column_stack([points, np.full(len(points), _middle(result.edges[2], third))])
    value = result.fitted.function(points).reshape(80, 80)
    ax.pcolormesh(*axes, value.T, vmin=0, vmax=1, cmap="viridis", shading="nearest")
    lines = ax.contour(*axes, value.T, levels=[0.1, 0.5, 0.9], colors="white", linewidths=1)
    ax.clabel(lines, fontsize=7)
    ax.set_title(f"smooth function ({result.fitted.kind})", fontsize=9)


def _label_axes(ax: Any, result: Result) -> None:
    by = result.found["by"]
    ax.set_xlabel(by[0])
    ax.set_ylabel(by[1])
    for edge, scale, limit in zip(
        result.edges, (ax.set_xscale, ax.set_yscale), (ax.set_xlim, ax.set_ylim), strict=False
    ):
        if _is_log(edge):
            scale("log")
        limit(edge[0], edge[-1])
