"""EVODiff: a second-order multistep solver on x0 whose weights follow each sample's own predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "evodiff",
        paper="EVODiff: Entropy-aware Variance Optimized Diffusion Inference (Li et al., 2025)",
        arxiv="2509.26096",
        claim="DPM-Solver++(2M) with per-sample weights of least variance; the next prediction corrects the step",
        use="evodiff",
        facts={"live": True},
    ),
)

_LARGEST = 2.0  # of a projection
_FLAT = 0.25  # slope of the sigmoid that turns a difference's weight into that of the step ratio


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """`<a, b>` of each sample, `(B,)` float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _projection(a: Tensor, b: Tensor) -> Tensor:
    """`<a, b> / <b, b>`; 1 where b vanishes, as if the two were equal."""
    square = _dot(b, b)
    return torch.where(square > 0, _dot(a, b) / square.clamp_min(1e-300), 1.0)


def evodiff(live: Live, process: Process, times: Sequence[float], blend: float = 1.0) -> Tensor:
    """One multistep predictor and one corrector per step, at one evaluation (Li et al., section 3 and Algorithm 1).

    From a to b, with `h` the step in log-SNR, `r = h_last / h`, answers D1, D0 at the last time and at a, and
    `x_b = sigma_b/sigma_a x_a - alpha_b (e^-h - 1) (D0 + G/2)`, the predictor's difference is

        G = (D0 - zeta D1) / (k r),    zeta = (1 - w) rho + w <D0, D1> / <D1, D1>,

    rho the square root of `(sigma_b/sigma_a) / (sigma_a/sigma_last)`, and w from 0 in the noise to 1/2 at the data.
    k, a sigmoid of zeta/4 over that of 1/4, keeps the step ratio as it is at zeta = 1. Once `D2` at b is known, the
    step is taken again with the convex combination of G and of the forward difference `D2 - zeta' D0` that has the
    least norm: the least variance of the gradient term. At `blend` 0 all weights are neutral (zeta = k = 1, nothing
    corrected), which is DPM-Solver++(2M); between, they go from one to the other in proportion.

    zeta is not 1 in the limit of small steps, so the solver gives up the second order for its lower variance.

    Raises:
        ValueError: blend outside [0, 1].
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"blend must be between 0 and 1, got {blend}")
    x = live.start()
    last: tuple[Tensor, float, float] | None = None  # x0, time and length of the step before
    undone: tuple[Tensor, Tensor, float, Tensor, Tensor, Tensor] | None = None
    for a, b in pairwise(times):
        prediction = live.evaluate(x, a)
        x0 = prediction.x0
        if undone is not None:
            euler, push, ratio_weight, before, backward, rho = undone
            zeta = _zeta(x0, before, rho, ratio_weight, blend)
            forward = x0 - expand(zeta, x0) * before
            # The eta in [0, 1] at which |(1 - eta) forward + eta backward| is least.
            apart = forward - backward
            eta = _projection(forward, apart).clamp(0.0, 1.0)
            mixed = forward - expand(eta, x0) * apart
            x = x + blend * (euler + push * (before + 0.5 * mixed) - x)
        undone = None
        h = process.log_snr(b) - process.log_snr(a)
        if math.isinf(h):
            x = ddim(process, x, a, b, prediction)  # type: ignore[arg-type, assignment]
        else:
            push = torch.tensor(-process.alpha(b) * math.expm1(-h), dtype=x.dtype, device=x.device)
            euler = x * (process.sigma(b) / process.sigma(a))
            if last is None or math.isinf(last[2]):
                x = euler + push * x0
            else:
                before, earlier, length = last
                w = 0.5 * (1 - _clock(process, a) ** 2)
                schedule = math.sqrt(process.sigma(b) / process.sigma(a) * process.sigma(earlier) / process.sigma(a))
                rho = torch.full((len(x),), schedule, dtype=torch.float64, device=x.device)
                zeta = _zeta(x0, before, rho, w, blend)
                k = torch.sigmoid(_FLAT * zeta.abs()) / torch.sigmoid(torch.tensor(_FLAT, dtype=torch.float64))
                backward = (x0 - expand(zeta, x0) * before) * expand(h / (length * (1 + blend * (k - 1))), x0)
                x = euler + push * (x0 + 0.5 * backward)
                undone = (euler, push, w, x0, backward, rho)
        last = (x0, a, h)
    return x


def _zeta(new: Tensor, old: Tensor, rho: Tensor, w: float, blend: float) -> Tensor:
    """The weight `(B,)` of the older answer in the difference `new - zeta old`."""
    whole = (1 - w) * rho + w * _projection(new, old).clamp(-_LARGEST, _LARGEST)
    return 1 + blend * (whole - 1)


def _clock(process: Process, t: float) -> float:
    """t on the clock from 0 at the data to 1 in the noise."""
    return (t - process.t_min) / (process.t_max - process.t_min)
