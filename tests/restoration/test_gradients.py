"""Gradients of a network's x0, and the unit in which steps along them are stated."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, normal

from fewstep.core.live import Live
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.gradients import length, unit, with_graph


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
