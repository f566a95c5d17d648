from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from fewstep.report.plot import Plot, draw, svg


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


def crowded(**options):
    """Curves with long names, floors that lie close together, and ticks that do."""
    xs = [4, 5, 6, 7, 8, 9, 10, 20]
    series = [(f"solver number {i} on short", xs, [(i + 1) / x for x in xs]) for i in range(9)]
    lines = [("reference, 100", 0.477), ("real data", 0.48), ("held out", 0.475)]
    return Plot("t", series, "evaluations", "error", log_x=True, log_y=True, lines=lines, **options)


@pytest.mark.parametrize("plot", [crowded(), crowded(mark="solver number 3 on short"), Plot("t", [])])
def test_no_text_lies_over_another(plot):
    from matplotlib.text import Text

    figure = draw(plot)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [
        text for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and text.get_window_extent().width > 0
    ]  # fmt: skip
    shown = []  # Matplotlib keeps ticks that lie outside the view
    view = axes.get_window_extent().padded(1)
    ticks = {label for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")}
    for text in texts:
        box = text.get_window_extent()
        if text in ticks:
            inside = view.x0 <= (box.x0 + box.x1) / 2 <= view.x1 or view.y0 <= (box.y0 + box.y1) / 2 <= view.y1
            if not inside:
                continue
        shown.append((text.get_text(), box))
    if plot.series:
        assert {name for name, _, _ in plot.series} | {label for label, _ in plot.lines} <= {text for text, _ in shown}
        assert {"4", "20"} <= {text for text, _ in shown}
    for i, (text, box) in enumerate(shown):
        assert -1 <= box.x0 and box.x1 <= figure.bbox.width + 1, text
        for other, second in shown[:i]:
            assert not box.overlaps(second), (text, other)


def test_the_marked_series_has_its_own_colour_and_marker():
    drawing = svg(crowded(mark="solver number 3 on short"), "s")
    assert drawing.count("stroke: var(--mark)") >= 2 and "var(--mark)" not in svg(crowded(), "s")
    (axes,) = draw(crowded(mark="solver number 3 on short")).axes
    markers = {line.get_label(): line.get_marker() for line in axes.lines}
    assert [name for name, marker in markers.items() if marker == "*"] == ["solver number 3 on short"]
