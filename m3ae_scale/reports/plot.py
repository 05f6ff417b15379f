"""Plots of measurements over named axes, linear or logarithmic, measured and projected told apart by their strokes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from m3ae_scale.reports.chart import GRID, INK, SERIES, drawing, inline

Look = Literal["points", "line", "both", "fit"]
_SIZE = (3.7, 2.7)  # inches of 72 units: small, so that its type stays readable where the page is as narrow as a phone
_MARKERS = "os^Dv*"


@dataclass(frozen=True)
class Mark:
    """One series. points and both: measured; line: a measured curve; fit: what a law says, dashed.

    `colour` numbers the colour and the marker, so that what belongs together can share them; None: the next one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look = "both"
    colour: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis: its name with the unit, whether it is logarithmic, and what it shows in any case."""

    name: str
    log: bool = False
    shows: Sequence[float] = ()


def plot(title: str, x: Axis, y: Axis, marks: Sequence[Mark], level: float | None = None) -> str:
    """Draw `marks`; return an <svg> for an HTML page, which holds the colours. level: a dashed line across.

    A series named "" is not in the legend. Values that are not finite, or not positive on a logarithmic axis, are left
    out.
    """
    with drawing(title + x.name + y.name, _SIZE) as (axes, drawn):
        for number, mark in enumerate(marks):
            _draw(axes, mark, (number if mark.colour is None else mark.colour) % len(SERIES), x.log, y.log)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (2, 3)))
        _scale(axes, axes.xaxis, x, [value for mark in marks for value in mark.x])
        _scale(axes, axes.yaxis, y, [value for mark in marks for value in mark.y])
        axes.set_xlabel(x.name, color=INK)
        axes.set_title(y.name, color=INK, loc="left", fontsize=10)
        axes.grid(color=GRID, linewidth=0.7)
        _, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            axes.figure.legend(
                loc="outside lower left", ncols=_columns(names), frameon=False, labelcolor=INK, fontsize=9.5,
                handlelength=1.4, columnspacing=1.2, handletextpad=0.5,
            )  # fmt: skip
    svg = inline(drawn.getvalue(), escape(title))
    return svg.replace("<svg", f'<svg data-x="{escape(x.name)}" data-y="{escape(y.name)}"', 1)


def bars(title: str, x: Axis, names: Sequence[str], values: Sequence[float]) -> str:
    """Draw one bar a name, the first on top, each with its value."""
    with drawing(title + x.name, (_SIZE[0], 0.75 + 0.42 * len(names))) as (axes, drawn):
        axes.barh(range(len(names)), values, height=0.34, color=SERIES[0])
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            axes.text(0, place - 0.22, f"{name}: {_short(value)}", color=INK, va="bottom", ha="left")
        axes.set_ylim(len(names) - 0.5, -0.75)
        axes.yaxis.set_major_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.set_xlim(left=0)
        axes.set_xlabel(x.name, color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    svg = inline(drawn.getvalue(), escape(title))
    return svg.replace("<svg", f'<svg data-x="{escape(x.name)}" data-y="name"', 1)


def _draw(axes: Any, mark: Mark, number: int, log_x: bool, log_y: bool) -> None:
    points = [
        (a, b)
        for a, b in zip(mark.x, mark.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x) and (b > 0 or not log_y)
    ]
    if not points:
        return
    if mark.look != "points":
        points.sort()
    marker = _MARKERS[number % len(_MARKERS)] if mark.look in ("points", "both") else ""
    stroke = {"points": "none", "fit": (0, (4, 2))}.get(mark.look, "-")
    axes.plot(
        *zip(*points, strict=True), marker=marker, linestyle=stroke, color=SERIES[number], label=mark.name or "_",
        linewidth=1.5, markersize=4.5,
    )  # fmt: skip


def _scale(axes: Any, axis: Any, wanted: Axis, values: Sequence[float]) -> None:
    """Put ticks where people would, and shorten their labels."""
    horizontal = axis is axes.xaxis
    for value in wanted.shows:
        (axes.axvline if horizontal else axes.axhline)(value, alpha=0)
    whole = all(float(value).is_integer() for value in values)  # there are no 1.6 devices
    axis.set_major_locator(MaxNLocator(4 if horizontal else 5, integer=whole))
    if wanted.log:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
        positive = [value for value in [*values, *wanted.shows] if value > 0 and math.isfinite(value)]
        decades = math.log10(max(positive) / min(positive)) if positive else 1.0
        if decades > 3:
            axis.set_major_locator(LogLocator(numticks=5))
        elif decades > 0.7:
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0), numticks=8))
        else:
            axis.set_major_locator(MaxNLocator(3 if horizontal else 4))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """Write 30000 as 30k, 2.5e9 as 2.5G, 4e-5 as 4e-05."""
    if not math.isfinite(value):
        return ""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _columns(names: Sequence[str]) -> int:
    longest = max(map(len, names)) + 5  # letters, with the handle
    return max(1, min(len(names), 46 // longest))
