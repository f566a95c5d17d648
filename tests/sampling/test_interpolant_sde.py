"""One law for every diffusion. Method: interpolant-sde."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.interpolant import InterpolantNetwork, MixtureInterpolant
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.interpolants import Interpolant
from fewstep.sampling.build import plan

F64 = torch.float64
DATA = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 1], [-1, -0.5]]), torch.tensor([0.1, 0.2]), Flow())
OTHER = GaussianMixture(torch.ones(2), torch.tensor([[1.2, -1], [-1, 0.8]]), torch.tensor([0.2, 0.15]), Flow())


def model(**options) -> MixtureInterpolant:
    return MixtureInterpolant.independent(DATA, OTHER, Interpolant(**options))


@pytest.mark.parametrize(
    "options",
    [{"latent": "brownian"}, pytest.param({"path": "trigonometric", "latent": "sin2"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_ode_and_the_sdes_end_in_one_law(options):
    """The sliced distance from 4096 exact samples is under twice that between such samples: the Monte Carlo floor."""
    n, exact = 1024, model(**options)
    x1, reference = OTHER.sample(n, 5), DATA.sample(4096, 7)
    floor = max(sliced_wasserstein(DATA.sample(n, 8 + i), reference, projections=64).value for i in range(6))
    for epsilon in (0.0, 0.5, 3.0, lambda t: 0.3 * t):
        made = plan(exact.process, "interpolant-sde", 60, "uniform", epsilon=epsilon)
        x = made(exact, x1, seed=3, dtype=F64)
        assert sliced_wasserstein(x, reference, projections=64).value < 2 * floor


def test_the_spread_converges_at_first_order():
    """Between two Gaussians: the error of the variance at the end halves with the steps."""
    one = [GaussianMixture(torch.ones(1), torch.zeros(1, 1), v, Flow()) for v in (0.3, 1.5)]
    exact = MixtureInterpolant.independent(*one, Interpolant(latent="quadratic"))

    def variance(n: int) -> float:
        """Every step is linear, `x_b = c x_a + noise`: the variance is carried without sampling."""
        process, total = exact.process, 1.5
        made = plan(process, "interpolant-sde", n, "uniform", epsilon=1.0)
        for a, b in zip(made.times, made.times[1:], strict=False):
            step = plan(process, "interpolant-sde", timesteps=[a, b], epsilon=1.0)
            unit = torch.full((1, 1), 1.0 / step.start[1], dtype=F64)
            silent = Silent()
            slope = float(step(exact, unit, dtype=F64, source=silent))
            silent.value = 1.0
            push = float(step(exact, unit, dtype=F64, source=silent)) - slope
            total = slope**2 * total + push**2
        return total

    errors = [abs(variance(n) - 0.3) for n in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2) and errors[1] < 0.02


class Silent:
    """A source of one and the same number."""

    value = 0.0

    def normal(self, draw, shape, device="cpu", dtype=F64):
        return torch.full(shape, self.value, device=device, dtype=dtype)


def test_without_diffusion_it_is_the_first_order_step():
    process = Flow()
    mixture = GaussianMixture(torch.ones(1), torch.tensor([[0.4, -0.2]]), 0.3, process)
    noise = Noise(1).normal(0, (3, 2), "cpu", F64)
    ours = plan(process, "interpolant-sde", 6, epsilon=0.0)(mixture, noise, dtype=F64)
    torch.testing.assert_close(ours, plan(process, "ddim", 6)(mixture, noise, dtype=F64), rtol=1e-10, atol=1e-12)


def test_a_large_diffusion_forgets_the_noise():
    """k = 0: x_b = alpha_b x0 + sigma_b w."""
    process = Flow()
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.3, process)
    noise = Noise(1).normal(0, (3, 2), "cpu", F64)
    made = plan(process, "interpolant-sde", timesteps=[0.9, 0.5], epsilon=1e9)
    x0 = mixture(noise * 0.9, torch.tensor(0.9, dtype=F64)).x0
    wanted = 0.5 * x0 + 0.5 * Noise(4).normal(1, (3, 2), "cpu", F64)
    torch.testing.assert_close(made(mixture, noise, seed=4, dtype=F64), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("latent", ["brownian", "quadratic", "sin2"])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_finite_from_both_ends_with_a_network(latent, n):
    process = Interpolant(latent=latent)
    torch.manual_seed(0)
    network = InterpolantNetwork(MLP(width=8, depth=1, out=2), process, "both", shape=(2,))
    torch.nn.init.normal_(network.network.last.weight)
    for rule in ("uniform", "log-snr"):
        x = plan(process, "interpolant-sde", n, rule)(network, OTHER.sample(5, 1), dtype=F64)
        assert bool(torch.isfinite(x).all())


def test_what_cannot_be_done_is_said():
    process = Interpolant(latent="sin2")
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="a network that predicts 'both'"):
        plan(process, "interpolant-sde", 3)(InterpolantNetwork(MLP(), process, shape=(2,)), x)
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        plan(process, "interpolant-sde", 3, epsilon=-1.0)(model(latent="sin2"), x)
    with pytest.raises(ValueError, match="there is no score"):
        two = Interpolant(weights=(1.0,), means=(0.5,), stds=(1.0,))
        plan(two, "interpolant-sde", 3)(MixtureInterpolant.independent(DATA, OTHER, two), x)
    assert isinstance(model(latent="sin2")(x.double(), torch.tensor(0.5)), Prediction)
