"""The executor: one loop for every plan.

Per stage there is the network, one copy of its answer into memory, and one product with a row of weights. Nothing is
read back from the device, and nothing is allocated but by the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise, Source
from fewstep.core.ops import Number, Spread
from fewstep.core.prediction import Prediction
from fewstep.core.sampler import Callback, Model, Result, Sampler
from fewstep.core.table import Bound, Structure, Table, Weight


def check_run(sampler: Sampler, model: Model, noise: Tensor, dtype: torch.dtype) -> None:
    """`ValueError` for noise, a dtype or a model that the sampler does not fit."""
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        got = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a float tensor (B, *shape), got {got}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the sampling state is float32 or float64, got {dtype} (the network may use any dtype)")
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch dimension, (B, *shape), got shape {tuple(noise.shape)}")
    if model.shape is not None and tuple(noise.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} does not fit the model: it takes (B, {_comma(model.shape)})"
        )
    own = getattr(model, "process", None)
    if own is not None and not sampler.fits(own):
        raise ValueError(
            f"the plan was made for the process {sampler.process.get('process')!r}, the model has"
            f" {own.config()['process']!r} or other parameters of it: make the plan with fs.plan(model.process, ...)"
        )


def _comma(shape: Sequence[int]) -> str:
    return ", ".join(str(n) for n in shape)


def add_up(weights: Sequence[Sequence[Weight]], rows: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    """The combination row by row: for weights that differ from element to element, and for devices on which a global
    setting may round matrix products to TF32."""
    for row, out in zip(weights, writes, strict=False):
        terms = [(c, value) for c, value in zip(row, rows, strict=True) if isinstance(c, Tensor) or c != 0.0]
        if not terms:
            out.zero_()
            continue
        torch.mul(terms[0][1], terms[0][0], out=out)
        for c, value in terms[1:]:
            if isinstance(c, Tensor):
                out.addcmul_(value, c)
            else:
                out.add_(value, alpha=c)


def _factor(number: Number, spread: Spread | None, like: Tensor) -> Weight:
    if not isinstance(number, tuple):
        return number
    assert spread is not None
    return spread.elements([number])[0].to(like)


def begin_run(
    sampler: Sampler,
    model: Model,
    noise: Tensor,
    init: Tensor | None,
    dtype: torch.dtype,
    condition: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The start of a run, checked: the state at the sampler's first time, and the conditions as tensors."""
    check_run(sampler, model, noise, dtype)
    spread = sampler.table.spread if isinstance(sampler.start[1], tuple) else None
    if spread is not None and tuple(noise.shape[1:]) != spread.shape:
        raise ValueError(f"the plan is for samples of shape {spread.shape}, got noise of shape {tuple(noise.shape)}")
    named = model.check_condition(condition, noise.shape[0], noise.device)
    x = noise.to(dtype)
    x = x * _factor(sampler.start[1], spread, x)
    if init is not None:
        if init.shape != noise.shape:
            raise ValueError(f"init has shape {tuple(init.shape)}, the noise {tuple(noise.shape)}")
        x += init.to(dtype) * _factor(sampler.start[0], spread, x)
    return x, named


def memory_for(model: Model, rows: int, condition: Mapping[str, Any], table: Table | None, end: float) -> Memory | None:
    """A run's memory, for a model that carries one; the table of a plan says the times of its evaluations."""
    if not model.carries:
        return None
    told = {name: float(v) if isinstance(v, int | float) else None for name, v in condition.items() if v is not None}
    return Memory(rows, [op.t for op in table.evaluations] if table is not None else (), end, told)


class Watch:
    """What is done with each evaluation besides: the trajectory, a callback, a progress bar."""

    def __init__(self, callback: Callback | None, trajectory: bool, advance: Callable[[], None] | None):
        self.callback, self.trajectory, self.advance = callback, trajectory, advance
        self.wanted = trajectory or callback is not None or advance is not None
        self.states: list[Tensor] = []

    def __call__(self, number: int, t: float, x: Tensor, prediction: Prediction) -> None:
        if self.trajectory:
            self.states.append(x.clone())
        if self.callback is not None:
            self.callback(number, t, x, prediction)
        if self.advance is not None:
            self.advance()

    def end(self, samples: Tensor) -> tuple[Tensor, ...]:
        return (*self.states, samples) if self.trajectory else ()


def bar(wanted: bool, sampler: Sampler) -> AbstractContextManager[Callable[[], None] | None]:
    """A progress bar over a run's evaluations, or nothing."""
    from fewstep.report.progress import bar as shown

    return shown(sampler.name if wanted else None, sampler.nfe if wanted else 0)


def is_finite(samples: Tensor) -> bool:
    """Whether all elements are finite. A sum is the cheapest reading that any NaN or infinity reaches; only if it is
    off are the elements looked at."""
    return math.isfinite(float(samples.sum())) or bool(torch.isfinite(samples).all())


@torch.no_grad()
def run(
    sampler: Sampler,
    model: Model,
    noise: Tensor,
    *,
    seed: int = 0,
    first: int = 0,
    init: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    callback: Callback | None = None,
    progress: bool = False,
    trajectory: bool = False,
    source: Source | None = None,
    **condition: Any,
) -> Result:
    """Run a plan.

    Args:
        noise: initial noise `(B, *shape)`, standard normal; scaled by the plan to its first time.
        seed, first: the stream of per-step noise, that of samples `first ... first + B - 1` under `seed`.
        init: a clean batch to start from, for plans that start in the middle (`strength` below 1).
        dtype: of the state; the network sees it and answers in its own dtype.
        callback: `callback(evaluation, t, x, prediction)` after each evaluation; its tensors are views that the next
            step overwrites, clone what you keep.
        trajectory: also return the network's inputs and the result, `plan.nfe + 1` tensors.
        source: where the steps' noise comes from, by default `Noise(seed, first)`.
        **condition: what the denoiser is conditioned on.

    Raises:
        ValueError: noise of a wrong shape or dtype, an unknown condition, a network that returns another shape, or one
            whose answers are not finite (checked once, on the result, then traced to its evaluation and time).
    """
    begin = time.perf_counter()
    x, named = begin_run(sampler, model, noise, init, dtype, condition)
    table, source = sampler.table, source or Noise(seed, first)
    check_given(table, model)
    memory = memory_for(model, len(x), condition, table, sampler.times[-1])
    steps, shape = program(table, x, source), x.shape
    del x  # the program keeps its own copy
    with bar(progress, sampler) as advance:
        watch = Watch(callback, trajectory, advance)
        samples, count = _loop(table, model, steps, shape, named, memory, watch if watch.wanted else None)
    if not is_finite(samples):
        x, named = begin_run(sampler, model, noise, init, dtype, condition)
        again = memory_for(model, len(x), condition, table, sampler.times[-1])
        _loop(table, model, program(table, x, source), shape, named, again, _blame)
        raise ValueError(
            "the samples are not finite, although every answer of the network is: the plan's coefficients overflow"
        )
    report = reported(memory, count, len(samples))
    return Result(samples, sampler.nfe, count, time.perf_counter() - begin, watch.end(samples), report)


def check_given(table: Table, model: Model) -> None:
    """`ValueError` where a plan gives the network a number that the model does not take."""
    for name in dict.fromkeys(name for op in table.evaluations for name, _ in op.given):
        if name not in model.conditions:
            raise ValueError(f"the plan gives the network {name!r} at its evaluations, but this model does not take it")


def reported(memory: Memory | None, count: int, rows: int) -> dict[str, Any]:
    """What a run reports: the rows that the innermost network saw for one sample, and what the model noted."""
    if memory is None:
        return {"rows": count}
    seen = memory.seen / rows if rows else 0
    return {"rows": int(seen) if seen == int(seen) else seen, **memory.report}


class Ask(NamedTuple):
    """What a program wants evaluated: the state `(B, *shape)`, the time, and numbers for the network, `(B,)` by name.

    x is a view that the next step overwrites.
    """

    x: Tensor
    t: Tensor
    given: Mapping[str, Tensor]


# Yields what is to be evaluated, is sent the answer and its kind, and returns the samples.
Program = Generator[Ask, tuple[Tensor, str], Tensor]


def drive(steps: Program, answer: Callable[[Ask], tuple[Tensor, str]]) -> Tensor:
    """Run a program to its end."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send(answer(asked))
    except StopIteration as stop:
        return stop.value


class Rows:
    """A table's states and memory on their way, combined in place; every view is made once.

    `fed` is what the network is to see at stage `i`; `advance` takes its answer. Even stages read [A | memory] and
    write B, odd stages read [memory | B] and write A.
    """

    def __init__(self, table: Table, like: Tensor, dtype: torch.dtype | None = None):
        r, m = table.states, table.memory
        self.table, self.shape = table, like.shape
        self.dtype, self.device = dtype or like.dtype, like.device
        rows = torch.zeros((2 * r + m, *like.shape), dtype=self.dtype, device=self.device)
        views, flat = rows.unbind(), rows.view(2 * r + m, -1)
        self.memory, self.state = views[r : r + m], (views[:r], views[r + m :])
        self._reads = (flat[: r + m], flat[r:])
        self._writes = {n: (flat[r + m : r + m + n], flat[:n]) for n in table.widths}
        self._products = self.device.type == "cpu" and table.spread is None  # one product reads each row once
        self._bound: Bound | None = None
        self.i = 0

    @property
    def fed(self) -> Tensor:
        """The state that the network is to see, or the result after the last stage."""
        stages = self.table.stages
        return self.state[self.i & 1][stages[self.i].x if self.i < len(stages) else self.table.result]

    def bind(self, kind: str) -> None:
        """Say what the network predicts."""
        self._bound, self.kind = self.table.bind(kind), kind
        self._ratios, self._weights = self._bound.factors(self.device, self.dtype)
        self._matrices = self._bound.tensors(self.device, self.dtype) if self._products else []

    def advance(self, value: Tensor | None, kind: str, draw: Callable[..., Tensor]) -> None:
        """Take the network's answer at `fed` (None at a stage without one), draw what the stage draws, and combine."""
        i, odd = self.i, self.i & 1
        stage, memory = self.table.stages[i], self.memory
        if value is not None:
            x = self.state[odd][stage.x]
            if self._bound is None:
                self.bind(kind)
            elif kind != self.kind:  # a wrapper that changes its mind: the table is bound to the first kind
                p, q = self.table.weigh(stage.convert(kind, self.kind), self.device, self.dtype)
                value = p * x + q * value
            for (_, slot), ratio in zip(stage.outputs, self._ratios[i], strict=True):
                if ratio is None:
                    memory[slot].copy_(value)
                elif isinstance(ratio, Tensor):
                    torch.addcmul(value, x, ratio, out=memory[slot])
                else:
                    torch.add(value, x, alpha=ratio, out=memory[slot])
        for number, slot in stage.draws:
            memory[slot].copy_(draw(number, self.shape, self.device, self.dtype))
        if self._bound is None:  # before the first evaluation: noise and states alone, no kind matters
            weights = [self.table.weigh(row, self.device, self.dtype) for row in stage.weights]
            add_up(weights, [*self.state[odd], *memory], self.state[1 - odd])
        elif self._products:
            torch.mm(self._matrices[i], self._reads[odd], out=self._writes[len(stage.weights)][odd])
        else:
            add_up(self._weights[i], [*self.state[odd], *memory], self.state[1 - odd])
        self.i = i + 1


def program(table: Table, start: Tensor, source: Source) -> Program:
    """The plan's arithmetic without the network: whoever drives it evaluates `(x, t)` and sends `(value, kind)` back.

    `value` must have x's shape.
    """
    rows = Rows(table, start)
    rows.state[0][0].copy_(start)
    batch, device, dtype = len(start), start.device, start.dtype
    del start
    times, given = table.times(device, dtype), table.given(device, dtype)
    told: list[Mapping[str, Tensor]] = [
        {name: value.expand(batch) for name, value in own.items()} for own in given or [{}] * len(times)
    ]
    count, draw = 0, source.normal
    for stage in table.stages:
        if stage.evaluate is None:
            rows.advance(None, "", draw)
        else:
            value, kind = yield Ask(rows.fed, times[count], told[count])
            count += 1
            rows.advance(value, kind, draw)
    return rows.fed.clone()


def check_answer(value: Tensor, x: Tensor, count: int, t: float) -> None:
    """`ValueError` where the network's answer has another shape than its input."""
    if value.shape != x.shape:
        raise ValueError(
            f"the network returned shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}"
            f" at evaluation {count}, t = {t:.6g}"
        )


def _loop(
    table: Table,
    model: Model,
    steps: Program,
    shape: torch.Size,
    condition: dict[str, Tensor],
    memory: Memory | None,
    watch: Callback | None,
) -> tuple[Tensor, int]:
    """Drive a program with a model; the samples and the number of evaluations."""
    count, evaluations = 0, table.evaluations

    def answer(asked: Ask) -> tuple[Tensor, str]:
        nonlocal count
        x, t, given = asked
        named = {**condition, **given} if given else condition
        if memory is None:
            prediction = model(x, t, **named)
        else:
            memory.advance(given=evaluations[count].given)
            prediction = ask(model, x, t, memory, named)
        value = prediction.value
        count += 1
        if value.shape != shape:
            check_answer(value, x, count, evaluations[count - 1].t)
        if watch is not None:
            watch(count, evaluations[count - 1].t, x, prediction)
        return value, prediction.kind

    return drive(steps, answer), count


def _blame(number: int, t: float, x: Tensor, prediction: Prediction) -> None:
    """Read an answer, to name the evaluation that was first not finite."""
    if not bool(torch.isfinite(prediction.value).all()):
        what = "received" if not bool(torch.isfinite(x).all()) else "returned"
        raise ValueError(f"the network {what} values that are not finite at evaluation {number}, t = {t:.6g}")


Entry = tuple[list[Tensor], dict[int, Tensor]]  # states and memory rows before a stage


def advance(
    outputs: Sequence[int],
    draws: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[Weight, Weight] | None],
    weights: Sequence[Sequence[tuple[int, Weight]]],
    states: int,
    entry: Entry,
    x: Tensor | None,
    value: Tensor | None,
    noise: Callable[[int], Tensor],
) -> Entry:
    """One stage as new tensors, through which gradients flow.

    Args:
        outputs: the memory rows that take the network's answer `value` at x, by P and Q in `pairs` (None: as it is).
        draws: (number of the draw, memory row).
        weights: for each new state the (column, weight) it reads; columns below `states` are states.
        noise: the noise of a draw.
    """
    before, memory = entry
    memory = dict(memory)
    if value is not None and x is not None:
        for slot, pair in zip(outputs, pairs, strict=True):
            memory[slot] = value if pair is None else pair[0] * x + pair[1] * value
    for number, slot in draws:
        memory[slot] = noise(number)
    after = []
    for row in weights:
        total: Tensor | None = None
        for column, c in row:
            part = before[column] if column < states else memory[column - states]
            if total is None:
                total = c * part
            else:
                total = total + c * part if isinstance(c, Tensor) else total.add(part, alpha=c)
        after.append(torch.zeros_like(before[0]) if total is None else total)
    return after, memory


def unrolled(
    structure: Structure,
    model: Model,
    x: Tensor,
    times: Sequence[Tensor],
    weights: Sequence[Tensor],
    conversions: Sequence[Tensor],
    noises: Sequence[Tensor],
    condition: Mapping[str, Tensor],
    given: Sequence[Mapping[str, Tensor]] | None = None,
) -> Tensor:
    """The same program as pure tensor operations: differentiable, and one graph under `torch.compile(fullgraph=True)`.

    `table.structure` holds whole numbers alone (which rows, which columns); times, weights (a matrix per stage) and
    conversions (P and Q of every output) are tensors, from `table.numbers(kind, ...)`. So another schedule of the same
    solver neither recompiles nor reads from the device. `noises[k]` is draw k + 1, `given` what the plan tells the
    network at each evaluation (`table.given(...)`).
    """
    entry: Entry = ([x], {})
    count = 0
    for stage, (fed, outputs, draws, rows) in enumerate(structure.stages):
        current = value = None
        if fed is not None:
            current = entry[0][fed]
            told = {name: number.expand(len(x)) for name, number in given[count].items()} if given else {}
            value = model(current, times[count], **{**condition, **told}).value.to(x.dtype)
            count += 1
        entry = advance(
            outputs,
            draws,
            [(pair[0], pair[1]) for pair in conversions[stage]],
            [[(j, weights[stage][k, j]) for j in columns] for k, columns in enumerate(rows)],
            structure.states,
            entry,
            current,
            value,
            lambda number: noises[number - 1],
        )
    return entry[0][structure.result]
