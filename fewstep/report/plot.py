"""Line plots as inline SVG whose colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Matplotlib draws with these stand-ins; in the SVG they become the page's CSS variables. Dashes and markers
# differ too, so that a series is known without its colour.
INK, RULE, QUIET = "#010203", "#010204", "#010205"
SERIES = ("#020301", "#020302", "#020303", "#020304", "#020305", "#020306", "#020307", "#020308")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MARK, STAR = "#030101", "*"  # of the one series that a reader is to see at once, and of no other
LINES = ((0, (4, 3)), (0, (1, 2)), (0, (8, 2, 1, 2)))
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Plot:
    """Curves over a common axis: `series` are (name, xs, ys), `lines` are horizontal, (label, y).

    All names stand in the legend, so that none lies over a curve or another name. The series called `mark` has a colour
    and a marker of its own.
    """

    title: str
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]]
    xlabel: str = ""
    ylabel: str = ""
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    lines: Sequence[tuple[str, float]] = ()
    mark: str = ""

    def __post_init__(self) -> None:
        for name, xs, ys in self.series:
            if len(xs) != len(ys):
                raise ValueError(f"series {name!r} of plot {self.title!r} has {len(xs)} xs but {len(ys)} ys")

    @property
    def alt(self) -> str:
        names = ", ".join([name for name, _, _ in self.series] + [label for label, _ in self.lines])
        return f"{self.title}: {self.ylabel or 'values'} against {self.xlabel or 'index'} for {names}"


def svg(plot: Plot, prefix: str) -> str:
    """The `<svg>` element of a plot: no prolog, no fixed size, no outside reference; ids begin with `prefix`.

    Values that are not finite, and values <= 0 on a logarithmic axis, are left out.
    """
    buffer = io.StringIO()
    with _style(prefix):
        figure = draw(plot)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), prefix, plot.alt)


def _style(prefix: str) -> Any:
    import matplotlib

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": prefix,
        "font.size": 10, "text.color": INK, "text.parse_math": False, "axes.labelcolor": INK,
        "axes.edgecolor": QUIET, "axes.spines.top": False, "axes.spines.right": False,
        "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    }  # fmt: skip
    return matplotlib.rc_context(style)


def draw(plot: Plot) -> Any:
    """The Matplotlib figure of a plot, whose texts do not lie over one another."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    _draw(axes, plot)
    _scale(axes, plot)
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(len(labels), 6), 0, -1):  # as many as fit side by side
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=2.8, columnspacing=1.4
        )
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.draw_without_rendering()
    for axis in (axes.xaxis, axes.yaxis):
        _thin(axis)
    return figure


def _thin(axis: Any) -> None:
    """Leave out ticks whose labels would touch those before them: the ends stay."""
    from matplotlib.ticker import FixedLocator

    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()]
    ticks.sort(key=lambda tick: tick.get_loc())
    boxes = [tick.label1.get_window_extent().padded(2) for tick in ticks]
    kept: list[int] = []
    for i in [len(ticks) - 1, *range(len(ticks) - 1)] if ticks else []:
        if not any(boxes[i].overlaps(boxes[j]) for j in kept):
            kept.append(i)
    if len(kept) < len(ticks):
        axis.set_major_locator(FixedLocator(sorted(ticks[i].get_loc() for i in kept)))


def _seen(plot: Plot, x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)


def _draw(axes: Any, plot: Plot) -> None:
    others = 0
    for name, xs, ys in plot.series:
        points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        marked = bool(plot.mark) and name == plot.mark
        turn = others + others // len(SERIES)  # a colour that comes again has another marker
        axes.plot(
            [x for x, _ in points],
            [y if _seen(plot, x, y) else math.nan for x, y in points],
            label=name,
            color=MARK if marked else SERIES[others % len(SERIES)],
            linestyle=DASHES[0] if marked else DASHES[others // len(SERIES) % len(DASHES)],
            marker=STAR if marked else MARKERS[turn % len(MARKERS)] if len(points) <= 40 else "",
            linewidth=2.6 if marked else 1.8,
            markersize=15 if marked else 5,
            zorder=4 if marked else 3,
        )
        others += not marked
    for index, (label, y) in enumerate(line for line in plot.lines if _seen(plot, 1.0, line[1])):
        axes.axhline(y, label=label, color=QUIET, linewidth=1.2, linestyle=LINES[index % len(LINES)], zorder=2)


def _scale(axes: Any, plot: Plot) -> None:
    """Labels, the grid, and logarithmic axes."""
    axes.set_xlabel(plot.xlabel)
    axes.set_ylabel(plot.ylabel)
    axes.margins(x=0.04)
    axes.grid(True, axis="y", color=RULE, linewidth=0.8)
    axes.tick_params(length=3)
    points = [
        (float(x), float(y)) for _, xs, ys in plot.series for x, y in zip(xs, ys, strict=True) if _seen(plot, x, y)
    ]
    if plot.log_x and points:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, sorted({x for x, _ in points}))
        if len({x for x, _ in points}) <= 10:  # the values that were measured: 1, 2, 4, 8 steps
            axes.set_xticks(sorted({x for x, _ in points}))
    if plot.log_y and points:
        axes.set_yscale("log")
        _log_ticks(
            axes.yaxis,
            sorted([y for _, y in points] + [float(y) for _, y in plot.lines if _seen(plot, 1.0, y)]),
        )


def _log_ticks(axis: Any, values: list[float]) -> None:
    """Ticks in plain numbers, a handful in view for any span (Matplotlib's own may be one or none)."""
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )

    decades = math.log10(values[-1] / values[0])
    if decades >= 2.5:
        axis.set_major_locator(LogLocator(10, numticks=12))
    elif decades >= 0.7:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(FixedLocator(MaxNLocator(6).tick_values(values[0], values[-1])))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _inline(drawing: str, prefix: str, alt: str) -> str:
    """A file's SVG made part of a page: no namespaces, no fixed size, its colours, its ids."""
    names = {colour: f"var(--series-{index})" for index, colour in enumerate(SERIES, 1)}
    names |= {INK: "var(--ink)", RULE: "var(--rule)", QUIET: "var(--quiet)", MARK: "var(--mark)"}

    def own(tag: re.Match[str]) -> str:  # tags alone: labels that look like markup are text, and escaped
        text = re.sub(r"#0[0-9]{5}", lambda colour: names.get(colour[0], colour[0]), tag[0])
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        return re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", text)

    drawing = re.sub(r"<(metadata|style).*?</\1>\s*", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r"<[^<>]+>", own, drawing)
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None, "Matplotlib gives every SVG a viewBox"
    return f'<svg {box[0]} role="img" aria-label="{html.escape(alt)}">' + drawing[drawing.index(">") + 1 :].strip()
