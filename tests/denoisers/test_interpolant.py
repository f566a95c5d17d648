"""What interpolants predict. Methods: mixture-interpolant, interpolant-network."""

from __future__ import annotations

import math

import pytest
import torch
from sampled import sampled

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.interpolant import InterpolantNetwork, MixtureInterpolant, drawn_from
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.interpolants import GAMMAS, PATHS, Interpolant
from fewstep.training.fit import fit

F64 = torch.float64
PAIRS = [(p, g) for p in PATHS for g in GAMMAS if p != "encoding-decoding" or g == "sin2"]
each = pytest.mark.parametrize("process", [Interpolant(path=p, latent=g) for p, g in PAIRS], ids=str)


def coupled(process: Interpolant) -> MixtureInterpolant:
    """Three components of joint covariance, x0 and x1 correlated, in three dimensions."""
    generator = torch.Generator().manual_seed(4)
    root = 0.4 * torch.randn(3, 6, 6, generator=generator, dtype=F64)
    means = torch.randn(3, 2, 3, generator=generator, dtype=F64)
    covariances = root @ root.mT + 0.05 * torch.eye(6, dtype=F64)
    return MixtureInterpolant(torch.tensor([1.0, 2.0, 0.5]), means, covariances, process)


def log_density(model: MixtureInterpolant, x: torch.Tensor, t: float) -> torch.Tensor:
    """Of x_t, from torch's own multivariate normals and the joint law of (x0, x1, z)."""
    a, b, _, _ = (float(c) for c in model.process.curve(torch.tensor(t, dtype=F64)))
    eye = torch.eye(3, dtype=F64)
    row = torch.cat((a * eye, b * eye), dim=1)
    joint = model.covariances.transpose(2, 3).reshape(3, 6, 6)
    logs = [
        weight + torch.distributions.MultivariateNormal(
            row @ mean.flatten(), row @ joint[k] @ row.T + model.process.gamma(t) ** 2 * eye
        ).log_prob(x)
        for k, (weight, mean) in enumerate(zip(model.log_weights, model.means, strict=True))
    ]  # fmt: skip
    return torch.stack(logs).logsumexp(0)


@each
def test_the_score_is_that_of_the_density(process):
    model = coupled(process)
    for t in (0.0, 0.31, 0.77, 1.0):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_(True)
        (wanted,) = torch.autograd.grad(log_density(model, x, t).sum(), x)
        found = model(x.detach(), torch.tensor(t, dtype=F64))
        torch.testing.assert_close(found.score, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.latent, -process.gamma(t) * wanted, rtol=1e-9, atol=1e-9)


@each
def test_the_velocity_carries_the_density(process):
    """The continuity equation: `d log p / dt + div v + v . grad log p = 0`, each term by its own route."""
    model, h = coupled(process), 1e-5
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for t in (0.22, 0.68):
        slope = (log_density(model, x, t + h) - log_density(model, x, t - h)) / (2 * h)
        field = lambda y, t=t: model(y.unsqueeze(0), torch.tensor(t, dtype=F64)).velocity[0]  # noqa: E731
        divergence = torch.stack([torch.autograd.functional.jacobian(field, y).trace() for y in x])
        prediction = model(x, torch.tensor(t, dtype=F64))
        flow = (prediction.velocity * prediction.score).sum(1)
        torch.testing.assert_close(slope + divergence + flow, torch.zeros(4, dtype=F64), rtol=0, atol=1e-6)


@each
def test_the_means_make_up_the_state(process):
    model, t = coupled(process), torch.linspace(0, 1, 6, dtype=F64)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = model(x, t)
    a, b, _, _ = (c.unsqueeze(1) for c in process.curve(t))
    rebuilt = a * found.data + b * found.other + process.gamma(t).unsqueeze(1) * found.latent
    torch.testing.assert_close(rebuilt, x, rtol=1e-9, atol=1e-9)
    one = torch.cat([model(x[i : i + 1], t[i]).value for i in range(6)])
    torch.testing.assert_close(found.value, one, rtol=1e-12, atol=1e-12)


def test_means_by_regression():
    """E[x0 | x] is the best guess: its error is orthogonal to functions of x, on pairs drawn from the joint law."""
    process = Interpolant(path="trigonometric", latent="brownian")
    model, n, t = coupled(process), 200_000, 0.4
    x0, x1 = model.sample_pairs(n, 2)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(8), dtype=F64)
    a, b, _, _ = process.curve(torch.tensor(t, dtype=F64))
    x = a * x0 + b * x1 + process.gamma(t) * z
    found = model(x, torch.tensor(t, dtype=F64))
    for guess, truth in ((found.data, x0), (found.other, x1), (found.latent, z)):
        for test in (torch.ones_like(x), x, torch.tanh(2 * x)):
            product = (guess - truth) * test
            assert float((product.mean(0).abs() / (product.std(0) / math.sqrt(n))).max()) < 5


def test_independent_mixtures():
    """With the standard normal as the other and no latent noise it is the Gaussian mixture's own denoiser."""
    generator = torch.Generator().manual_seed(5)
    data = GaussianMixture(
        torch.tensor([1.0, 3.0]), torch.randn(2, 3, generator=generator), torch.tensor([0.3, 0.1]), Flow()
    )
    other = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 1.0, Flow())
    model = MixtureInterpolant.independent(data, other, Interpolant())
    x, t = torch.randn(7, 3, generator=generator, dtype=F64), torch.linspace(0.05, 1, 7, dtype=F64)
    torch.testing.assert_close(model(x, t).velocity, data(x, t).velocity, rtol=1e-9, atol=1e-9)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="covariances must be"):
        MixtureInterpolant(torch.ones(2), torch.zeros(2, 2, 3), torch.ones(2, 3, 3), Interpolant())
    with pytest.raises(ValueError, match="positive definite"):
        MixtureInterpolant(torch.ones(1), torch.zeros(1, 2, 3), torch.zeros(1, 6, 6), Interpolant())
    with pytest.raises(ValueError, match=r"takes \(B"):
        coupled(Interpolant())(torch.zeros(2, 4), torch.tensor(0.5))


class Exact(torch.nn.Module):
    """A "network" that answers exactly, for tests of the loss."""

    def __init__(self, model: MixtureInterpolant, parts: str):
        super().__init__()
        self.model, self.parts, self.shift = model, parts, torch.nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found = self.model(x, t)
        both = {"velocity": found.velocity, "latent": found.latent}
        chosen = [both[self.parts]] if self.parts in both else [found.velocity, found.latent]
        return torch.cat(chosen, dim=1) + self.shift


@sampled("parts, latent", ["velocity", "latent", "both"], ["brownian", "sin2"])
def test_the_losses_are_least_at_the_exact_fields(parts, latent):
    """Their gradient in a shift of the answer is 0 within five standard errors, at each of several times."""
    process = Interpolant(latent=latent)
    model, n = coupled(process), 20_000
    x0, x1 = model.sample_pairs(n, 2)
    network = InterpolantNetwork(Exact(model, parts), process, parts, shape=(3,))
    torch.manual_seed(0)
    for t in (0.001, 0.3, 0.8):
        output, target = network.loss_pair(x0, x1, torch.full((n,), t, dtype=F64))
        assert output.shape == target.shape == (n, (12 if parts == "both" else 6))
        errors = (output - target).detach().mean(1)
        assert abs(float(errors.mean())) < 5 * float(errors.std()) / math.sqrt(n)


def test_antithetic_pairs_keep_the_gradient_finite_at_the_ends():
    """Near t = 0 the target's variance grows like 1 / t, that of its pairs' mean does not."""
    process = Interpolant(latent="brownian")
    model = coupled(process)
    x0, x1 = model.sample_pairs(4000, 2)
    network = InterpolantNetwork(Exact(model, "velocity"), process, "velocity", shape=(3,))
    torch.manual_seed(0)
    spread = []
    for t in (0.004, 0.001):
        output, target = network.loss_pair(x0, x1, torch.full((4000,), t, dtype=F64))
        error = (output - target).detach()
        spread.append((float(error.var()), float((error[:, :3] + error[:, 3:]).var())))
    assert spread[1][0] / spread[0][0] > 2.5
    assert spread[1][1] / spread[0][1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("path", PATHS)
def test_a_network_of_both_gives_the_means_back(path):
    process = Interpolant(path=path, latent="sin2")
    model = coupled(process)
    network = InterpolantNetwork(Exact(model, "both"), process, "both", shape=(3,))
    x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64), torch.tensor(0.37, dtype=F64)
    found, wanted = network(x, t), model(x, t)
    torch.testing.assert_close(found.velocity, wanted.velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.score, wanted.score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.data, wanted.data, rtol=1e-8, atol=1e-8)
    if path != "encoding-decoding":
        torch.testing.assert_close(found.other, wanted.other, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(network.latent(x, t), wanted.latent, rtol=1e-9, atol=1e-9)


def test_what_a_network_does_not_predict_is_said():
    process = Interpolant(latent="sin2")
    with pytest.raises(ValueError, match="predicts the velocity alone"):
        InterpolantNetwork(MLP(), process, "velocity").latent(torch.zeros(1, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="samples need the velocity"):
        InterpolantNetwork(MLP(), process, "latent")(torch.zeros(1, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="there is nothing to predict"):
        InterpolantNetwork(MLP(), Interpolant(), "both")
    with pytest.raises(ValueError, match="did you mean 'velocity'"):
        InterpolantNetwork(MLP(), process, "velocities")


@pytest.mark.slow
def test_training_nears_the_exact_fields():
    """With more steps the regression error falls, and ends well under the fields' own variance."""
    process = Interpolant(latent="brownian")
    data = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 1], [-1, -0.5]]), torch.tensor([0.15, 0.2]), Flow())
    other = GaussianMixture(torch.ones(2), torch.tensor([[1.2, -1], [-1, 0.8]]), torch.tensor([0.2, 0.15]), Flow())
    exact = MixtureInterpolant.independent(data, other, process)
    x0, x1 = exact.sample_pairs(2048, 9)
    t = torch.linspace(0.1, 0.9, 2048, dtype=F64)
    z = torch.randn(2048, 2, generator=torch.Generator().manual_seed(8), dtype=F64)
    x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1 + process.gamma(t).unsqueeze(1) * z
    wanted = exact(x, t)
    errors = []
    for steps in (40, 400):
        torch.manual_seed(0)
        network = InterpolantNetwork(MLP(width=32, depth=1, out=2), process, "both", shape=(2,))
        coupling = drawn_from(other.sample(4096, 2).float())
        made = fit(network, data.sample(4096, 1).float(), steps=steps, batch=128, lr=4e-3, coupling=coupling)
        with torch.no_grad():
            found = made(x.float(), t)
        errors.append(
            [
                float((a.double() - b).square().mean() / b.var(0).mean())
                for a, b in ((found.velocity, wanted.velocity), (found.latent, wanted.latent))
            ]
        )
    assert all(late < 0.5 * early for early, late in zip(*errors, strict=True))
    assert max(errors[1]) < 0.2
