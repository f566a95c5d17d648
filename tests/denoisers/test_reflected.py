"""Denoisers of reflected diffusion against densities, simulations and each other.

Methods: reflected-dataset, reflected-density, reflected-network.
"""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.reflected import ReflectedDataset, ReflectedDensity, ReflectedNetwork
from fewstep.networks.mlp import MLP
from fewstep.processes.reflected import Reflected, fold
from fewstep.processes.ve import VE
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit

F64 = torch.float64
PROCESS = Reflected()


def density() -> ReflectedDensity:
    """Two coordinates: a heat kernel at the left wall of width 0.15, and 1 + 0.9 cos(2 pi x), highest at both walls."""
    n = math.pi * torch.arange(1, 13, dtype=F64)
    c = torch.zeros(2, 12, dtype=F64)
    c[0] = 2 * (-0.5 * (0.15 * n) ** 2).exp()
    c[1, 1] = 0.9
    return ReflectedDensity(c, PROCESS)


def variation(model: ReflectedDensity, x: torch.Tensor, bins: int = 16) -> float:
    """Total variation between the samples' shares and the exact ones, the larger of the coordinates."""
    edges = torch.linspace(0, 1, bins + 1, dtype=F64)
    exact = model.cumulative(edges[:, None].expand(-1, x.shape[1])).diff(dim=0)
    shares = torch.stack([torch.histc(column.double(), bins, 0, 1) / len(x) for column in x.T], dim=1)
    return float(0.5 * (shares - exact).abs().sum(0).max())


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_score_is_the_derivative_of_the_log_likelihood(t):
    model, time = density(), torch.tensor(t, dtype=F64)
    x = torch.rand(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_(True)
    score = torch.autograd.grad(model.log_likelihood(x, time).sum(), x)[0]
    torch.testing.assert_close(model(x.detach(), time).score, score, rtol=1e-7, atol=1e-9)
    each = torch.full((7,), t, dtype=F64)
    torch.testing.assert_close(model(x.detach(), each).eps, model(x.detach(), time).eps)


def test_the_data_set_is_the_mean_of_its_kernels():
    """By autograd on the mixture of products, and by the cosine series of two points."""
    data = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    model, time = ReflectedDataset(data, PROCESS), torch.tensor(0.6, dtype=F64)
    x = 3 * torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    std = PROCESS.sigma(time)
    y = x.clone().requires_grad_(True)
    logs = PROCESS.kernel(y.unsqueeze(1), data, std)[0].flatten(2).sum(-1)
    score = torch.autograd.grad(logs.logsumexp(1).sum(), y)[0]
    torch.testing.assert_close(model(x, time).score, score, rtol=1e-9, atol=1e-9)
    n = math.pi * torch.arange(1, 60, dtype=F64)
    points = torch.tensor([[0.2], [0.9]], dtype=F64)
    series = ReflectedDensity.__new__(ReflectedDensity)
    torch.nn.Module.__init__(series)
    series.process, series.coefficients, series.frequencies = PROCESS, 2 * (points * n).cos().mean(0, True), n
    x, times = torch.linspace(-1, 3, 9, dtype=F64)[:, None], torch.linspace(0.6, 1, 9, dtype=F64)
    torch.testing.assert_close(ReflectedDataset(points, PROCESS)(x, times).eps, series(x, times).eps)


def test_the_score_is_that_of_simulated_paths():
    """In each of eight bins, the mean of the kernel's score over simulated pairs is the score of the marginal."""
    model, time, n = density(), torch.tensor(0.55, dtype=F64), 60_000
    std = PROCESS.sigma(time)
    x0 = model.sample(n, 3)
    x, _ = fold(x0 + std * torch.randn(n, 2, generator=torch.Generator().manual_seed(4), dtype=F64))
    target, exact = PROCESS.kernel(x, x0, std)[1], -model(x, time).eps
    for bin_ in range(8):
        for d in range(2):
            inside = (x[:, d] * 8).long().clamp_max(7) == bin_
            error = (target - exact)[inside, d]
            assert abs(float(error.mean())) < 4.5 * float(error.std()) / math.sqrt(len(error))


def test_the_exact_samples_have_the_density():
    model = density()
    assert variation(model, model.sample(20_000, 5)) < 0.03
    edges = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    torch.testing.assert_close(model.cumulative(edges), edges, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["dataset", "density", "network"])
def test_every_score_has_the_symmetry_of_the_mirrors(kind):
    """Odd about each wall and of period 2, so that folding at the end is folding at every step."""
    if kind == "dataset":
        model = ReflectedDataset(torch.rand(6, 2, generator=torch.Generator().manual_seed(1)), PROCESS)
    elif kind == "density":
        model = density()
    else:
        model = ReflectedNetwork(MLP((2,), width=8, depth=1).double(), PROCESS, shape=(2,))
        torch.nn.init.normal_(model.network.last.weight, generator=torch.Generator().manual_seed(3))
    x = torch.rand(5, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor(0.4, dtype=F64)
    eps = model(x, t).eps
    assert float(eps.detach().abs().max()) > 1e-3
    torch.testing.assert_close(model(-x, t).eps, -eps)
    torch.testing.assert_close(model(x + 4, t).eps, eps)
    torch.testing.assert_close(model(2 - x, t).eps, -eps)


@pytest.mark.parametrize("solver", ["ddpm", "heun"])
def test_variation_falls_with_steps_and_no_sample_leaves_the_cube(solver):
    model = density()
    found = []
    for steps in (4, 12, 60):
        x = sample(model, 8000, steps=steps, solver=solver, batch_size=8000, dtype=F64)
        assert 0 <= float(x.min()) and float(x.max()) <= 1
        found.append(variation(model, x))
    assert found[0] > found[1] > 0.9 * found[2] and found[2] < 0.05, found


def test_a_data_set_is_found_again():
    data = torch.tensor([[0.0, 0.4], [1.0, 0.9], [0.5, 0.1]], dtype=F64)
    x = sample(ReflectedDataset(data, PROCESS), 300, steps=30, dtype=F64)
    away = torch.cdist(x, data)
    assert float(away.min(1).values.max()) < 0.02
    assert bool((torch.bincount(away.argmin(1), minlength=3) > 70).all())


@pytest.mark.slow
def test_a_network_learns_the_exact_score():
    """On data in [-1, 3]: the trained answer beside the exact one, and samples within the walls."""
    model = density()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP((2,), width=48, depth=2)
    made = ReflectedNetwork(network, PROCESS, shape=(2,), value_range=(-1.0, 3.0))
    data = (4 * model.sample(4000, 1) - 1).float()
    torch.testing.assert_close(made.encode(data), (data + 1) / 4)
    trained = fit(made, made.encode(data), steps=500, batch=256, lr=3e-3)
    x, t = torch.rand(512, 2, generator=torch.Generator().manual_seed(1)), torch.tensor(0.55)
    with torch.no_grad():
        error = (trained(x, t).eps - model(x, t).eps).square().mean()
    assert float(error) < 0.15 * float(model(x, t).eps.square().mean())
    y = sample(trained, 2000, steps=20, batch_size=2000)
    assert -1 <= float(y.min()) and float(y.max()) <= 3
    assert variation(model, (y + 1) / 4) < 0.12


def test_the_loss_has_its_minimum_at_the_exact_score():
    """The target's mean error against the exact eps is zero, in float64 and at every noise level."""
    model, n = density(), 40_000
    x0 = model.sample(n, 7)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(8), dtype=F64)
    t = torch.rand(n, generator=torch.Generator().manual_seed(9), dtype=F64)
    made = ReflectedNetwork(MLP((2,), width=8, depth=1).double(), PROCESS, shape=(2,))
    output, target = made.loss_pair(x0, eps, t)
    assert output.shape == target.shape == (n, 2)
    inside, _ = fold(x0 + PROCESS.sigma(t)[:, None] * eps)
    exact = model(inside, t).eps
    error = (target - exact) * exact
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(error.numel())
    assert float((target - exact).square().mean()) < float(target.square().mean())


def test_the_network_as_a_folder(tmp_path):
    made = ReflectedNetwork(MLP((2,), width=8, depth=1), PROCESS, shape=(2,), value_range=(-1.0, 3.0)).eval()
    torch.nn.init.normal_(made.network.last.weight)
    again = load_model(save_model(made, tmp_path / "model"))
    assert type(again) is ReflectedNetwork
    assert torch.equal(sample(made, 3, steps=4), sample(again, 3, steps=4))


def test_bad_input():
    with pytest.raises(ValueError, match="predicts 'eps'"):
        ReflectedNetwork(MLP((2,)), PROCESS, predicts="x0")
    with pytest.raises(ValueError, match="lie in"):
        ReflectedDataset(torch.tensor([[1.5]]), PROCESS)
    with pytest.raises(ValueError, match=r"needs the process Reflected"):
        ReflectedDensity(torch.zeros(1, 2), VE())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        ReflectedDensity(torch.tensor([[1.2]]), PROCESS)
