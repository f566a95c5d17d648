"""Residuals of the clean estimate. Method: constraint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.core.methods import find
from fewstep.core.prediction import KINDS
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.constraint import Constraint, x0_error
from fewstep.training.fit import fit
from fewstep.training.objective import Objective, Step

F64 = torch.float64
T = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=F64)


def test_it_is_registered():
    assert find("constraint") is Constraint


class Answer(nn.Module):
    """A fixed function of x and the noise level."""

    def __init__(self, answer=lambda x, noise: torch.sin(2 * x)):
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x, noise, y=None):
        return self.answer(x, noise) * self.scale


def made(denoiser, condition=None):
    x0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    output, target = denoiser.loss_pair(x0, eps, T)
    return Step(denoiser, x0, eps, T, condition or {}, output, target)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
@pytest.mark.parametrize("kind", [*KINDS, "edm"])
def test_the_clean_estimate_is_the_denoisers(process, kind):
    edm = kind == "edm"
    denoiser = NetworkDenoiser(
        Answer(), process, "x0" if edm else kind, (3,), precondition="edm" if edm else "none", data_std=0.7
    )
    step = made(denoiser)
    torch.testing.assert_close(step.x0 + x0_error(step), denoiser(step.x, T).x0)


def test_the_term_by_hand():
    process, y = Flow(), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    denoiser = NetworkDenoiser(Answer(), process, "v", (3,))
    step = made(denoiser, {"y": y})
    found = Constraint(lambda x0, c: torch.stack([x0.sum(1) - c["y"], x0[:, 0] ** 2], dim=1), floor=0.2)(step)
    x0 = denoiser(step.x, T).x0
    squared = ((x0.sum(1) - y) ** 2 + x0[:, 0] ** 4) / 2
    torch.testing.assert_close(found, 0.5 * squared / (T**2 / (T**2 + (1 - T) ** 2) + 0.04))


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_a_linear_equation_costs_nothing_at_the_optimum(process):
    """Data whose sum is zero (but for a variance of 1e-12): the exact posterior mean has sum zero at every level."""
    one = torch.ones(3, dtype=F64)
    plane = torch.eye(3, dtype=F64) - torch.outer(one, one) / 3
    means = torch.tensor([[1.0, -0.4, -0.6], [-0.5, -0.5, 1.0]], dtype=F64)
    mixture = GaussianMixture(torch.ones(2), means, (0.1 * plane + 1e-12 * torch.eye(3)).expand(2, 3, 3), process)
    exact = NetworkDenoiser(Answer(lambda x, noise: mixture(x, noise).x0), process, "x0", (3,))
    x0, eps = mixture.sample(4), torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    output, target = exact.loss_pair(x0, eps, T)
    step = Step(exact, x0, eps, T, {}, output, target)
    assert float(Constraint(lambda x0, c: x0.sum(1))(step).detach().max()) < 1e-8
    assert float(Constraint(lambda x0, c: x0[:, 0])(step).detach().max()) > 1e-3


def test_a_curved_equation_holds_towards_the_data():
    """Points on a circle: the posterior mean lies inside, the less so the less noise there is."""
    angle = torch.linspace(0, 2 * torch.pi, 401, dtype=F64)[:-1]
    mixture = GaussianMixture(torch.ones(400), torch.stack([angle.cos(), angle.sin()], dim=1), 1e-6, EDM())
    exact = NetworkDenoiser(Answer(lambda x, noise: mixture(x, noise).x0), EDM(), "x0", (2,))
    x0, eps = mixture.sample(400), torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = []
    for sigma in (0.02, 0.1, 1.0):
        t = torch.full((400,), sigma, dtype=F64)
        step = Step(exact, x0, eps, t, {}, *exact.loss_pair(x0, eps, t))
        found.append(float(Constraint(lambda x0, c: x0.square().sum(1) - 1)(step).detach().mean()))
    assert found[0] < 1e-2 * found[2] and found[1] < 0.2 * found[2]


def test_training_with_it():
    torch.manual_seed(0)
    data = torch.randn(200, 3)
    data[:, 2] = -data[:, 0] - data[:, 1]
    denoiser = NetworkDenoiser(MLP((3,), width=16, depth=1), VP(), "x0", (3,))
    fit(
        denoiser,
        data,
        steps=5,
        batch=16,
        objective=Objective(denoiser, terms=[(0.1, Constraint(lambda x, c: x.sum(1)))]),
    )


def test_bad_input():
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        Constraint(lambda x0, c: x0, floor=0)
    step = made(NetworkDenoiser(Answer(), VP(), "x0", (3,)))
    with pytest.raises(ValueError, match=r"residuals must be \(4, \.\.\.\), got shape \(\)"):
        Constraint(lambda x0, c: x0.sum())(step)
