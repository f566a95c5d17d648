"""The three equations of a flow map: zero at the exact one, and nowhere beside it."""

from __future__ import annotations

import pytest
import torch
from distillation.mapped import F64, PROCESSES, SEVEN, beside, exact, falls, learnt, resumes, steepest

from fewstep.distillation.flow_map_matching import RULES
from fewstep.processes.flow import Flow

each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
every = pytest.mark.parametrize("rule", RULES)


@each
@every
def test_the_exact_map_is_stationary(process, rule):
    method, _ = exact(process, "flow-map", rule=rule)
    assert steepest(method) < 1e-10
    beside(method)
    assert steepest(method) > 1e-3


@each
@every
def test_pure_noise_is_a_state(process, rule):
    method, _ = exact(process, "flow-map", process.t_max, rule=rule)
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0))
    drawn["t"][:] = process.t_max
    assert steepest(method, drawn) < 1e-10


@every
def test_at_its_own_time_a_rule_is_the_flows(rule):
    method, law = exact(Flow(), "flow-map", rule=rule)
    beside(method)
    t = torch.linspace(0.1, 0.9, SEVEN, dtype=F64)
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = (method.student(x, t).to("flow") - law(x, t).to("flow")).square().mean(1)
    torch.testing.assert_close(method.loss(x, t, t, {}), expected)


def test_the_lagrangian_residual_is_the_derivative_of_the_landing_place():
    """Of `(1 - s) mean + ...` for a map beside the truth, by differences of its landing places."""
    method, law = exact(Flow(), "flow-map")
    beside(method)
    t, s = (torch.full((SEVEN,), value, dtype=F64) for value in (0.8, 0.3))
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    h = 1e-5
    slope = (method.landed(x, t, s + h, {}) - method.landed(x, t, s - h, {})) / (2 * h)
    end = method.landed(x, t, s, {})
    expected = (slope - law(end, s).to("flow")).square().mean(1)
    torch.testing.assert_close(method.loss(x, t, s, {}), expected, rtol=1e-6, atol=1e-12)
    method.mode = "difference"
    torch.testing.assert_close(method.loss(x, t, s, {}), expected, rtol=1e-4, atol=1e-9)


def test_the_semigroup_goes_half_the_way():
    method, _ = exact(Flow(), "flow-map", rule="semigroup")
    beside(method)
    t, m, s = (torch.full((SEVEN,), value, dtype=F64) for value in (0.8, 0.5, 0.2))
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    two = method.landed(method.landed(x, t, m, {}), m, s, {})
    apart = (method.landed(x, t, s, {}) - two) / 0.6
    torch.testing.assert_close(method.loss(x, t, s, {}), apart.square().mean(1))


@each
def test_a_short_way_to_the_clean_end_has_a_middle(process):
    method, _ = exact(process, "flow-map", rule="semigroup")
    t = torch.full((SEVEN,), process.t_min, dtype=F64)
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert float(method.loss(x, t, torch.full_like(t, process.t_zero), {}).detach().max()) < 1e-15


@every
@pytest.mark.slow  # the contract has one of each method
def test_resumes(rule):
    for process, classes in zip(PROCESSES, (None, 3, None), strict=True):
        resumes("flow-map", process, classes, rule=rule)


@pytest.mark.slow  # the contract has one of each method
def test_resumes_by_differences():
    resumes("flow-map", Flow(), tangent="difference")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["lagrangian", "semigroup"])
def test_learns(rule):
    before, after, ddim = learnt("flow-map", Flow(), 800, rule=rule)
    falls(before, after, ddim)


@pytest.mark.slow
def test_the_eulerian_rule_learns_slowly():
    before, after, _ = learnt("flow-map", Flow(), 500, 96, 2e-3, rule="eulerian")
    assert all(a < 0.85 * b for a, b in zip(after, before, strict=True))
