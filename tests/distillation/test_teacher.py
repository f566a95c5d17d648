"""Steps of a teacher at times that differ: orders, the law of the SDE, both ends of the clock, and what calls cost."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, MEAN, PROCESSES, VARIANCES, gaussian
from sampled import sampled

from fewstep.distillation.teacher import Count, Counted, between, jump, landing, step, trajectory
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP

ENDS = [*PROCESSES, VE()]


def states(process, t):
    """Five states of the Gaussian at times (5,)."""
    x = gaussian(process, "denoiser").sample(5, 1)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    return process.alpha(t)[:, None] * x + process.sigma(t)[:, None] * z


def at(process, *levels):
    """Times of noise-to-signal ratios."""
    return process.time(-torch.tensor(levels, dtype=F64).log())


@sampled("order, process", [1, 2], PROCESSES)
def test_orders(process, order):
    model = gaussian(process, "denoiser")
    t, s = at(process, 3.0, 2.0, 1.0, 0.5, 4.0), at(process, 0.1, 0.2, 0.3, 0.05, 0.5)
    x = states(process, t)
    with torch.no_grad():
        ends = [step(model, x, t, s, {}, order=order, substeps=n) for n in (16, 32, 64)]
        errors = [float((end - model.flow(x, t, s)).norm()) for end in ends]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.12)
    assert errors[2] < (0.05 if order == 1 else 1e-3)


def moments(model, process, eta, n):
    """Mean and variance (3,) at sigma / alpha = 0.2 of the SDE in n steps from the exact law at 2: it is affine in the
    state and in each noise, so rows of zeros and ones give its factors."""
    t, s = (at(process, level).expand(n + 2) for level in (2.0, 0.2))
    x, noises = torch.zeros(n + 2, 3, dtype=F64), torch.zeros(n + 2, n, 3, dtype=F64)
    x[1] = 1.0
    for k in range(n):
        noises[2 + k, k] = 1.0
    with torch.no_grad():
        y = step(model, x, t, s, {}, substeps=n, eta=eta, noises=noises)
    factors = y[1:] - y[0]
    alpha, sigma = process.alpha(t[:1]), process.sigma(t[:1])
    mean = y[0] + factors[0] * alpha * MEAN
    return mean, factors[0] ** 2 * (alpha**2 * VARIANCES + sigma**2) + (factors[1:] ** 2).sum(0)


@sampled("eta, process", [0.5, 1.0, 2.0], PROCESSES)
def test_the_sde_keeps_the_law_at_every_strength(process, eta):
    """To first order in the steps, as its x0 is held constant within each."""
    model, s = gaussian(process, "denoiser"), at(process, 0.2)
    alpha, sigma = process.alpha(s), process.sigma(s)
    errors = []
    for n in (64, 128):
        mean, variance = moments(model, process, eta, n)
        errors.append(torch.stack([mean - alpha * MEAN, variance - alpha**2 * VARIANCES - sigma**2]).norm())
    assert float(errors[1]) < 0.06
    assert float((errors[0] / errors[1]).log2()) == pytest.approx(1.0, abs=0.06)


def test_one_step_of_the_sde_has_the_variance_of_its_formula():
    """Of a teacher whose x0 is always 0: x shrinks by `sigma_s / sigma_t e^(-eta h)`, and z has the rest."""
    process, t, s, eta = EDM(), torch.tensor([2.0], dtype=F64), torch.tensor([0.5], dtype=F64), 0.7
    model = gaussian(process, "denoiser")
    with torch.no_grad():
        model.mean.zero_()
        model.log_variances.fill_(-80.0)
        x, z = torch.ones(1, 3, dtype=F64), torch.full((1, 1, 3), 2.0, dtype=F64)
        y = step(model, x, t, s, {}, eta=eta, noises=z)
    factor = 0.25 * 0.25**eta  # sigma_s / sigma_t, and e^(-h) is the same
    expected = factor + 0.5 * math.sqrt(1 - 0.25 ** (2 * eta)) * 2.0
    torch.testing.assert_close(y, torch.full_like(y, expected))


@pytest.mark.parametrize("process", ENDS, ids=lambda p: p.name)
@pytest.mark.parametrize("order, eta", [(1, 0.0), (2, 0.0), (1, 0.5)])
def test_from_pure_noise_to_clean_is_finite(process, order, eta):
    model = gaussian(process, "denoiser")
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    noises = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    t, s = (torch.full((5,), end, dtype=F64) for end in (process.t_max, process.t_zero))
    with torch.no_grad():
        y = step(model, z * process.sigma(process.t_max), t, s, {}, order=order, substeps=4, eta=eta, noises=noises)
        assert bool(y.isfinite().all()) and float(y.abs().max()) < 6
        if eta == 0 and order == 2:
            torch.testing.assert_close(y, model.flow(z * process.sigma(process.t_max), t, s), rtol=0, atol=0.5)


@pytest.mark.parametrize("process", ENDS, ids=lambda p: p.name)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_no_step_where_both_times_are_one(process, eta):
    model = gaussian(process, "denoiser")
    t = torch.tensor([process.t_zero, process.t_min, process.t_max], dtype=F64)
    x, noises = torch.randn(3, 3, dtype=F64), torch.randn(3, 1, 3, dtype=F64)
    with torch.no_grad():
        torch.testing.assert_close(step(model, x, t, t, {}, eta=eta, noises=noises), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", ENDS, ids=lambda p: p.name)
def test_half_way(process):
    t, s = at(process, 3.0, 0.5), at(process, 0.1, 0.02)
    middle = between(process, t, s)
    torch.testing.assert_close(process.log_snr(middle), (process.log_snr(t) + process.log_snr(s)) / 2)
    clean = between(process, t, torch.full_like(t, process.t_zero))
    halves = torch.atan2(process.sigma(t), process.alpha(t)) / 2
    torch.testing.assert_close(torch.atan2(process.sigma(clean), process.alpha(clean)), halves)
    assert bool((clean < t).all()) and bool((clean > process.t_zero).all())


def test_half_way_from_pure_noise():
    process = Flow()
    middle = between(process, torch.ones(1, dtype=F64), torch.tensor([0.2], dtype=F64))
    angle = (math.pi / 2 + math.atan2(0.2, 0.8)) / 2
    assert float(process.sigma(middle) / process.alpha(middle)) == pytest.approx(math.tan(angle))


def test_a_jump_lands_where_it_is_asked_to():
    process = VP()
    t, s = at(process, 3.0, 0.5), at(process, 0.4, 0.1)
    x, y = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(jump(process, x, t, s, landing(process, x, t, s, y)), y)


def test_a_jump_has_its_derivative_in_the_time_where_some_samples_are_clean():
    process = EDM()
    t, x = torch.tensor([0.0, 2.0], dtype=F64), torch.ones(2, 1, dtype=F64)
    s = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(jump(process, x, t, s, 3 * x).sum(), s)
    torch.testing.assert_close(slope[1], torch.tensor(-1.0, dtype=F64))  # (x - x0) / sigma_t
    assert bool(slope.isfinite().all())


def test_substeps_are_equal_in_log_snr_and_a_trajectory_is_its_steps():
    process, seen = EDM(), []
    model = gaussian(process, "denoiser")

    class Seen(Counted):
        def forward(self, x, t, **condition):
            seen.append(float(t[0]))
            return super().forward(x, t, **condition)

    count = Count()
    t, s = torch.tensor([8.0], dtype=F64), torch.tensor([0.5], dtype=F64)
    with torch.no_grad():
        y = step(Seen(model, count), torch.ones(1, 3, dtype=F64), t, s, {}, substeps=4)
        assert seen == pytest.approx([8.0, 4.0, 2.0, 1.0]) and count.evaluations == 4
        times = [torch.tensor([level], dtype=F64) for level in (8.0, 4.0, 2.0, 1.0, 0.5)]
        torch.testing.assert_close(trajectory(model, torch.ones(1, 3, dtype=F64), times, {})[-1], y)


def test_calls_are_counted_as_one_forward_and_three_with_a_gradient():
    process, count = EDM(), Count()
    model = Counted(gaussian(process, "denoiser"), count)
    x, t = torch.ones(5, 3, dtype=F64), torch.ones(5, dtype=F64)
    with torch.no_grad():
        model(x, t)
    assert count.evaluations == 5
    model(x, t)
    assert count.evaluations == 20


def test_what_a_step_refuses():
    model, x, t = gaussian(EDM(), "denoiser"), torch.ones(1, 3, dtype=F64), torch.ones(1, dtype=F64)
    for options, said in (
        ({"order": 3}, "order must be 1 or 2"),
        ({"substeps": 3}, "a power of two, got 1 and 3"),
        ({"substeps": 0}, "a power of two"),
        ({"eta": 0.5}, "needs noises"),
        ({"eta": 0.5, "order": 2, "noises": x[:, None]}, "of order 1"),
    ):
        with pytest.raises(ValueError, match=said):
            step(model, x, t, t / 2, {}, **options)
