"""Charts as inline SVG that takes its colours from the page, so that light, dark and print each look right."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Stand-ins that matplotlib draws with; each becomes a colour variable of the page.
INK, GRID = "#010101", "#020202"
SERIES = ("#030303", "#040404", "#050505", "#060606", "#070707", "#080808")
_VARIABLES = {INK: "--faint", GRID: "--rule"} | {colour: f"--series-{n}" for n, colour in enumerate(SERIES, start=1)}
_STYLE = {"svg.fonttype": "none", "font.size": 10, "axes.unicode_minus": False}
# Of classes: readable on light and on dark (matplotlib's tab20, its pale half darkened).
_CLASSES = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#6f98c8", "#d9a066", "#6fb56f", "#d98080", "#a58fc0", "#a98a80", "#c98fb8", "#a0a0a0", "#9c9c4a", "#6fb3bf",
)  # fmt: skip
_MOST = 400  # points drawn of a series


@dataclass(frozen=True)
class Series:
    """One line. `sparse`: few points, each drawn with a marker."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sparse: bool = False


def line_chart(title: str, x_label: str, series: Sequence[Series], from_zero: bool = False) -> str:
    """Draw at most two series over the same axis; return an <svg> without external references or ids to collide.

    Lines differ by dash and marker as well as by colour. from_zero: the y axis begins at 0.
    """
    with drawing(title + x_label, (4.8, 2.7)) as (axes, drawn):
        for one, colour in zip(series, SERIES, strict=False):
            style = "o--" if one.sparse else "-"
            axes.plot(*thin(one.x, one.y), style, color=colour, label=one.name, linewidth=1.6, markersize=4)
        axes.set_xlabel(x_label, color=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        whole = all(float(x).is_integer() for one in series for x in one.x)  # there is no layer 1.6
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", scilimits=(-3, 6))
        axes.yaxis.get_offset_text().set_color(INK)
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK)
    return inline(drawn.getvalue(), title)


def scatter_chart(title: str, points: NDArray[np.float64], labels: NDArray[np.int64], names: Sequence[str]) -> str:
    """Draw `points` (n, 2) coloured by `labels` (n,); the legend has the first twenty of `names`.

    More than twenty classes share colours, with another marker.
    """
    with drawing(title, (6.4, 4.6)) as (axes, drawn):
        for number in sorted(set(labels.tolist())):
            x, y = points[labels == number].T
            marker = "o^sDv"[number // len(_CLASSES) % 5]
            colour = _CLASSES[number % len(_CLASSES)]
            axes.scatter(x, y, s=9, color=colour, marker=marker, linewidths=0, label=names[number])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        handles, told = axes.get_legend_handles_labels()
        axes.legend(
            handles[:20], told[:20], frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5),
            markerscale=2, fontsize=8,
        )  # fmt: skip
    return inline(drawn.getvalue(), title)


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value, and the ends of its interval."""

    name: str
    value: float
    low: float
    high: float


def interval_chart(title: str, x_label: str, rows: Sequence[Interval], zero: bool = False) -> str:
    """Draw each row's value as a dot on the line of its interval, the first row on top. zero: mark x = 0."""
    with drawing(title + x_label, (6.4, 0.9 + 0.34 * len(rows))) as (axes, drawn):
        for place, row in enumerate(rows):
            axes.plot([row.low, row.high], [place, place], color=SERIES[0], linewidth=1.8)
            axes.plot([row.value], [place], "o", color=SERIES[0], markersize=5)
        if zero:
            axes.axvline(0, color=SERIES[1], linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), [row.name for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x_label, color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return inline(drawn.getvalue(), title)


@contextmanager
def drawing(salt: str, size: tuple[float, float]) -> Iterator[tuple[Any, io.StringIO]]:
    """Axes to draw on, and what they come out as once the context is left."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.tick_params(colors=INK, length=0)
        drawn = io.StringIO()
        yield axes, drawn
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})


def thin(x: Sequence[float], y: Sequence[float], most: int = _MOST) -> tuple[list[float], list[float]]:
    """Average neighbours until at most `most` points are left; points that are not finite are left out."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return (
        [math.fsum(a for a, _ in group) / len(group) for group in groups],
        [math.fsum(b for _, b in group) / len(group) for group in groups],
    )


def inline(svg: str, title: str) -> str:
    """Strip what only a file of its own needs, and hand colours and type to the page. title: escaped text."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
