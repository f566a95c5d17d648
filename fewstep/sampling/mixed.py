"""Requests with different plans in shared network calls: the heart of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, Together, ask
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.program import Program, program
from fewstep.core.run import check_answer, check_given
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
    """A plan with its noise `(B, *shape)` and the other arguments of `fewstep.core.sampler.Sampler.run`."""

    plan: Sampler
    noise: Tensor
    condition: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    first: int = 0
    init: Tensor | None = None


class _Run:
    """A request in progress: its program, and the evaluation it asks for next."""

    def __init__(self, request: Request, model: Denoiser, dtype: torch.dtype):
        if isinstance(request.plan, Steered):
            raise ValueError(
                f"{request.plan.name!r} weighs the particles of a sample together, between the calls: run it alone, by"
                " plan.run or fs.sample, which takes any number of samples"
            )
        x, self.condition = begin_run(request.plan, model, request.noise, request.init, dtype, dict(request.condition))
        table, self.rows, self.count = request.plan.table, len(x), 0
        check_given(table, model)
        self.evaluations = table.evaluations
        self.memory: Memory | None = memory_for(model, len(x), request.condition, request.plan)
        self.program: Program = program(table, x, Noise(request.seed, request.first))
        self.samples: Tensor | None = None
        self._advance(None)

    def _advance(self, answer: tuple[Tensor, str] | None) -> None:
        try:
            self.x, self.t, self.given = next(self.program) if answer is None else self.program.send(answer)
        except StopIteration as stop:
            self.samples = stop.value

    def joins(self, other: _Run) -> bool:
        """Whether the two may share a call: not with prompts of different lengths."""
        both = self.condition.keys() & other.condition.keys()
        return all(self.condition[name].shape[1:] == other.condition[name].shape[1:] for name in both)

    def take(self, value: Tensor, kind: str) -> None:
        self.count += 1
        self._advance((value, kind))


class Mixed:
    """A denoiser shared by requests that join and leave between its calls.

    `add` a request at any time, `step` for one network call, `pop` its samples when `step` has returned its ticket.
    Each call takes the requests in turn, as many as fit into `max_batch` samples.

    A request's own arithmetic is that of `plan.run`, on its own rows: what it shares is the network's batch. So its
    samples differ from those of a run alone only where the network's rounding depends on the batch's size, and are
    bit-equal whatever else is in a batch of the same size.
    """

    def __init__(self, model: Denoiser, max_batch: int | None = None, dtype: torch.dtype = torch.float32):
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.model, self.max_batch, self.dtype = model, max_batch, dtype
        self.calls = 0
        self._runs: dict[int, _Run] = {}  # in the order in which they are served next
        self._done: dict[int, Tensor] = {}
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

    def _chosen(self) -> tuple[int, ...]:
        chosen: list[int] = []
        rows, left = 0, len(self._runs)
        for ticket, run in self._runs.items():
            fits = self.max_batch is None or rows + run.rows <= self.max_batch
            if fits and (not chosen or self._runs[chosen[0]].joins(run)):
                chosen.append(ticket)
                rows += run.rows
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
        runs = [self._runs[ticket] for ticket in tickets]
        if self._group[0] != tickets:  # the conditions of a group are concatenated once
            names = dict.fromkeys(name for run in runs for name in run.condition)
            self._group = (tickets, {name: torch.cat([self._condition(run, name) for run in runs]) for name in names})
        x = torch.cat([run.x for run in runs])
        t = torch.cat([run.t.expand(run.rows) for run in runs])
        named = dict(self._group[1])
        for name in {name for run in runs for name in run.given}:
            told = [run.given[name] if name in run.given else self._condition(run, name) for run in runs]
            named[name] = torch.cat([value.to(x.dtype) for value in told])
        memories = [run.memory for run in runs if run.memory is not None]
        for run in runs:
            if run.memory is not None:
                run.memory.advance(given=run.evaluations[run.count].given)
        prediction = ask(self.model, x, t, Together(memories) if memories else None, named)
        self.calls += 1
        check_answer(prediction.value, x, self.calls, float("nan"))
        finished = []
        for ticket, run, value in zip(tickets, runs, prediction.value.split([run.rows for run in runs]), strict=True):
            run.take(value, prediction.kind)
            if run.samples is not None:
                del self._runs[ticket]
                self._done[ticket] = run.samples
                finished.append(ticket)
        return finished

    def _condition(self, run: _Run, name: str) -> Tensor:
        """A request's condition, or its default where the request leaves it out."""
        if name not in run.condition:
            run.condition[name] = self.model.conditions[name].check(name, None, run.rows, run.x.device)
        return run.condition[name]

    def pop(self, ticket: int) -> Tensor:
        """The samples `(B, *shape)` of a finished request, returned once.

        Raises:
            ValueError: samples that are not finite (other requests are unaffected).
            KeyError: a ticket that is not finished, or whose samples were returned already.
        """
        samples = self._done.pop(ticket)
        if not is_finite(samples):
            raise ValueError("the samples are not finite: run the plan by itself, which names the evaluation")
        return samples

    def drop(self, ticket: int) -> None:
        """Forget a request, finished or not."""
        self._runs.pop(ticket, None)
        self._done.pop(ticket, None)


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
