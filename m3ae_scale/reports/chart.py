"""Line charts as inline SVG that takes its colours from the page, so that light, dark and print each look right."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that matplotlib draws with; each becomes a colour variable of the page.
_INK, _GRID = "#010101", "#020202"
_SERIES = ("#030303", "#040404")
_VARIABLES = {_INK: "--faint", _GRID: "--rule", _SERIES[0]: "--series-1", _SERIES[1]: "--series-2"}
_STYLE = {"svg.fonttype": "none", "font.size": 10, "axes.unicode_minus": False}
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
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title + x_label}):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        for one, colour in zip(series, _SERIES, strict=False):
            style = "o--" if one.sparse else "-"
            axes.plot(*thin(one.x, one.y), style, color=colour, label=one.name, linewidth=1.6, markersize=4)
        axes.set_xlabel(x_label, color=_INK)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        axes.tick_params(colors=_INK, length=0)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", scilimits=(-3, 6))
        axes.yaxis.get_offset_text().set_color(_INK)
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=_INK)
        drawn = io.StringIO()
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    return _inline(drawn.getvalue(), title)


def thin(x: Sequence[float], y: Sequence[float], most: int = _MOST) -> tuple[list[float], list[float]]:
    """Average neighbours until at most `most` points are left; points that are not finite are left out."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return (
        [math.fsum(a for a, _ in group) / len(group) for group in groups],
        [math.fsum(b for _, b in group) / len(group) for group in groups],
    )


def _inline(svg: str, title: str) -> str:
    """Strip what only a file of its own needs, and hand colours and type to the page."""
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
