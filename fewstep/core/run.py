"""The executor: one loop for every plan.

Per stage there is the network, one copy of its answer into memory, and one product with a row of weights. Nothing is
read back from the device, and nothing is allocated but by the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise, Source
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.table import Bound, Structure, Table

Callback = Callable[[int, float, Tensor, Prediction], None]


@dataclass(frozen=True)
class Result:
    """Samples `(B, *shape)`, the evaluations planned and made, seconds, and the network's inputs where asked for.

    `report` holds what else the run has to say: a `Loop` that skips or rejects gives `nfe_per_sample` `(B,)`, for one.
    """

    samples: Tensor
    planned_nfe: int
    nfe: int
    seconds: float
    trajectory: tuple[Tensor, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)


def _check(plan: Plan, model: Denoiser, noise: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        given = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a float tensor (B, *shape), got {given}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the sampling state is float32 or float64, got {dtype} (the network may use any dtype)")
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch dimension, (B, *shape), got shape {tuple(noise.shape)}")
    if model.shape is not None and tuple(noise.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} does not fit the model: it takes (B, {_comma(model.shape)})"
        )
    own = getattr(model, "process", None)
    if own is not None and not plan.fits(own):
        raise ValueError(
            f"the plan was made for the process {plan.process.get('process')!r}, the model has"
            f" {own.config()['process']!r} or other parameters of it: make the plan with fs.plan(model.process, ...)"
        )


def _comma(shape: Sequence[int]) -> str:
    return ", ".join(str(n) for n in shape)


def _add_up(weights: Sequence[Sequence[float]], rows: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    """The combination row by row, for devices on which a global setting may round matrix products to TF32."""
    for row, out in zip(weights, writes, strict=False):
        terms = [(c, value) for c, value in zip(row, rows, strict=True) if c != 0.0]
        if not terms:
            out.zero_()
            continue
        torch.mul(terms[0][1], terms[0][0], out=out)
        for c, value in terms[1:]:
            out.add_(value, alpha=c)


def begin_run(
    plan: Plan, model: Denoiser, noise: Tensor, init: Tensor | None, dtype: torch.dtype, condition: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The start of a run, checked: the state at the plan's first time, and the conditions as tensors."""
    _check(plan, model, noise, dtype)
    named = model.check_condition(condition, noise.shape[0], noise.device)
    x = noise.to(dtype) * plan.start[1]
    if init is not None:
        if init.shape != noise.shape:
            raise ValueError(f"init has shape {tuple(init.shape)}, the noise {tuple(noise.shape)}")
        x += init.to(dtype) * plan.start[0]
    return x, named


@torch.no_grad()
def run(
    plan: Plan,
    model: Denoiser,
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
    x, named = begin_run(plan, model, noise, init, dtype, condition)
    table, source = plan.table, source or Noise(seed, first)
    steps, shape = program(table, x, source), x.shape
    del x  # the program keeps its own copy
    samples, kept, count = _loop(plan, model, steps, shape, named, callback, progress, trajectory)
    # A sum is the cheapest reading that any NaN or infinity reaches; only if it is off are the elements looked at.
    if not math.isfinite(float(samples.sum())) and not bool(torch.isfinite(samples).all()):
        x, named = begin_run(plan, model, noise, init, dtype, condition)
        _blame(plan, model, program(table, x, source), shape, named)
    return Result(samples, plan.nfe, count, time.perf_counter() - begin, tuple(kept))


# Yields the network's input and time, is sent the answer and its kind, and returns the samples.
Program = Generator[tuple[Tensor, Tensor], tuple[Tensor, str], Tensor]


def program(table: Table, start: Tensor, source: Source) -> Program:
    """The plan's arithmetic without the network: whoever drives it evaluates `(x, t)` and sends `(value, kind)` back.

    x is a view that the next step overwrites. `value` must have x's shape.
    """
    shape, r, m = start.shape, table.states, table.memory
    device, dtype = start.device, start.dtype
    rows = torch.zeros((2 * r + m, *shape), dtype=dtype, device=device)
    views = rows.unbind()
    views[0].copy_(start)
    del start
    # Every view is made before the loop, which makes none. Even stages read [A | memory] and write B, odd stages read
    # [memory | B] and write A.
    memory = views[r : r + m]
    state = (views[:r], views[r + m :])
    flat = rows.view(2 * r + m, -1)
    reads = (flat[: r + m], flat[r:])
    writes = {n: (flat[r + m : r + m + n], flat[:n]) for n in table.widths}
    on_cpu = device.type == "cpu"  # one product reads each row once
    times = table.times(device, dtype)
    bound: Bound | None = None
    mm, count = torch.mm, 0
    for i, stage in enumerate(table.stages):
        odd = i & 1
        if stage.evaluate is not None:
            x = state[odd][stage.x]
            value, kind = yield x, times[count]
            count += 1
            if bound is None:
                bound = table.bind(kind)
                weights = bound.tensors(device, dtype)
                first_kind = kind
            elif kind != first_kind:  # a wrapper that changes its mind: the table is bound to the first kind
                p, q = stage.convert(kind, first_kind)
                value = p * x + q * value
            for (_, slot), ratio in zip(stage.outputs, bound.ratios[i], strict=True):
                if ratio is None:
                    memory[slot].copy_(value)
                else:
                    torch.add(value, x, alpha=ratio, out=memory[slot])
        for draw, slot in stage.draws:
            memory[slot].copy_(source.normal(draw, shape, device, dtype))
        if bound is None:  # before the first evaluation: noise and states alone, no kind matters
            _add_up(stage.weights, [*state[odd], *memory], state[1 - odd])
        elif on_cpu:
            mm(weights[i], reads[odd], out=writes[len(stage.weights)][odd])
        else:
            _add_up(bound.weights[i], [*state[odd], *memory], state[1 - odd])
    return state[len(table.stages) & 1][table.result].clone()


def check_answer(value: Tensor, x: Tensor, count: int, t: float) -> None:
    """`ValueError` where the network's answer has another shape than its input."""
    if value.shape != x.shape:
        raise ValueError(
            f"the network returned shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}"
            f" at evaluation {count}, t = {t:.6g}"
        )


def _loop(
    plan: Plan,
    model: Denoiser,
    steps: Program,
    shape: torch.Size,
    condition: dict[str, Tensor],
    callback: Callback | None,
    progress: bool,
    trajectory: bool,
) -> tuple[Tensor, list[Tensor], int]:
    kept: list[Tensor] = []
    count = 0
    watched = trajectory or progress or callback is not None
    with _bar(progress, plan) as advance:
        try:
            x, t = next(steps)
            while True:
                prediction = model(x, t, **condition)
                value = prediction.value
                count += 1
                if value.shape != shape:
                    check_answer(value, x, count, plan.evaluations[count - 1].t)
                if watched:
                    if trajectory:
                        kept.append(x.clone())
                    if callback is not None:
                        callback(count, plan.evaluations[count - 1].t, x, prediction)
                    if advance is not None:
                        advance()
                x, t = steps.send((value, prediction.kind))
        except StopIteration as stop:
            samples = stop.value
    if trajectory:
        kept.append(samples)
    return samples, kept, count


class _bar:
    """A progress bar, or nothing."""

    def __init__(self, wanted: bool, plan: Plan):
        self.wanted, self.plan = wanted, plan

    def __enter__(self) -> Callable[[], None] | None:
        if not self.wanted:
            return None
        from rich.console import Console
        from rich.progress import Progress

        self.progress = Progress(transient=True, console=Console(stderr=True))
        task = self.progress.add_task(self.plan.name, total=self.plan.nfe)
        self.progress.start()
        return lambda: self.progress.advance(task)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self.progress.stop()


def _blame(plan: Plan, model: Denoiser, steps: Program, shape: torch.Size, condition: dict[str, Tensor]) -> None:
    """Run again, now reading every answer, to name the evaluation that was first not finite."""

    def check(number: int, t: float, x: Tensor, prediction: Prediction) -> None:
        if not bool(torch.isfinite(prediction.value).all()):
            what = "received" if not bool(torch.isfinite(x).all()) else "returned"
            raise ValueError(f"the network {what} values that are not finite at evaluation {number}, t = {t:.6g}")

    _loop(plan, model, steps, shape, condition, check, False, False)
    raise ValueError(
        "the samples are not finite, although every answer of the network is: the plan's coefficients overflow"
    )


def unrolled(
    structure: Structure,
    model: Denoiser,
    x: Tensor,
    times: Sequence[Tensor],
    weights: Sequence[Tensor],
    conversions: Sequence[Tensor],
    noises: Sequence[Tensor],
    condition: dict[str, Tensor],
) -> Tensor:
    """The same program as pure tensor operations: differentiable, and one graph under `torch.compile(fullgraph=True)`.

    `table.structure` holds whole numbers alone (which rows, which columns); times, weights (a matrix a stage) and
    conversions (P and Q of every output) are tensors, from `table.numbers(kind, ...)`. So another schedule of the same
    solver neither recompiles nor reads from the device. `noises[k]` is draw k + 1.
    """
    states: list[Tensor] = [x]
    memory: dict[int, Tensor] = {}
    count = 0
    for stage, (fed, outputs, draws, rows) in enumerate(structure.stages):
        if fed is not None:
            current = states[fed]
            value = model(current, times[count], **condition).value.to(x.dtype)
            for j, slot in enumerate(outputs):
                memory[slot] = conversions[stage][j, 0] * current + conversions[stage][j, 1] * value
            count += 1
        for draw, slot in draws:
            memory[slot] = noises[draw - 1]
        after = []
        for k, columns in enumerate(rows):
            sources = [states[j] if j < structure.states else memory[j - structure.states] for j in columns]
            new = weights[stage][k, columns[0]] * sources[0]
            for j, source in zip(columns[1:], sources[1:], strict=True):
                new = new + weights[stage][k, j] * source
            after.append(new)
        states = after
    return states[structure.result]
