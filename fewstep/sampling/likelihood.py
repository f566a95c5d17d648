"""The likelihood of data under the probability-flow ODE, by the change of variables along its path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.sampling.angle import Angle, State, frame_of, increment, tableau

_PAPER = "Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)"
METHODS = (
    Method(
        "ode-likelihood",
        kind="likelihood",
        paper=_PAPER,
        arxiv="2011.13456",
        claim="log p(x) of the probability-flow ODE, with the exact trace or an unbiased one",
        use="log_likelihood",
    ),
    Method(
        "bits-per-dim",
        kind="likelihood",
        paper=_PAPER,
        arxiv="2011.13456",
        claim="the ODE's likelihood in bits per value, of continuous data or of data with levels",
        use="bits_per_dim",
    ),
)

TRACES = ("hutchinson", "exact")
PRIORS = ("start", "terminal")
LOWEST_LOG_SNR = -6.0  # where the steps towards alpha = 0 stop falling in log-SNR; the last one takes the rest
DEQUANTISE, PROBE = 0, 1  # numbers of the first draws


@checked
def log_likelihood(
    model: Denoiser,
    x: Tensor,
    nfe: int = 100,
    *,
    trace: str = "hutchinson",
    probes: int = 1,
    prior: str | Callable[[Tensor], Tensor] = "start",
    solver: str = "rk4",
    data_std: float | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Any,
) -> Tensor:
    """`log p(x)` `(B,)` in nats, float64, of data x `(B, *shape)`, by integrating the ODE from the data to the noise.

    In the frame of `fewstep.sampling.angle`, `d/d(theta) log q(y) = -div(dy/d(theta))`, so

        log p(x) = D log alpha_0 - D log(norm_0 / norm_T) + log p_T(x_T) + integral of div(dy/d(theta)) d(theta)

    (Song et al., eq. 39). What is meant by p: the path starts at `alpha_0 x` at the process's `t_min`, so p is the
    density of the data with noise of standard deviation `sigma / alpha` at `t_min` added; that is how far it differs
    from the density at sigma = 0. No gradient flows through the answer.

    Args:
        nfe: network evaluations along the path; each is differentiated `probes` times, or D times for the exact trace.
        trace: "exact", the sum of D derivatives; or "hutchinson", the mean over `probes` of `e^T J e` with fixed
            Rademacher signs e of the sample's own stream (seed, first + i): unbiased, and the same in any batch.
        prior: "start" is N(0, sigma^2) at `t_max`, from which sampling starts, so that p is what sampling draws from;
            "terminal" is N(alpha m, alpha^2 data_std^2 + sigma^2), nearer to what the data's own law becomes there,
            with m the model's x0 at x = 0 (one evaluation more); or a function of x_T `(B, *shape)` to `(B,)`. They
            differ where alpha(t_max) > 0, by about `alpha x_T m / sigma^2`.
        solver: "rk4", "midpoint" or "euler", with 4, 2 and 1 evaluations per step.
        data_std: of the frame; by default the model's own, or 1. A wrong one costs accuracy, never correctness.

    Raises:
        ValueError: unknown names, fewer evaluations than one step needs, x of another shape or dtype.
    """
    if trace not in TRACES:
        raise suggest("trace", trace, TRACES)
    if not callable(prior) and prior not in PRIORS:
        raise suggest("prior", prior, PRIORS)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise ValueError("x must be a float tensor (B, *shape)")
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the model takes {tuple(model.shape)}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    method, process = tableau(solver), model.process
    steps = nfe // len(method[0])
    if steps < 1:
        raise ValueError(f"{solver!r} needs {len(method[0])} evaluations a step, got nfe={nfe}")
    named = model.check_condition(condition, x.shape[0], x.device)
    frame, dimension = frame_of(model, data_std), x[0].numel()
    if trace == "exact":
        signs = torch.eye(dimension, dtype=x.dtype, device=x.device).reshape(dimension, 1, *x.shape[1:])
    else:
        source = Noise(seed, first)
        draws = [source.normal(PROBE + k, tuple(x.shape), x.device, x.dtype) for k in range(probes)]
        signs = torch.stack(draws).ge(0).to(x.dtype) * 2 - 1
    parts = 1.0 if trace == "exact" else 1.0 / probes

    def field(angle: float, state: State) -> State:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_(True)
            slope = frame.slope(model, y, angle, named)
            divergence = torch.zeros_like(state[1])
            for e in signs:
                e = e.expand_as(x)
                (pulled,) = torch.autograd.grad(slope, y, e, retain_graph=True)
                divergence += (pulled * e).flatten(1).sum(1, dtype=torch.float64) * parts
        return slope.detach(), divergence

    low, high = process.t_min, process.t_max
    alpha, norm = process.alpha(low), (frame.norm(low), frame.norm(high))
    state: State = (x.detach() * (alpha / norm[0]), torch.zeros(len(x), dtype=torch.float64, device=x.device))
    angles = _angles(frame, steps)
    for a, b in zip(angles, angles[1:], strict=False):
        more = increment(method, field, a, b, state)
        state = (state[0] + more[0], state[1] + more[1])
    y, divergence = state
    density = _prior(model, y * norm[1], prior, frame, named)
    return density.double() + divergence + dimension * (math.log(alpha) + math.log(norm[1] / norm[0]))


def _angles(frame: Angle, steps: int) -> list[float]:
    """From the data's angle to the noise's, even in log-SNR."""
    process = frame.process
    low, high = process.log_snr(process.t_min), max(process.log_snr(process.t_max), LOWEST_LOG_SNR)
    inner = np.arctan(np.exp(-np.linspace(low, high, steps + 1)[1:-1]) / frame.data_std)
    return [frame.angle(process.t_min), *inner.tolist(), frame.angle(process.t_max)]


@torch.no_grad()
def _prior(
    model: Denoiser, x: Tensor, prior: str | Callable[[Tensor], Tensor], frame: Angle, condition: dict[str, Tensor]
) -> Tensor:
    """`log p_T(x)` `(B,)`."""
    if callable(prior):
        return prior(x)
    t = frame.process.t_max
    std, centred = frame.process.sigma(t), x.double()
    if prior == "terminal" and (alpha := frame.process.alpha(t)) > 0:
        mean = model(torch.zeros_like(x), torch.tensor(t, dtype=x.dtype, device=x.device), **condition).x0
        std, centred = frame.norm(t), centred - alpha * mean.double()
    squared = centred.flatten(1).square().sum(1) / std**2
    return -0.5 * squared - x[0].numel() * (math.log(std) + 0.5 * math.log(2 * math.pi))


@checked
def bits_per_dim(
    model: Denoiser,
    x: Tensor,
    nfe: int = 100,
    *,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    seed: int = 0,
    first: int = 0,
    **options: Any,
) -> Tensor:
    """Bits per value `(B,)`: `-log p(x) / (D log 2)`, p as in `log_likelihood`, whose options it takes.

    Without `levels`, p is the density in the units of x. With them, x holds `levels` values from one end of
    `value_range` (by default the model's) to the other, both included, `step = (high - low) / (levels - 1)` apart
    (256 for 8-bit images). Each value gets noise uniform in [-step/2, step/2] of the sample's own stream, and

        bits = -(log p(x + u) + D log(step)) / (D log 2),

    whose mean over u is at least the bits that the probability of the values themselves takes
    (`P(x) = integral of p over the cell`, by Jensen's inequality).

    Raises:
        ValueError: fewer than 2 levels, no value range, and as `log_likelihood`.
    """
    dimension, change = math.prod(x.shape[1:]), 0.0
    if levels is not None:
        low, high = value_range or model.value_range or (math.nan, math.nan)
        if levels < 2 or not high > low:
            raise ValueError(f"levels must be at least 2, in a value_range (low, high), got {levels} in {value_range}")
        step = (high - low) / (levels - 1)
        normal = Noise(seed, first).normal(DEQUANTISE, tuple(x.shape), x.device, torch.float64)
        x = x + ((torch.special.ndtr(normal) - 0.5) * step).to(x.dtype)
        change = dimension * math.log(step)
    density = log_likelihood(model, x, nfe, seed=seed, first=first, **options)
    return -(density + change) / (dimension * math.log(2))
