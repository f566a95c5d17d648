"""Guidance by an energy's gradient: exact posteriors, both kinds of gradient, ends, outer gradients, messages."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.conditions.number import Number
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

F64 = torch.float64
B2, TAU2, Y = 0.8, 0.3, 1.4


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def gaussian(process=None, kind="x0", mean=0.0, variance=B2):
    return GaussianMixture(torch.ones(1), torch.full((1, 2), mean, dtype=F64), variance, process or VP(), kind)


def likelihood(process):
    """-log p_t(y | x) for x0 ~ N(0, B2) and y = x0 + N(0, TAU2), each coordinate: exact at every noise level."""

    def energy(x, t):
        alpha, sigma = (torch.as_tensor(one).reshape(-1, 1) for one in (process.alpha(t), process.sigma(t)))
        marginal = alpha**2 * B2 + sigma**2
        mean, variance = alpha * B2 / marginal * x, B2 * sigma**2 / marginal + TAU2
        return ((Y - mean) ** 2 / (2 * variance)).sum(1)

    return energy


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_a_quadratic_energy_on_a_gaussian_is_the_posterior(process, kind):
    model, gain = gaussian(process, kind), B2 / (B2 + TAU2)
    guided = fs.guide(model, "energy", energy=likelihood(process))
    posterior = gaussian(process, "x0", gain * Y, B2 * TAU2 / (B2 + TAU2))
    x = normal(3, 2)
    for t in (torch.tensor(0.4, dtype=F64), torch.tensor([0.1, 0.5, 0.95], dtype=F64)):
        with torch.no_grad():
            torch.testing.assert_close(guided(x, t).eps, posterior(x, t).eps, rtol=0, atol=1e-9)
    if process.alpha(process.t_max) == 0 and kind == "eps":
        return  # no plan starts there from such answers
    plan, noise = fs.plan(process, "dpmpp-2m", steps=8), normal(4, 2)
    atol = 1e-9 if process.alpha(process.t_max) > 0 else 3e-3  # at alpha = 0 the limit is taken within 1e-4
    torch.testing.assert_close(plan(guided, noise, dtype=F64), plan(posterior, noise, dtype=F64), rtol=0, atol=atol)


def test_a_loss_runs_through_the_networks_jacobian():
    """For one Gaussian dx0/dx is a number: alpha b^2 / (alpha^2 b^2 + sigma^2)."""
    process, model = VP(), gaussian()
    guided = fs.guide(model, "energy", loss=lambda x0, y: ((x0 - y[:, None]) ** 2).sum(1) / 2, scale=0.7,
                      conditions={"y": Number()})  # fmt: skip
    x, t = normal(3, 2), torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    named = guided.check_condition({"y": [1.0, 2.0, 3.0]}, 3, x.device)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    slope = alpha * B2 / (alpha**2 * B2 + sigma**2)
    expected = model(x, t).score - 0.7 * slope * (slope * x - torch.tensor([[1.0], [2.0], [3.0]], dtype=F64))
    with torch.no_grad():
        answer = guided(x, t, **named)
    torch.testing.assert_close(answer.score, expected, rtol=0, atol=1e-12)
    assert not answer.value.requires_grad and answer.x is x and answer.t is t
    assert set(guided.conditions) == {"y"}


def test_normalised_the_change_of_eps_is_a_share_of_its_length():
    model = gaussian(kind="eps")
    guided = fs.guide(model, "energy", loss=lambda x0: x0.pow(4).sum(1), scale=0.2, normalise=True)
    x, t = normal(3, 2), torch.tensor(0.5, dtype=F64)
    eps = model(x, t).eps
    change = guided(x, t).eps - eps
    torch.testing.assert_close(change.norm(dim=1), 0.2 * eps.norm(dim=1))
    still = fs.guide(model, "energy", loss=lambda x0: 0 * x0.sum(1), scale=0.2, normalise=True)
    assert torch.equal(still(x, t).value, model(x, t).value)


class Through(fs.Denoiser):
    """One Gaussian's answer in any kind."""

    def __init__(self, process, kind):
        super().__init__()
        self.process, self.shape, self.kind, self.of = process, (2,), kind, gaussian(process, "x0")
        self.eps = gaussian(process, "eps")

    def forward(self, x, t, **condition):
        x0, eps = self.of(x, t).value, self.eps(x, t).value
        value = {"x0": x0, "eps": eps, "flow": eps - x0, "velocity": eps - x0}[self.kind]
        return Prediction(value, self.kind, x, t, self.process)


@pytest.mark.parametrize("kind", ["x0", "eps", "flow", "velocity"])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_ends_are_limits(kind, normalise):
    process, x = Flow(), normal(3, 2)
    model = Through(process, kind)
    for options in ({"loss": lambda x0: (x0 - 1).square().sum(1) / 2}, {"energy": likelihood(process)}):
        guided = fs.guide(model, "energy", **options, scale=0.5, normalise=normalise)
        for t, near in ((1.0, 1 - 1e-4), (0.0, 1e-7)):
            found, close = (guided(x, torch.tensor(one, dtype=F64)).value for one in (t, near))
            assert bool(found.isfinite().all())
            torch.testing.assert_close(found, close, rtol=2e-3, atol=2e-3)
    assert bool(guided(x.float(), torch.tensor([0.0, 0.5, 1.0])).value.isfinite().all())


def test_outer_gradients_pass_through_both():
    x = normal(2, 2).requires_grad_()
    t = torch.tensor(0.5, dtype=F64)
    for options in ({"loss": lambda x0: x0.pow(4).sum(1)}, {"energy": lambda x, t: x.pow(4).sum(1)}):
        guided = fs.guide(gaussian(), "energy", **options)
        assert torch.autograd.gradcheck(lambda x, guided=guided: guided(x, t).value, (x,))
        with torch.no_grad():
            assert not guided(x, t).value.requires_grad
        plan = fs.plan(VP(), "ddim", steps=3)
        assert not plan(guided, normal(2, 2), dtype=F64).requires_grad


def test_messages():
    model = gaussian()
    for options in ({}, {"energy": lambda x, t: x.sum(1), "loss": lambda x0: x0.sum(1)}):
        with pytest.raises(ValueError, match="give either energy="):
            fs.guide(model, "energy", **options)
    for scale in (-1.0, math.inf):
        with pytest.raises(ValueError, match="the scale of the gradient must be at least 0 and finite, got"):
            fs.guide(model, "energy", loss=lambda x0: x0.sum(1), scale=scale)
    x, t = normal(3, 2), torch.tensor(0.5)
    for loss, message in (
        (lambda x0: x0.sum(), r"the loss must return one number for each sample, \(3,\), got a tensor of shape \(\)"),
        (lambda x0: x0.detach().sum(1), "the loss has no gradient: it must be a differentiable function"),
        (lambda x0: torch.ones(3, requires_grad=True) * 2, "the loss has no gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.guide(model, "energy", loss=loss)(x, t)
    with pytest.raises(ValueError, match="unknown condition 'yy'"):
        named = {"y": Number()}
        guided = fs.guide(model, "energy", loss=lambda x0, y: x0.sum(1), conditions=named)
        guided.check_condition({"yy": 1.0}, 1, x.device)
    with pytest.raises(ValueError, match="cannot be saved"):
        fs.save(fs.guide(model, "energy", loss=lambda x0: x0.sum(1)), "/nonexistent/model")
