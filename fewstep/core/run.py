"""The executor: one loop for every plan.

Per stage there is the network, one copy of its answer into memory, and one product with a row of weights. Nothing is
read back from the device, and nothing is allocated except by the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise, Source
from fewstep.core.ops import Number, Spread
from fewstep.core.prediction import Prediction
from fewstep.core.program import Program, program
from fewstep.core.progress import bar
from fewstep.core.sampler import Callback, Model, Result, Sampler
from fewstep.core.table import Table, Weight


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
    """A run's memory, for a model that carries one; a plan's table has the times of its evaluations."""
    if not model.carries:
        return None
    told = {name: float(v) if isinstance(v, int | float) else None for name, v in condition.items() if v is not None}
    return Memory(rows, [op.t for op in table.evaluations] if table is not None else (), end, told)


class Watch:
    """What else is done with each evaluation: the trajectory, a callback, a progress bar."""

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


def is_finite(samples: Tensor) -> bool:
    """Whether all elements are finite. A sum is the cheapest value that any NaN or infinity reaches; the elements
    are inspected only if it is not finite."""
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
            step overwrites: clone what you keep.
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
    with bar(sampler.name if progress else None, sampler.nfe if progress else 0) as advance:
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
    """What a run reports: the rows that the innermost network saw for one sample, and what the model recorded."""
    if memory is None:
        return {"rows": count}
    seen = memory.seen / rows if rows else 0
    return {"rows": int(seen) if seen == int(seen) else seen, **memory.report}


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
    try:
        x, t, given = next(steps)
        while True:
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
            x, t, given = steps.send((value, prediction.kind))
    except StopIteration as stop:
        return stop.value, count


def _blame(number: int, t: float, x: Tensor, prediction: Prediction) -> None:
    """Read an answer, to name the first evaluation that was not finite."""
    if not bool(torch.isfinite(prediction.value).all()):
        what = "received" if not bool(torch.isfinite(x).all()) else "returned"
        raise ValueError(f"the network {what} values that are not finite at evaluation {number}, t = {t:.6g}")
