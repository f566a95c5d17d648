"""The time-shift sampler: evaluate the network at the noise level that a state really has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.live import Answer, Live, Loop, around
from fewstep.core.methods import Method
from fewstep.core.ops import one_level
from fewstep.core.process import process_from_config
from fewstep.core.sampler import Sampler

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


def time_shift(plan: Sampler, window: float = 0.5, cutoff: float = 0.0, data_variance: float = 0.0) -> Loop:
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
    evaluations = plan.table.evaluations
    process = process_from_config(dict(plan.process))
    levels = [(one_level(e.scales[0]), one_level(e.scales[1])) for e in evaluations]
    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
    choices: list[tuple[Tensor, Tensor] | None] = []
    for i, (alpha, sigma) in enumerate(levels):
        at = math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.inf
        if window == 0 or i == 0 or not at < cutoff:
            choices.append(None)
            continue
        log_snr = torch.linspace(max(at - window / 2, low), min(at + window / 2, high), CANDIDATES, dtype=torch.float64)
        t = process.time(log_snr)
        choices.append((t, process.sigma(t) ** 2 + data_variance * process.alpha(t) ** 2))

    def solver(live: Live, play: Callable[[Answer], Tensor]) -> Tensor:
        shifts, gaps = [], []

        def answer(live: Live, i: int, x: Tensor) -> tuple[Tensor, str]:
            (alpha, sigma), choice = levels[i], choices[i]
            variance = x.flatten(1).double().var(1)
            nominal = sigma**2 + data_variance * alpha**2
            gaps.append(((variance - nominal) / nominal).mean())
            t: float | Tensor = evaluations[i].t
            if choice is not None:
                there, level = (value.to(x.device) for value in choice)
                t = there[(variance.unsqueeze(1) - level).abs().argmin(1)]
                shifts.append((process.log_snr(t) - process.log_snr(evaluations[i].t)).mean())
            else:
                shifts.append(torch.zeros((), dtype=torch.float64, device=x.device))
            given: dict[str, Any] = dict(evaluations[i].given)
            prediction = live.evaluate(x, t, **given)
            return prediction.value, prediction.kind

        samples = play(answer)
        live.report["shift"] = torch.stack(shifts)
        live.report["gap"] = torch.stack(gaps)
        return samples

    return around(plan, f"time shift {window:g}", solver)
