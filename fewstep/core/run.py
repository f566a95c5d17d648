"""The executor of plans: one loop for every one of them.

Per stage there is the network, one copy of its answer into memory, and one product with a row of weights. Nothing is
read back from the device, and nothing is allocated except by the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.memory import Memory, ask
from fewstep.core.model import Callback, Model
from fewstep.core.ops import told
from fewstep.core.prediction import Prediction
from fewstep.core.program import Program, program
from fewstep.core.sampler import Run
from fewstep.core.table import Table


def execute(table: Table, run: Run) -> tuple[Tensor, int]:
    """The samples of a run of a table, and the evaluations made."""
    check_given(table, run.model)
    x = run.begin()
    steps, shape = program(table, x, run.source), x.shape
    del x  # the program keeps its own copy
    return _loop(table, run.model, steps, shape, run.condition, run.memory, run.watch)


def blame(table: Table, again: Callable[[Callback], Run]) -> ValueError:
    """The error for samples that are not finite: the run is made again and every answer read, to name the evaluation
    that was first not finite."""
    execute(table, again(inspect))
    return ValueError(
        "the samples are not finite, although every answer of the network is: the plan's coefficients overflow"
    )


def check_given(table: Table, model: Model) -> None:
    """`ValueError` where a plan gives the network a number or a draw that the model does not take."""
    for name in dict.fromkeys(name for op in table.evaluations for name in told(op)):
        if name not in model.conditions:
            raise ValueError(f"the plan gives the network {name!r} at its evaluations, but this model does not take it")


def row_of(model: Model, name: str, value: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """What a plan passes to the network, in the shape in which the model's other calls have it; `value` is a number for
    each sample (B,), a draw (B, *shape), or None for the condition's default."""
    kind: Any = model.conditions[name]
    if value is None:
        return kind.check(name, None, batch, device)  # type: ignore[no-any-return]
    return value if value.ndim == 1 else kind.of(value)


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


def inspect(number: int, t: float, x: Tensor, prediction: Prediction) -> None:
    """Read an answer, to name the first evaluation that was not finite."""
    if not bool(torch.isfinite(prediction.value).all()):
        what = "received" if not bool(torch.isfinite(x).all()) else "returned"
        raise ValueError(f"the network {what} values that are not finite at evaluation {number}, t = {t:.6g}")
