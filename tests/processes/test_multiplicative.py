"""Multiplicative noise: against simulated geometric Brownian motion and the exact posterior mean.

Methods: multiplicative-noise.
"""

from __future__ import annotations

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.denoisers.coordinates import CoordinateDenoiser, sample_as_data
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.networks.mlp import MLP
from fewstep.processes.multiplicative import Multiplicative, gamma_level, speckled
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64


def test_marginals_are_those_of_geometric_brownian_motion():
    """dx = x sqrt(d sigma^2 / dt) dw by small steps of Euler and Maruyama."""
    n, steps, sigma = 40_000, 400, 0.8
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n,), 2.0, dtype=F64)
    for _ in range(steps):
        x = x * (1 + sigma / steps**0.5 * torch.randn(n, generator=generator, dtype=F64))
    exact = speckled(torch.full((n,), 2.0, dtype=F64), sigma, torch.randn(n, generator=generator, dtype=F64))
    for sample in (x, exact):
        assert float(sample.mean()) == pytest.approx(2.0, abs=0.04)
        assert float(sample.log().mean()) == pytest.approx(0.6931 - 0.32, abs=0.015)
        assert float(sample.log().std()) == pytest.approx(sigma, abs=0.015)
    shares = torch.linspace(0.05, 0.95, 19, dtype=F64)
    torch.testing.assert_close(x.log().quantile(shares), exact.log().quantile(shares), rtol=0, atol=0.03)


def test_the_state_is_an_ordinary_noisy_logarithm():
    coordinates = Multiplicative()
    data = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.1
    eps = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    state = coordinates.state(speckled(data, 0.7, eps), 0.7)
    torch.testing.assert_close(state, coordinates.encode(data, {}) + 0.7 * eps)
    torch.testing.assert_close(coordinates.decode(coordinates.encode(data, {}), {}), data)
    with pytest.raises(ValueError, match="positive data, got values down to 0"):
        coordinates.encode(torch.tensor([[0.0, 1.0]]), {})


def test_gamma_speckle_has_this_level():
    sigma, mean = gamma_level(3.0)
    torch.manual_seed(0)
    drawn = torch.distributions.Gamma(3.0, 3.0).sample((100_000,)).double()
    assert float(drawn.log().std()) == pytest.approx(sigma, abs=0.01)
    assert float(drawn.log().mean()) == pytest.approx(mean, abs=0.01)
    data = torch.full((100_000,), 1.5, dtype=F64)
    state = Multiplicative().state(data * drawn, sigma, mean)
    assert float(state.mean()) == pytest.approx(float(data[0].log()), abs=0.01)
    with pytest.raises(ValueError, match="looks"):
        gamma_level(0.0)


class Exact(Denoiser):
    """Lognormal mixtures: the exact denoiser of the logarithm, the samples exponentials."""

    def __init__(self, weights, means, variances):
        super().__init__()
        self.process = EDM(0.002, 5.0)
        self.exact = GaussianMixture(weights, means, variances, self.process)
        self.shape = self.exact.shape

    def forward(self, x, t, **condition):
        return self.exact(x, t)

    def decode(self, x, **condition):
        return Multiplicative().decode(x, {})


def test_the_mean_of_restored_samples_is_the_posterior_mean():
    """log x0 ~ sum w N(m, v): given y, component k has weight w N(log y + s^2/2; m, v + s^2), and there
    log x0 ~ N(m + v (z - m)/(v + s^2), v s^2/(v + s^2)), whose exponential has a known mean."""
    weights = torch.tensor([0.4, 0.6], dtype=F64)
    means, variances = torch.tensor([[-1.0], [0.6]], dtype=F64), torch.tensor([[0.05], [0.2]], dtype=F64)
    model, sigma, n = Exact(weights, means, variances), 0.9, 15_000
    for noisy in (0.4, 1.0, 3.0):
        state = Multiplicative().state(torch.full((n, 1), noisy, dtype=F64), sigma)
        times = [sigma * (1 - i / 40) ** 2 for i in range(41)]
        x = sample_as_data(model, plan(model.process, "dpmpp-2m-sde", timesteps=times), state, seed=1)
        z, total = state[0], variances + sigma**2
        share = torch.softmax(weights[:, None].log() - 0.5 * ((z - means) ** 2 / total + total.log()), 0)
        inner = means + variances / total * (z - means) + 0.5 * variances * sigma**2 / total
        assert float(x.mean()) == pytest.approx(float((share * inner.exp()).sum()), rel=0.02)


def test_a_network_is_given_logarithms():
    model = CoordinateDenoiser(MLP((3,)), EDM(0.01, 1.0), Multiplicative(), "eps", (3,)).eval()
    data = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    made = plan(model.process, "ddim", timesteps=[0.5, 0.2, 0.0])
    # The untrained network predicts no noise, so the state stays: logarithm, drift taken out, and back.
    torch.testing.assert_close(
        sample_as_data(model, made, model.coordinates.state(data, 0.5)), data * torch.tensor(0.125).exp()
    )
