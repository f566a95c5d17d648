"""Sampling with a learned variance, and the bound of its chain. Methods: ddpm-learned, chain-bound."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.learned_variance import SpreadPrediction, reverse_step
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.learned_variance import chain_bound, ddpm_learned

F64 = torch.float64
D2 = 0.3


class Optimal(Denoiser):
    """The exact answer for data N(0.4, D2) that also knows the best variance of the step down to `down[t]`."""

    def __init__(self, process, times):
        super().__init__()
        self.process, self.shape = process, (3,)
        self.exact = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.4), D2, process)
        self.down = dict(zip(times, times[1:], strict=False))

    def forward(self, x, t, **condition):
        made = reverse_step(self.process, t.double(), torch.tensor(self.down[float(t)], dtype=F64))
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        left = D2 * sigma**2 / (alpha**2 * D2 + sigma**2)
        fraction = torch.log1p(made.gap * left) / made.span
        return SpreadPrediction(self.exact(x, t).x0, "x0", x, t, self.process, fraction * torch.ones_like(x))


def test_they_are_registered():
    assert find("ddpm-learned") is ddpm_learned and find("chain-bound") is chain_bound


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_the_lower_bound_is_ddpm(process, make_mixture):
    model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
    for options in ({"fraction": 0.0}, {}):  # a mixture says nothing of its variance
        ours = plan(process, "ddpm-learned", 5, **options)(model, noise, seed=2, dtype=F64)
        torch.testing.assert_close(ours, plan(process, "ddpm", 5)(model, noise, seed=2, dtype=F64))


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_with_the_best_variance_three_steps_end_in_the_exact_law(process):
    """For Gaussian data every reverse step is Gaussian, so mean and variance are exact at any stride."""
    made = plan(process, "ddpm-learned", 3, end="min")
    model = Optimal(process, made.times)
    n, (alpha, sigma) = 20_000, (process.alpha(made.times[-1]), process.sigma(made.times[-1]))
    samples = made(model, Noise(0).normal(0, (n, 3), "cpu", F64), dtype=F64)
    assert float(samples.mean()) == pytest.approx(0.4 * alpha, abs=0.015)
    assert float(samples.var()) == pytest.approx(alpha**2 * D2 + sigma**2, rel=0.02)
    for fraction, factor in ((0.0, 0.8), (1.0, 1.2)):
        found = plan(process, "ddpm-learned", 3, end="min", fraction=fraction)(
            model, Noise(0).normal(0, (n, 3), "cpu", F64), dtype=F64
        )
        assert (float(found.var()) / float(samples.var()) < factor) == (fraction == 0)


def test_with_the_best_variance_the_bound_is_the_likelihood():
    process = Flow(t_min=0.05)  # starts at alpha = 0: nothing is lost at the start
    times = plan(process, "ddim", 4, end="min").times
    model = Optimal(process, times)
    x0 = 0.4 + math.sqrt(D2) * torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    spread2 = D2 + (process.sigma(times[-1]) / process.alpha(times[-1])) ** 2
    entropy = 1.5 * math.log(2 * math.pi * math.e * spread2)
    assert float(chain_bound(model, x0, times).mean()) == pytest.approx(entropy, abs=0.02)
    for fraction in (0.0, 1.0):
        assert float(chain_bound(model, x0[:4000], times, fraction).mean()) > entropy + 0.1


def test_bad_input(make_mixture):
    model = make_mixture(VP(), (3,))
    with pytest.raises(ValueError, match="fraction must be a finite number"):
        plan(VP(), "ddpm-learned", 2, fraction=math.nan)(model, torch.randn(2, 3))
    for times in ([0.5], [0.2, 0.5], [0.5, 0.0]):
        with pytest.raises(ValueError, match="two or more falling times that end at sigma > 0"):
            chain_bound(model, torch.randn(2, 3), times)
