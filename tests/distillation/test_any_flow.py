"""AnyFlow: three sorts of pairs, and a second stage on the student's own jumps that the exact map leaves alone."""

from __future__ import annotations

import pytest
import torch
from distillation.mapped import PROCESSES, SEVEN, beside, built, exact, falls, learnt, resumes, steepest

from fewstep.processes.ve import EDM

each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)


@each
@pytest.mark.parametrize("policy", [0.0, 1.0])
def test_the_exact_map_is_stationary(process, policy):
    method, _ = exact(process, "any-flow", policy=policy, tangent="jvp")
    assert steepest(method) < 1e-10
    beside(method)
    assert steepest(method) > 1e-3


@each
def test_differences_leave_an_error_of_their_order(process):
    method, _ = exact(process, "any-flow", policy=0.0)
    assert 1e-8 < steepest(method) < 5e-3


@each
def test_rollouts_end_where_one_jump_does(process):
    """The exact map's, through any drawn times, with the gradient of all jumps."""
    method, law = exact(process, "any-flow", policy=1.0)
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0))
    x = method.setting.begin(drawn["noise"][:, 0])
    start, clean = (method.setting.times(t, SEVEN) for t in (method.setting.start, process.t_zero))
    for jumps in (1, 2, 3):
        spent = method.setting.count.evaluations
        made = method.rollout(drawn | {"jumps": jumps})
        torch.testing.assert_close(made, law.flow(x, start, clean), rtol=0, atol=1e-12)
        assert method.setting.count.evaluations - spent == 3 * jumps * SEVEN


def test_a_late_jump_learns_what_earlier_ones_leave():
    method, _ = exact(EDM(), "any-flow", policy=1.0)
    beside(method)
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0)) | {"jumps": 3}
    seen = []
    student = method.landed

    def landed(x, *rest):
        seen.append(student(x, *rest))
        return seen[-1]

    method.landed = landed
    method.policy_loss(method.rollout(drawn), drawn).sum().backward(inputs=seen[:1])
    assert float(seen[0].grad.abs().min()) > 0


def test_the_policys_gradient_is_dmds():
    method, law = exact(EDM(), "any-flow", policy=1.0)
    with torch.no_grad():
        method.fake.mean += 0.1
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0))
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_(True)
    (slope,) = torch.autograd.grad(method.policy_loss(x, drawn).sum(), x)
    noisy = method.setting.noised(x.detach(), drawn["noise"][:, 1], drawn["level"])
    fake, real = method.fake(noisy, drawn["level"]).x0, law(noisy, drawn["level"]).x0
    size = (x - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(slope, ((fake - real) / size / 3).detach())


def test_stages():
    method = built("any-flow", EDM())
    stages = []
    for method.setting.step in range(20):
        drawn = method.draw(4, torch.Generator().manual_seed(method.setting.step))
        stages.append((method.on_policy, drawn["jumps"]))
    assert [on for on, _ in stages] == [False] * 15 + [True] * 5
    assert {jumps for on, jumps in stages if not on} == {1} and {jumps for on, jumps in stages if on} <= {1, 2, 3}
    drawn = method.draw(2000, torch.Generator().manual_seed(0))
    kinds = [float(mask.double().mean()) for mask in (drawn["s"] == drawn["t"], drawn["s"] == 0)]
    assert kinds == pytest.approx([0.5, 0.25], abs=0.03)


@pytest.mark.slow  # the contract has one of each method
def test_resumes():
    for process, classes in zip(PROCESSES, (None, 3, None), strict=True):
        resumes("any-flow", process, classes, policy=0.9)  # the second stage begins before the stop


@pytest.mark.slow
def test_learns():
    before, after, ddim = learnt("any-flow", EDM(), 400)
    falls(before, after, ddim)
