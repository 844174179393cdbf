"""Small SVG plots in the colours and fonts of the page around them, which a plotting library cannot know.

Larger figures are drawn by matplotlib; `figure_png` makes files of them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Pixels of the drawing with one line of legend, which the page scales, and margins for ticks and labels.
WIDTH, HEIGHT = 360, 260
#: Colours of curves; more curves begin again.
COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 40, 38
_LEGEND_LINE = 14  # px


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points, a name for the legend, and the CSS class that colours it (`c1` to `c8`, `faint`)."""

    x: ArrayLike
    y: ArrayLike
    name: str = ""
    style: str = "c1"
    steps: bool = False


def line_plot(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """An SVG element with axes, ticks and curves.

    Parameters
    ----------
    title, x_label, y_label
        Text; escaped here.
    lines
        Curves, drawn in order. Points that are not finite are left out.
    x_range, y_range
        Limits; both positive on a logarithmic axis.
    log_x, log_y
        Logarithmic axes.
    """
    named = [line for line in lines if line.name]
    frame = _Frame(x_range, y_range, log_x, log_y, _legend_lines(named))
    curves = [frame.curve(line) for line in lines]
    return _svg(title, frame, [*frame.axes(x_label, y_label), *curves, *_legend(named)])


def _svg(title: str, frame: _Frame, parts: Sequence[str]) -> str:
    """The element around a title and the parts of a plot."""
    head = (
        f'<svg viewBox="0 0 {WIDTH} {frame.height}" class="plot" role="img" aria-label="{escape(title)}">',
        f'<text x="{WIDTH / 2:.0f}" y="15" class="title">{escape(title)}</text>',
    )
    return "".join([*head, *parts, "</svg>"])


def histogram_plot(
    title: str,
    x_label: str,
    groups: Sequence[tuple[str, NDArray[np.floating]]],
    *,
    bins: int = 40,
    x_range: tuple[float, float] | None = None,
    log_y: bool = False,
) -> str:
    """Step histograms of several groups `(name, values)` over common bins."""
    values = np.concatenate([np.asarray(v, float)[np.isfinite(v)] for _, v in groups] or [np.zeros(0)])
    low, high = x_range or ((float(values.min()), float(values.max())) if len(values) else (0.0, 1.0))
    high = high if high > low else low + 1.0  # all values equal
    edges = np.linspace(low, high, bins + 1)
    lines, top = [], 1.0
    for k, (name, group) in enumerate(groups):
        counts, _ = np.histogram(np.asarray(group, float)[np.isfinite(group)], edges)
        top = max(top, float(counts.max()))
        # Down to zero at both ends, one point more than there are edges.
        y = np.concatenate([[0], counts, [0]]).astype(float)
        x = np.concatenate([edges, edges[-1:]])
        lines.append(Line(x, y, f"{name} ({counts.sum():,})", f"c{k % COLOURS + 1}", steps=True))
    bottom = 0.5 if log_y else 0.0  # below a single row, which must be visible on a logarithmic axis
    return line_plot(
        title,
        x_label,
        "rows",
        lines,
        x_range=(low, high),
        y_range=(bottom, top * (2.0 if log_y else 1.08)),
        log_y=log_y,
    )


def scatter_plot(
    title: str, x_label: str, y_label: str, groups: Sequence[tuple[str, NDArray[np.floating]]]
) -> str:
    """Points of groups `(name, (n, 2))` as dots of eight colours; later groups lie on top."""
    every = np.concatenate([np.asarray(v, float).reshape(-1, 2) for _, v in groups])
    # One common frame for all groups; without any point, an empty frame around 0.
    every = every[np.isfinite(every).all(1)] if len(every) else np.zeros((1, 2))
    low, high = every.min(0), every.max(0)
    pad = 0.04 * np.maximum(high - low, 1e-9)
    (x0, y0), (x1, y1) = (low - pad).tolist(), (high + pad).tolist()
    names = [
        Line([], [], f"{name} ({len(points):,})", f"c{k % COLOURS + 1}")
        for k, (name, points) in enumerate(groups)
    ]
    frame = _Frame((x0, x1), (y0, y1), False, False, _legend_lines(names))
    dots = []
    for k, (_, points) in enumerate(groups):
        x, y = frame.x(points[:, 0]), frame.y(points[:, 1])
        # A line of length 0 with round ends is a dot; thousands of circles would make a heavy page.
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True) if np.isfinite(a + b))
        look = "stroke-width:4;stroke-linecap:round;opacity:.55"
        dots.append(f'<path class="curve c{k % COLOURS + 1}" style="{look}" d="{path}"/>')
    return _svg(title, frame, [*frame.axes(x_label, y_label), *dots, *_legend(names)])


@dataclass(frozen=True, slots=True)
class _Frame:
    """The axes of a plot: data coordinates to pixels; y grows downwards in SVG."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool
    log_y: bool
    legend_lines: int = 1

    @property
    def top(self) -> int:
        """Upper edge of the frame; further lines of the legend push it down."""
        return _TOP + _LEGEND_LINE * max(self.legend_lines - 1, 0)

    @property
    def height(self) -> int:
        """Of the drawing: the frame is as high whatever the legend."""
        return HEIGHT + self.top - _TOP

    def x(self, value: ArrayLike) -> NDArray[np.float64]:
        return _LEFT + _unit(value, self.x_range, self.log_x) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: ArrayLike) -> NDArray[np.float64]:
        return self.height - _BOTTOM - _unit(value, self.y_range, self.log_y) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> list[str]:
        right, bottom = WIDTH - _RIGHT, self.height - _BOTTOM
        out = [f'<path class="axis" d="M{_LEFT} {self.top}V{bottom}H{right}"/>']
        for tick in _ticks(self.x_range, self.log_x):
            x = float(self.x(tick))
            out.append(f'<path class="grid" d="M{x:.1f} {self.top}V{bottom}"/>')
            out.append(f'<text x="{x:.1f}" y="{bottom + 14}" class="tick">{_short(tick)}</text>')
        for tick in _ticks(self.y_range, self.log_y):
            y = float(self.y(tick))
            out.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            out.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" class="tick end">{_short(tick)}</text>')
        centre, middle = (_LEFT + right) / 2, (self.top + bottom) / 2
        out.append(f'<text x="{centre:.0f}" y="{self.height - 6}" class="label">{escape(x_label)}</text>')
        out.append(
            f'<text transform="translate(12 {middle:.0f}) rotate(-90)" class="label">{escape(y_label)}</text>'
        )
        return out

    def curve(self, line: Line) -> str:
        vx, vy = np.asarray(line.x, float), np.asarray(line.y, float)
        # Values below the axis, such as 0 on a logarithmic one, lie on its lower edge.
        x, y = self.x(vx), self.y(np.maximum(vy, self.y_range[0]))
        good = np.isfinite(x) & np.isfinite(y)
        points = [f"{a:.1f} {b:.1f}" for a, b in zip(x[good], y[good], strict=True)]
        if not points:
            return ""
        # V and H draw vertical and horizontal lines: a step per bin.
        if line.steps:
            path = f"M{points[0]}" + "".join(
                f"V{b:.1f}H{a:.1f}" for a, b in zip(x[good][1:], y[good][1:], strict=True)
            )
        else:
            path = "M" + "L".join(_thin(points))
        return f'<path class="curve {line.style}" d="{path}"/>'


def _thin(points: list[str]) -> list[str]:
    """Points without neighbours that print alike, at most 2000: a ROC of a million rows stays small."""
    kept = [p for p, previous in zip(points, ["", *points], strict=False) if p != previous]
    step = max(1, len(kept) // 2000)
    return [*kept[:-1:step], kept[-1]]


def _unit(value: ArrayLike, limits: tuple[float, float], log: bool) -> NDArray[np.float64]:
    """Values as shares of the axis, 0 to 1; NaN where they are not finite."""
    v, (low, high) = np.asarray(value, float), limits
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            v, low, high = np.log10(v), math.log10(low), math.log10(high)
    unit = (v - low) / (high - low)
    return np.where(np.isfinite(unit), np.clip(unit, 0.0, 1.0), np.nan)


def _ticks(limits: tuple[float, float], log: bool) -> list[float]:
    """About five round numbers, or the powers of ten on a logarithmic axis."""
    low, high = limits
    if log:
        return [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    # A quarter of the axis, rounded up to 1, 2, 2.5, 5 or 10 times a power of ten.
    raw = (high - low) / 4
    base = 10 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)  # a tick on the edge counts, whatever the rounding
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def figure_png(figure: Any, dpi: int = 100) -> bytes:
    """A matplotlib figure as a PNG file: without a version in it, the same bytes every time."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _short(value: float) -> str:
    return f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-")


def _places(lines: Sequence[Line]) -> list[tuple[float, int]]:
    """Where each name of the legend begins: x in px, and its line from 0."""
    # SVG cannot measure text: 6.2 px is an average letter at the size of the legend.
    places, x, row = [], float(_LEFT), 0
    for line in lines:
        size = 34 + 6.2 * len(line.name)
        if x > _LEFT and x + size - 14 > WIDTH:
            x, row = float(_LEFT), row + 1
        places.append((x, row))
        x += size
    return places


def _legend_lines(lines: Sequence[Line]) -> int:
    return _places(lines)[-1][1] + 1 if lines else 1


def _legend(lines: Sequence[Line]) -> list[str]:
    """Names between title and frame, in as many lines as they need."""
    out = []
    for line, (x, row) in zip(lines, _places(lines), strict=True):
        y = _LEGEND_LINE * row
        out.append(f'<path class="curve {line.style}" d="M{x:.0f} {28 + y}h16"/>')
        out.append(f'<text x="{x + 20:.0f}" y="{32 + y}" class="legend">{escape(line.name)}</text>')
    return out
