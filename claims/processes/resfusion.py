"""Claims of fewstep/processes/resfusion.py."""

from __future__ import annotations

from itertools import pairwise

import torch

from claims.bridges import largest, law_duel
from claims.common import F64, VP, Claim, Outcome, tolerance
from fewstep.processes.resfusion import Resfusion


def _half(seed: int) -> Outcome:
    error = abs(2 * VP().alpha(Resfusion().t_max) - 1)
    return tolerance(error, 1e-6, "coefficient of the data at the start", "|2 A - 1|")


def _oracle(seed: int) -> Outcome:
    """DDPM's posterior means with the true resnoise in place of eps, 12 steps from half way."""
    process, base = Resfusion(), VP()
    x0, y, eps = torch.randn(3, 1000, generator=torch.Generator().manual_seed(seed), dtype=F64)
    times = torch.linspace(process.t_max, 0.0, 13, dtype=F64)
    x = process.b(times[0]) * y + process.c(times[0]) * eps
    for t, s in pairwise(times):
        bar, sigma = base.alpha(t), base.sigma(t)
        alpha = (bar / base.alpha(s)) ** 2
        resnoise = (x - bar * x0 - (1 - bar) * (y - x0)) / sigma
        resnoise = resnoise + (1 - alpha.sqrt()) * sigma / (1 - alpha) * (y - x0)
        x = (x - (1 - alpha) / sigma * resnoise) / alpha.sqrt()
    return tolerance(largest([x - x0]), 1e-6, "12 steps with the true resnoise against x0, 1000 numbers")


CLAIMS = (
    Claim("resfusion", "starts where the data's coefficient is 0", _half),
    Claim("resfusion", "the true resnoise leads back to the data", _oracle),
    Claim("resfusion", "at 5 evaluations unipc comes nearer the law of x0 given y than the paper's sampler",
          law_duel(Resfusion(), "unipc", "ddpm", 5, "log-snr")),
)  # fmt: skip
