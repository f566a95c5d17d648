"""Claims of fewstep/sampling/ghvb.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import F64, duel, exact, mixture, orders
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.endpoint import endpoint_error
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


class _Linear(Denoiser):
    """`d(x / alpha) / d(log_snr) = -k x / alpha`."""

    def __init__(self, k: float):
        super().__init__()
        self.process, self.k = EDM(1e-12, 80.0), k

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.k * x / t.to(x.dtype), "eps", x, t, self.process)


def _stable(order: int, beta: float, kh: float, h: float = 0.05, n: int = 160) -> bool:
    """Whether steps of `k h = kh` shrink the state in the long run."""
    model = _Linear(kh / h)
    times = [math.exp(2.0 - h * i) for i in range(n + 1)]
    made = plan(model.process, "ghvb", timesteps=times, order=order, beta=beta)
    states = made.run(model, torch.ones(1, 1, dtype=F64), dtype=F64, trajectory=True).trajectory
    size = torch.stack(states).abs().flatten()
    return bool(size[-40:].max() < size[-80:-40].max())


def _growth(solver: str, kh: float, n: int = 400, h: float = 0.1, **options: Any) -> float:
    """How often larger the state is after n steps of `k h = kh`: below 1 where it should be, as the solution decays."""
    model = _Linear(kh / h)
    made = plan(model.process, solver, timesteps=[math.exp(2.0 - h * i) for i in range(n + 1)], **options)
    return float(made(model, torch.ones(1, 1, dtype=F64) / made.start[1], dtype=F64).abs())


def _where_plms_diverges(seed: int) -> Outcome:
    return Outcome(
        _growth("ghvb-4", 0.5, beta=0.4),
        _growth("plms", 0.5),
        "plms",
        "order 4, beta = 0.4, d(x/alpha)/d(log-SNR) = -k x/alpha, 400 equal steps h of log-SNR, k h = 0.5",
        unit="size of the state, from 1 at the start",
    )


def _interval(order: int, beta: float) -> float:
    """The longest stable `k h`, to 0.04."""
    low, high = 0.0, 2.56
    while high - low > 0.04:
        middle = (low + high) / 2
        low, high = (middle, high) if _stable(order, beta, middle) else (low, middle)
    return low


def _stability(order: int, beta: float, against: float) -> Outcome:
    return Outcome(
        _interval(order, beta),
        _interval(order, against),
        f"beta = {against:g}",
        f"order {order}, beta = {beta:g}, d(x/alpha)/d(log-SNR) = -k x/alpha, 160 equal steps h of log-SNR",
        better="high",
        unit="longest stable k h",
    )


class _Guided(Denoiser):
    """Classifier-free guidance towards the first component of a mixture."""

    def __init__(self, base: GaussianMixture, weight: float):
        super().__init__()
        covariance = base.basis.view(2, -1, 2)[:, 0] @ torch.diag(base.variances[0]) @ base.basis.view(2, -1, 2)[:, 0].T
        mean = base.basis.view(2, -1, 2)[:, 0] @ base.centres[0]
        self.base, self.process, self.weight = base, base.process, weight
        self.wanted = GaussianMixture(torch.ones(1), mean[None], covariance[None], base.process)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        plain, wanted = self.base(x, t).x0, self.wanted(x, t).x0
        return Prediction(plain + self.weight * (wanted - plain), "x0", x, t, self.process)


def _guided(seed: int, nfe: int, weight: float) -> Outcome:
    model, noise = _Guided(mixture(VP()), weight), Noise(seed).normal(0, (256, 2), "cpu", F64)
    exact_end = plan(VP(), "vab-4", 400, "karras")(model, noise, dtype=F64)
    ours, theirs = (
        endpoint_error(plan(VP(), solver, timesteps="log-snr", nfe=nfe)(model, noise, dtype=F64), exact_end).value
        for solver in ("ghvb-2", "ab-2")
    )
    return Outcome(
        ours,
        theirs,
        f"ab-2, {nfe} evaluations",
        f"ghvb-2, {nfe} evaluations, times log-snr, 8-component mixture guided to one by {weight:g}, vp, 256 noises",
        unit="relative end point error",
    )


CLAIMS = (
    Claim("ghvb", "order 4 stays finite where plms diverges", _where_plms_diverges),
    Claim("ghvb", "orders 1 to 4 are as stated", lambda seed: orders(VP(), "ghvb", seed)),
    Claim(
        "ghvb",
        "order 2 is stable on longer steps at beta = 0.8 than Adams-Bashforth",
        lambda seed: _stability(2, 0.8, 1.0),
    ),
    Claim("ghvb", "and on longer ones still at beta = 0.4", lambda seed: _stability(2, 0.4, 0.8), quick=False),
    Claim(
        "ghvb",
        "order 4 is stable on longer steps at beta = 0.5 than Adams-Bashforth",
        lambda seed: _stability(4, 0.5, 1.0),
        quick=False,
    ),
    Claim("ghvb", "beats ab-2 at 10 evaluations under guidance of 8", lambda seed: _guided(seed, 10, 8.0)),
    Claim(
        "ghvb",
        "beats ddim at 10 evaluations",
        lambda seed: duel(exact(VP(), seed), "ghvb-2", "ddim", 10, "log-snr"),
    ),
)
