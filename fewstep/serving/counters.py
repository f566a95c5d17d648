"""What a server counts: numbers that its threads add to, and that `/metrics` reads."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


@dataclass
class Histogram:
    """How many values lay at or below each bound, and above the last one; their count and sum."""

    bounds: Sequence[float]
    total: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Of one model. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: dict[str, int] = {}  # by outcome
        self.samples = self.calls = self.evaluations = 0
        self.rows, self.call_seconds, self.request_seconds = Histogram(ROWS), Histogram(SECONDS), Histogram(SECONDS)

    def called(self, rows: int, requests: int, seconds: float) -> None:
        """A network call that served so many rows of so many requests."""
        with self._lock:
            self.calls += 1
            self.evaluations += requests
            self.rows.add(rows)
            self.call_seconds.add(seconds)

    def ended(self, outcome: str, samples: int = 0, seconds: float | None = None) -> None:
        """A request that ended: "done", "failed", "cancelled", "late", "full", "refused"."""
        with self._lock:
            self.requests[outcome] = self.requests.get(outcome, 0) + 1
            self.samples += samples
            if seconds is not None:
                self.request_seconds.add(seconds)

    def seconds_a_row(self) -> float | None:
        """Seconds of the network for one row of a call, so far."""
        with self._lock:
            return self.call_seconds.total / self.rows.total if self.rows.total else None


class Collector:
    """Counters of models by name, in prometheus_client's form; `queues()` gives rows waiting and at work, by name."""

    def __init__(self, counters: Any, queues: Any):
        self.counters, self.queues = counters, queues

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(name: str, about: str, values: dict[str, float]) -> Any:
            family = CounterMetricFamily(f"fewstep_{name}", about, labels=["model"])
            for model, value in values.items():
                family.add_metric([model], value)
            return family

        own: dict[str, Counters] = dict(self.counters())
        outcomes = CounterMetricFamily("fewstep_requests", "Requests by how they ended", labels=["model", "outcome"])
        for model, counts in own.items():
            for outcome, number in dict(counts.requests).items():
                outcomes.add_metric([model, outcome], number)
        yield outcomes
        yield counter("samples", "Samples drawn", {name: c.samples for name, c in own.items()})
        yield counter("network_calls", "Calls of the network", {name: c.calls for name, c in own.items()})
        yield counter("evaluations", "Evaluations of requests", {name: c.evaluations for name, c in own.items()})
        saved = {name: float(c.evaluations - c.calls) for name, c in own.items()}
        yield counter("evaluations_saved", "Evaluations that shared the call of another request", saved)
        for name, about in (
            ("rows", "Rows of a network call"),
            ("call_seconds", "Seconds of a network call"),
            ("request_seconds", "Seconds from a request to its answer"),
        ):
            family = HistogramMetricFamily(f"fewstep_{name}", about, labels=["model"])
            for model, counts in own.items():
                histogram, below, buckets = getattr(counts, name), 0, []
                for bound, number in zip([*histogram.bounds, "+Inf"], list(histogram.counts), strict=True):
                    below += number
                    buckets.append((str(float(bound)) if bound != "+Inf" else bound, below))
                family.add_metric([model], buckets, histogram.total)
            yield family
        waiting = GaugeMetricFamily("fewstep_queue", "Samples waiting", labels=["model"])
        working = GaugeMetricFamily("fewstep_active", "Samples at work", labels=["model"])
        for model, (queued, active) in self.queues().items():
            waiting.add_metric([model], queued)
            working.add_metric([model], active)
        yield waiting
        yield working
