"""Claims of fewstep/training/one_more_step.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.common import F64, Claim, Discrete, GaussianMixture, Noise, Outcome, plan, sliced_wasserstein, tolerance
from fewstep.training.one_more_step import OneMoreStep, train_one_more_step


@functools.cache
def _process() -> Discrete:
    """The first half of DDPM's table, which leaves alpha = 0.28 at its end."""
    return Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64)[:500].tolist())


def _images() -> GaussianMixture:
    """8x8 images: three in four bright, one in four dark, with a little texture."""
    means = torch.cat((torch.full((1, 1, 8, 8), 0.7), torch.full((1, 1, 8, 8), -0.7))).double()
    return GaussianMixture(torch.tensor([3.0, 1.0]), means, 0.15**2, _process())


def _brightness(x: Tensor, exact: Tensor) -> float:
    return sliced_wasserstein(x.flatten(1).mean(1, keepdim=True), exact.flatten(1).mean(1, keepdim=True)).value


def _bright(seed: int) -> Outcome:
    model, n = _images(), 2000
    base = plan(_process(), "dpmpp-2m", 20)
    step, paper = (train_one_more_step(model.sample(n, seed), seed=seed, **rank) for rank in ({}, {"rank": 0}))
    for part in (paper.rest, paper.spread):
        part.zero_()
    noise, exact = Noise(seed).normal(0, (n, 1, 8, 8), "cpu", F64), model.sample(n, seed + 1)
    made = (step.plan(base, _process()), paper.plan(base, _process()), base)
    ours, mean, theirs = (_brightness(p(model, noise, seed=seed, dtype=F64), exact) for p in made)
    about = "dpmpp-2m, 20 evaluations, bright and dark 8x8 images (a mixture with its exact denoiser), the first 500"
    about += f" betas of DDPM, {n} samples; with the mean alone {mean:.3g}"
    return Outcome(ours, theirs, "the same plan from N(0, I)", about, unit="Wasserstein distance of the brightness")


def _gaussian(seed: int) -> Outcome:
    """Mean and covariance of the start, which is affine in the noise, against those of x_T."""
    process, d, generator = _process(), 6, torch.Generator().manual_seed(seed)
    root, mean = torch.randn(d, d, generator=generator, dtype=F64), torch.randn(d, generator=generator, dtype=F64)
    covariance = root @ root.T
    step = OneMoreStep.from_moments(mean, covariance)
    zero = step.start(process, torch.zeros(1, d, dtype=F64))
    matrix = step.start(process, torch.eye(d, dtype=F64)) - zero
    alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
    wanted = alpha**2 * covariance + sigma**2 * torch.eye(d, dtype=F64)
    error = max(float((zero - alpha * mean).abs().max()), float((matrix.T @ matrix - wanted).abs().max()))
    return tolerance(error, 1e-12, f"Gaussian data in {d} dimensions, alpha_T = {alpha:.2f}", "error")


CLAIMS = (
    Claim("one-more-step", "brings the brightness of samples nearer to the data's", _bright, quick=False),
    Claim("one-more-step", "starts Gaussian data from the exact law", _gaussian),
)
