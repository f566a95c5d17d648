"""The Monge gap: entropic transport against closed forms, and the gap of maps that are and are not optimal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from fewstep.core.methods import find
from fewstep.training.monge_gap import monge_gap, sinkhorn, sinkhorn_divergence, squared_cost, transport_cost

F64 = torch.float64


def cloud(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def optimal(d=3, seed=4):
    """A symmetric positive map: the gradient of a convex function, hence optimal between Gaussians (Brenier)."""
    basis = torch.linalg.qr(cloud(d, d, seed))[0]
    return basis @ torch.diag(torch.linspace(0.5, 1.5, d, dtype=F64)) @ basis.T


def test_the_plan_has_its_marginals_and_the_optimality_conditions():
    cost = squared_cost(cloud(7), cloud(11, seed=1))
    plan = sinkhorn(cost, 0.5, tolerance=1e-6)
    assert torch.allclose(plan.sum(1), torch.full((7,), 1 / 7, dtype=F64), rtol=1e-5)
    assert torch.allclose(plan.sum(0), torch.full((11,), 1 / 11, dtype=F64), rtol=1e-9)
    dual = plan.log() + cost / 0.5  # f_i + g_j and nothing else
    assert torch.allclose(dual - dual[:1] - dual[:, :1] + dual[0, 0], torch.zeros_like(dual), atol=1e-9)


def test_a_small_epsilon_is_the_linear_programme_and_a_large_one_the_product():
    x, y = cloud(6), cloud(9, seed=1)
    cost = squared_cost(x, y)
    rows, columns = np.kron(np.eye(6), np.ones(9)), np.kron(np.ones(6), np.eye(9))
    marginals = np.r_[np.full(6, 1 / 6), np.full(9, 1 / 9)]
    exact = linprog(cost.flatten().numpy(), A_eq=np.r_[rows, columns], b_eq=marginals).fun
    plan = sinkhorn(cost, 0.02, iterations=20000, tolerance=1e-4)
    assert float((plan * cost).sum()) == pytest.approx(exact, rel=1e-3)
    assert torch.allclose(sinkhorn(cost, 1e6), torch.full((6, 9), 1 / 54, dtype=F64), rtol=1e-4)
    assert float(transport_cost(x, y, 1e5)) == pytest.approx(float(cost.mean()), rel=1e-4)


def test_a_one_dimensional_assignment_is_sorting():
    x, y = cloud(40, 1), cloud(40, 1, 1)
    wanted = (x.sort(0).values - y.sort(0).values).square().mean()
    assert torch.allclose(transport_cost(x, y), wanted)
    assert float(transport_cost(x, y, 1e-3)) == pytest.approx(float(wanted), rel=0.1)


def test_the_entropic_cost_of_gaussians():
    """N(0, s^2) with itself: at regularisation e of `|x - y|^2`, closed form of Mallasto et al. (2021, theorem 2)."""
    n, s, e = 800, 1.0, 2.0
    quantiles = torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)[:, None] * s
    cost = squared_cost(quantiles, quantiles)
    plan = sinkhorn(cost, e, tolerance=1e-6)
    # The plan is Gaussian with correlation c: c / (1 - c^2) = 2 s^2 / e.
    c = (math.sqrt(1 + 16 * s**4 / e**2) - 1) / (4 * s**2 / e)
    assert float((plan * cost).sum()) == pytest.approx(2 * s**2 * (1 - c), rel=0.01)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_the_gap_is_zero_for_the_optimal_map_and_large_for_others(epsilon):
    assert find("monge-gap", "training") is monge_gap
    x, matrix = cloud(400), optimal()
    best, mixed = x @ matrix, torch.randperm(400, generator=torch.Generator().manual_seed(0))
    floor = 1e-9 if epsilon == 0 else math.log(400) * epsilon * float(squared_cost(x, best).mean())
    assert abs(float(monge_gap(x, best, epsilon))) <= floor
    # The same law by a detour, x R M: twice tr(M) - tr(R M) more than the best. A random pairing: twice tr(M) more.
    rotation = torch.linalg.qr(cloud(3, 3, 9))[0]
    wanted = 2 * float(matrix.trace() - (rotation @ matrix).trace())
    for gap, truth in (
        (monge_gap(x, x @ rotation @ matrix, epsilon), wanted),
        (monge_gap(x, best[mixed], epsilon), 2 * float(matrix.trace())),
    ):
        assert truth > 3 and float(gap) == pytest.approx(truth, abs=0.1 * truth + floor)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_gradients_are_those_of_differences(epsilon):
    x = cloud(8)
    y = (cloud(8, seed=1)).requires_grad_(True)

    def value(points):
        if epsilon == 0:
            return monge_gap(x, points)
        return sinkhorn_divergence(x, points, epsilon)

    # epsilon is a share of the mean cost and held fixed by the gradient, so the points move without changing it.
    (gradient,) = torch.autograd.grad(value(y), y)
    direction = cloud(8, seed=5)
    if epsilon:
        base = float(squared_cost(x, y.detach()).mean())
        flat = 2 * (y.detach() - x.mean(0))
        direction = direction - (direction * flat).sum() / flat.square().sum() * flat
        assert base > 0
    h = 1e-5
    with torch.no_grad():
        slope = float(value(y + h * direction) - value(y - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_the_divergence_is_zero_where_clouds_coincide():
    x = cloud(50)
    assert abs(float(sinkhorn_divergence(x, x[torch.randperm(50)]))) < 1e-6
    near, far = (float(sinkhorn_divergence(x, x + shift)) for shift in (0.1, 0.5))
    assert far == pytest.approx(0.75, rel=0.01) and 0.02 < near < 0.04  # a shift of d costs |d|^2


def test_offsets_cost_no_digits():
    x, y = cloud(20), cloud(20, seed=1)
    assert float(monge_gap(x + 1e6, y + 1e6)) == pytest.approx(float(monge_gap(x, y)), rel=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        sinkhorn(torch.ones(2, 2), 0.0)
    with pytest.raises(ValueError, match="as many points"):
        transport_cost(cloud(3), cloud(4))
    with pytest.raises(ValueError, match="in pairs"):
        monge_gap(cloud(3), cloud(4))
    with pytest.raises(ValueError, match="one shape"):
        squared_cost(cloud(3), cloud(4, 2))
