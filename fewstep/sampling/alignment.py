"""Timestep alignment: the network is evaluated at other times than those at which its predictions are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fewstep.core.methods import Method
from fewstep.core.ops import Evaluate
from fewstep.core.plan import Plan, as_plan
from fewstep.core.process import process_from_config
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "timestep-alignment",
        kind="rewrite",
        paper="Towards More Accurate Diffusion Model Acceleration with a Timestep Aligner (Xia et al., 2023)",
        arxiv="2310.09469",
        claim="rewrites any plan: another time for the network at each evaluation, with no further evaluations",
        use="align",
    ),
)


def align(sampler: Sampler, taus: Sequence[float]) -> Plan:
    """The plan with the network's time inputs replaced (Xia et al., eq. 8).

    The states, their noise levels and all coefficients stay: a prediction at `tau` is used as if made at the grid's
    time, in the network's own kind, and converted with the scales of the grid's time. The plan's own times give the
    same plan back.

    Args:
        taus: a time of the process for each evaluation, in order.

    Raises:
        ValueError: a wrong number of times, or one outside the process's clock.
    """
    plan = as_plan(sampler)
    if len(taus) != plan.nfe:
        raise ValueError(f"this plan has {plan.nfe} evaluations, got {len(taus)} times")
    process = process_from_config(dict(plan.process))
    low, high = min(process.t_zero, process.t_min), process.t_max
    slack = 1e-9 * (high - low)
    for tau in taus:
        if not low - slack <= tau <= high + slack:
            raise ValueError(f"times must lie between {low:g} and {high:g}, got {tau:g}")
    times = iter(float(tau) for tau in taus)
    ops = tuple(dataclasses.replace(op, t=next(times)) if isinstance(op, Evaluate) else op for op in plan.ops)
    same = all(tau == op.t for tau, op in zip(taus, plan.evaluations, strict=True))
    about = plan.about if same else {**plan.about, "network times": [float(tau) for tau in taus]}
    return dataclasses.replace(plan, ops=ops, about=about)
