"""The time-shift sampler: evaluate the network at the noise level that a state really has."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.live import Live, Loop
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process, process_from_config
from fewstep.core.run import program

METHODS = (
    Method(
        "time-shift",
        kind="executor",
        paper="Alleviating Exposure Bias in Diffusion Models through Shifted Time Steps (Li et al., 2024)",
        arxiv="2305.15583",
        claim="evaluates the network at the time whose nominal variance the state has; the update stays",
        use="time_shift",
    ),
)

CANDIDATES = 65


def time_shift(plan: Plan, window: float = 0.5, cutoff: float = 0.0, data_variance: float = 0.0) -> Loop:
    """A plan whose network is evaluated at shifted times (Algorithm 3 of the paper), for every solver.

    At each evaluation after the first, and as long as the log-SNR is below `cutoff`, every sample's variance over its
    elements is compared with the nominal `sigma^2 + alpha^2 data_variance` at 65 times around the plan's, and the
    network is evaluated at the nearest. Its prediction is used as if it had been made at the plan's time.

    Args:
        window: width of the search in log-SNR; 0 is the plan itself, bit for bit.
        cutoff: the log-SNR up to which times are shifted: near the data a state's variance is the data's.
        data_variance: the variance over the elements of a clean sample; 0 as in the paper, which holds where noise
            dominates.

    Returns:
        A loop with the plan's signature; `Result.report["shift"]` is the mean shift in log-SNR at each evaluation,
        `Result.report["gap"]` the mean difference of the state's variance from the nominal one, relative to that.
    """
    if not window >= 0:
        raise ValueError(f"window must not be negative, got {window}")
    if not data_variance >= 0:
        raise ValueError(f"data_variance must not be negative, got {data_variance}")
    plan._operations()
    process = process_from_config(dict(plan.process))
    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
    choices: list[tuple[Tensor, Tensor] | None] = []
    for i, e in enumerate(plan.evaluations):
        alpha, sigma = e.scales[:2]
        at = math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.inf
        if window == 0 or i == 0 or not at < cutoff:
            choices.append(None)
            continue
        log_snr = torch.linspace(max(at - window / 2, low), min(at + window / 2, high), CANDIDATES, dtype=torch.float64)
        t = process.time(log_snr)
        choices.append((t, process.sigma(t) ** 2 + data_variance * process.alpha(t) ** 2))

    def solver(live: Live, process: Process, times: list[float]) -> Tensor:
        steps = program(plan.table, live.start(), live.source)
        shifts, gaps = [], []
        x, _ = next(steps)
        for e, choice in zip(plan.evaluations, choices, strict=True):
            variance = x.flatten(1).double().var(1)
            nominal = e.scales[1] ** 2 + data_variance * e.scales[0] ** 2
            gaps.append(((variance - nominal) / nominal).mean())
            t: float | Tensor = e.t
            if choice is not None:
                there, level = (value.to(x.device) for value in choice)
                t = there[(variance.unsqueeze(1) - level).abs().argmin(1)]
                shifts.append((process.log_snr(t) - process.log_snr(e.t)).mean())
            else:
                shifts.append(torch.zeros((), dtype=torch.float64, device=x.device))
            prediction = live.evaluate(x, t)
            try:
                x, _ = steps.send((prediction.value, prediction.kind))
            except StopIteration as stop:
                live.report["shift"] = torch.stack(shifts)
                live.report["gap"] = torch.stack(gaps)
                return stop.value
        raise AssertionError("a plan ends with its last evaluation")

    about: dict[str, Any] = dict(plan.about) | {"solver": f"{plan.name}, time shift {window:g}"}
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
