"""A teacher's steps between times that differ from sample to sample, and what calls of it cost.

The first-order step is DDIM's, `J(x, t, s; x0) = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) x0`,
finite at `alpha_t = 0` (pure noise) and at `sigma_s = 0` (clean), and no step at all where s = t, even if both are
clean. Times are `(B,)` tensors, coefficients float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.model import Model
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process

FORWARD, BACKWARD = 1.0, 3.0  # a pass of one sample, and one that also goes backward


@dataclass
class Count:
    """Evaluations of one sample: a forward pass is 1, one with its backward pass 3."""

    evaluations: float = 0.0


class Counted(Wrapper):
    """A model whose calls are counted: as 1 a sample, or 3 where the answer has a gradient."""

    def __init__(self, model: Denoiser, count: Count) -> None:
        super().__init__(model)
        self.count = count

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answer = self.model(x, t, **condition)
        self.count.evaluations += len(x) * (BACKWARD if answer.value.requires_grad else FORWARD)
        return answer  # type: ignore[no-any-return]


def _ratios(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of x and of x0 in a step from t to s."""
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    noisy = sigma_t > 0
    # Divided by 1 where it is clean: a quotient that is chosen away would still spoil derivatives.
    ratio = torch.where(noisy, sigma_s / torch.where(noisy, sigma_t, 1.0), 1.0)
    return ratio, process.alpha(s) - process.alpha(t) * ratio


def jump(process: Process, x: Tensor, t: Tensor, s: Tensor, x0: Tensor) -> Tensor:
    """`J(x, t, s; x0)`: DDIM's step of states `(B, *shape)` from times t to s, `(B,)` or one for all."""
    of_x, of_x0 = _ratios(process, t, s)
    return expand(of_x, x) * x + expand(of_x0, x) * x0


def landing(process: Process, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The x0 for which `J(x, t, s; x0)` is y: what a student has to answer to land there. Infinite at s = t."""
    of_x, of_x0 = _ratios(process, t, s)
    return (y - expand(of_x, x) * x) / expand(of_x0, x)


def between(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """The times half way from t to s: in log-SNR, and where that is infinite at an end, in the angle
    `atan2(sigma, alpha)`."""
    ends = process.log_snr(t), process.log_snr(s)
    angles = [torch.atan2(process.sigma(end), process.alpha(end)) for end in (t, s)]
    mean, angle = (ends[0] + ends[1]) / 2, (angles[0] + angles[1]) / 2
    bounded = ends[0].isinf() | ends[1].isinf()
    return process.time(torch.where(bounded, -angle.tan().log(), mean))


def step(
    model: Model,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    condition: Mapping[str, Any],
    *,
    order: int = 1,
    substeps: int = 1,
    eta: float = 0.0,
    noises: Tensor | None = None,
) -> Tensor:
    """The state at s of the model's probability-flow ODE through x at t: an exponential integrator of x0 in log-SNR.

    Args:
        x: (B, *shape). t, s: (B,) float64. order: 1 (DDIM) or 2 (midpoint, `2 substeps` evaluations).
        substeps: steps of equal length in log-SNR (in the angle, where that is infinite) by halving: a power of two.
        eta: of the reverse SDE, whose drift has `1 + eta` times the ODE's pull towards x0 (order 1 alone).
        noises: (B, substeps, *shape) standard normals, for eta above 0.

    Raises:
        ValueError: another order, substeps that are no power of two, eta with order 2 or without noises.
    """
    if order not in (1, 2) or substeps < 1 or substeps & (substeps - 1):
        raise ValueError(f"order must be 1 or 2 and substeps a power of two, got {order} and {substeps}")
    if eta and (order == 2 or noises is None):
        raise ValueError("the reverse SDE (eta) is of order 1 and needs noises")
    times = [t.double(), s.double()]
    while len(times) <= substeps:
        halves = [between(model.process, a, b) for a, b in zip(times, times[1:], strict=False)]
        times = [time for pair in zip(times, halves, strict=False) for time in pair] + times[-1:]
    for k, (a, b) in enumerate(zip(times, times[1:], strict=False)):
        if eta:
            assert noises is not None
            x = _noisy(model, x, a, b, condition, eta, noises[:, k])
            continue
        x0 = model(x, a, **condition).x0
        if order == 2:
            middle = between(model.process, a, b)
            x0 = model(jump(model.process, x, a, middle, x0), middle, **condition).x0
        x = jump(model.process, x, a, b, x0)
    return x


def _noisy(
    model: Model, x: Tensor, t: Tensor, s: Tensor, condition: Mapping[str, Any], eta: float, z: Tensor
) -> Tensor:
    """`sigma_s / sigma_t e^(-eta h) x + alpha_s (1 - e^(-(1 + eta) h)) x0 + sigma_s sqrt(1 - e^(-2 eta h)) z`, h the
    difference of log-SNR: exact for a constant x0, of the SDE whose law at every time is the ODE's whatever eta is
    (1 is the reverse diffusion, as Lu et al., 2211.01095, section 5, have it)."""
    process = model.process
    h = torch.where(t == s, 0.0, process.log_snr(s) - process.log_snr(t))
    x0 = model(x, t, **condition).x0
    of_x = _ratios(process, t, s)[0] * torch.exp(-eta * h)
    of_x0 = -process.alpha(s) * torch.expm1(-(1 + eta) * h)
    of_z = process.sigma(s) * (-torch.expm1(-2 * eta * h)).sqrt()
    return expand(of_x, x) * x + expand(of_x0, x) * x0 + expand(of_z, x) * z


def trajectory(
    model: Model, x: Tensor, times: Sequence[Tensor], condition: Mapping[str, Any], *, order: int = 1, substeps: int = 1
) -> list[Tensor]:
    """The states `(B, *shape)` at all the times, each `(B,)`, of the ODE through x at the first one."""
    states = [x]
    for t, s in zip(times, times[1:], strict=False):
        states.append(step(model, states[-1], t, s, condition, order=order, substeps=substeps))
    return states
