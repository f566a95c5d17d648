"""The engine of a server: a thread that draws what requests ask for, in shared network calls.

Requests of any plan, start and condition join between two calls and leave when they are done or nobody wants them any
more. A call holds at most `max_batch` samples; requests that have none at work yet come first, in the order in which
they came, so that one that asks for many samples does not hold up another's few.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.sampling.mixed import Mixed, Request
from fewstep.serving.counters import Counters

METHODS = (
    Method(
        "engine",
        kind="server",
        claim="step-level batching: whoever asks joins at the next network call, and leaves when done",
        use="Engine",
    ),
)


class Full(Exception):
    """The queue is full; `seconds` is about how long until there is room."""

    def __init__(self, queued: int, seconds: float):
        super().__init__(f"the queue is full ({queued} samples wait): try again in about {seconds:.0f} s")
        self.seconds = seconds


class Late(Exception):
    """A request's deadline passed before it was done."""


class Closed(Exception):
    """The engine takes no more requests."""


@dataclass(eq=False)
class Job:
    """Requests that make one answer: their samples, in order, go through `finish`, whose value is the result.

    finish: called in another thread with the samples `(n, *shape)`. deadline: seconds from now. changes: a model that
    the requests go on with once it is there, and before which evaluation at the latest.
    """

    requests: Sequence[Request]
    finish: Callable[[Tensor], Any] = field(default=lambda samples: samples)
    deadline: float = math.inf
    changes: tuple[Future[Denoiser], int] | None = None
    result: Future[Any] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.rows = sum(len(one.noise) for one in self.requests)
        self.until = self.started + self.deadline
        self.left = deque(range(len(self.requests)))  # those that have not begun
        self.active: dict[int, int] = {}  # tickets and which request it is
        self.parts: dict[int, Tensor] = {}
        self.working = 0  # samples in the engine's calls


class Engine:
    """A model and the thread that runs it.

    Args:
        max_batch: samples of a network call, at most. queue: samples that may be asked for at a time, beyond which
            `submit` raises `Full`. counters: what it counts into.

    `close` ends it; as a context manager it closes at the end.
    """

    def __init__(
        self, model: Denoiser, max_batch: int = 64, queue: int = 1024, counters: Counters | None = None,
        name: str = "fewstep",
    ):  # fmt: skip
        self.model, self.queue, self.counters = model, queue, counters or Counters()
        self.mixed = Mixed(model, max_batch)
        self._jobs: list[Job] = []  # in the order of arrival
        self._owner: dict[int, Job] = {}
        self._working = 0
        self._wake = threading.Condition()
        self._cancelled: set[Job] = set()
        self._changed: deque[tuple[Job, Denoiser | None, BaseException | None]] = deque()
        self._stopping = False
        self.used = time.monotonic()
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix=f"{name} finish")
        self._thread = threading.Thread(target=self._run, name=f"{name} engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_batch(self) -> int:
        assert self.mixed.max_batch is not None
        return self.mixed.max_batch

    def waiting(self) -> tuple[int, int]:
        """Samples that wait, and samples at work."""
        with self._wake:
            jobs = list(self._jobs)
        working = self._working
        done = sum(len(part) for job in jobs for part in list(job.parts.values()))
        return max(0, sum(job.rows for job in jobs) - working - done), working

    def busy(self) -> bool:
        """Whether anything is asked of it."""
        with self._wake:
            return bool(self._jobs)

    def submit(self, job: Job) -> Future[Any]:
        """Let a job join; its future.

        Raises:
            Full: no room in the queue. Closed: after `close`. ValueError: a request larger than a call.
        """
        largest = max(len(one.noise) for one in job.requests)
        if largest > self.max_batch:
            raise ValueError(f"a request of {largest} samples does not fit into calls of {self.max_batch}")
        with self._wake:
            if self._stopping:
                raise Closed("the server is shutting down")
            queued = sum(other.rows for other in self._jobs)
            if self._jobs and queued + job.rows > self.queue:
                self.counters.ended("full")
                raise Full(queued, self._seconds_left())
            self._jobs.append(job)
            self.used = time.monotonic()
            self._wake.notify()
        if job.changes is not None:
            job.changes[0].add_done_callback(lambda made: self._change(job, made))
        return job.result

    def cancel(self, job: Job) -> None:
        """Forget a job: its rows are free at the next call."""
        with self._wake:
            if job in self._jobs:
                self._cancelled.add(job)
                self._wake.notify()

    def aside(self, work: Callable[[], None]) -> None:
        """Have something done in the thread that finishes jobs, before those that finish later."""
        self._finisher.submit(work)

    def close(self, grace: float = 0.0) -> bool:
        """Take nothing more, finish what is there within `grace` seconds, and drop the rest; whether all was done."""
        end = time.monotonic() + grace
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
            done = self._wake.wait_for(lambda: not self._jobs, max(0.0, end - time.monotonic()))
            self._cancelled.update(self._jobs)
            self._wake.notify_all()
        self._thread.join()
        self._finisher.shutdown()
        return done

    def _seconds_left(self) -> float:
        """About how long the jobs at hand take."""
        rate = self.counters.seconds_a_row() or 0.1
        evaluations = sum(len(one.noise) * one.plan.nfe for job in self._jobs for one in job.requests)
        return min(600.0, max(1.0, math.ceil(rate * evaluations)))

    def _change(self, job: Job, made: Future[Denoiser]) -> None:
        error = made.exception()
        with self._wake:
            self._changed.append((job, None if error else made.result(), error))
            self._wake.notify()

    # From here on: the engine's own thread.

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._due() or (self._stopping and not self._jobs)):
                    ends = [job.until for job in self._jobs if job.until < math.inf]
                    self._wake.wait(max(0.0, min(ends) - time.monotonic()) if ends else None)
                if self._stopping and not self._jobs:
                    return
                cancelled, self._cancelled = self._cancelled, set()
                changed, self._changed = self._changed, deque()
                jobs = list(self._jobs)
            try:
                self._tidy(jobs, cancelled, changed)
                self._admit()
                self._step()
            except Exception as error:  # nobody may wait for ever for a thread that is gone
                for job in list(self._jobs):
                    self._end(job, error, "failed")

    def _tidy(self, jobs: list[Job], cancelled: set[Job], changed: Sequence[tuple[Job, Any, Any]]) -> None:
        """What has happened to jobs since the last call."""
        now = time.monotonic()
        for job in cancelled:
            self._end(job, None, "cancelled")
        for job in jobs:
            if job.until <= now and job not in cancelled:
                self._end(job, Late(f"the deadline of {job.deadline:g} s passed"), "late")
        for job, model, error in changed:
            if error is not None:
                self._end(job, error, "failed")
            elif job in self._jobs:
                job.requests = [replace(request, model=model) for request in job.requests]
                job.changes = None
                for ticket in job.active:
                    self.mixed.change(ticket, model)

    def _due(self) -> bool:
        """Whether there is anything to do now."""
        if self._cancelled or self._changed or self.mixed.waiting or self._next() is not None:
            return True
        now = time.monotonic()
        return any(job.until <= now for job in self._jobs)

    def _next(self) -> Job | None:
        """The job that may begin a request now: of those that have room, the one with the fewest samples at work."""
        room = self.max_batch - self._working
        able = (job for job in self._jobs if job.left and len(job.requests[job.left[0]].noise) <= room)
        return min(able, key=lambda job: job.working, default=None) if room > 0 else None

    def _admit(self) -> None:
        while (job := self._next()) is not None:
            number = job.left.popleft()
            request = job.requests[number]
            try:
                ticket = self.mixed.add(replace(request, owner=id(job)))
            except Exception as error:
                self._end(job, error, "refused" if isinstance(error, ValueError) else "failed")
                continue
            job.active[ticket], self._owner[ticket] = number, job
            job.working += len(request.noise)
            self._working += len(request.noise)
            if job.changes is not None:
                self.mixed.hold(ticket, job.changes[1])

    def _step(self) -> None:
        calls, rows = self.mixed.calls, self.mixed.rows
        begin = time.perf_counter()
        finished = self.mixed.step()
        if self.mixed.calls > calls:
            self.counters.called(self.mixed.rows - rows, self.mixed.served, time.perf_counter() - begin)
        for ticket in finished:
            job = self._owner.pop(ticket)
            number = job.active.pop(ticket)
            job.working -= len(job.requests[number].noise)
            self._working -= len(job.requests[number].noise)
            try:
                job.parts[number] = self.mixed.pop(ticket)
            except Exception as error:
                self._end(job, error, "failed")
                continue
            if len(job.parts) == len(job.requests):
                self._leave(job)
                self._finisher.submit(self._complete, job)

    def _leave(self, job: Job) -> None:
        with self._wake:
            if job in self._jobs:
                self._jobs.remove(job)
            self.used = time.monotonic()
            self._wake.notify_all()

    def _end(self, job: Job, error: BaseException | None, outcome: str) -> None:
        """Leave a job undone."""
        for ticket in job.active:
            self.mixed.drop(ticket)
            self._owner.pop(ticket, None)
        self._working -= job.working
        job.working = 0
        job.active.clear()
        job.left.clear()
        if job in self._jobs:
            self._leave(job)
            self.counters.ended(outcome)
        if error is None:
            job.result.cancel()
        elif not job.result.done():
            job.result.set_exception(error)

    def _complete(self, job: Job) -> None:
        """In the finisher's thread."""
        try:
            with torch.no_grad():
                found = job.finish(torch.cat([job.parts[number] for number in range(len(job.requests))]))
        except Exception as error:
            self.counters.ended("failed")
            job.result.set_exception(error)
            return
        self.counters.ended("done", job.rows, time.monotonic() - job.started)
        if not job.result.cancelled():
            job.result.set_result(found)


def units(rows: int, max_batch: int) -> list[tuple[int, int]]:
    """How a request of several samples is cut, `(begin, end)`: a quarter of a call at most, so that others get in."""
    most = max(1, max_batch // 4)
    ends = [*range(most, rows, most), rows]
    return list(itertools.pairwise([0, *ends]))
