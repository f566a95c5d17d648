"""Fitting a plan's numbers one step at a time: a plan run operation by operation, and a minimum over one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.ops import Draw, Evaluate, Op, one_level, play
from fewstep.core.plan import Plan
from fewstep.searching.problem import Problem

Values = dict[int, Tensor]


class Stepper:
    """Runs operations of a plan on a problem's noises, from wherever one has got to.

    `values` map slots to tensors `(n, *shape)`; they are never changed, so one can go on from them many times.
    """

    def __init__(self, model: Denoiser, problem: Problem):
        self.model, self.problem = model, problem

    def start(self, plan: Plan) -> Values:
        return {0: self.problem.noise * one_level(plan.start[1])}

    def run(self, ops: Sequence[Op], values: Values) -> Values:
        """The values with those that `ops` make."""
        values = dict(values)

        def answer(op: Evaluate, x: Tensor) -> tuple[str, Tensor]:
            # Converted at the grid's noise level, whatever time was asked.
            time = torch.tensor(op.t, dtype=x.dtype, device=x.device)
            answers, kind = [], ""
            for begin in range(0, len(x), 256):
                named = {name: value[begin : begin + 256] for name, value in self.problem.condition.items()}
                part = x[begin : begin + 256]
                told = {name: x.new_full((len(part),), value) for name, value in op.given}
                prediction = self.model(part, time, **{**named, **told})
                answers.append(prediction.value.to(x.dtype))
                kind = prediction.kind
            return kind, torch.cat(answers)

        for _ in play(ops, values, answer, _no_draw):
            pass
        return values


def _no_draw(op: Draw) -> Tensor:
    raise ValueError("a plan that draws noise is not fitted step by step")


def places(plan: Plan) -> list[int]:
    """Where the evaluations are among the plan's operations."""
    return [i for i, op in enumerate(plan.ops) if isinstance(op, Evaluate)]


def distance(x: Tensor, target: Tensor) -> float:
    """Mean distance of `(n, *shape)` samples; infinite where one is not finite."""
    value = float((x.double() - target.double()).flatten(1).norm(dim=1).mean())
    return value if math.isfinite(value) else math.inf


def least(
    function: Callable[[float], float], low: float, high: float, start: float, scan: int = 9, refine: int = 14
) -> float:
    """A minimum of a function of one number in [low, high]: the best of `scan` equally spaced points and `start`, then
    golden sections between its neighbours. `start` itself when nothing is lower."""
    width = (high - low) / (scan - 1)
    known = {float(u): function(float(u)) for u in (start, *(low + i * width for i in range(scan)))}
    best = min(known, key=lambda u: (known[u], u != start))
    below = max((u for u in known if u < best), default=best)
    above = min((u for u in known if u > best), default=best)
    golden = (math.sqrt(5) - 1) / 2
    a, b = below, above
    c, d = b - golden * (b - a), a + golden * (b - a)
    known[c], known[d] = function(c), function(d)
    for _ in range(refine - 2):
        if known[c] < known[d]:
            b, d = d, c
            c = b - golden * (b - a)
            known[c] = function(c)
        else:
            a, c = c, d
            d = a + golden * (b - a)
            known[d] = function(d)
    return min(known, key=lambda u: (known[u], u != start))
