"""What a service of many workers would do: latency and throughput, simulated call by call from the seconds of calls.

Requests arrive at random, wait, share network calls as their discipline has it, and leave. The clock is simulated:
a thousand workers take seconds, and every discipline sees the same requests.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.core.arguments import shown

Floats = NDArray[np.float64]
BATCHING = ("steps", "whole", "none")


@dataclass(frozen=True)
class Requests:
    """When requests arrive, in seconds and in order, the evaluations that each needs, and its samples."""

    arrive: Floats
    steps: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, arrive: ArrayLike, steps: ArrayLike, rows: ArrayLike = 1) -> Requests:
        """Those of a list; a single number of steps or rows holds for all.

        Raises:
            ValueError: no requests, times that decrease or are not finite, steps or rows below 1.
        """
        times = np.asarray(arrive, np.float64)
        if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(f"requests must arrive in order, at finite times, got {shown(arrive)}")
        counts = [np.broadcast_to(np.asarray(given, np.int64), times.shape) for given in (steps, rows)]
        if min(int(count.min()) for count in counts) < 1:
            raise ValueError("every request needs at least one evaluation and one sample")
        return cls(times, counts[0], counts[1])

    def __len__(self) -> int:
        return len(self.arrive)


def poisson(rate: float, steps: Mapping[int, float], count: int, rows: int = 1, seed: int = 0) -> Requests:
    """Requests that arrive independently of one another, `rate` a second in the mean.

    steps: how many evaluations they need, each with its share of the requests (shares are weights).

    Raises:
        ValueError: a rate that is not above 0, no steps, shares below 0 or all 0, a count below 1.
    """
    shares = np.array(list(steps.values()), np.float64)
    if not (rate > 0 and np.isfinite(rate)):
        raise ValueError(f"rate must be above 0 requests a second, got {shown(rate)}")
    if not len(shares) or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"steps must map evaluations to shares of at least 0, not all 0, got {shown(dict(steps))}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {shown(count)}")
    draw = np.random.default_rng(seed)
    arrive = np.cumsum(draw.exponential(1 / rate, count))
    return Requests.of(arrive, draw.choice(list(steps), count, p=shares / shares.sum()), rows)


@dataclass(frozen=True)
class Served:
    """How requests were served: `latency` seconds of each and when it was `finished`, in the order of arrival.

    batch: rows in a call, in the mean. utilisation: the share of their time in which the workers worked.
    """

    latency: Floats
    finished: Floats
    rows: NDArray[np.int64]
    batch: float
    utilisation: float

    def percentile(self, p: float, skip: float = 0.1) -> float:
        """Of the latencies, those of the first requests, a share `skip`, left out: the queue was not yet what it
        becomes."""
        return float(np.percentile(self.latency[int(skip * len(self.latency)) :], p))

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p95(self) -> float:
        return self.percentile(95)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    @property
    def throughput(self) -> float:
        """Samples a second, from the first arrival to the last that is finished."""
        return float(self.rows.sum() / max(self.finished.max() - (self.finished - self.latency).min(), 1e-300))


def simulate(
    requests: Requests,
    calls: Callable[[int], float],
    replicas: int = 1,
    batching: str = "steps",
    max_batch: int = 16,
    spread: Sequence[float] = (),
    seed: int = 0,
) -> Served:
    """Serve these requests with so many replicas of a model, each of which makes one call at a time.

    batching: "none" runs one request after the other; "whole" runs those of equally many evaluations together, from
    their first to their last; in both a free replica takes those that have waited longest. "steps" is
    `fewstep.sampling.mixed.Mixed`: each call takes the requests in turn, as many as fit, and a request goes, when it
    arrives, to the replica that has the fewest evaluations to make.

    Args:
        calls: the seconds of a call by its rows (`fewstep.scale.calls`), of `PatchCalls` where a replica is several
            workers. max_batch: rows of a call at most.
        spread: how calls of equal rows differ: factors of which each call draws one, from `seed`. None where empty.

    Raises:
        ValueError: another batching, replicas or max_batch below 1, a request with more rows than max_batch, a factor
            below 0.
    """
    if batching not in BATCHING:
        raise ValueError(f"batching must be one of {', '.join(BATCHING)}, got {shown(batching)}")
    for name, given in (("replicas", replicas), ("max_batch", max_batch)):
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {shown(given)}")
    if (most := int(requests.rows.max())) > max_batch:
        raise ValueError(f"a request of {most} samples does not fit into calls of {max_batch}")
    if len(spread) and not min(spread) >= 0:
        raise ValueError(f"the factors of spread must be at least 0, got {min(spread)}")
    seconds = [0.0] + [float(calls(rows)) for rows in range(1, max_batch + 1)]
    service = _Steps if batching == "steps" else _Whole
    return service(requests, seconds, replicas, max_batch, batching == "none", _factors(spread, seed)).run()


def _factors(spread: Sequence[float], seed: int) -> Iterator[float]:
    """Factors without end."""
    if not len(spread):
        yield from repeat(1.0)
    draw = np.random.default_rng(seed)
    while True:
        yield from draw.choice(np.asarray(spread, np.float64), 4096).tolist()


class _Service:
    """The clock: arrivals in order, and a heap of replicas by when they are free."""

    def __init__(
        self,
        requests: Requests,
        seconds: Sequence[float],
        replicas: int,
        max_batch: int,
        alone: bool,
        factors: Iterator[float],
    ):
        self.arrive, self.steps, self.rows = (v.tolist() for v in (requests.arrive, requests.steps, requests.rows))
        self.requests, self.seconds, self.max_batch, self.alone = requests, seconds, max_batch, alone
        self.factors = factors
        self.replicas, self.finished = replicas, [0.0] * len(requests)
        self.events: list[tuple[float, int]] = []
        self.busy = self.called = 0.0
        self.calls = 0
        self.chosen: list[list[int]] = [[] for _ in range(replicas)]

    def run(self) -> Served:
        arrive, events, coming = self.arrive, self.events, 0
        while coming < len(arrive) or events:
            if coming < len(arrive) and (not events or arrive[coming] <= events[0][0]):
                self.join(coming, arrive[coming])
                coming += 1
            else:
                now, replica = heapq.heappop(events)
                self.end(replica, now)
        finished = np.array(self.finished)
        span = max(float(finished.max()) - arrive[0], 1e-300)
        utilisation = self.busy / (span * self.replicas)
        batch = self.called / max(self.calls, 1)
        return Served(finished - self.requests.arrive, finished, self.requests.rows, batch, utilisation)

    def call(self, replica: int, chosen: list[int], now: float, times: int = 1) -> None:
        rows = sum(self.rows[one] for one in chosen)
        took = self.seconds[rows] * sum(islice(self.factors, times))
        self.busy, self.called, self.calls = self.busy + took, self.called + rows * times, self.calls + times
        self.chosen[replica] = chosen
        heapq.heappush(self.events, (now + took, replica))

    def join(self, request: int, now: float) -> None:
        raise NotImplementedError

    def end(self, replica: int, now: float) -> None:
        raise NotImplementedError


class _Whole(_Service):
    """One queue for all replicas, and whole runs."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.queues: dict[int, deque[int]] = {}  # by evaluations, or one
        self.idle = list(range(self.replicas))

    def join(self, request: int, now: float) -> None:
        self.queues.setdefault(0 if self.alone else self.steps[request], deque()).append(request)
        if self.idle:
            self.begin(heapq.heappop(self.idle), now)

    def begin(self, replica: int, now: float) -> None:
        queue = min((own for own in self.queues.values() if own), key=lambda own: own[0])
        chosen = [queue.popleft()]
        rows = self.rows[chosen[0]]
        while not self.alone and queue and rows + self.rows[queue[0]] <= self.max_batch:
            rows += self.rows[queue[0]]
            chosen.append(queue.popleft())
        self.call(replica, chosen, now, self.steps[chosen[0]])

    def end(self, replica: int, now: float) -> None:
        for one in self.chosen[replica]:
            self.finished[one] = now
        if any(self.queues.values()):
            self.begin(replica, now)
        else:
            heapq.heappush(self.idle, replica)


class _Steps(_Service):
    """A queue for each replica, in which requests take turns, call by call."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.left = list(self.steps)
        self.queues: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(self.replicas)]
        self.load = np.zeros(self.replicas, np.int64)  # evaluations to make
        self.free = [True] * self.replicas

    def join(self, request: int, now: float) -> None:
        replica = int(self.load.argmin()) if self.replicas > 1 else 0
        self.load[replica] += self.steps[request] * self.rows[request]
        self.queues[replica][request] = None
        if self.free[replica]:
            self.begin(replica, now)

    def begin(self, replica: int, now: float) -> None:
        queue, chosen, rows = self.queues[replica], list[int](), 0
        for request in queue:
            if rows + self.rows[request] <= self.max_batch:
                chosen.append(request)
                rows += self.rows[request]
                if rows == self.max_batch:
                    break
        if len(chosen) < len(queue):  # those served now go to the end of the queue
            for request in chosen:
                queue.move_to_end(request)
        self.free[replica] = False
        self.call(replica, chosen, now)

    def end(self, replica: int, now: float) -> None:
        queue, made = self.queues[replica], 0
        for request in self.chosen[replica]:
            made += self.rows[request]
            self.left[request] -= 1
            if not self.left[request]:
                del queue[request]
                self.finished[request] = now
        self.load[replica] -= made
        self.free[replica] = True
        if queue:
            self.begin(replica, now)
