"""Heavy-ball momentum around any plan: each step's direction is averaged with those before it."""

from __future__ import annotations

from dataclasses import replace

from fewstep.core.check import grid_states
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Op
from fewstep.core.plan import Plan, as_plan
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "heavy-ball",
        kind="rewrite",
        paper="Diffusion Sampling with Momentum for Mitigating Divergence Artifacts (Wizadwongsa et al., 2023)",
        arxiv="2307.11118",
        claim="averages the directions of any plan's steps: more stable, at the price of its order",
        use="heavy_ball",
    ),
)


def heavy_ball(sampler: Sampler, damping: float) -> Plan:
    """The plan with heavy-ball momentum (Section 4.1 of the paper).

    With `y = x / alpha`, `mu = sigma / alpha` and the direction `s = (y' - y) / (mu' - mu)` of the plan's step from y
    to y', the step becomes `y + (mu' - mu) v` with `v = (1 - damping) v_last + damping s`, and `v = s` at first. The
    plan goes on from there, so its later predictions are made at the damped states. damping = 1 is the plan itself;
    a smaller one is more stable, and of order 1. Only steps between the plan's own times are damped, not the stages
    inside them, and not a step from alpha = 0, where y is infinite.

    Raises:
        ValueError: a damping outside (0, 1], a plan that draws noise, or one with no operations.
    """
    plan = as_plan(sampler)
    if not 0 < damping <= 1:
        raise ValueError(f"damping must be above 0 and at most 1, got {damping}")
    if plan.stochastic:
        raise ValueError(f"{plan.name!r} draws noise: momentum is for deterministic plans")
    if plan.spread is not None:
        raise ValueError("momentum is for plans with one noise level for all elements: bands have steps of their own")
    if damping == 1:
        return plan
    steps = _steps(plan)
    fresh = 1 + max(
        [plan.result, *(op.slot for op in plan.ops if isinstance(op, Combine))]
        + [slot for e in plan.evaluations for _, slot in e.outputs]
    )
    ops: list[Op] = []
    momentum: int | None = None
    for op in plan.ops:
        if not isinstance(op, Combine) or op.slot not in steps:
            ops.append(op)
            continue
        before, (alpha, sigma), (alpha_to, sigma_to) = steps[op.slot]
        distance = sigma_to / alpha_to - sigma / alpha
        raw, new = fresh, fresh + 1
        fresh += 2
        ops.append(Combine(raw, op.terms))
        share = 1.0 if momentum is None else damping
        terms = [(raw, share / (distance * alpha_to)), (before, -share / (distance * alpha))]
        terms += [(momentum, 1 - share)] if momentum is not None else []
        ops.append(Combine(new, tuple(terms)))
        ops.append(Combine(op.slot, ((before, alpha_to / alpha), (new, alpha_to * distance))))
        momentum = new
    about = dict(plan.about) | {"solver": f"{plan.name}, heavy ball {damping:g}"}
    return replace(plan, ops=tuple(ops), about=about)


def _steps(plan: Plan) -> dict[int, tuple[int, tuple[float, float], tuple[float, float]]]:
    """For the state at each time of the grid: the state a step before it, and both (alpha, sigma)."""
    chain = grid_states(plan)
    found = {
        slot: (before, level, to) for (before, level), (slot, to) in zip(chain, chain[1:], strict=False) if level[0] > 0
    }
    order = {op.slot: i for i, op in enumerate(plan.ops) if isinstance(op, Combine)}
    for slot, (before, _, _) in found.items():
        if order.get(before, -1) > order[slot]:
            raise ValueError(f"{plan.name!r} makes a state before the one a step earlier: it cannot be damped")
    return found
