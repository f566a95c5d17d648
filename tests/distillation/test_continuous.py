"""Consistency in continuous time: no tangent at the exact map, the paper's form of it, the warm-up; it learns."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, PROCESSES, distance, drawn, exact, slopes, small, train

from fewstep.core.methods import made
from fewstep.distillation.continuous import Continuous, Weight
from fewstep.distillation.pairs import noisy
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM


def parts(method, batch):
    """State, x*, f and its derivative along the path."""
    x = noisy(method.setting, batch)
    end = method.end(x, batch)
    f, slope = method.slope(x, end, batch)
    return x, end, f.detach(), slope


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_along_the_teachers_path_the_exact_map_stands_still(process):
    method = Continuous(exact(process))
    batch = drawn(method, 64)
    x, end, f, slope = parts(method, batch)
    assert float(slope.abs().max()) < 1e-12
    method.setting.step = method.setting.iterations
    assert float(method.tangent(f, slope, end, batch["t"]).abs().max()) < 1e-12
    assert float(slopes(method, batch).norm()) < 1e-10
    beside = Continuous(exact(process, off=0.1))
    beside.setting.step = beside.setting.iterations
    assert float(slopes(beside, batch).norm()) > 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_papers_tangent(process, training):
    """`-cos^2 (c F - dy/da) - r cos sin (y + c dF/da)` on the TrigFlow clock, with F and its derivative by differences
    in the angle along a straight path of y."""
    method = Continuous(exact(process, off=0.2, iterations=40, data_std=0.7), training=training)
    method.setting.step = 3  # r = 0.4 of a warm-up of 10
    batch, c, r = drawn(method, 16), 0.7, 0.4
    x, end, f, slope = parts(method, batch)
    found = method.tangent(f, slope, end, batch["t"])

    ratio = process.sigma(batch["t"]) / process.alpha(batch["t"])
    a = torch.atan2(ratio, torch.full_like(ratio, c))
    norm = (process.alpha(batch["t"]) ** 2 * c * c + process.sigma(batch["t"]) ** 2).sqrt()
    y, cos, sin = x * c / norm[:, None], a.cos()[:, None], a.sin()[:, None]
    dy = (cos * y - end) / sin  # = cos(a) c eps - sin(a) x*

    def outcome(y, a):
        """F at states of TrigFlow, by the student's x0 at the same noise-to-signal ratio."""
        t = process.time(-(a.tan() * c).log())
        scale = (process.alpha(t) ** 2 * c * c + process.sigma(t) ** 2).sqrt()
        x0 = method.student(y * scale[:, None] / c, t).x0
        return (a.cos()[:, None] * y - x0) / (a.sin()[:, None] * c)

    h = 1e-5 * a
    with torch.no_grad():
        value = outcome(y, a)
        slope_of_f = (outcome(y + h[:, None] * dy, a + h) - outcome(y - h[:, None] * dy, a - h)) / (2 * h)[:, None]
    expected = -(cos**2) * (c * value - dy) - r * cos * sin * (y + c * slope_of_f)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_moves_the_students_answer_along_the_limited_tangent():
    """Its gradient in F is `-2 g / D`, g of norm below 1: that in f is by `-1 / (sin c)` larger."""
    method = Continuous(exact(EDM(), off=0.2, data_std=0.7, iterations=1))
    batch = drawn(method, 8)
    x, end, f, slope = parts(method, batch)
    g = method.tangent(f, slope, end, batch["t"])
    size = g.square().mean(1, keepdim=True).sqrt()
    g = g / (size + 0.1)
    torch.testing.assert_close(method.loss(batch).detach(), g.square().mean(1))  # w is 0 at first
    parameters = list(method.student.parameters())
    found = torch.autograd.grad(method.loss(batch).mean(), parameters)
    sin = method.angle(batch["t"], x)[1]
    direction = 2 * g / (3 * sin * 0.7) / 8
    expected = torch.autograd.grad((method.student(x, batch["t"]).x0 * direction).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    clipped = Continuous(exact(EDM(), off=0.2, data_std=0.7, iterations=1), limit="clipped")
    raw = clipped.tangent(f, slope, end, batch["t"]).clamp(-1, 1)
    torch.testing.assert_close(clipped.loss(batch).detach(), raw.square().mean(1))


def test_the_weight_settles_where_it_undoes_the_error():
    torch.manual_seed(0)
    weight, level = Weight(), torch.linspace(-3, 3, 64)
    assert float(weight(level).abs().max()) == 0
    optimiser, error = torch.optim.Adam(weight.parameters(), 1e-2), (0.5 * level).exp()
    for _ in range(400):
        w = weight(level)
        (w.exp() * error - w).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.testing.assert_close(weight(level).detach(), -0.5 * level, rtol=0, atol=0.1)


def test_the_turn_of_the_weight_uses_the_students_errors():
    method = Continuous(small(Flow()))
    batch = drawn(method)
    error = method.error(batch).detach()
    spent = method.setting.count.evaluations
    method.players["student"].loss(batch)
    again = method.setting.count.evaluations - spent
    assert again == 8 * (1 + 3 + 1)  # the teacher; f with its gradient and its derivative
    found = method.players["weight"].loss(batch)
    torch.testing.assert_close(found.detach(), error)
    assert method.setting.count.evaluations - spent == again


def test_differences_in_place_of_forward_mode():
    one, other = (Continuous(small(EDM(), seed=2), tangent=mode) for mode in ("jvp", "difference"))
    for method in (one, other):
        with torch.no_grad():
            for k, parameter in enumerate(method.student.parameters()):
                parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + k).view_as(parameter))
        method.student.double()
    batch = drawn(one)
    batch = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    slopes_ = [parts(method, batch)[3] for method in (one, other)]
    torch.testing.assert_close(*slopes_, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_levels_are_log_normal_on_the_trigflow_clock_and_cut_to_the_start(process):
    method = Continuous(small(process))
    t = drawn(method, 4000)["t"]
    assert float(t.max()) == method.setting.start
    logs = -process.log_snr(t) - math.log(0.6)
    assert float(logs.median()) == pytest.approx(-1.0, abs=0.1)


def test_from_pure_noise_of_a_flow_everything_is_finite():
    method = Continuous(small(Flow()))
    batch = drawn(method)
    batch["t"] = torch.tensor([1.0, 1e-3] * 4, dtype=F64)
    found = method.loss(batch)
    assert bool(found.isfinite().all())
    assert all(
        bool(value.isfinite().all()) for value in torch.autograd.grad(found.mean(), list(method.student.parameters()))
    )


@pytest.mark.parametrize(
    "options, said",
    [
        ({"limit": "clip"}, "unknown limit 'clip': did you mean 'clipped'"),
        ({"tangent": "jpv"}, "unknown tangent 'jpv'"),
        ({"warm": -1}, "warm must be at least 0 iterations, got -1"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", "scm", 1, **options)(small(EDM()))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_it_learns(training):
    method = Continuous(small(EDM(), iterations=800, lr=2e-3, ema=0.97), training=training)
    before = distance(method)
    train(method, 800, 128)
    assert distance(method) < before / 3
