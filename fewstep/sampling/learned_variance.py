"""Ancestral sampling with a learned variance at any stride, and the bound on the likelihood of such a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.denoisers.learned_variance import SpreadPrediction, reverse_step

_PAPER = "Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)"
METHODS = (
    Method(
        "ddpm-learned",
        paper=_PAPER,
        arxiv="2102.09672",
        claim="ancestral sampling whose noise has the learned variance, rescaled to any stride",
        use="ddpm_learned",
        facts={"stochastic": True, "live": True},
    ),
    Method(
        "chain-bound",
        kind="likelihood",
        paper=_PAPER,
        arxiv="2102.09672",
        claim="an upper bound on the negative log-likelihood of a sampling chain, at its own times",
        use="chain_bound",
    ),
)


def _fraction(prediction: Prediction, given: float | None) -> Tensor | float:
    if given is not None:
        return given
    return prediction.fraction if isinstance(prediction, SpreadPrediction) else 0.0


def _float64(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def ddpm_learned(live: Live, process: Process, times: Sequence[float], fraction: float | None = None) -> Tensor:
    """`x_b = mean(x_a, x0) + exp(1/2 (small + fraction span)) z`, see `reverse_step` (Nichol and Dhariwal, eq. 15).

    fraction: of the way from the lower to the upper bound of the log-variance: None takes what the model has learned
    (`LearnedVariance`), and the lower bound for a model without one; 0 is "ddpm" itself, 1 the upper bound. The
    step to sigma = 0 adds no noise. `ValueError` for a fraction that is not finite.
    """
    if fraction is not None and not math.isfinite(fraction):
        raise ValueError(f"fraction must be a finite number, or None for the model's own, got {fraction}")
    x = live.start()
    for a, b in pairwise(times):
        prediction = live.evaluate(x, a)
        if process.sigma(b) == 0:
            x = prediction.x0 * process.alpha(b)
            continue
        made, noise = reverse_step(process, _float64(a), _float64(b)), live.noise(a, b)
        half, share = 0.5 * _fraction(prediction, fraction), float(made.span)
        std = (half * share).exp() if isinstance(half, Tensor) else math.exp(half * share)
        x = float(made.x) * x + float(made.x0) * prediction.x0 + math.exp(0.5 * float(made.small)) * std * noise
    return x


@torch.no_grad()
def chain_bound(
    model: Denoiser,
    x0: Tensor,
    times: Sequence[float],
    fraction: float | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    **condition: Any,
) -> Tensor:
    """A bound on `-log p(x)` in nats `(B,)`, float64, of the chain that "ddpm-learned" runs on these times.

    One evaluation for each step: with `x_a` drawn from `q(x_a | x0)`,

        -log p <= KL(q(x_T | x0) | p(x_T)) + sum of KL(q(x_b | x_a, x0) | p(x_b | x_a)) + H(q(x_end | x0))

    in expectation. p is the density of the data with noise of standard deviation `sigma / alpha` (at the last time)
    added, as in `log_likelihood`; the start is N(0, sigma^2).

    Args:
        x0: data `(B, *shape)`, in the coordinates of the process. times: decreasing, the last with sigma > 0.
        fraction: as in `ddpm_learned`. seed, first: of the samples' own noise.

    Raises:
        ValueError: fewer than two times, times that do not fall, or a last one with sigma = 0.
    """
    process = model.process
    if len(times) < 2 or any(b >= a for a, b in pairwise(times)) or not process.sigma(float(times[-1])) > 0:
        raise ValueError(f"the bound needs two or more falling times that end at sigma > 0, got {list(times)}")
    named, source, data = model.check_condition(condition, len(x0), x0.device), Noise(seed, first), x0.double()
    size = x0[0].numel()
    start, end = float(times[0]), float(times[-1])
    ratio = process.alpha(start) / process.sigma(start)
    total = 0.5 * ratio**2 * data.square().flatten(1).sum(1)
    total += size * (math.log(process.sigma(end) / process.alpha(end)) + 0.5 * math.log(2 * math.pi * math.e))
    for draw, (a, b) in enumerate(pairwise(times)):
        eps = source.normal(draw, tuple(x0.shape), x0.device, x0.dtype)
        x = process.alpha(a) * x0 + process.sigma(a) * eps
        prediction = model(x, torch.tensor(a, dtype=x.dtype, device=x.device), **named)
        error2 = (prediction.x0.double() - data).square()
        made, given = reverse_step(process, _float64(a), _float64(b)), _fraction(prediction, fraction)
        log_ratio = (given.double() if isinstance(given, Tensor) else torch.full_like(error2, given)) * float(made.span)
        nats = 0.5 * (log_ratio + torch.expm1(-log_ratio) + (-log_ratio).exp() * float(made.gap) * error2)
        total += nats.flatten(1).sum(1)
    return total
