from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from fewstep.report.plot import Plot, svg


def points(drawing, index):
    """Coordinates of the line of series `index` (from 1) in the drawing."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none;[^"]*stroke: var\(--series-{index}\)', drawing)[:1]
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_drawing_is_well_formed_and_the_pages_own():
    drawing = svg(Plot("Error <1>", [("ddim & co", [1, 2, 4], [3.0, 2.0, 1.0])], "steps", "error"), "s7")
    root = ElementTree.fromstring(drawing)
    assert root.tag == "svg" and root.get("role") == "img"
    assert root.get("aria-label") == "Error <1>: error against steps for ddim & co"
    texts = [element.text for element in root.iter("text")]
    assert {"ddim & co", "steps", "error"} <= set(texts)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids and len(ids) == len(set(ids)) and all(i.startswith("s7-") for i in ids)
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', drawing)
    assert used and {a or b for a, b in used} <= set(ids)
    assert "http" not in drawing and "#0" not in drawing


def test_log_axes_make_a_power_law_straight():
    xs = [1, 2, 4, 8, 16]
    line = points(svg(Plot("t", [("a", xs, [x**-2 for x in xs])], log_x=True, log_y=True), "s"), 1)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(line, line[1:], strict=False)]
    assert len(steps) == 4
    for step in steps:
        assert step == pytest.approx(steps[0], rel=1e-3)
    assert steps[0][0] > 0 and steps[0][1] > 0  # y runs downwards


def test_measured_steps_are_the_ticks():
    drawing = svg(Plot("t", [("a", [3, 5, 24], [1.0, 2, 3])], log_x=True), "s")
    assert {"3", "5", "24"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", drawing))


@pytest.mark.parametrize("ys", [[1.2, 1.3, 1.4], [1.0, 4.0, 9.0], [1e-4, 1.0, 50.0], [0.5, 0.5, 0.5]])
def test_log_axis_has_plain_tick_labels(ys):
    drawing = svg(Plot("t", [("a", [1, 2, 3], ys)], log_y=True), "s")
    group = drawing[drawing.index('id="s-matplotlib.axis_2"') : drawing.index('id="s-patch_3"')]
    labels = [float(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", group)]
    assert labels and all(min(ys) / 10 <= label <= max(ys) * 10 for label in labels)


def test_horizontal_lines_are_named():
    drawing = svg(Plot("t", [("a", [1, 2], [1.0, 2.0])], lines=[("floor, n = 3", 1.5), ("lost", math.nan)]), "s")
    assert "floor, n = 3" in drawing and "lost" not in re.sub('aria-label="[^"]*"', "", drawing)


def test_what_cannot_be_drawn_breaks_the_line():
    drawing = svg(Plot("t", [("a", [1, 2, 3, 4, 5], [1.0, math.nan, -1.0, 2.0, 3.0])], log_y=True), "s")
    assert len(points(drawing, 1)) == 3
    svg(Plot("t", [("a", [1, 2], [math.nan, math.inf])], log_x=True, log_y=True), "s")
    svg(Plot("t", []), "s")


def test_same_plot_same_drawing():
    plot = Plot("t", [("a", [1, 2], [1.0, 2.0])])
    assert svg(plot, "s1") == svg(plot, "s1")


def test_lengths_must_match():
    with pytest.raises(ValueError, match="'a' of plot 't' has 2 xs but 1 ys"):
        Plot("t", [("a", [1, 2], [1.0])])
