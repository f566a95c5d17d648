"""Claims of fewstep/sampling/mcmc.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Noise, Outcome, compared, plan, sliced_wasserstein
from claims.problems import mixture
from fewstep.sampling.mcmc import Chains, denoising_mcmc
from fewstep.training.noise_classifier import exact_levels, noise_times, train_noise_classifier

TIMES = noise_times(VP(), 24, 0.02, 1.5)


def _spread(samples: Tensor) -> float:
    """Total variation of the modes' shares from the exact ones."""
    exact, centres = mixture(VP()).sample(200_000, 77), mixture(VP()).means
    counts = [torch.bincount(torch.cdist(x, centres).argmin(1), minlength=8) / len(x) for x in (samples, exact)]
    return float((counts[0] - counts[1]).abs().sum() / 2)


def _compare(found: Chains, what: str, seed: int) -> Outcome:
    model, n = mixture(VP()), 4096
    ours = found.samples.reshape(n, 2)
    # heun's n steps make 2 n - 1 evaluations: no fewer than the chains'
    made = plan(VP(), "heun", math.ceil((found.nfe_per_sample + 1) / 2), "karras")
    theirs = made(model, Noise(seed).normal(0, (n, 2), "cpu", F64), dtype=F64)
    exact = model.sample(n, seed + 1)
    figures = [sliced_wasserstein(samples, exact, projections=64).value for samples in (ours, theirs)]
    about = f"{what}, 512 chains of 8 samples, {found.nfe_per_sample:.2f} evaluations a sample, 24 levels from"
    about += f" sigma/alpha = 1.5 to 0.02, 8-component mixture, vp; the modes' shares are off by {_spread(ours):.3f},"
    about += f" heun's by {_spread(theirs):.3f}"
    return compared(figures, f"heun on karras times, {made.nfe} evaluations", about, unit="sliced Wasserstein distance")


def _exact(seed: int) -> Outcome:
    model = mixture(VP())
    found = denoising_mcmc(model, exact_levels(model, TIMES), 512, 8, times=TIMES, seed=seed, dtype=F64)
    return _compare(found, "exact noise levels", seed)


def _learned(seed: int) -> Outcome:
    model = mixture(VP())
    classifier = train_noise_classifier(VP(), model.sample(20_000, seed + 2), TIMES, seed=seed)
    return _compare(denoising_mcmc(model, classifier, 512, 8, seed=seed, dtype=F64), "learned noise levels", seed)


CLAIMS = (
    Claim("denoising-mcmc", "is nearer to the data's law than heun from noise at no fewer evaluations",
          _exact, quick=False),
    Claim("denoising-mcmc", "and so with a learned noise classifier", _learned, quick=False),
)  # fmt: skip
