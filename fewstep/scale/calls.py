"""Seconds of a shared network call by the samples in it: measured here, and of patch workers with messages between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.sampler import Sampler
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request
from fewstep.scale.strips import Strips
from fewstep.scale.workers import Group


@dataclass(frozen=True)
class Calls:
    """A table of seconds by rows, on a line between two neighbours, which goes on beyond the ends.

    Part of the first call takes no less than its share of the seconds: a line through times that are measured may well
    lead below 0, and no division among workers saves more than work.

    Raises:
        ValueError: fewer than two rows, rows that do not increase from above 0, seconds that are not above 0.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "seconds", tuple(map(float, self.seconds)))
        if len(self.rows) != len(self.seconds) or len(self.rows) < 2:
            raise ValueError(f"a table of calls needs seconds for two rows or more, got {self.rows} and {self.seconds}")
        if self.rows[0] <= 0 or any(a >= b for a, b in zip(self.rows, self.rows[1:], strict=False)):
            raise ValueError(f"rows must increase from 1 or more, got {self.rows}")
        if not min(self.seconds) > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")

    def __call__(self, rows: float) -> float:
        """Seconds of a call of so many rows, or of a share of one."""
        after = next((i for i in range(1, len(self.rows) - 1) if rows <= self.rows[i]), len(self.rows) - 1)
        (a, b), (low, high) = self.rows[after - 1 : after + 1], self.seconds[after - 1 : after + 1]
        found = low + (rows - a) * (high - low) / (b - a)
        return found if rows >= self.rows[0] else max(found, self.seconds[0] * rows / self.rows[0])


def measure_calls(
    model: Denoiser,
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32),
    repeats: int = 5,
    sampler: Sampler | None = None,
    condition: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Calls:
    """The seconds of one call that so many requests of one sample share, the loop's own arithmetic included.

    Each is the median of `repeats` runs of the sampler (default: eight steps of ddim), in turns; a first run of each
    is left out. Where one thread computes and the machine has other work, `clock=time.process_time` counts its own.

    Raises:
        ValueError: rows or repeats that are no whole numbers from 1 on.
    """
    for name, given in (("rows", rows), ("repeats", (repeats,))):
        if not given or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in given):
            raise ValueError(f"{name} must be whole numbers of at least 1, got {shown(given)}")
    sampler = sampler or plan(model.process, "ddim", 8)
    found: dict[int, list[float]] = {count: [] for count in sorted(set(rows))}
    for turn in range(repeats + 1):
        for count, took in found.items():
            mixed = Mixed(model)
            for number in range(count):
                noise = Noise(0, number).normal(0, (1, *(model.shape or ())), model.device)
                mixed.add(Request(sampler, noise, dict(condition or {}), number))
            _settle(model)
            begin = clock()
            while len(mixed):
                mixed.step()
            _settle(model)
            if turn:
                took.append((clock() - begin) / mixed.calls)
    return Calls(tuple(found), tuple(median(took) for took in found.values()))


def _settle(model: Denoiser) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@dataclass(frozen=True)
class Link:
    """What a message between two workers takes: `latency` seconds, and `1 / bandwidth` seconds a byte.

    Raises:
        ValueError: a latency below 0, or a bandwidth that is not above 0.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (self.latency >= 0 and self.bandwidth > 0):
            raise ValueError(
                f"latency must be at least 0 seconds and bandwidth above 0 bytes a second, got {self.latency} and"
                f" {self.bandwidth}"
            )

    def __call__(self, size: float, messages: int = 1) -> float:
        """Seconds of so many messages, one after another, of so many bytes in all."""
        return messages * self.latency + size / self.bandwidth


def measure_link(group: Group, sizes: Sequence[int] = (2**10, 2**16, 2**20, 2**22), repeats: int = 20) -> Link:
    """A line through the seconds of messages there and back between two workers, half of each; both call this.

    Of so many repeats the least counts: other work of the machine only adds.

    Raises:
        ValueError: a group of another size.
    """
    if group.size != 2:
        raise ValueError(f"messages are measured between two workers, got a group of {group.size}")
    found = []
    for size in sizes:
        tensor, took = torch.zeros(size, dtype=torch.uint8), []
        peer = 1 - group.rank
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            for sender in (0, 1):
                sent = [(peer, tensor)] if group.rank == sender else []
                received = [(peer, tensor)] if group.rank == 1 - sender else []
                group.exchange(sent, received).wait()
            took.append((time.perf_counter() - begin) / 2)
        found.append(min(took[1:]))
    return line(sizes, found)


def line(sizes: Sequence[int], seconds: Sequence[float]) -> Link:
    """The latency and bandwidth that fit so many seconds best, by squares of relative errors."""
    x, y = torch.tensor(list(sizes)).double(), torch.tensor(list(seconds)).double()
    wide = torch.stack((torch.ones_like(x), x), 1) / y[:, None]
    latency, slope = torch.linalg.lstsq(wide, torch.ones(len(x), 1, dtype=torch.float64)).solution.flatten().tolist()
    return Link(max(latency, 0.0), 1 / max(slope, 1e-15))


@dataclass(frozen=True)
class PatchCalls:
    """Seconds of a call that patch workers share (`fewstep.scale.patches`), by the rows in it.

        max(calls(rows * largest strip), keys and values on the way) + exchange of the answer,

    as keys and values of an evaluation are on their way while the next one is computed, and nobody goes on before the
    answer's strips are there. A message is sent for each attention and worker, and another for each worker's strip of
    the answer; a worker's own follow one another.

    Args:
        calls: seconds of the whole network on one worker.
        strips: who has which rows of tokens. border: as in `PatchParallel`.
        width, depth: channels of a token, and how many attentions.
        output: numbers in a sample's answer. itemsize: bytes of a number.
    """

    calls: Calls
    strips: Strips
    link: Link
    width: int
    depth: int
    output: int
    border: int | None = None
    itemsize: int = 4

    def computing(self, rows: float) -> float:
        """Seconds in which the worker with the largest strip computes."""
        strips = self.strips
        return self.calls(rows * max(len(strips.own(worker)) for worker in range(strips.workers)) / strips.rows)

    def __call__(self, rows: float) -> float:
        strips, ways = self.strips, list[float]()
        if strips.workers == 1:
            return self.calls(rows)
        for worker in range(strips.workers):
            peers = sum(bool(strips.message(worker, other, self.border)) for other in range(strips.workers))
            size = rows * strips.bytes(self.border, self.width, self.depth, 1, self.itemsize, worker)
            ways.append(self.link(size, peers * self.depth))
        others = strips.workers - 1
        share = max(len(strips.own(worker)) for worker in range(strips.workers)) / strips.rows
        gather = self.link(rows * share * self.output * self.itemsize * others, others)
        return max(self.computing(rows), *ways) + gather
