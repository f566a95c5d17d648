"""FlowChef: a linear recursion on one Gaussian, the paper's own steps, and no backward pass through the network."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.conditions.number import Number
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
B2, MEAN, RATE, REPEAT = 0.6, 0.4, 0.3, 2
A = torch.tensor([[1.0, 0.5], [0.0, 0.8]], dtype=F64)
Y = torch.tensor([0.7, -0.2], dtype=F64)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def gaussian(process, kind="x0"):
    return GaussianMixture(torch.ones(1), torch.full((1, 2), MEAN, dtype=F64), B2, process, kind)


def loss(x0):
    return (x0 @ A.T - Y).square().sum(1) / 2


@pytest.mark.parametrize("process, kind", [(Flow(), "x0"), (VP(), "x0"), (VP(), "eps"), (EDM(), "eps")])
def test_a_quadratic_loss_on_one_gaussian_is_a_linear_recursion(process, kind):
    plan, noise = fs.plan(process, "ddim", steps=7), normal(3, 2)
    guided = fs.guide(gaussian(process, kind), "flowchef", loss=loss, rate=RATE, repeat=REPEAT)
    found = plan(guided, noise, dtype=F64)
    # x0 = m + k (x - alpha m), then `repeat` times x0 <- M x0 + b, in a matrix and a vector; then ddim's step.
    eye, mean = torch.eye(2, dtype=F64), torch.full((2,), MEAN, dtype=F64)
    descent, shift = eye - RATE * A.T @ A, RATE * A.T @ Y
    power = torch.linalg.matrix_power(descent, REPEAT)
    pushed = sum((torch.linalg.matrix_power(descent, k) @ shift for k in range(REPEAT)), torch.zeros(2, dtype=F64))
    x = noise * plan.start[1]
    for t, s in zip(plan.times, plan.times[1:], strict=False):
        t_at = min(t, process.time(math.log(1e-4))) if process.alpha(t) == 0 else t  # the limit at alpha = 0
        alpha, sigma = process.alpha(t_at), process.sigma(t_at)
        k = alpha * B2 / (alpha**2 * B2 + sigma**2)
        x0 = (mean + k * (x - alpha * mean)) @ power.T + pushed
        ratio = process.sigma(s) / process.sigma(t)
        x = ratio * x + (process.alpha(s) - ratio * process.alpha(t)) * x0
    torch.testing.assert_close(found, x, rtol=0, atol=1e-8)


def test_the_papers_euler_step_is_another_rate():
    """The state moved by -rate g and then by the velocity: the rate tau / (tau - tau') of ours."""
    process, x, t, s = Flow(), normal(3, 2), 0.6, 0.45
    model, time = gaussian(process), torch.tensor(t, dtype=F64)
    answer = model(x, time)
    grad = (answer.x0 @ A.T - Y) @ A
    theirs = x - RATE * grad + (s - t) * answer.velocity
    ours = fs.guide(model, "flowchef", loss=loss, rate=RATE * t / (t - s))(x, time)
    torch.testing.assert_close(x + (s - t) * ours.velocity, theirs)


def test_nothing_runs_backward_through_the_network():
    class Opaque(fs.Denoiser):
        process, shape = Flow(), (2,)

        def forward(self, x, t, **condition):
            assert not torch.is_grad_enabled()
            return gaussian(Flow())(x, t)

    guided = fs.guide(Opaque(), "flowchef", loss=lambda x0, y: (x0 - y[:, None]).square().sum(1),
                      conditions={"y": Number()}, rate=0.5)  # fmt: skip
    x = fs.sample(guided, 3, steps=5, y=[0.0, 1.0, 2.0], dtype=F64)
    requests = [(fs.plan(Flow(), "ddim", steps=n), normal(2, 2), {"y": y}) for n, y in ((3, 1.0), (5, 2.0))]
    for made, (plan, noise, own) in zip(fs.run_mixed(requests, guided, dtype=F64), requests, strict=True):
        torch.testing.assert_close(made, plan(guided, noise, dtype=F64, **own), rtol=0, atol=1e-12)
    torch.testing.assert_close(x, torch.tensor([0.0, 1.0, 2.0], dtype=F64)[:, None].expand(3, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_ends_dtypes_and_outer_gradients(kind):
    guided = fs.guide(gaussian(Flow(), kind), "flowchef", loss=lambda x0: x0.pow(4).sum(1), rate=0.1)
    x = normal(3, 2)
    for t in (torch.tensor(0.0), torch.tensor(1.0), torch.tensor([0.0, 0.5, 1.0])):
        for dtype in (torch.float32, F64):
            answer = guided(x.to(dtype), t.to(dtype))
            assert answer.value.dtype == dtype and bool(answer.value.isfinite().all())
    place = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: guided(x, torch.tensor(0.5, dtype=F64)).value, (place,))
    with torch.no_grad():
        assert not guided(place, torch.tensor(0.5)).value.requires_grad


def test_rate_zero_is_the_model_and_messages():
    model, x, t = gaussian(VP()), normal(2, 2), torch.tensor(0.5)
    assert torch.equal(fs.guide(model, "flowchef", loss=loss, rate=0.0)(x, t).value, model(x, t).value)
    for rate in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the rate must be at least 0 and finite, got"):
            fs.guide(model, "flowchef", loss=loss, rate=rate)
    with pytest.raises(ValueError, match="repeat must be a whole number of at least 1, got 0"):
        fs.guide(model, "flowchef", loss=loss, repeat=0)
    with pytest.raises(ValueError, match="the loss must return one number for each sample"):
        fs.guide(model, "flowchef", loss=lambda x0: x0)(x, t)
    with pytest.raises(ValueError, match="needs loss="):
        fs.guide(model, "flowchef")
