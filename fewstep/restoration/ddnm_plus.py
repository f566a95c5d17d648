"""DDNM+: the null-space step with as much of a noisy measurement as each step's noise has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.operator import Operator
from fewstep.restoration.ddrm import check_spectrum
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "ddnm-plus",
        paper="Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Wang et al., 2022)",
        arxiv="2212.00490",
        claim="ddnm for noisy measurements, per singular value; no vector product",
        use="DDNMPlus",
        facts={"form": "chain", "begins": True, "measures": ("spectrum",), "noise": ("none", "gaussian")},
    ),
)


@dataclass(frozen=True)
class DDNMPlus:
    """`x0_y = x0 + A^+ Sigma (y - A x0)`, then an ancestral step whose noise Phi makes room for the measurement's.

    With k the coefficient of x0 in the step and s the deviation of its noise, and n = noise / s_i for each singular
    value: where `k n <= s`, Sigma is 1 and Phi is `s^2 - k^2 n^2`; elsewhere Sigma is `s / (k n)` and Phi is 0
    (equations 17 to 19). Without noise it is "ddnm" under "ddpm".
    """

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` without a spectrum, or for noise that is not the same everywhere."""
        check_spectrum("ddnm-plus", operator, law)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        spectrum, std = problem.operator.spectrum(), float(problem.noise.mean().sqrt())
        x, y = live.start(), spectrum.of(live.condition["y"])
        seen, inverse = spectrum.seen().to(x.device), spectrum.inverse().to(x)
        measured, n = y * inverse, std * inverse
        for a, b in pairwise(times):
            s, of_x, k = posterior(process, a, b)
            x0 = spectrum.into(live.evaluate(x, a).x0)
            taken, room = shares(n, s, k)
            x0 = x0 + torch.where(seen, taken, 0.0) * (measured - x0)
            x = of_x * x + k * spectrum.back(x0)
            if s > 0:
                spread = torch.where(seen, room, s**2).sqrt()
                x = x + spectrum.back(spread * spectrum.into(live.noise()))
        return x


def shares(n: Tensor, s: float, k: float) -> tuple[Tensor, Tensor]:
    """Sigma and Phi of each singular value whose measurement has the deviation n."""
    fits = k * n <= s
    weak = s / (k * torch.where(n > 0, n, 1.0))
    return torch.where(fits, 1.0, weak), torch.where(fits, s**2 - (k * n) ** 2, 0.0).clamp_min(0)
