"""Latency and throughput from one worker to a thousand, by the way in which they serve: simulated, and drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.core.arguments import shown
from fewstep.core.files import write
from fewstep.scale.simulate import Requests, poisson, simulate

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STEPS = {10: 0.6, 20: 0.3, 50: 0.1}


@dataclass(frozen=True)
class Way:
    """How workers serve: `patches` of them make up a replica, whose calls of so many rows take `calls(rows)` seconds;
    `batching` is that of `fewstep.scale.simulate.simulate`."""

    name: str
    calls: Callable[[float], float]
    batching: str = "steps"
    patches: int = 1


@dataclass(frozen=True)
class Point:
    """One way with so many workers: percentiles of the latency in seconds at the offered load, the workers' utilisation
    there, the mean rows of a call, and the samples a second when requests never run out."""

    way: str
    workers: int
    p50: float
    p95: float
    p99: float
    utilisation: float
    batch: float
    throughput: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scaling(
    ways: Sequence[Way],
    workers: Iterable[int] = WORKERS,
    load: float = 0.7,
    steps: Mapping[int, float] = STEPS,
    max_batch: int = 16,
    each: int = 40,
    seed: int = 0,
) -> list[Point]:
    """Every way at every number of workers that makes at least one replica of it.

    All ways see the same requests, one sample each: `load` of what the workers of the first way could serve one request
    at a time. With more workers come more requests, `each` for a worker and 2,000 at least. The most that a way serves
    is measured apart, on requests for eight full batches a replica that are there from the beginning.

    Raises:
        ValueError: no ways, workers below 1, a load that is not above 0.
    """
    if not ways or not load > 0:
        raise ValueError(f"give at least one way, and a load above 0, got {len(ways)} ways and {shown(load)}")
    mean = sum(count * share for count, share in steps.items()) / sum(steps.values())
    found = []
    for n in workers:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"workers must be whole numbers of at least 1, got {shown(n)}")
        rate = load * n / (mean * ways[0].calls(1))
        requests = poisson(rate, steps, max(each * n, 2000), seed=seed)
        for way in ways:
            if n < way.patches:
                continue
            replicas = n // way.patches
            served = simulate(requests, way.calls, replicas, way.batching, max_batch)
            count = 8 * replicas * max_batch
            waiting = poisson(1.0, steps, count, seed=seed + 1)
            most = simulate(Requests.of(np.zeros(count), waiting.steps), way.calls, replicas, way.batching, max_batch)
            figures = (served.p50, served.p95, served.p99, served.utilisation, served.batch, most.throughput)
            found.append(Point(way.name, n, *figures))
    return found


COLOURS = ("#444444", "#d95f02", "#1f77b4", "#1b9e77", "#7570b3", "#e7298a")
MARKS = ("o", "s", "^", "D", "v", "P")


def draw(panels: Mapping[str, Sequence[Point]], load: float, path: str | Path) -> Path:
    """A picture (PNG) of some services, one row each: latency at the offered load, and the most samples a second.

    A latency is drawn as its median, with the 99th percentile dashed in the same colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9.6, 3.5 * len(panels) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for index, (row, (title, points)) in enumerate(zip(grid, panels.items(), strict=True)):
        for way, colour, mark in zip(dict.fromkeys(point.way for point in points), COLOURS, MARKS, strict=False):
            own = [point for point in points if point.way == way]
            n = [point.workers for point in own]
            style = {"color": colour, "marker": mark, "markersize": 4.5, "linewidth": 1.7}
            row[0].plot(n, [point.p50 for point in own], label=None if index else way, **style)
            row[0].plot(n, [point.p99 for point in own], **style | {"linestyle": (0, (4, 2)), "linewidth": 1.1})
            row[1].plot(n, [point.throughput for point in own], **style)
        row[0].set_ylabel(f"latency, s, at {load:.0%} load")
        row[1].set_ylabel("samples a second, at most")
        for axis, what in zip(
            row, ("median, and dashed the 99th percentile", "requests that never run out"), strict=True
        ):
            axis.set_title(f"{title}: {what}", fontsize=9, loc="left")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks([1, 10, 100, 1000])
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                ticks.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if axis is row[0] else (1,), numticks=12))
            axis.grid(True, axis="y", color="#dddddd", linewidth=0.7)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("workers")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return write(path, buffer.getvalue())
