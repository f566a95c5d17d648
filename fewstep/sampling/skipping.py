"""Skipping evaluations where a sample's path is smooth: AdaptiveDiffusion's third-order-difference criterion."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.core.live import Live, Loop
from fewstep.core.methods import Method
from fewstep.core.plan import Combine, Evaluate, Op, Plan
from fewstep.core.prediction import conversion
from fewstep.core.process import Process
from fewstep.core.run import program

METHODS = (
    Method(
        "adaptive-diffusion",
        kind="executor",
        paper="Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy (Ye et al., 2024)",
        arxiv="2410.09873",
        claim="reuses the last noise prediction, sample by sample, while the states' third difference is small",
        use="skip",
    ),
)


def reuse(plan: Plan, skipped: Collection[int]) -> Plan:
    """The plan without some of its evaluations (numbers from 0): the last eps before each is used in its place.

    The same skipping for every sample, so it is a plan again: the evaluation is replaced by combinations.

    Raises:
        ValueError: the first evaluation among the skipped, or one at alpha = 0, where eps says nothing about x0.
    """
    plan._operations()
    if wrong := [i for i in skipped if not 0 < i < plan.nfe]:
        raise ValueError(f"evaluations 1 to {plan.nfe - 1} can be skipped, not {wrong[0]}")
    fresh = 1 + max([plan.result, *(slot for op in plan.ops for slot in _made(op))])
    ops: list[Op] = []
    eps, count = -1, -1
    for op in plan.ops:
        if not isinstance(op, Evaluate):
            ops.append(op)
            continue
        count += 1
        if count not in skipped:
            outputs = dict(op.outputs)
            if "eps" not in outputs:
                outputs["eps"] = fresh
                fresh += 1
            eps = outputs["eps"]
            ops.append(replace(op, outputs=tuple(outputs.items())))
            continue
        if op.scales[0] == 0:
            raise ValueError(f"evaluation {count} is at alpha = 0, where eps says nothing of x0: it cannot be skipped")
        for kind, slot in op.outputs:
            p, q = conversion("eps", kind, *op.scales)
            ops.append(Combine(slot, ((op.x, p), (eps, q))))
    about = dict(plan.about) | {"solver": f"{plan.name}, {len(set(skipped))} skipped"}
    return replace(plan, ops=tuple(ops), about=about)


def _made(op: Op) -> list[int]:
    return [slot for _, slot in op.outputs] if isinstance(op, Evaluate) else [op.slot]


def skip(plan: Plan, delta: float = 0.05, most: int = 4) -> Loop:
    """A plan that leaves out evaluations where it can (Algorithm 1 of the paper), for every solver.

    A sample's evaluation is skipped, and its last eps used instead, when the last four states that the network was or
    would have been fed (scaled to unit variance, `x / sqrt(alpha^2 + sigma^2)`) satisfy `|third difference| < delta
    |first difference|`, but never more than `most` times in a row, nor among the first three evaluations. The
    decision is each sample's own; a call evaluates those that need it.

    Returns:
        A loop with the plan's signature. `Result.report` holds `nfe_per_sample` `(B,)` and `skipped` `(evaluations,
        B)`, booleans; `Result.nfe` counts the calls.

    Raises:
        ValueError: a negative delta, `most` below 1, a plan with no operations.
    """
    if not delta >= 0:
        raise ValueError(f"delta must not be negative, got {delta}")
    if isinstance(most, bool) or int(most) != most or most < 1:
        raise ValueError(f"most must be a whole number of at least 1, got {most!r}")
    plan._operations()

    def solver(live: Live, process: Process, times: list[float]) -> Tensor:
        steps = program(plan.table, live.start(), live.source)
        x, _ = next(steps)
        states: list[Tensor] = []
        eps = torch.zeros_like(x)
        in_a_row = torch.zeros(len(x), dtype=torch.long, device=x.device)
        skipped: list[Tensor] = []
        kind, answer = "", torch.zeros_like(x)
        for e in plan.evaluations:
            states = [*states[-3:], x / math.hypot(*e.scales[:2])]
            smooth = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if delta > 0 and len(skipped) >= 3:
                a, b, c, d = states
                third = (d - 3 * c + 3 * b - a).flatten(1).norm(dim=1)
                smooth = (third < delta * (d - c).flatten(1).norm(dim=1)) & (in_a_row < most)
            in_a_row = torch.where(smooth, in_a_row + 1, 0)
            skipped.append(smooth)
            if not bool(smooth.any()):
                prediction = live.evaluate(x, e.t)
                kind, answer = prediction.kind, prediction.value
            else:  # reading from the device which samples to evaluate is what saves the evaluations
                p, q = conversion("eps", kind, *e.scales)
                answer = p * x + q * eps
                rows = (~smooth).nonzero().squeeze(1)
                if len(rows):
                    answer[rows] = live.evaluate(x[rows], e.t, rows).value
            if e.scales[1] > 0:
                p, q = conversion(kind, "eps", *e.scales)
                fresh = p * x + q * answer
                eps = torch.where(smooth.view(-1, *[1] * (x.ndim - 1)), eps, fresh)
            try:
                x, _ = steps.send((answer, kind))
            except StopIteration as stop:
                live.report["skipped"] = torch.stack(skipped)
                return stop.value
        raise AssertionError("a plan ends with its last evaluation")

    about: dict[str, Any] = dict(plan.about) | {"solver": f"{plan.name}, skipping {delta:g}"}
    return Loop(
        ops=(),
        result=0,
        times=plan.times,
        start=plan.start,
        process=plan.process,
        about=about,
        solver=solver,
        most=plan.nfe,
        noisy=plan.stochastic,
    )
