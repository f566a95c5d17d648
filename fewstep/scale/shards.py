"""A job in shards: stretches of whole batches by the number of the sample, and what draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from fewstep.core.arguments import check_whole

MOST = 512  # shards of a job, by default: few enough for one manifest, enough for any number of workers


@dataclass(frozen=True)
class Shard:
    """Samples `begin` to `end - 1` of a job."""

    number: int
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


def cut(total: int, batch: int, batches: int | None = None) -> tuple[Shard, ...]:
    """The shards of `total` samples, each of `batches` whole batches; the last one may be shorter.

    Where a batch begins depends on its number alone, so a sample is drawn in the company in which one machine would
    draw it, and its bits are the same however many workers there are. By default a shard is one batch, or as many as
    keep the shards below 512.

    Raises:
        ValueError: `total`, `batch` or `batches` below 1.
    """
    total, batch = check_whole("n", total), check_whole("batch_size", batch)
    if batches is None:
        batches = -(-total // (batch * MOST))
    size = batch * check_whole("the batches of a shard", batches)
    return tuple(Shard(k, begin, min(begin + size, total)) for k, begin in enumerate(range(0, total, size)))


class Worker(Protocol):
    """What a worker opens once: it says what it is, as JSON, and works on any stretch of the samples."""

    about: Mapping[str, Any]

    def __call__(self, begin: int, end: int) -> tuple[Any, dict[str, Any]]:
        """What the stretch gives, and facts about it as JSON."""
        ...


@dataclass(frozen=True)
class Work:
    """How a worker is made, wherever it runs: a function by its name, "package.module:function", and its options."""

    make: str
    options: Mapping[str, Any]

    def open(self) -> Worker:
        module, _, name = self.make.partition(":")
        worker: Worker = getattr(import_module(module), name)(**self.options)
        return worker


@dataclass(frozen=True)
class Ready:
    """A worker has opened its work."""

    about: Mapping[str, Any]
    worker: str


@dataclass(frozen=True)
class Done:
    """A shard is done: its value and its facts."""

    shard: Shard
    value: Any
    facts: Mapping[str, Any]
    worker: str


@dataclass(frozen=True)
class Lost:
    """A worker died on a shard, which another one draws again."""

    shard: Shard
    why: str
    worker: str


Event = Ready | Done | Lost
Executor = Callable[[Work, Sequence[Shard]], Iterator[Event]]


def in_this_process(work: Work, shards: Sequence[Shard]) -> Iterator[Event]:
    """One worker, here: the executor that needs nothing else."""
    worker = work.open()
    yield Ready(worker.about, "here")
    for shard in shards:
        value, facts = worker(shard.begin, shard.end)
        yield Done(shard, value, facts, "here")
