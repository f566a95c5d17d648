"""Gradients of clusters of noise levels as one: projections, bargaining, learned variances.

Methods: pcgrad, nash-mtl, uncertainty-weighting.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.training.fit import fit
from fewstep.training.multitask import (
    NashMTL,
    PCGrad,
    UncertaintyWeighting,
    bargain,
    cluster_gradients,
    project_conflicts,
)

CUTS = (0.3, 0.7)
F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem() -> tuple[list[nn.Parameter], torch.Tensor, torch.Tensor]:
    """A matrix, a vector and a parameter that no loss needs; 9 losses at times in all three clusters."""
    generator = seeded()
    parameters = [nn.Parameter(torch.randn(shape, generator=generator, dtype=F64)) for shape in ((3, 2), (2,), (4,))]
    x, y = torch.randn(9, 3, generator=generator, dtype=F64), torch.randn(9, 2, generator=generator, dtype=F64)
    losses = (x @ parameters[0] + parameters[1] - y).square().mean(1)
    return parameters, losses, torch.rand(9, generator=generator, dtype=F64)


def test_the_clusters_gradients_sum_to_the_plain_one():
    parameters, losses, t = problem()
    plain = torch.autograd.grad(losses.mean(), parameters[:2], retain_graph=True)
    rows, shares = cluster_gradients(losses, t, parameters, CUTS)
    assert rows.shape == (3, 12) and float(shares.sum()) == pytest.approx(1)
    torch.testing.assert_close(rows.sum(0)[:8], torch.cat([g.flatten() for g in plain]))
    assert bool((rows[:, 8:] == 0).all())
    parameters, losses, _ = problem()
    rows, shares = cluster_gradients(losses, torch.full((9,), 0.5), parameters, CUTS)
    assert rows.shape == (1, 12) and shares.tolist() == [1.0]


def test_two_in_conflict_by_hand():
    a, b = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, 1.0], dtype=F64)
    # a - (a.b / b.b) b = (0.5, 0.5); b - (a.b / a.a) a = (0, 1)
    torch.testing.assert_close(project_conflicts(torch.stack([a, b]), seeded()), torch.tensor([0.5, 1.5], dtype=F64))


def test_no_conflict_leaves_the_sum():
    gradients = torch.rand(4, 6, generator=seeded(), dtype=F64)
    assert torch.equal(project_conflicts(gradients, seeded(1)), sum(gradients, torch.zeros(6, dtype=F64)))


@pytest.mark.parametrize("seed", range(5))
def test_two_projected_gradients_agree_with_both(seed):
    gradients = torch.randn(2, 5, generator=seeded(seed), dtype=F64)
    total = project_conflicts(gradients, seeded())
    if float(gradients[0] @ gradients[1]) < 0:
        cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
        # each is shortened by the sine of their angle, and none points against a gradient
        torch.testing.assert_close(gradients @ total, gradients.square().sum(1) * (1 - cosine**2))
    else:
        torch.testing.assert_close(total, gradients.sum(0))
    assert bool((gradients @ total >= -1e-12).all())


@pytest.mark.parametrize("c", [1, 2, 5])
def test_the_bargain_meets_its_equation(c):
    gradients = torch.randn(c, 7, generator=seeded(c), dtype=F64) * torch.tensor([10.0**i for i in range(c)])[:, None]
    gram = gradients @ gradients.T
    a = bargain(gram)
    assert bool((a > 0).all())
    torch.testing.assert_close(gram @ a * a, torch.ones(c, dtype=F64), rtol=1e-4, atol=1e-4)
    agreed = a @ gradients
    assert float(agreed.norm()) == pytest.approx(math.sqrt(c), rel=1e-4)  # a G a = sum of ones
    assert bool((gradients @ agreed > 0).all())  # every task gains
    # a task's scale does not matter
    scales = torch.tensor([3.0**i for i in range(c)], dtype=F64)
    torch.testing.assert_close(bargain(gram * scales[:, None] * scales) * scales, a, rtol=1e-6, atol=0)


def test_the_bargain_stays_finite_for_gradients_that_cancel():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    assert bool(torch.isfinite(bargain(gradients @ gradients.T)).all())
    assert bool(torch.isfinite(bargain(torch.zeros(2, 2))).all())


@pytest.mark.parametrize("rule", [PCGrad, NashMTL, UncertaintyWeighting])
def test_gradients_land_in_the_parameters(rule):
    parameters, losses, t = problem()
    rule(CUTS)(losses, t, parameters)
    assert parameters[0].grad is not None and parameters[0].grad.shape == (3, 2)
    assert float(parameters[0].grad.abs().sum()) > 0


@pytest.mark.parametrize("rule", [PCGrad, NashMTL])
def test_one_cluster_is_plain_training(rule):
    parameters, losses, t = problem()
    plain = torch.autograd.grad(losses.mean(), parameters[:2], retain_graph=True)
    rule(())(losses, t, parameters)
    for parameter, gradient in zip(parameters, plain, strict=False):
        torch.testing.assert_close(parameter.grad, gradient)


def test_uncertainty_settles_at_the_mean_losses():
    """At its minimum the variance is the mean loss and the weight half its inverse; the loss's gradient has it."""
    weighting = UncertaintyWeighting(CUTS, lr=0.05)
    t = torch.tensor([0.1, 0.2, 0.5, 0.9], dtype=F64)
    levels = torch.tensor([4.0, 6.0, 0.02, 1.0])
    for _ in range(2000):
        weighting(levels.clone().requires_grad_(True), t, [])
    torch.testing.assert_close(weighting.weights, 0.5 / torch.tensor([5.0, 0.02, 1.0]), rtol=1e-4, atol=0)
    losses = levels.clone().requires_grad_(True)
    expected = weighting.weights[[0, 0, 1, 2]] / 4
    weighting(losses, t, [])
    torch.testing.assert_close(losses.grad, expected)
    again = UncertaintyWeighting(CUTS)
    again.load_state_dict(weighting.state_dict())
    torch.testing.assert_close(again.weights, weighting.weights)
    before = weighting.log_variance.clone()
    weighting(torch.ones(1, requires_grad=True), torch.tensor([0.5], dtype=F64), [])
    assert (weighting.log_variance != before).tolist() == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [PCGrad, NashMTL, UncertaintyWeighting])
def test_each_trains(rule):
    """Two heaps on a line: the loss falls well below that of the untrained network, and the run repeats itself."""
    generator = seeded(5)
    data = torch.randn(400, 2, generator=generator) * 0.1 + torch.randint(0, 2, (400, 1), generator=generator) * 2 - 1

    def run(steps: int) -> tuple[NetworkDenoiser, list[float]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = NetworkDenoiser(MLP((2,), width=24, depth=2), Flow(), "flow", (2,))
        losses: list[float] = []
        made = fit(
            model, data, steps=steps, batch=64, lr=5e-3, backward=rule(CUTS),
            watch=lambda step, loss: losses.append(float(loss.mean())),
        )  # fmt: skip
        return made, losses

    losses, (first, _), (second, _) = run(90)[1], run(8), run(8)
    assert sum(losses[-20:]) / 20 < 0.7 * sum(losses[:5]) / 5
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_bad_input():
    with pytest.raises(ValueError, match="positive"):
        UncertaintyWeighting(CUTS, lr=0)
