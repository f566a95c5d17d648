"""Consistency trajectories: stationary at the exact map, balanced weights, and a student that learns."""

from __future__ import annotations

import math

import pytest
import torch
from distillation.mapped import (
    F64,
    PROCESSES,
    SEVEN,
    beside,
    built,
    exact,
    exact_steps,
    falls,
    learnt,
    points,
    resumes,
    run,
    steepest,
)

from fewstep.distillation.teacher import jump
from fewstep.processes.ve import EDM

each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)


@each
def test_the_exact_map(process):
    """g at s -> t is the posterior mean, and two jumps are one (tried: 4e-7 at s / t = 1 - 1e-6; 4e-15)."""
    method, law = exact(process, "ctm")
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0))
    x, t, u, s = method.states_at(drawn, drawn["t"]), *(drawn[name] for name in "tus")
    near = method.student(x, t, to=t * (1 - 1e-6)).x0
    assert float((near - law(x, t).x0).abs().max()) < 1e-5
    assert torch.equal(method.student(x, t, to=t).x0, law(x, t).x0)
    there = method.landed(x, t, u, {})
    torch.testing.assert_close(method.landed(there, u, s, {}), method.landed(x, t, s, {}), rtol=0, atol=1e-13)


@each
@pytest.mark.parametrize("options", [{}, {"balance": False}, {"distance": "squared", "clean": 0.0}], ids=str)
def test_the_exact_map_is_stationary(process, options, monkeypatch):
    method, law = exact(process, "ctm", **options)
    exact_steps(monkeypatch, law)
    assert steepest(method) < 1e-10
    beside(method)
    assert steepest(method) > 1e-3


@each
def test_pure_noise_is_a_state(process, monkeypatch):
    method, law = exact(process, "ctm", process.t_max)
    exact_steps(monkeypatch, law)
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0))
    drawn["t"][:] = process.t_max
    assert steepest(method, drawn) < 1e-10


@each
def test_times_fall(process):
    method = built("ctm", process)
    drawn = method.draw(1000, torch.Generator().manual_seed(0))
    t, u, s = (drawn[name] for name in "tus")
    assert bool((t > u).all()) and bool((u >= s).all())
    assert float((s == process.t_zero).double().mean()) == pytest.approx(0.5, abs=0.05)
    ratio = (-process.log_snr(torch.stack([t, u]))).exp() ** (1 / 7)
    whole = [(-process.log_snr(end)) for end in (method.setting.start, process.t_min)]
    way = math.exp(whole[0] / 7) - math.exp(whole[1] / 7)
    assert 0.24 < float((ratio[0] - ratio[1]).max()) / way <= 0.25 + 1e-9


def test_the_two_ways_are_compared_at_the_clean_end(monkeypatch):
    """Written out: G-(G(x, t, s), s, 0) against G-(G-(step(x, t, u), u, s), s, 0)."""
    method, law = exact(EDM(), "ctm", distance="squared")
    exact_steps(monkeypatch, law)
    beside(method)
    x = torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t, u, s, zero = (torch.full((SEVEN,), value, dtype=F64) for value in (2.0, 1.0, 0.5, 0.0))

    def go(x, t, s):
        return jump(EDM(), x, t, s, method.student(x, t, to=s).x0)

    one = go(go(x, t, s), s, zero)
    other = go(go(law.flow(x, t, u), u, s), s, zero)
    torch.testing.assert_close(method.loss(x, t, u, s, {}), (one - other).square().mean(1))


def test_denoising_is_of_the_teachers_answers():
    method = built("ctm", EDM(), 3)
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    x, t, condition = method.states_at(drawn, drawn["t"]), drawn["t"], drawn["condition"]
    assert float(method.denoising_loss(x, t, condition).max()) < 1e-8  # as the student begins as the teacher
    with torch.no_grad():
        method.student.network.last.bias.add_(0.1)
    sigma = EDM().sigma(t)
    off = (method.student(x, t, **condition).x0 - method.setting.teacher(x, t, **condition).x0).square().mean(1)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2  # of x0, where the network's own error counts
    torch.testing.assert_close(method.denoising_loss(x, t, condition).double(), off * weight, rtol=1e-3, atol=1e-9)


def test_weights_are_balanced_at_the_last_layer():
    method = built("ctm", EDM())
    run(method, 3)
    drawn = method.draw(8, torch.Generator().manual_seed(1))
    x, t = method.states_at(drawn, drawn["t"]), drawn["t"]
    parts = [method.loss(x, t, drawn["u"], drawn["s"], {}), method.denoising_loss(x, t, {})]
    last = method.student.network.last.weight
    norms = [torch.autograd.grad(part.mean(), last, retain_graph=True)[0].norm() for part in parts]
    weight = method._balance(*parts)
    torch.testing.assert_close(weight, (norms[0] / norms[1]).clamp(max=10.0))
    torch.testing.assert_close(method._loss(drawn), parts[0] + weight * parts[1])
    assert method._balance(parts[0], parts[1] * 0) == 10.0  # nothing to balance yet
    method.balance = False
    torch.testing.assert_close(method._loss(drawn), parts[0] + parts[1])


def test_the_adversarial_loss():
    method = built("ctm", EDM(), 3, data=points(classes=3), gan=0.5, balance=False, denoise=0.0)
    assert list(method.players) == ["student", "discriminator"]
    drawn = method.setting.mine(method.draw(8, torch.Generator().manual_seed(1)))
    plain = method.loss(method.states_at(drawn, drawn["t"]), *(drawn[name] for name in "tus"), drawn["condition"])
    student = method.players["student"].loss(drawn)
    assert bool((student > plain).all())  # by half of softplus(-logit)
    parameters = method.players["discriminator"].parameters
    slopes = torch.autograd.grad(method.players["discriminator"].loss(drawn).mean(), parameters)
    assert all(bool(slope.abs().sum() > 0) for slope in slopes)


@pytest.mark.slow  # the contract has one of each method
def test_resumes():
    for process, classes in zip(PROCESSES, (None, 3, None), strict=True):
        resumes("ctm", process, classes)
    resumes("ctm", EDM(), 3, data=points(classes=3), gan=0.5)


def test_learns():
    before, after, ddim = learnt("ctm", EDM(), 45, 48, 1.2e-2, substeps=1)
    falls(before, after, ddim)
