"""A plan's exact gradients from a fraction of the memory: its stages in segments that rerun on the backward pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.ops import nonzero
from fewstep.core.run import check_given
from fewstep.core.sampler import Sampler, begin_run
from fewstep.core.table import Stage, Table
from fewstep.core.unrolled import Entry, advance

METHODS = (
    Method(
        "checkpointed",
        kind="gradient",
        paper="Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016)",
        arxiv="1604.06174",
        claim="exact gradients through any plan, with memory for the square root of its stages",
        use="checkpointed",
    ),
)


def checkpointed(
    plan: Sampler,
    model: Denoiser,
    noise: Tensor,
    *,
    segment: int | None = None,
    last: int | None = None,
    seed: int = 0,
    first: int = 0,
    init: Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """The samples `(B, *shape)` of a plan, in the noise's dtype, through which gradients flow.

    The gradients are those of the plan itself, for the noise, the initial batch, float conditions and weights.
    Kept until the backward pass are the states between segments of `segment` stages (by default the square root of
    their number), and then, one segment at a time, what its evaluations save; each runs twice. The steps' noise is
    drawn again, not kept.

    With `last`, gradients pass only through that many evaluations at the end; what comes before them is a constant.

    Raises:
        ValueError: as `Plan.run`; a segment or a `last` below 1; a `Loop`, which has no fixed stages.
    """
    stages = plan.table.stages
    if last is not None and last < 1:
        raise ValueError(f"gradients pass through at least 1 evaluation, got last={last}")
    evaluations = [k for k, stage in enumerate(stages) if stage.evaluate is not None]
    cut = evaluations[-last] if last is not None and last < len(evaluations) else 0
    size = math.ceil(math.sqrt(len(stages) - cut)) if segment is None else segment
    if size < 1:
        raise ValueError(f"a segment has at least 1 stage, got {segment}")
    start, named = begin_run(plan, model, noise, init, noise.dtype, condition)
    check_given(plan.table, model)
    states, source = [start], Noise(seed, first)
    memory: dict[int, Tensor] = {}
    bounds = [*([0] if cut else []), *range(cut, len(stages), size), len(stages)]
    for begin, stop in pairwise(bounds):
        part = stages[begin:stop]
        rows = tuple(row for row in memory if _read(stages[begin:], plan.table.states, row))
        kept = tuple(row for row in range(plan.table.memory) if _read(stages[stop:], plan.table.states, row))
        run = functools.partial(_run, plan.table, begin, stop, rows, kept, len(states), model, source, named)
        tensors = (*states, *(memory[row] for row in rows))
        out: Sequence[Tensor]
        if begin < cut:
            with torch.no_grad():
                out = run(*tensors)
        elif stop - begin == len(stages) - cut and last is not None:  # one segment: rerunning it would save nothing
            out = run(*tensors)
        else:
            out = checkpoint(run, *tensors, use_reentrant=False)
        count = len(part[-1].weights)
        states, memory = list(out[:count]), dict(zip(kept, out[count:], strict=True))
    return states[plan.table.result]


def _read(stages: Sequence[Stage], offset: int, row: int) -> bool:
    """Whether the stages read a memory row before they write it."""
    for stage in stages:
        if row in (*(r for _, r in stage.outputs), *(r for _, r in stage.draws)):
            return False
        if any(nonzero(weights[offset + row]) for weights in stage.weights):
            return True
    return False


def _run(
    table: Table,
    begin: int,
    stop: int,
    rows: Sequence[int],
    kept: Sequence[int],
    count: int,
    model: Denoiser,
    source: Noise,
    condition: Mapping[str, Tensor],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """A segment: `count` states and the memory rows in; the new states and the rows that are still read out."""
    entry: Entry = (list(tensors[:count]), dict(zip(rows, tensors[count:], strict=True)))
    like = tensors[0]
    device, dtype = like.device, like.dtype
    times, given = table.times(device, dtype), table.given(device, dtype)
    evaluation = sum(stage.evaluate is not None for stage in table.stages[:begin])
    noise = functools.partial(source.normal, shape=tuple(like.shape), device=device, dtype=dtype)
    for i in range(begin, stop):
        stage, kind = table.stages[i], ""
        x = value = None
        if stage.evaluate is not None:
            x = entry[0][stage.x]
            told = {name: v.expand(len(x)) for name, v in given[evaluation].items()} if given else {}
            if stage.latent is not None:
                told["latent"] = noise(stage.latent)
            prediction = model(x, times[evaluation], **{**condition, **told})
            kind, value = prediction.kind, prediction.value.to(dtype)
            evaluation += 1
        weights, pairs = table.stage_numbers(i, kind, device, dtype)
        outputs = [row for _, row in stage.outputs]
        entry = advance(outputs, stage.draws, pairs, weights, table.states, entry, x, value, noise)
    states, memory = entry
    return (*states, *(memory[row] for row in kept))
