"""Skipping evaluations where a sample's path is smooth: AdaptiveDiffusion's third-order-difference criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.core.live import Answer, Live, Loop, around
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Evaluate, Op, one_level, slots_of
from fewstep.core.plan import Plan, as_plan
from fewstep.core.prediction import conversion
from fewstep.core.record import rewrite
from fewstep.core.sampler import Sampler

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


def reuse(plan: Sampler, skipped: Collection[int]) -> Plan:
    """The plan without some of its evaluations (numbers from 0): the last eps before each is used in its place.

    The same skipping for every sample, so it is a plan again: the evaluation is replaced by combinations.

    Raises:
        ValueError: the first evaluation among the skipped, or one at alpha = 0, where eps says nothing about x0.
    """
    return rewrite(as_plan(plan), lambda band: _reused(band, skipped))


def _reused(plan: Plan, skipped: Collection[int]) -> Plan:
    if wrong := [i for i in skipped if not 0 < i < plan.nfe]:
        raise ValueError(f"evaluations 1 to {plan.nfe - 1} can be skipped, not {wrong[0]}")
    fresh = 1 + max([plan.result, *(slot for op in plan.ops for slot in slots_of(op))])
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
        alpha, sigma, dalpha, dsigma = _floats(op)
        if alpha == 0:
            raise ValueError(f"evaluation {count} is at alpha = 0, where eps says nothing of x0: it cannot be skipped")
        for kind, slot in op.outputs:
            p, q = conversion("eps", kind, alpha, sigma, dalpha, dsigma)
            ops.append(Combine(slot, ((op.x, p), (eps, q))))
    about = dict(plan.about) | {"solver": f"{plan.name}, {len(set(skipped))} skipped"}
    return replace(plan, ops=tuple(ops), about=about)


def _floats(op: Evaluate) -> tuple[float, float, float, float]:
    alpha, sigma, dalpha, dsigma = (one_level(scale) for scale in op.scales)
    return alpha, sigma, dalpha, dsigma


def skip(plan: Sampler, delta: float = 0.05, most: int = 4) -> Loop:
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
    evaluations = plan.table.evaluations
    scales = [_floats(e) for e in evaluations]

    def solver(live: Live, play: Callable[[Answer], Tensor]) -> Tensor:
        x = live.start()
        states: list[Tensor] = []
        eps, last = torch.zeros_like(x), ""
        in_a_row = torch.zeros(len(x), dtype=torch.long, device=x.device)
        skipped: list[Tensor] = []

        def answer(live: Live, i: int, x: Tensor) -> tuple[Tensor, str]:
            nonlocal states, eps, in_a_row, last
            t, kind = evaluations[i].t, last
            given: dict[str, Any] = dict(evaluations[i].given)
            states = [*states[-3:], x / math.hypot(*scales[i][:2])]
            smooth = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if delta > 0 and len(skipped) >= 3:
                a, b, c, d = states
                third = (d - 3 * c + 3 * b - a).flatten(1).norm(dim=1)
                smooth = (third < delta * (d - c).flatten(1).norm(dim=1)) & (in_a_row < most)
            in_a_row = torch.where(smooth, in_a_row + 1, 0)
            skipped.append(smooth)
            if not bool(smooth.any()):
                prediction = live.evaluate(x, t, **given)
                kind, value = prediction.kind, prediction.value
            else:  # reading from the device which samples to evaluate is what saves the evaluations
                p, q = conversion("eps", kind, *scales[i])
                value = p * x + q * eps
                rows = (~smooth).nonzero().squeeze(1)
                if len(rows):
                    value[rows] = live.evaluate(x[rows], t, rows, **given).value
            if scales[i][1] > 0:
                p, q = conversion(kind, "eps", *scales[i])
                fresh = p * x + q * value
                eps = torch.where(smooth.view(-1, *[1] * (x.ndim - 1)), eps, fresh)
            last = kind
            return value, kind

        samples = play(answer)
        live.report["skipped"] = torch.stack(skipped)
        return samples

    return around(plan, f"skipping {delta:g}", solver)
