"""Requests with different plans in shared network calls: the heart of a server."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, Memory, Together, ask
from fewstep.core.methods import Method
from fewstep.core.model import Callback
from fewstep.core.noise import Noise, Source
from fewstep.core.prediction import Prediction, joined
from fewstep.core.program import Program, program
from fewstep.core.run import check_answer, check_given, row_of
from fewstep.core.sampler import Sampler, begin_run, is_finite, memory_for
from fewstep.guidance.steer import Steered

METHODS = (
    Method(
        "run-mixed",
        kind="executor",
        claim="different plans, step counts and conditions share network calls, each as if it ran alone",
        use="run_mixed",
    ),
)


@dataclass(frozen=True)
class Request:
    """A plan with its noise `(B, *shape)` and the other arguments of `fewstep.core.sampler.Sampler.run`.

    source: where the steps' noise comes from, in place of `seed` and `first`. watch: called after each evaluation, as a
    run's callback. model: another model for this request alone, of the shared one's process and conditions, such as the
    same weights with an adapter; only requests of one model share a call. owner: requests of one owner take their turns
    among themselves, so that many of one do not hold up the single one of another.
    """

    plan: Sampler
    noise: Tensor
    condition: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    first: int = 0
    init: Tensor | None = None
    source: Source | None = None
    watch: Callback | None = None
    model: Denoiser | None = None
    owner: Hashable = None


class _Run:
    """A request in progress: its program, and the evaluation it asks for next."""

    def __init__(self, request: Request, shared: Denoiser, dtype: torch.dtype):
        if isinstance(request.plan, Steered):
            raise ValueError(
                f"{request.plan.name!r} weighs the particles of a sample together, between the calls: run it alone, by"
                " plan.run or fs.sample, which takes any number of samples"
            )
        self.request, self.dtype, self.model = request, dtype, request.model or shared
        self.watch, self.rows = request.watch, len(request.noise)
        self.until: int | None = None  # the evaluation before which it waits
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        request, model = self.request, self.model
        condition = dict(request.condition)
        x, self.condition = begin_run(request.plan, model, request.noise, request.init, self.dtype, condition)
        table = request.plan.table
        check_given(table, model)
        self.count, self.evaluations = 0, table.evaluations
        self.memory: Memory | None = memory_for(model, len(x), request.condition, request.plan)
        self.program: Program = program(table, x, request.source or Noise(request.seed, request.first))
        self.samples: Tensor | None = None
        self._advance(None)

    def _advance(self, answer: tuple[Tensor, str] | None) -> None:
        try:
            self.x, self.t, self.given = next(self.program) if answer is None else self.program.send(answer)
        except StopIteration as stop:
            self.samples = stop.value

    @property
    def waits(self) -> bool:
        return self.until is not None and self.count >= self.until

    def joins(self, other: _Run) -> bool:
        """Whether the two may share a call: not under different models, nor with prompts of different lengths."""
        both = self.condition.keys() & other.condition.keys()
        return self.model is other.model and all(
            self.condition[name].shape[1:] == other.condition[name].shape[1:] for name in both
        )

    def take(self, answer: Prediction, rows: slice | None = None) -> None:
        """Go on with an answer, or with some rows of it."""
        if self.watch is not None:
            own = answer if rows is None else answer.part(rows)
            self.watch(self.count + 1, self.evaluations[self.count].t, self.x, own)
        self.count += 1
        self._advance((answer.value if rows is None else answer.value[rows], answer.kind))


class Mixed:
    """A denoiser shared by requests that join and leave between its calls.

    `add` a request at any time, `step` for one network call, `pop` its samples when `step` has returned its ticket.
    Each call takes the owners in turn, and of each its requests in turn, as many as fit into `max_batch` samples.

    A request's own arithmetic is that of `plan.run`, on its own rows: what it shares is the network's batch. So its
    samples differ from those of a run alone only where the network's rounding depends on the batch's size, and are
    bit-equal whatever else is in a batch of the same size.

    Where a shared call fails, each of its requests is tried alone, and only those that fail then are finished with the
    error. Where memory runs out, calls are made in parts of half as many rows from then on.
    """

    def __init__(self, model: Denoiser, max_batch: int | None = None, dtype: torch.dtype = torch.float32):
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.model, self.max_batch, self.dtype = model, max_batch, dtype
        self.calls = self.rows = 0  # of the network, and the samples of all of them
        self.served = 0  # requests that the last call served
        self.most_rows: int | None = None  # of a network call, once memory has run out
        self._runs: dict[int, _Run] = {}  # in the order in which they are served next
        self._done: dict[int, Tensor | Exception] = {}
        self._next = 0
        self._group: tuple[tuple[int, ...], dict[str, Tensor]] = ((), {})

    def __len__(self) -> int:
        """Requests that are not finished."""
        return len(self._runs)

    def add(self, request: Request) -> int:
        """Let a request join at the next call; returns its ticket.

        Raises:
            ValueError: as `plan.run`: a plan for another process, a wrong shape, unknown conditions; more samples
                than a call may hold. The other requests continue.
        """
        if self.max_batch is not None and len(request.noise) > self.max_batch:
            raise ValueError(
                f"a request of {len(request.noise)} samples does not fit into calls of {self.max_batch}: split it"
            )
        run = _Run(request, self.model, self.dtype)
        ticket, self._next = self._next, self._next + 1
        if run.samples is None:
            self._runs[ticket] = run
        else:
            self._done[ticket] = run.samples
        return ticket

    def hold(self, ticket: int, evaluation: int) -> None:
        """Let a request wait before its evaluation of this number, from 0, until it gets its model (`change`)."""
        self._runs[ticket].until = evaluation

    def change(self, ticket: int, model: Denoiser | None = None) -> None:
        """Go on with another model from a request's next evaluation on, or with its own; it waits no longer."""
        if (run := self._runs.get(ticket)) is not None:
            run.model, run.until = model or run.model, None

    @property
    def waiting(self) -> int:
        """Requests that are not finished and are not held."""
        return sum(not run.waits for run in self._runs.values())

    def _chosen(self) -> tuple[int, ...]:
        chosen: list[int] = []
        rows, queues = 0, dict[Hashable, list[int]]()
        for ticket, run in self._runs.items():
            if not run.waits:
                queues.setdefault(run.request.owner, []).append(ticket)
        left = len(self._runs)
        while queues and (self.max_batch is None or rows < self.max_batch):
            for owner, queue in list(queues.items()):
                ticket = queue.pop(0)
                run = self._runs[ticket]
                fits = self.max_batch is None or rows + run.rows <= self.max_batch
                if fits and (not chosen or self._runs[chosen[0]].joins(run)):
                    chosen.append(ticket)
                    rows += run.rows
                if not queue:
                    del queues[owner]
        if len(chosen) < left:  # those served now go to the end of the queue
            for ticket in chosen:
                self._runs[ticket] = self._runs.pop(ticket)
        return tuple(chosen)

    @torch.no_grad()
    def step(self) -> list[int]:
        """One network call; returns the tickets that it finishes: none, without a call, when no request waits."""
        tickets = self._chosen()
        if not tickets:
            return []
        try:
            answer = self._called(tickets)
        except Exception as error:
            return self._again(tickets, error)
        finished = []
        rows = [self._runs[ticket].rows for ticket in tickets]
        for ticket, begin, count in zip(tickets, itertools.accumulate([0, *rows]), rows, strict=False):
            run = self._runs[ticket]
            run.take(answer, slice(begin, begin + count))
            if run.samples is not None:
                finished.append(self._finish(ticket, run.samples))
        return finished

    def _finish(self, ticket: int, samples: Tensor | Exception) -> int:
        del self._runs[ticket]
        self._done[ticket] = samples
        return ticket

    def _again(self, tickets: tuple[int, ...], error: Exception) -> list[int]:
        """After a call that failed: half as many rows where memory ran out, else each request alone."""
        runs = [self._runs[ticket] for ticket in tickets]
        rows = min(sum(run.rows for run in runs), self.most_rows or sys.maxsize)
        for run in runs:
            if run.memory is not None:  # which may hold half of a step
                run.start()
        if out_of_memory(error) and rows > 1:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.most_rows = rows // 2
            return []
        if len(tickets) == 1:
            return [self._finish(tickets[0], error)]
        finished = []
        for ticket, run in zip(tickets, runs, strict=True):
            try:
                run.take(self._called((ticket,)))
            except Exception as own:
                finished.append(self._finish(ticket, own))
            else:
                finished += [self._finish(ticket, run.samples)] if run.samples is not None else []
        return finished

    def _called(self, tickets: tuple[int, ...]) -> Prediction:
        """The network's answer to what these requests ask for."""
        runs = [self._runs[ticket] for ticket in tickets]
        if self._group[0] != tickets:  # the conditions of a group are concatenated once
            names = dict.fromkeys(name for run in runs for name in run.condition)
            self._group = (tickets, {name: torch.cat([self._condition(run, name) for run in runs]) for name in names})
        x = torch.cat([run.x for run in runs])
        t = torch.cat([run.t.expand(run.rows) for run in runs])
        named = dict(self._group[1])
        for name in {name for run in runs for name in run.given}:
            told = [run.given[name] if name in run.given else self._condition(run, name) for run in runs]
            rows = [row_of(run.model, name, value, run.rows, x.device) for run, value in zip(runs, told, strict=True)]
            named[name] = torch.cat([value.to(x.dtype) for value in rows])
        memories = [run.memory for run in runs if run.memory is not None]
        for run in runs:
            if run.memory is not None:
                run.memory.advance(given=run.evaluations[run.count].given)
        memory = Together(memories) if memories else None
        answer = self._answer(runs[0].model, x, t, memory, named)
        self.calls, self.rows, self.served = self.calls + 1, self.rows + len(x), len(runs)
        check_answer(answer.value, x, self.calls, float("nan"))
        return answer

    def _answer(
        self, model: Denoiser, x: Tensor, t: Tensor, memory: AnyMemory | None, named: dict[str, Tensor]
    ) -> Prediction:
        most = self.most_rows
        if most is None or len(x) <= most:
            return ask(model, x, t, memory, named)
        parts = []
        for begin in range(0, len(x), most):
            rows = slice(begin, begin + most)
            own = {name: value[rows] for name, value in named.items()}
            answer = ask(model, x[rows], t[rows], None if memory is None else memory[rows], own)
            parts.append((torch.arange(len(x), device=x.device)[rows], answer))
        return joined(parts, x, t)

    def _condition(self, run: _Run, name: str) -> Tensor:
        """A request's condition, or its default where the request leaves it out."""
        if name not in run.condition:
            run.condition[name] = run.model.conditions[name].check(name, None, run.rows, run.x.device)
        return run.condition[name]

    def pop(self, ticket: int) -> Tensor:
        """The samples `(B, *shape)` of a finished request, returned once.

        Raises:
            ValueError: samples that are not finite (other requests are unaffected).
            KeyError: a ticket that is not finished, or whose samples were returned already.
            Exception: what the network raised on this request.
        """
        samples = self._done.pop(ticket)
        if isinstance(samples, Exception):
            raise samples
        if not is_finite(samples):
            raise ValueError("the samples are not finite: run the plan by itself, which names the evaluation")
        return samples

    def drop(self, ticket: int) -> None:
        """Forget a request, finished or not."""
        self._runs.pop(ticket, None)
        self._done.pop(ticket, None)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )


@checked
def run_mixed(
    requests: Sequence[Request | tuple[Sampler, Tensor] | tuple[Sampler, Tensor, Mapping[str, Any]]],
    model: Denoiser,
    max_batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Run requests, each `(plan, noise, condition)` or a `Request`, in shared network calls; their samples, in order.

    All are checked before the first call: plans of any solver, step count and start, each with its own conditions, for
    the model's process. The number of calls is the longest plan's, where all fit into `max_batch` and their prompts are
    encoded in the same length.

    Raises:
        ValueError: no requests, and what `Mixed.add` and `Mixed.pop` raise.
    """
    if not requests:
        raise ValueError("no requests: give at least one (plan, noise, condition)")
    mixed = Mixed(model, max_batch, dtype)
    tickets = [mixed.add(one if isinstance(one, Request) else Request(*one)) for one in requests]
    while len(mixed):
        mixed.step()
    return [mixed.pop(ticket) for ticket in tickets]
