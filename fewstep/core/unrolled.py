"""A plan's arithmetic as new tensors, through which gradients flow and graphs are traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fewstep.core.model import Model
from fewstep.core.table import Structure, Weight

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

    `table.structure` holds only whole numbers (which rows, which columns); times, weights (a matrix per stage) and
    conversions (P and Q of every output) are tensors, from `table.numbers(kind, ...)`. So another schedule of the same
    solver neither recompiles nor reads from the device. `noises[k]` is draw k + 1, `given` the plan's numbers for the
    network at each evaluation (`table.given(...)`).
    """
    entry: Entry = ([x], {})
    count = 0
    for stage, (fed, outputs, draws, rows, latent) in enumerate(structure.stages):
        current = value = None
        if fed is not None:
            current = entry[0][fed]
            told = {name: number.expand(x.shape[0]) for name, number in given[count].items()} if given else {}
            if latent is not None:
                told["latent"] = noises[latent - 1]
            value = model(current, times[count], **{**condition, **told}).value.to(x.dtype)
            count += 1
        entry = advance(
            outputs,
            draws,
            [(conversions[stage][k, 0], conversions[stage][k, 1]) for k in range(len(outputs))],
            [[(j, weights[stage][k, j]) for j in columns] for k, columns in enumerate(rows)],
            structure.states,
            entry,
            current,
            value,
            lambda number: noises[number - 1],
        )
    return entry[0][structure.result]
