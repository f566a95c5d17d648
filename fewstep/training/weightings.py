"""Weights of the noise levels in the loss, each as in its paper, all stated for one thing: the squared error of eps.

At a known state the errors of x0, eps and every other kind are multiples of each other, so a weight of one is a weight
of all: `|x0 error|^2 = |eps error|^2 / SNR` with `SNR = alpha^2 / sigma^2`. `Objective` converts it to what the
network predicts; two networks of different kinds then minimise the same loss.

Towards pure noise SNR tends to 0, and weights in the sense of x0 grow like 1 / SNR. SNR is held within `e^-40` and
`e^40`, so that all are finite from `t_min` to `t_max` of every process.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method, made
from fewstep.core.prediction import coefficients, scales
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.training.objective import Weighting

METHODS = (
    Method(
        "uniform-weighting",
        kind="weighting",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="weight 1 on the squared error of eps, x0, v or another kind",
        use="uniform",
    ),
    Method(
        "snr-weighting",
        kind="weighting",
        paper="Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022)",
        arxiv="2202.00512",
        claim="SNR, max(SNR, 1) or SNR + 1 on the squared error of x0",
        use="snr",
    ),
    Method(
        "elbo-weighting",
        kind="weighting",
        paper="Variational Diffusion Models (Kingma et al., 2021)",
        arxiv="2107.00630",
        claim="the likelihood's weight: the loss is the variational bound",
        use="elbo",
    ),
    Method(
        "min-snr",
        kind="weighting",
        paper="Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023)",
        arxiv="2303.09556",
        claim="min(SNR, gamma) on the squared error of x0",
        use="min_snr",
    ),
    Method(
        "debiased",
        kind="weighting",
        paper="Debias the Training of Diffusion Models (Yu et al., 2023)",
        arxiv="2310.08442",
        claim="1 / sqrt(SNR) on the squared error of eps: between the losses of eps and of x0",
        use="debiased",
    ),
    Method(
        "p2",
        kind="weighting",
        paper="Perception Prioritized Training of Diffusion Models (Choi et al., 2022)",
        arxiv="2204.00227",
        claim="1 / (k + SNR)^gamma on the squared error of eps",
        use="p2",
    ),
    Method(
        "edm-weighting",
        kind="weighting",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="the weight with which EDM's network has the same share of the loss at every level",
        use="edm",
    ),
    Method(
        "sigmoid-weighting",
        kind="weighting",
        paper="Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation (Kingma and Gao, 2023)",
        arxiv="2303.00848",
        claim="the bound's weight, times a sigmoid that fades out the finest noise",
        use="sigmoid",
    ),
)

SNR_WEIGHTS = ("snr", "truncated", "plus-one")
OVER = ("t", "log-snr")
_FURTHEST = 20.0  # of log(alpha / sigma), either way


def log_snr2(process: Process, t: Tensor) -> Tensor:
    """`log SNR = 2 log(alpha / sigma)`, float64, held within -40 and 40."""
    return 2 * process.log_snr(t).clamp(-_FURTHEST, _FURTHEST)


def weighting(name: str, **options: Any) -> Weighting:
    """The weighting of a registered name, with its options set: `weighting("min-snr", gamma=5)`.

    Raises ValueError for an unknown name or option, with the close ones.
    """
    found = made("weighting", name, 2, **options)
    found(VP(), torch.tensor([0.5], dtype=torch.float64))  # a wrong value fails at once, not in the first step
    return found


def uniform(process: Process, t: Tensor, kind: str = "eps") -> Tensor:
    """1 on the squared error of `kind` (eps: Ho et al., eq. 14; velocity: Lipman et al., 2023)."""
    snr_, (alpha, sigma, dalpha, dsigma) = log_snr2(process, t).exp(), scales(process, t)
    a, b = coefficients(kind, alpha, sigma, dalpha, dsigma)
    return (b - a / snr_.sqrt()).square()


def snr(process: Process, t: Tensor, variant: str = "truncated") -> Tensor:
    """On the squared error of x0: "snr" SNR, "truncated" max(SNR, 1), "plus-one" SNR + 1 (Salimans and Ho, sec. 4)."""
    if variant not in SNR_WEIGHTS:
        raise suggest("variant of snr-weighting", variant, SNR_WEIGHTS)
    inverse = (-log_snr2(process, t)).exp()
    if variant == "snr":
        return torch.ones_like(inverse)
    return inverse.clamp_min(1.0) if variant == "truncated" else 1 + inverse


def elbo(process: Process, t: Tensor, over: str = "t") -> Tensor:
    """`-1/2 d(log SNR)/dt` on the squared error of eps: with t drawn uniformly, the variational bound (Kingma et al.).

    In nats per value, up to the terms of the process's ends, and divided by the length of its clock.

    over: "t", or "log-snr" where noise levels are drawn uniformly in log-SNR, which includes the slope already.
    """
    return 0.5 * _slope(process, t, over)


def min_snr(process: Process, t: Tensor, gamma: float = 5.0) -> Tensor:
    """`min(SNR, gamma)` on the squared error of x0: `min(SNR, gamma) / SNR` on that of eps (Hang et al., sec. 3.4)."""
    _positive("gamma", gamma)
    return (gamma * (-log_snr2(process, t)).exp()).clamp_max(1.0)


def debiased(process: Process, t: Tensor) -> Tensor:
    """`1 / sqrt(SNR)`: the geometric mean of the eps loss's weight, 1, and the x0 loss's, 1 / SNR (Yu et al.)."""
    return (-0.5 * log_snr2(process, t)).exp()


def p2(process: Process, t: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """`1 / (k + SNR)^gamma` (Choi et al., eq. 8); gamma 0.5 and 1 are theirs, 0 is the eps loss."""
    _positive("k", k)
    return (k + log_snr2(process, t).exp()) ** -gamma


def edm(process: Process, t: Tensor, data_std: float = 0.5) -> Tensor:
    """`(s^2 + d^2) / (s d)^2` on the squared error of x0, `s = sigma / alpha`: `1 + s^2 / d^2` on eps's (Table 1)."""
    _positive("data_std", data_std)
    return 1 + (-log_snr2(process, t)).exp() / data_std**2


def sigmoid(process: Process, t: Tensor, bias: float = -1.0, over: str = "t") -> Tensor:
    """`-d(log SNR)/dt sigmoid(bias - log SNR)` on the squared error of eps.

    Kingma and Gao's weight with Hoogeboom et al.'s bias (2024, arXiv:2410.19324); on x0 it is
    `e^bias sigmoid(log SNR - bias)` times the slope. over: as in `elbo`.
    """
    return torch.sigmoid(bias - log_snr2(process, t)) * _slope(process, t, over)


def _slope(process: Process, t: Tensor, over: str) -> Tensor:
    """`-d(log SNR)/dt`; towards alpha = 0 it grows no further than at the last SNR."""
    if over not in OVER:
        raise suggest("draw of the noise levels", over, OVER)
    log_snr, (alpha, sigma, dalpha, dsigma) = log_snr2(process, t), scales(process, t)
    if over == "log-snr":
        return torch.ones_like(log_snr)
    return 2 * (dsigma / sigma - dalpha / torch.maximum(alpha, sigma * math.exp(-_FURTHEST)))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
