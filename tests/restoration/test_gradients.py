"""Gradients of a network's x0, and the unit in which steps along them are stated."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, normal, wide

from fewstep.core.live import Live
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.gradients import fitted, length, unit, with_graph


def test_the_gradient_is_that_of_each_row():
    model, x, t = gaussian(), normal(3, D, seed=1), 0.4
    live = Live(model, model.process, x, Noise(0), {})
    target = normal(3, D, seed=2)
    x0, values, gradient = with_graph(live, x, t, lambda x0: length(target - x0))
    assert live.nfe == 1 and not x0.requires_grad and torch.allclose(values, (target - x0).norm(dim=1))
    h = 1e-6
    for row in range(3):
        for k in range(D):
            step = torch.zeros_like(x)
            step[row, k] = h
            there, back = (length(target - model(x + s * step, torch.tensor(t)).x0) for s in (1, -1))
            change = (there - back) / (2 * h)
            assert float(gradient[row, k]) == pytest.approx(float(change[row]), abs=1e-6)
            assert float(change.sum() - change[row]) == pytest.approx(0, abs=1e-9)


def test_the_norm_has_a_gradient_at_zero():
    r = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    length(r).sum().backward()
    assert torch.equal(r.grad, torch.zeros(2, 3, dtype=torch.float64))


def test_the_unit_is_one_where_the_variance_is_preserved():
    assert unit(VP(), 0.7, 0.2) == pytest.approx(1.0)
    flow, vp = Flow(), VP()
    a, b = flow.time(-1.0), flow.time(1.0)
    size = [(vp.alpha(vp.time(v)) / flow.alpha(flow.time(v))) for v in (-1.0, 1.0)]
    assert unit(flow, a, b) == pytest.approx(1 / (size[0] * size[1]))


def test_a_fit_of_a_linear_measurement_is_its_projection_and_ends_at_the_bound():
    a, x, y = wide(), normal(4, D, seed=3), normal(4, 3, seed=4)
    exact = x + a.pinv(y - a(x))
    assert torch.allclose(fitted(a, x, y, torch.tensor(0.0), 3), exact, atol=1e-7)  # as many steps as it has ranks
    left = (y - a(x)).square().sum(1)
    bound = torch.tensor([0.5, 0.1, 1e-3, 2.0]) * left  # the last is met already
    found = fitted(a, x, y, bound, 6)
    assert torch.allclose((y - a(found)).square().sum(1)[:3], bound[:3].double(), rtol=1e-6)
    assert torch.equal(found[3], x[3]) and not found.requires_grad
    alone = fitted(a, x[1:2], y[1:2], bound[1:2], 6)
    assert torch.allclose(alone, found[1:2], atol=1e-12)


def test_a_fit_of_any_measurement_goes_down():
    x, y = normal(4, D, seed=3) * 0.5 + 1, normal(4, D, seed=4).abs() + 0.5

    def measured(x):
        return x.exp() + 0.3 * x.roll(1, -1) ** 2

    left = [(y - measured(fitted(measured, x, y, torch.tensor(0.0), steps))).square().sum(1) for steps in (0, 5, 40)]
    assert bool((left[1] < 0.5 * left[0]).all()) and bool((left[2] < 0.05 * left[0]).all())
