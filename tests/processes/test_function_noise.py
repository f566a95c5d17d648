"""Noise that is a Gaussian process: its covariance, the white limit, and functions filled in against the exact answer.

Methods: function-noise.
"""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.gaussian_process.kernels import RBF, Matern

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.denoisers.coordinates import CoordinateDenoiser
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.discrete import Discrete
from fewstep.processes.function_noise import FunctionNoise, covariance, factor
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

F64 = torch.float64


def irregular(batch, n, seed=0):
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(seed), dtype=F64).sort(-1).values


@pytest.mark.parametrize(
    ("kernel", "other"),
    [
        ("rbf", RBF(0.3)),
        ("ou", Matern(0.3, nu=0.5)),
        ("matern-3/2", Matern(0.3, nu=1.5)),
        ("matern-5/2", Matern(0.3, nu=2.5)),
    ],
)
def test_kernels_are_sklearns(kernel, other):
    times = irregular(2, 7)
    for row, found in zip(times, covariance(times, kernel, 0.3), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(other(row[:, None].numpy())), rtol=1e-12, atol=1e-12)


def test_noise_has_the_kernels_covariance_on_each_samples_own_times():
    times = irregular(2, 5)
    noise = FunctionNoise("rbf", 0.3, jitter=1e-4)
    for row in times:
        y = row.expand(40_000, 5)
        drawn = noise.decode(Noise(1).normal(0, (40_000, 3, 5), "cpu", F64), {"y": y})
        wanted = covariance(row, "rbf", 0.3, 1e-4)
        for channel in range(3):
            torch.testing.assert_close(drawn[:, channel].T.cov(), wanted, rtol=0, atol=0.03)
        torch.testing.assert_close((drawn[:, 0] * drawn[:, 1]).mean(0), torch.zeros(5, dtype=F64), rtol=0, atol=0.03)
    both = noise.decode(torch.ones(2, 5, dtype=F64), {"y": times})
    for row, found in zip(times, both, strict=True):
        torch.testing.assert_close(found, factor(covariance(row, "rbf", 0.3, 1e-4)).sum(1))


def test_encode_inverts_decode_and_rows_below_the_times_do_not_matter():
    times = irregular(4, 6)
    noise = FunctionNoise("matern-3/2", 0.2)
    data = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
    y = {"y": times}
    torch.testing.assert_close(noise.decode(noise.encode(data, y), y), data)
    more = {"y": torch.stack([times, torch.zeros_like(times)], 1)}
    assert torch.equal(noise.encode(data, y), noise.encode(data, more))


@pytest.mark.parametrize("process", [VP(), Discrete.linear(steps=50)], ids=["vp", "discrete"])
def test_white_noise_recovers_the_base_process_bit_for_bit(process):
    torch.manual_seed(0)
    network, shape = MLP((5,), width=16, depth=1, picture=5), (5,)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    conditions = {"y": Picture((5,))}
    plain = NetworkDenoiser(network, process, "eps", shape, conditions).eval()
    model = CoordinateDenoiser(network, process, FunctionNoise("white"), "eps", shape, conditions).eval()
    times = irregular(3, 5).float()
    for solver in ("ddpm", "dpmpp-2m"):
        made = plan(process, solver, 4)
        assert torch.equal(sample(model, 3, plan=made, y=times), sample(plain, 3, plan=made, y=times))
    x0, eps, t = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    for ours, theirs in zip(model.loss_pair(x0, eps, t, y=times), plain.loss_pair(x0, eps, t, y=times), strict=True):
        assert torch.equal(ours, theirs)


def test_bad_input_is_said_at_once():
    noise = FunctionNoise("rbf", 0.2)
    with pytest.raises(ValueError, match="not positive definite"):
        noise.encode(torch.zeros(1, 3), {"y": torch.tensor([[0.1, 0.4, 0.4]])})
    with pytest.raises(ValueError, match="observation times"):
        noise.encode(torch.zeros(1, 3), {})
    with pytest.raises(ValueError, match="do not fit"):
        noise.encode(torch.zeros(1, 4), {"y": torch.tensor([[0.1, 0.4, 0.6]])})
    with pytest.raises(ValueError, match="did you mean"):
        FunctionNoise("rbff")
    with pytest.raises(ValueError, match="length must be positive"):
        FunctionNoise("ou", 0.0)


class Posterior(Denoiser):
    """The exact denoiser of a GP given observations, in whitened coordinates of the times asked for."""

    def __init__(self, noise, times, mean, spread):
        super().__init__()
        self.noise, self.y, self.process, self.shape = noise, times, VP(), tuple(times.shape)
        lower = noise.lower({"y": times[None]})[0]
        white = torch.linalg.solve_triangular(
            lower, torch.linalg.solve_triangular(lower, spread, upper=False).T, upper=False
        )
        centre = torch.linalg.solve_triangular(lower, mean[:, None], upper=False).T
        self.exact = GaussianMixture(torch.ones(1), centre, 0.5 * (white + white.T)[None], self.process)

    def forward(self, x, t, **condition):
        return self.exact(x, t)

    def decode(self, x, **condition):
        return self.noise.decode(x, {"y": self.y.expand(len(x), -1)})


def crps(draws, truth):
    """Of samples `(n, D)` at `(D,)`: E|X - truth| - E|X - X'| / 2, by order statistics."""
    n, ordered = len(draws), draws.sort(0).values
    rank = 2 * torch.arange(1, n + 1, dtype=F64)[:, None] - n - 1
    return (draws - truth).abs().mean(0) - (rank * ordered).sum(0) / n**2


def test_functions_are_filled_in_as_by_the_exact_posterior():
    """A GP with another kernel than the noise, observed at four irregular times with noise of 0.1."""
    seen, asked = irregular(1, 4, 1)[0], irregular(1, 6, 2)[0]
    values = torch.tensor([0.5, -0.2, -1.0, 0.3], dtype=F64)
    joint = covariance(torch.cat([seen, asked]), "rbf", 0.25)
    gain = torch.linalg.solve(joint[:4, :4] + 0.01 * torch.eye(4, dtype=F64), joint[:4, 4:]).T
    mean, spread = gain @ values, joint[4:, 4:] - gain @ joint[:4, 4:]
    spread = spread + 1e-6 * torch.eye(6, dtype=F64)
    model = Posterior(FunctionNoise("ou", 0.3), asked, mean, spread)
    n = 20_000
    drawn = sample(model, n, plan=plan(model.process, "dpmpp-3m", 30), seed=1, dtype=F64, batch_size=n)
    deviation = spread.diagonal().sqrt()
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.T.cov(), spread, rtol=0, atol=0.02)
    truth = mean + deviation * torch.tensor([0.0, 1.0, -2.0, 0.5, 1.5, -0.3], dtype=F64)
    z = (truth - mean) / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    wanted = deviation * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    torch.testing.assert_close(crps(drawn, truth), wanted, rtol=0.03, atol=0.005)
