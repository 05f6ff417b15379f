"""Charts must be safe to put many on one page, take the page's colours, and not lose or invent data."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.reports.chart import Series, line_chart, thin


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_mean_and_the_order(y, most):
    x = list(range(len(y)))
    thin_x, thin_y = thin(x, y, most)
    finite = [v for v in y if math.isfinite(v)]
    assert len(thin_x) == len(thin_y) <= most
    assert thin_x == sorted(thin_x)
    if len(finite) <= most:
        assert thin_y == finite
    if finite:
        assert min(finite) - 1e-6 <= min(thin_y) and max(thin_y) <= max(finite) + 1e-6
    if finite and len(finite) % max(1, math.ceil(len(finite) / most)) == 0:  # groups of one size
        assert math.fsum(thin_y) / len(thin_y) == pytest.approx(math.fsum(finite) / len(finite), abs=1e-6)


SERIES = [Series("training", [1, 2, 3, 4], [4, 3, 2, 1]), Series("validation", [2, 4], [3, 1], sparse=True)]


def test_a_chart_is_well_formed_and_stands_alone():
    svg = line_chart("Total loss", "step", SERIES)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "Total loss" and root.get("viewBox") and root.get("width") is None
    assert not re.search(r'(?:href|src)="(?!#)', svg) and "url(http" not in svg and "<style" not in svg
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    assert references <= set(re.findall(r' id="([^"]+)"', svg))
    text = " ".join(root.itertext())
    assert all(word in text for word in ("training", "validation", "step"))


def test_every_colour_is_a_variable_of_the_page():
    svg = line_chart("Total loss", "step", SERIES)
    colours = set(re.findall(r"(?:fill|stroke): *([^;\"]+)", svg)) - {"none"}
    assert colours == {"var(--faint)", "var(--rule)", "var(--series-1)", "var(--series-2)"}


def test_charts_share_a_page_without_taking_each_others_parts():
    ids = [
        set(re.findall(r' id="([^"]+)"', line_chart(title, "step", SERIES))) for title in ("Image loss", "Text loss")
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_the_line_goes_where_the_numbers_go():
    svg = line_chart("x", "step", [Series("training", [0, 1, 2], [0.0, 1.0, 0.0])])
    path = re.search(r'd="([^"]+)"[^>]*style="[^"]*stroke: var\(--series-1\)', svg)[1]
    (x0, y0), (x1, y1), (x2, y2) = [(float(a), float(b)) for a, b in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=1e-3) and x1 > x0
    assert y0 == pytest.approx(y2, abs=1e-3) and y1 < y0  # SVG counts y downwards
