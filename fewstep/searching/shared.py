"""Many plans on the same noises, in network calls that they share.

Plans of one family see the same states for a while: the noise itself, the state after a first step of order one, the
states before the number that a fit has moved. What several plans ask for in the same bits is evaluated once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Together, ask
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.program import Ask, Program, program
from fewstep.core.run import check_answer, check_given, row_of
from fewstep.core.sampler import begin_run, is_finite, memory_for
from fewstep.searching.problem import Problem

# Weights times places in a sample, at most, of a small network: there a layer is too short to be shared out, and
# threads that wait for each other at every layer spend their time spinning. Whole calls are shared out instead.
SMALL = 1 << 28
NOISES, ROWS = 64, 128  # of a small network: noises that are run together, and samples in a call, which fit its caches
MANY = 256  # both, of others
HELD = 1 << 26  # numbers that the states of plans on their way may hold together: 256 MiB in float32
PLANS = 128  # that are run together at most, so that there is work for every processor

_workers: ContextVar[int] = ContextVar("workers", default=1)


def is_small(model: Denoiser) -> bool:
    """Whether a model's calls are small and on the processor.

    It goes by numbers and not by the clock, so that a search takes its sums in the same order each time.
    """
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    return model.device.type == "cpu" and numbers * math.prod((model.shape or (1,))[1:]) <= SMALL


@contextmanager
def threads_for(model: Denoiser) -> Iterator[int]:
    """Threads as they serve a model: for a small one each call has one, and `run_shared` makes several calls at a time.

    The number of threads in use is given, and that of before comes back at the end. The samples do not depend on it.
    """
    before = torch.get_num_threads()
    if not is_small(model):
        yield before
        return
    torch.set_num_threads(1)
    token = _workers.set(before)
    try:
        yield before
    finally:
        _workers.reset(token)
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Ran:
    """A plan's samples `(n, *shape)`, or None where they are not finite.

    `seconds` are the plan's share of the network's calls, an evaluation that is shared with other plans counted in
    full for each of them: what the plan takes by itself.
    """

    samples: Tensor | None
    seconds: float


def _nothing() -> None:
    pass


def run_shared(
    plans: Sequence[Plan], model: Denoiser, problem: Problem, tick: Callable[[], None] = _nothing
) -> list[Ran]:
    """What each plan makes of a problem's noises, in their order; `tick` is called before each call of the network.

    The samples differ from those of `run_all` by the network's rounding in batches of another size. Of a model that
    carries a memory for each run, the runs share calls, and no answers.
    """
    noises, rows = (NOISES, ROWS) if is_small(model) else (MANY, MANY)
    # Neighbours are likely to share: plans on the same times stand together.
    order = sorted(range(len(plans)), key=lambda i: [evaluation.t for evaluation in plans[i].evaluations])
    longest = max((plan.nfe for plan in plans), default=0)
    width = max(1, min(PLANS, HELD // (min(noises, len(problem)) * problem.noise[0].numel() * 2 * (longest + 2))))
    tasks = [
        (order[start : start + width], problem.part(begin, begin + noises))
        for begin in range(0, len(problem), noises)
        for start in range(0, len(order), width)
    ]

    def work(task: tuple[list[int], Problem]) -> tuple[list[Tensor], list[float]]:
        return _together([plans[i] for i in task[0]], model, task[1], rows, tick)

    parts: list[list[Tensor]] = [[] for _ in plans]
    seconds = [0.0] * len(plans)
    with _crew(len(tasks)) as each:
        for (chosen, _), (found, took) in zip(tasks, each(work, tasks), strict=True):
            for i, samples, spent in zip(chosen, found, took, strict=True):
                parts[i].append(samples)
                seconds[i] += spent
    made = [torch.cat(part) if part else problem.noise for part in parts]
    return [Ran(x if is_finite(x) else None, spent) for x, spent in zip(made, seconds, strict=True)]


@contextmanager
def _crew(tasks: int) -> Iterator[Any]:
    """A `map` over the threads that `threads_for` allows."""
    workers = min(tasks, _workers.get())
    if workers <= 1:
        yield map
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


class Runs:
    """What plans make of one problem; a plan that comes again is not run again.

    Attributes:
        problem: the noises, with the reference's answers.
    """

    def __init__(self, model: Denoiser, problem: Problem):
        self.model, self.problem = model, problem
        self._known: dict[str, Ran] = {}

    def __call__(self, plans: Sequence[Plan]) -> list[Ran]:
        names = [plan.to_json() for plan in plans]
        new = {name: plan for name, plan in zip(names, plans, strict=True) if name not in self._known}
        self._known |= zip(new, run_shared(list(new.values()), self.model, self.problem), strict=True)
        return [self._known[name] for name in names]


def _key(asked: Ask) -> tuple[object, ...]:
    """Equal for what the network would answer alike, bit for bit."""
    told = tuple((name, value.cpu().numpy().tobytes()) for name, value in asked[2].items())
    return float(asked[1]), told, asked[0].cpu().numpy().tobytes()


@torch.no_grad()
def _together(
    plans: Sequence[Plan], model: Denoiser, problem: Problem, rows: int, tick: Callable[[], None]
) -> tuple[list[Tensor], list[float]]:
    """The plans in step with each other, in calls of about so many rows: samples and seconds of each."""
    samples: list[Tensor] = [problem.noise] * len(plans)
    seconds = [0.0] * len(plans)
    condition: dict[str, Tensor] = {}
    runs: list[Program] = []
    asks: dict[int, Ask] = {}
    # Of a model that carries one: a memory for each run, whose answers are then its own.
    memories = [memory_for(model, len(problem), problem.condition, plan) for plan in plans]
    counts = [0] * len(plans)
    for i, plan in enumerate(plans):
        dtype = problem.noise.dtype
        x, condition = begin_run(plan, model, problem.noise, None, dtype, problem.condition)
        check_given(plan.table, model)
        runs.append(program(plan.table, x, Noise(problem.seed, problem.first)))
        _go_on(runs[i], None, i, asks, samples)
    while asks:
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, asked in asks.items():
            alike.setdefault(_key(asked) if memories[i] is None else (i,), []).append(i)
        groups, asked_now, asks = list(alike.values()), asks, {}
        together = max(1, round(rows / len(problem)))
        for begin in range(0, len(groups), together):
            tick()
            share = groups[begin : begin + together]
            clock = time.perf_counter()
            own = [memory for group in share if (memory := memories[group[0]]) is not None]
            for group in share:
                if (memory := memories[group[0]]) is not None:
                    memory.advance(given=plans[group[0]].evaluations[counts[group[0]]].given)
                    counts[group[0]] += 1
            asked_here = [asked_now[group[0]] for group in share]
            values, kind = _call(model, asked_here, condition, Together(own) if own else None)
            spent = (time.perf_counter() - clock) / len(share)
            for group, value in zip(share, values, strict=True):
                for i in group:
                    seconds[i] += spent
                    _go_on(runs[i], (value, kind), i, asks, samples)
    return samples, seconds


def _go_on(
    run: Program, answer: tuple[Tensor, str] | None, i: int, asks: dict[int, Ask], samples: list[Tensor]
) -> None:
    """Send a run its answer, and keep what it asks next or its samples."""
    try:
        asks[i] = next(run) if answer is None else run.send(answer)
    except StopIteration as stop:
        samples[i] = stop.value


def _call(
    model: Denoiser, asks: Sequence[Ask], condition: dict[str, Tensor], memory: Together | None
) -> tuple[Sequence[Tensor], str]:
    """The answers to several states, of the same rows of conditions, in one call."""
    rows = len(asks[0][0])
    named = {name: torch.cat([value] * len(asks)) for name, value in condition.items()}
    for name in {name for asked in asks for name in asked[2]}:
        like = asks[0][0]
        told = [asked[2].get(name, condition.get(name)) for asked in asks]
        named[name] = torch.cat([row_of(model, name, value, rows, like.device).to(like.dtype) for value in told])
    x = torch.cat([asked[0] for asked in asks])
    t = asks[0][1] if len({float(asked[1]) for asked in asks}) == 1 else torch.cat([a[1].expand(rows) for a in asks])
    prediction = ask(model, x, t, memory, named)
    check_answer(prediction.value, x, 1, float("nan"))
    return prediction.value.split(rows), prediction.kind
