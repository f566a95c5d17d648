"""Dynamic compensation: the newest prediction of a multistep plan is moved in time before each update."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from fewstep.core.lagrange import lagrange
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Evaluate, one_level
from fewstep.core.plan import Plan, as_plan
from fewstep.core.prediction import KINDS
from fewstep.core.record import rewrite
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "dynamic-compensation",
        kind="rewrite",
        paper="DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation (Zhao et al., 2024)",
        arxiv="2409.03755",
        claim="rewrites any multistep plan: its newest prediction is moved in time, with no more evaluations",
        use="compensate",
    ),
)


def advances(plan: Plan) -> dict[int, float]:
    """The slots fed to the network, and the result, with their times."""
    times = {op.x: op.t for op in reversed(plan.evaluations)}
    return {**times, plan.result: plan.times[-1]}


def updates(plan: Plan) -> tuple[int, ...]:
    """The evaluations whose prediction can be compensated: those after which a state of a later time is made, from the
    second time on. Numbers of `plan.evaluations`."""
    times = [op.t for op in plan.evaluations]
    nexts = [*times[1:], plan.times[-1]]
    return tuple(i for i, (t, s) in enumerate(zip(times, nexts, strict=True)) if s < t < times[0])


def compensate(sampler: Sampler, ratios: Sequence[float], points: int = 3) -> Plan:
    """The plan with its newest predictions moved to `t' = rho t_i + (1 - rho) t_{i - 1}` (Zhao et al., eq. 9 and 10).

    After the evaluation at t_i, and before the update to the next time, its prediction is replaced by the value at t'
    of the polynomial in time through the last `points` predictions (as many as there are at the start), in this update
    and in all later ones. What corrects the state at t_i itself still sees the prediction as it was. So only
    coefficients change: rho = 1 gives the same plan back, and every rho the same operations.

    Args:
        ratios: a rho for each of `updates(plan)`.
        points: predictions that the polynomial goes through, at least 2.

    Raises:
        ValueError: a wrong number of ratios, one that is not finite, fewer than two points, a stochastic plan.
    """
    plan = as_plan(sampler)
    able = updates(plan)
    if len(ratios) != len(able):
        raise ValueError(f"this plan has {len(able)} updates to compensate, got {len(ratios)} ratios")
    if not all(math.isfinite(rho) for rho in ratios):
        raise ValueError(f"ratios must be finite, got {list(ratios)}")
    if points < 2:
        raise ValueError(f"an interpolation needs at least 2 points, got {points}")
    if plan.stochastic:
        raise ValueError("compensation is for deterministic multistep plans, and this one draws noise")
    return rewrite(plan, lambda band: _compensated(band, ratios, points))


def _compensated(plan: Plan, ratios: Sequence[float], points: int) -> Plan:
    rho_of = dict(zip(updates(plan), ratios, strict=True))
    wanted, slots = advances(plan), 1 + max(op.slot for op in plan.ops if isinstance(op, Combine))
    slots = max(slots, 1 + max(slot for op in plan.evaluations for _, slot in op.outputs))
    seen: list[int] = []  # evaluations, the last at each time
    outputs: list[dict[str, int]] = []
    moved: dict[int, dict[int, float]] = {}  # slots and what stands for them
    ops: list[Evaluate | Combine] = []
    evaluations = plan.evaluations

    def move(newest: int) -> None:
        """Fill `moved` for the outputs of the newest evaluation."""
        rho = rho_of.get(newest, 1.0)
        if rho == 1.0:
            return
        t, last = (evaluations[e].t for e in (newest, seen[-2]))
        for kind, slot in list(outputs[newest].items()):
            nodes = seen[-points:]
            # At alpha = 0 eps says nothing about x0: a point where the plan did not evaluate it is left out.
            nodes = [e for e in nodes if kind in outputs[e] or one_level(evaluations[e].scales[0]) > 0]
            if len(nodes) < 2:
                continue
            weights = lagrange([evaluations[e].t for e in nodes], rho * t + (1 - rho) * last)
            for e in nodes:  # the numbers of new slots do not depend on the ratios
                outputs[e].setdefault(kind, slots + e * len(KINDS) + KINDS.index(kind))
            moved[slot] = {outputs[e][kind]: w for e, w in zip(nodes, weights, strict=True)}

    for op in plan.ops:
        if isinstance(op, Evaluate):
            if seen and evaluations[seen[-1]].t == op.t:
                seen.pop()
            seen.append(len(outputs))
            outputs.append(dict(op.outputs))
            ops.append(op)
            continue
        assert isinstance(op, Combine)
        if seen and wanted.get(op.slot, math.inf) < evaluations[seen[-1]].t:
            move(seen[-1])
        terms: dict[int, float] = {}
        for slot, c in op.terms:
            for source, w in moved.get(slot, {slot: 1.0}).items():
                terms[source] = terms.get(source, 0.0) + one_level(c) * w
        ops.append(dataclasses.replace(op, terms=tuple(terms.items())))
    kept = iter(outputs)
    ops = [dataclasses.replace(op, outputs=tuple(next(kept).items())) if isinstance(op, Evaluate) else op for op in ops]
    about = plan.about if all(rho == 1.0 for rho in ratios) else {**plan.about, "compensation": list(ratios)}
    return dataclasses.replace(plan, ops=tuple(ops), about=about)
