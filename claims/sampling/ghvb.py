"""Claims of fewstep/sampling/ghvb.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment
from claims.common import EDM, ENDPOINT, F64, VP, Answers, GaussianMixture, Noise, endpoint_error, plan
from claims.duels import duel, orders
from claims.problems import fine, mixture


def _linear(k: float) -> Answers:
    """`d(x / alpha) / d(log_snr) = -k x / alpha`."""
    return Answers(lambda x, t: k * x / t.to(x.dtype), EDM(1e-12, 80.0), predicts="eps")


def _stable(order: int, beta: float, kh: float, h: float = 0.05, n: int = 160) -> bool:
    """Whether steps of `k h = kh` shrink the state in the long run."""
    model = _linear(kh / h)
    times = [math.exp(2.0 - h * i) for i in range(n + 1)]
    made = plan(model.process, "ghvb", timesteps=times, order=order, beta=beta)
    states = made.run(model, torch.ones(1, 1, dtype=F64), dtype=F64, trajectory=True).trajectory
    size = torch.stack(states).abs().flatten()
    return bool(size[-40:].max() < size[-80:-40].max())


def _growth(solver: str, kh: float, n: int = 400, h: float = 0.1, **options: Any) -> float:
    """How often larger the state is after n steps of `k h = kh`: below 1 where it should be, as the solution decays."""
    model = _linear(kh / h)
    made = plan(model.process, solver, timesteps=[math.exp(2.0 - h * i) for i in range(n + 1)], **options)
    return float(made(model, torch.ones(1, 1, dtype=F64) / made.start[1], dtype=F64).abs())


def _where_plms_diverges(seed: int) -> Outcome:
    about = "order 4, beta = 0.4, d(x/alpha)/d(log-SNR) = -k x/alpha, 400 equal steps h of log-SNR, k h = 0.5"
    unit = "size of the state, from 1 at the start"
    return Outcome(_growth("ghvb-4", 0.5, beta=0.4), _growth("plms", 0.5), "plms", about, unit=unit)


def _interval(order: int, beta: float) -> float:
    """The longest stable `k h`, to 0.04."""
    low, high = 0.0, 2.56
    while high - low > 0.04:
        middle = (low + high) / 2
        low, high = (middle, high) if _stable(order, beta, middle) else (low, middle)
    return low


@experiment
def _stability(seed: int, order: int, beta: float, against: float) -> Outcome:
    about = f"order {order}, beta = {beta:g}, d(x/alpha)/d(log-SNR) = -k x/alpha, 160 equal steps h of log-SNR"
    ours, theirs = (_interval(order, b) for b in (beta, against))
    return Outcome(ours, theirs, f"beta = {against:g}", about, better="high", unit="longest stable k h")


def _towards_first(base: GaussianMixture, weight: float) -> Answers:
    """Classifier-free guidance towards the first component of a mixture."""
    first = base.basis.view(2, -1, 2)[:, 0]
    mean, covariance = first @ base.centres[0], first @ torch.diag(base.variances[0]) @ first.T
    wanted = GaussianMixture(torch.ones(1), mean[None], covariance[None], base.process)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        plain = base(x, t).x0
        return plain + weight * (wanted(x, t).x0 - plain)

    return Answers(answer, base.process)


@experiment
def _guided(seed: int, nfe: int, weight: float) -> Outcome:
    model, noise = _towards_first(mixture(VP()), weight), Noise(seed).normal(0, (256, 2), "cpu", F64)
    made = (fine(VP()), *(plan(VP(), solver, timesteps="log-snr", nfe=nfe) for solver in ("ghvb-2", "ab-2")))
    end, ours, theirs = (p(model, noise, dtype=F64) for p in made)
    figures = [endpoint_error(x, end).value for x in (ours, theirs)]
    about = f"ghvb-2, {nfe} evaluations, times log-snr, 8-component mixture guided to one by {weight:g}, vp, 256 noises"
    return compared(figures, f"ab-2, {nfe} evaluations", about, unit=ENDPOINT)


CLAIMS = (
    Claim("ghvb", "order 4 stays finite where plms diverges", _where_plms_diverges),
    Claim("ghvb", "orders 1 to 4 are as stated", orders(VP(), "ghvb")),
    Claim("ghvb", "order 2 is stable on longer steps at beta = 0.8 than Adams-Bashforth", _stability(2, 0.8, 1.0)),
    Claim("ghvb", "and on longer ones still at beta = 0.4", _stability(2, 0.4, 0.8), quick=False),
    Claim("ghvb", "order 4 is stable on longer steps at beta = 0.5 than Adams-Bashforth",
          _stability(4, 0.5, 1.0), quick=False),
    Claim("ghvb", "beats ab-2 at 10 evaluations under guidance of 8", _guided(10, 8.0)),
    Claim("ghvb", "beats ddim at 10 evaluations", duel(VP(), "ghvb-2", "ddim", 10, "log-snr")),
)  # fmt: skip
