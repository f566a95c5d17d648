"""Alpha-blending between two densities. Method: iadb."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.interpolant import MixtureInterpolant, drawn_from
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.iadb import AlphaBlending
from fewstep.processes.interpolants import Interpolant
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit

F64 = torch.float64


def two() -> tuple[GaussianMixture, GaussianMixture]:
    """Two mixtures in the plane, neither near a normal."""
    data = GaussianMixture(
        torch.tensor([1.0, 2, 1]),
        torch.tensor([[1.0, 1], [-1, 0.5], [0, -1.2]]),
        torch.tensor([[0.2, 0.3], [0.25, 0.2], [0.2, 0.3]]),
        Flow(),
    )
    other = GaussianMixture(
        torch.ones(2), torch.tensor([[1.5, 0], [-1.5, 0.3]]), torch.tensor([[0.4, 0.5], [0.4, 0.3]]), Flow()
    )
    return data, other


@pytest.fixture(scope="module")
def exact() -> MixtureInterpolant:
    return MixtureInterpolant.independent(*two(), Interpolant())


def test_the_other_density_is_the_mixture_that_was_asked_for():
    process = AlphaBlending(weights=(1.0, 3.0), means=(2.0, 0.0, 1.0, -1.0, 0.5, 0.0), stds=(0.1, 0.4))
    n = 10_000
    source = Noise(3)
    x = process.start(lambda draw: source.normal(draw, (n, 3), "cpu", F64))
    generator = torch.Generator().manual_seed(1)
    y = process.eps(lambda: torch.randn(n, 3, generator=generator, dtype=F64))
    means, shares = torch.tensor([[2.0, 0, 1], [-1, 0.5, 0]], dtype=F64), torch.tensor([0.25, 0.75], dtype=F64)
    mean = shares @ means
    scatter = torch.einsum("k,ki,kj->ij", shares, means - mean, means - mean)
    covariance = scatter + (0.25 * 0.01 + 0.75 * 0.16) * torch.eye(3, dtype=F64)
    for drawn in (x, y):
        torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=5 * 1.4 / math.sqrt(n))
        torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0, atol=5 * 3 / math.sqrt(n))
    again = process.start(lambda draw: Noise(3, first=5).normal(draw, (2, 3), "cpu", F64))
    assert torch.equal(again, x[5:7])


def test_without_a_mixture_it_is_the_flow():
    source = Noise(3)
    normal = lambda draw: source.normal(draw, (4, 3), "cpu", F64)  # noqa: E731
    assert torch.equal(AlphaBlending().start(normal), normal(0))


def test_ddim_is_the_papers_step(exact):
    """`x + d(alpha) D`, D = E[x0 - x1 | x] the difference of the posterior means."""
    x = two()[1].sample(9, 4)
    made = plan(exact.process, "ddim", 7, "uniform")(exact, x, dtype=F64)
    for i in range(7):
        prediction = exact(x, torch.tensor(1 - i / 7, dtype=F64))
        x = x + (prediction.data - prediction.other) / 7
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)


def test_the_three_targets_are_one(exact):
    x, t = two()[1].sample(9, 4), torch.linspace(0.02, 1, 9, dtype=F64)
    prediction = exact(x, t)
    torch.testing.assert_close(prediction.x0, prediction.data, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prediction.eps, prediction.other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prediction.to("flow"), prediction.other - prediction.data, rtol=1e-10, atol=1e-10)


def solve(exact, solver: str, n: int) -> torch.Tensor:
    times = [1 - 0.9 * i / n for i in range(n + 1)]
    return plan(exact.process, solver, timesteps=times)(exact, two()[1].sample(8, 4), dtype=F64)


@pytest.fixture(scope="module")
def fine(exact) -> torch.Tensor:
    return solve(exact, "vab-4", 500)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("vab-2", 2), ("vab-3", 3)])
def test_solvers_keep_their_orders_between_two_densities(solver, order, exact, fine):
    errors = [float((solve(exact, solver, n) - fine).norm()) for n in (96, 192)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["flow", "x0"])
def test_a_network_learns_the_difference(predicts, exact):
    """Trained on samples of both, it explains most of E[x1 - x0 | x] at moderate times, whichever target it has."""
    data, other = two()
    process = AlphaBlending()
    torch.manual_seed(0)
    model = NetworkDenoiser(MLP(width=32, depth=1), process, predicts, shape=(2,), value_range=None)
    coupling = drawn_from(other.sample(4096, 2).float())
    made = fit(model, data.sample(4096, 1).float(), steps=400, batch=128, lr=4e-3, coupling=coupling)
    x0, x1 = exact.sample_pairs(2048, 9)
    t = torch.linspace(0.2, 0.8, 2048, dtype=F64)
    x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1
    wanted = exact(x, t).to("flow")
    with torch.no_grad():
        found = made(x.float(), t).to("flow").double()
    assert float((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()) < 0.1


def test_a_model_samples_from_its_own_density(exact):
    process = AlphaBlending(weights=(1.0, 1.0), means=(1.5, 0.0, -1.5, 0.3), stds=(0.6, 0.6))
    other = GaussianMixture(torch.ones(2), torch.tensor([[1.5, 0], [-1.5, 0.3]]), torch.tensor([0.36, 0.36]), Flow())
    model = MixtureInterpolant.independent(
        two()[0], other, Interpolant(weights=process.weights, means=process.means, stds=process.stds)
    )
    x = sample(model, 4000, steps=20, solver="vab-2", timesteps="uniform", dtype=F64)
    reference = two()[0].sample(40_000, 1)
    torch.testing.assert_close(x.mean(0), reference.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(x.T.cov(), reference.T.cov(), rtol=0, atol=0.08)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": (1.0,), "stds": (1.0,)},
        {"weights": (1.0, -1.0), "means": (0.0, 1.0), "stds": (1.0, 1.0)},
        {"weights": (1.0, 1.0), "means": (0.0, 1.0, 2.0), "stds": (1.0, 1.0)},
        {"means": (0.0,)},
    ],
)
def test_wrong_mixtures(options):
    with pytest.raises(ValueError, match="positive weights"):
        AlphaBlending(**options)


def test_means_that_do_not_fit_the_samples():
    process = AlphaBlending(weights=(1.0,), means=(0.0, 1.0), stds=(1.0,))
    with pytest.raises(ValueError, match="samples of 3 numbers need 1 or 3 means, got 2"):
        process.start(lambda draw: torch.zeros(4, 3))
