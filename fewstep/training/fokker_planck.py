"""The Fokker-Planck equation of the score: its residual as a term of the loss, and the gap between ODE and SDE.

The densities of a process `dx = f x dt + g dw` obey `d_t log p = 1/2 g^2 (div s + |s|^2) - f x.s - f D`, so the score

    d_t s = grad [1/2 g^2 (div s + |s|^2) - f x.s].

A network's score in general does not; then its ODE and its SDE end in different distributions. In the clock
`tau = log(sigma / alpha)` and in units of eps (`s = -eps / sigma`) the residual is finite at both ends of a process:

    r = (1 + k) eps - d_tau eps - grad [sigma |eps|^2 - sigma^2 div eps + k x.eps],    k = alpha' / alpha dt/dtau.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import expand, scales
from fewstep.training.objective import Step

METHODS = (
    Method(
        "fokker-planck",
        kind="term",
        paper="FP-Diffusion: Improving Score-based Diffusion Models by Enforcing the Underlying Score Fokker-Planck"
        " Equation (Lai et al., 2023)",
        arxiv="2210.04296",
        claim="penalises scores that no diffusion can have; zero for the exact score",
        use="FokkerPlanck",
    ),
    Method(
        "ode-sde-gap",
        kind="check",
        paper="Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation"
        " (Deveney et al., 2023)",
        arxiv="2311.15996",
        claim="how far apart a model's ODE and SDE samples are, and how far each is from the ground truth",
        use="ode_sde_gap",
    ),
)


def residual(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Mapping[str, Any] | None = None, probes: int | None = None
) -> Tensor:
    """The residual r `(B, *shape)` at states x `(B, *shape)` and times t `(B,)`; differentiable in the weights.

    probes: the divergence exactly, by one derivative for each value (None), or as the mean of `e^T J e` over this many
    vectors e of random signs, from torch's own generator (Hutchinson).
    """
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact divergence, got {probes}")
    keep_graph = torch.is_grad_enabled()
    alpha, sigma, dalpha, dsigma = scales(denoiser.process, t)
    turn = dsigma * alpha - dalpha * sigma  # alpha sigma dtau/dt: positive at both ends
    k, rate, sigma_ = expand(dalpha * sigma / turn, x), alpha * sigma / turn, expand(sigma, x)

    # One derivative along time and one along each direction, as one pass over copies of the batch.
    batch, directions = len(x), _directions(x, probes)
    copies = len(directions) + 1
    named = {name: torch.cat([value] * copies) for name, value in (condition or {}).items()}
    moved = torch.cat([torch.zeros_like(x), *directions]), torch.cat([rate, torch.zeros_like(rate).repeat(copies - 1)])

    def eps(state: Tensor, time: Tensor) -> Tensor:
        return denoiser(state, time, **named).eps

    # The fused attention kernels have no second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.detach().requires_grad_(True)
        at = torch.cat([x] * copies), torch.cat([t] * copies)
        values, slopes = torch.func.jvp(eps, at, moved)  # type: ignore[misc]
        value = values[:batch]
        products = [(e * slope).flatten(1).sum(1) for e, slope in zip(directions, slopes.split(batch)[1:], strict=True)]
        divergence = torch.stack(products).sum(0) / (probes or 1)
        inner = sigma_ * value.square() + k * x * value
        potential = inner.flatten(1).sum(1) - sigma.to(x.dtype) ** 2 * divergence
        (gradient,) = torch.autograd.grad(potential.sum(), x, create_graph=keep_graph)
        found = (1 + k) * value - slopes[:batch] - gradient
    return found if keep_graph else found.detach()


def _directions(x: Tensor, probes: int | None) -> list[Tensor]:
    """Unit vectors, one for each value of a sample, or `probes` random signs; each of the shape of x."""
    if probes is not None:
        return [torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1 for _ in range(probes)]
    unit = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [e.reshape(1, *x.shape[1:]).expand_as(x) for e in unit]


class FokkerPlanck:
    """A `Term`: the mean square of `residual` at the step's noisy samples, per unit of log-SNR and in units of eps.

    It works on `probes + 1` copies of the batch (for the exact divergence, None, on one more than a sample has values)
    with second derivatives: about ten times a plain step on small networks. The squared residual of random probes also
    counts their variance.
    """

    def __init__(self, probes: int | None = 1) -> None:
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be at least 1, or None for the exact divergence, got {probes}")
        self.probes = probes

    def __call__(self, step: Step) -> Tensor:
        return residual(step.denoiser, step.x, step.t, step.condition, self.probes).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Gap:
    """Sliced 2-Wasserstein distances: between the samples of ODE and SDE, and of each from true samples (or None)."""

    between: float
    ode: float | None
    sde: float | None
    n: int
    steps: int


def ode_sde_gap(
    model: Denoiser, truth: Tensor | None = None, n: int = 2000, steps: int = 100, seed: int = 0, **condition: Any
) -> Gap:
    """How far apart a model's two distributions are: `n` samples of the ODE and of the SDE, from independent noise.

    truth: ground-truth samples (N, *shape), in the coordinates of the process. steps: of either; the ODE's solver is
    dpmpp-3m, the SDE's dpmpp-2m-sde, on log-snr times, so with many steps only the model's own gap is left. Two sets of
    n samples of one distribution are a little apart as well; that floor falls like `1 / sqrt(n)`.

    Raises ValueError for a model without a shape, and as `fewstep.sampling.build.plan` does.
    """
    from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
    from fewstep.sampling.build import plan

    if model.shape is None:
        raise ValueError("the gap needs a model that knows the shape of its samples")
    ode, sde = (
        plan(model.process, solver, steps, "log-snr")(
            model, Noise(seed + number).normal(0, (n, *model.shape)), seed=seed + number, **condition
        )
        for number, solver in enumerate(("dpmpp-3m", "dpmpp-2m-sde"))
    )
    between = sliced_wasserstein(ode, sde).value
    true = [None if truth is None else sliced_wasserstein(x, truth).value for x in (ode, sde)]
    return Gap(between, true[0], true[1], n, steps)
