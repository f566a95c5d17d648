"""The objective: weights in every kind of network, terms, distances; and training in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.fit import fit, rows_of
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective, Step

KINDS = [("x0", "none"), ("eps", "none"), ("v", "none"), ("velocity", "none"), ("flow", "none"), ("x0", "edm")]


class Fixed(nn.Module):
    """A network that answers what it is told, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.answer


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("predicts, precondition", KINDS)
def test_a_weight_counts_the_error_of_eps_whatever_the_network_predicts(process, predicts, precondition):
    generator = torch.Generator().manual_seed(0)
    x0, eps, answer = torch.randn(3, 6, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    model = NetworkDenoiser(Fixed(), process, predicts, (3,), precondition=precondition, data_std=0.7)
    model.network.answer.data.copy_(answer)
    losses = Objective(model, lambda process, t: 1 + t)(x0, eps, t, {})
    x = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
    error = model(x, t).eps - eps
    torch.testing.assert_close(losses, ((1 + t) * error.square().mean(1)).float(), rtol=1e-4, atol=1e-6)


def test_without_a_weight_the_networks_own_error_counts():
    model = NetworkDenoiser(Fixed(), VP(), "eps", (3,))
    eps = torch.randn(6, 3, dtype=torch.float64)
    losses = Objective(model)(torch.zeros(6, 3).double(), eps, torch.full((6,), 0.5).double(), {})
    torch.testing.assert_close(losses, eps.square().mean(1).float())
    assert torch.equal(model.own_error(torch.full((6,), 0.5)), torch.ones(6, dtype=torch.float64))


def test_terms_are_added_and_train_their_own_parameters():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.ones(()))

        def forward(self, step: Step) -> Tensor:
            assert step.x.shape == step.x0.shape and step.output.shape == step.target.shape
            return (step.x.mean(1) + self.shift).float()

    model, term = NetworkDenoiser(Fixed(), VP(), "eps", (3,)), Shift()
    x0, eps, t = torch.randn(6, 3).double(), torch.randn(6, 3).double(), torch.full((6,), 0.4).double()
    objective = Objective(model, distance=lambda error: error.abs().sum(1), terms=[(0.5, term)])
    losses = objective(x0, eps, t, {})
    alpha, sigma = VP().alpha(0.4), VP().sigma(0.4)
    expected = eps.abs().sum(1) + 0.5 * ((alpha * x0 + sigma * eps).mean(1) + 1)
    torch.testing.assert_close(losses, expected.float(), rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert float(term.shift.grad) == 3.0 and term.shift in set(objective.parameters())


def make(seed: int = 0) -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkDenoiser(MLP((2,), 32, 2), EDM(sigma_max=5.0), "x0", (2,), precondition="edm", data_std=1.0)


def test_fit_learns_a_gaussian_and_repeats():
    """The optimal x0 of N(m, s^2): m + s^2 / (s^2 + sigma^2) (x - m)."""
    data = torch.tensor([0.5, -1.0]) + 0.3 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    levels = NoiseLevels(EDM(sigma_max=5.0), "log-snr")
    before = torch.random.get_rng_state()
    one, two = (fit(make(), data, steps=250, batch=128, lr=3e-3, levels=levels, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    x, t = torch.tensor([[0.2, -0.7], [0.9, -0.6]]), torch.tensor(0.5)
    exact = torch.tensor([0.5, -1.0]) + 0.09 / (0.09 + 0.25) * (x - torch.tensor([0.5, -1.0]))
    with torch.no_grad():
        torch.testing.assert_close(one(x, t).x0, exact, rtol=0, atol=0.12)
        assert torch.equal(one(x, t).x0, two(x, t).x0)


def test_fit_takes_couplings_conditions_and_gradients_of_ones_own():
    seen: list[Tensor] = []

    def coupling(x0: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(eps)
        return eps.flip(0)

    def backward(losses: Tensor, t: Tensor, parameters: object) -> None:
        assert losses.shape == t.shape == (7,)
        (losses.sum() * 0).backward()

    watched: list[int] = []
    model = NetworkDenoiser(MLP((2,), 8, 1, classes=3), EDM(), "x0", (2,), {}, "edm", 1.0)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    draw = rows_of(torch.randn(20, 2), label=torch.arange(20) % 3)
    trained = fit(
        model, draw, steps=3, batch=7, coupling=coupling, backward=backward, watch=lambda *a: watched.append(a[0])
    )
    assert len(seen) == 3 and watched == [0, 1, 2]
    assert all(torch.allclose(value, before[name]) for name, value in trained.network.state_dict().items())


def test_rows_of_keeps_what_goes_with_them():
    data = torch.arange(10.0)[:, None]
    x, condition = rows_of(data, label=torch.arange(10))(50, torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 0].long(), condition["label"]) and len(x[:, 0].unique()) > 5


def test_faulty_arguments():
    with pytest.raises(ValueError, match="steps and batch must be at least 1, got 0 and 256"):
        fit(make(), torch.zeros(3, 2), steps=0)
    with pytest.raises(FloatingPointError, match="the loss was not finite"):
        fit(make(), torch.full((3, 2), math.nan), steps=2, batch=4)
