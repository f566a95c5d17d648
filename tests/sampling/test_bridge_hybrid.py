"""The bridges' own samplers, and the mean-reverting samplers that are solvers of this room in shifted coordinates.

Methods: bridge-hybrid, shift-ancestral.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_bridge import GaussianBridge
from fewstep.processes.ddbm import DDBM
from fewstep.processes.mean_reverting import MeanReverting
from fewstep.processes.resshift import ResShift
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64
N = 5


@pytest.fixture(scope="module")
def make_pairs():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(4, 4, generator=generator, dtype=F64) / 2
    mean = 0.5 * torch.randn(2, 2, generator=generator, dtype=F64)
    return lambda process: GaussianBridge(mean, root @ root.mT + 0.05 * torch.eye(4, dtype=F64), process)


def data(model: GaussianBridge) -> tuple[Tensor, Tensor]:
    return model.sample(N, seed=1)[1], Noise(0).normal(0, (N, 2), "cpu", F64)


def test_without_noise_the_hybrid_is_heun(make_pairs):
    model = make_pairs(DDBM())
    y, noise = data(model)
    ours, heun = (
        plan(model.process, solver, 7, "uniform", **options)(model, noise, dtype=F64, y=y)
        for solver, options in (("bridge-hybrid", {"noisy": 0.0}), ("heun", {}))
    )
    torch.testing.assert_close(ours, heun, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="noisy must be between 0 and 1, got 1.5"):
        plan(model.process, "bridge-hybrid", 3, noisy=1.5)


def test_all_noise_is_ancestral_sampling(make_pairs):
    model = make_pairs(DDBM())
    y, noise = data(model)
    ours, ddpm = (
        plan(model.process, solver, 6, "uniform", **options)(model, noise, seed=4, dtype=F64, y=y)
        for solver, options in (("bridge-hybrid", {"noisy": 1.0}), ("ddpm", {}))
    )
    torch.testing.assert_close(ours, ddpm, rtol=1e-10, atol=1e-10)


def test_evaluations_of_the_hybrid():
    process = DDBM()
    assert [plan(process, "bridge-hybrid", n, "uniform").nfe for n in (1, 2, 7)] == [1, 4, 19]
    assert plan(process, "bridge-hybrid", 3, "uniform", end="min").nfe == 9


def test_the_hybrid_follows_its_share_of_the_reverse_drift(make_pairs, silent):
    """Without the noise: d(u/alpha)/d(log_snr) = (1 + noisy)(x0 - u/alpha), at first order."""
    model, noisy = make_pairs(DDBM()), 0.4
    process = model.process
    y = model.sample(N, seed=1)[1]
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(2), dtype=F64)

    def drift(level: float, z: Tensor) -> Tensor:
        t = torch.tensor(process.time(level), dtype=F64)
        return (1 + noisy) * (model(z * process.alpha(t), t, y=y).x0 - z)

    low, high, n = -math.log(3), math.log(10), 200
    z, h = noise * 3, (high - low) / n
    for i in range(n):
        v = low + i * h
        k1 = drift(v, z)
        k2 = drift(v + h / 2, z + h / 2 * k1)
        k3 = drift(v + h / 2, z + h / 2 * k2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + drift(v + h, z + h * k3))
    errors = []
    for steps in (32, 64):
        grid = [process.time(low + (high - low) * i / steps) for i in range(steps + 1)]
        x = plan(process, "bridge-hybrid", timesteps=grid, noisy=noisy)(model, noise, source=silent, dtype=F64, y=y)
        errors.append(float((x / process.alpha(grid[-1]) - z).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


def test_shift_ancestral_is_resshifts_chain(make_pairs):
    """In x: mean `eta_s / eta_t x + (eta_t - eta_s) / eta_t x0`, variance `kappa^2 eta_s (eta_t - eta_s) / eta_t`."""
    model, source = make_pairs(ResShift(kappa=1.3)), Noise(8)
    process = model.process
    y, noise = data(model)
    times = process.grid(6)
    ours = plan(process, "shift-ancestral", timesteps=times)(model, noise, seed=8, dtype=F64, y=y)
    x = y + process.c(times[0]) * noise
    for k, (t, s) in enumerate(zip(times, times[1:], strict=False), start=1):
        eta_t, eta_s, at = process.b(t), process.b(s), torch.tensor(t, dtype=F64)
        x0 = y + model(process.coordinates(x, y, at), at, y=y).x0
        x = eta_s / eta_t * x + (eta_t - eta_s) / eta_t * x0
        if eta_s > 0:
            z = source.normal(k, (N, 2), "cpu", F64)
            x = x + process.kappa * math.sqrt(eta_s * (eta_t - eta_s) / eta_t) * z
    torch.testing.assert_close(model.decode(ours, y=y), x, rtol=1e-10, atol=1e-10)


def test_shift_ancestral_is_ancestral_sampling_where_alpha_is_constant(make_mixture):
    model = make_mixture(EDM())
    noise = Noise(0).normal(0, (N, 2), "cpu", F64)
    ours, ddpm = (plan(EDM(), solver, 6)(model, noise, seed=1, dtype=F64) for solver in ("shift-ancestral", "ddpm"))
    torch.testing.assert_close(ours, ddpm, rtol=1e-9, atol=1e-9)


def mean_reverting(model: GaussianBridge, y: Tensor, x: Tensor, times: list[float], form: str) -> Tensor:
    """MR Sampler in x: variation of constants, the network's part expanded in log-SNR to order 1 or 2 (multistep).

    a is the share of the residual, c the noise, h the step in log-SNR; form is "noise", "data" or "sde" with its order.
    """
    process, (kind, order) = model.process, form.split("-")
    last: tuple[Tensor, float] | None = None
    for number, (s, t) in enumerate(zip(times, times[1:], strict=False), start=1):
        at = torch.tensor(s, dtype=F64)
        answer = model(process.coordinates(x, y, at), at, y=y)
        a_s, a_t, c_s, c_t = process.a(s), process.a(t), process.c(s), process.c(t)
        h = math.log(a_t / c_t) - math.log(a_s / c_s)
        value = answer.eps if kind == "noise" else y + answer.x0
        slope = torch.zeros_like(x) if order == "1" or last is None else (value - last[0]) / last[1]
        if kind == "noise":
            x = a_t / a_s * x + (1 - a_t / a_s) * y
            x = x - c_t * (math.expm1(h) * value + (math.expm1(h) - h) * slope)
        elif kind == "data":
            ratio = c_t / c_s
            x = ratio * x + (1 - ratio + ratio * a_s - a_t) * y
            x = x + a_t * (-math.expm1(-h) * value + (h + math.expm1(-h)) * slope)
        else:
            ratio, gain = c_t / c_s * math.exp(-h), -a_t * math.expm1(-2 * h)
            x = ratio * x + (1 - ratio - gain) * y + gain * (value + 0.5 * h * slope)
            z = Noise(6).normal(number, tuple(x.shape), "cpu", F64)
            x = x + c_t * math.sqrt(-math.expm1(-2 * h)) * z
        last = (value, h)
    return x


@pytest.mark.parametrize(
    "form,solver",
    [
        ("noise-1", "ddim"),
        ("data-1", "ddim"),
        ("noise-2", "ab-2"),
        ("data-2", "ab-x0-2"),
        ("sde-1", "ddpm"),
        ("sde-2", "dpmpp-2m-sde"),
    ],
)
def test_mr_sampler_is_a_solver_of_this_room(form, solver, make_pairs):
    model = make_pairs(MeanReverting(spread=0.5))
    process = model.process
    y, noise = data(model)
    times = [1.0, 0.8, 0.65, 0.4, 0.3, 0.1, 0.02]
    ours = plan(process, solver, timesteps=times)(model, noise, seed=6, dtype=F64, y=y)
    theirs = mean_reverting(model, y, y + process.c(1.0) * noise, times, form)
    torch.testing.assert_close(process.state(ours, y, torch.tensor(0.02)), theirs, rtol=1e-9, atol=1e-9)


LOW, HIGH = -math.log(3), math.log(10)


def even(process, n: int) -> list[float]:
    """n even steps in log-SNR."""
    return [process.time(LOW + (HIGH - LOW) * i / n) for i in range(n + 1)]


@pytest.fixture(scope="module")
def reverting(make_pairs):
    model = make_pairs(MeanReverting(spread=0.5))
    y, noise = data(model)
    exact = plan(model.process, "ab-5", timesteps=even(model.process, 150))(model, noise, dtype=F64, y=y)
    return model, y, noise, exact


@pytest.mark.parametrize("form,order", [("noise-1", 1), ("data-1", 1), ("noise-2", 2), ("data-2", 2)])
def test_mr_samplers_orders_and_that_they_beat_euler(form, order, reverting):
    model, y, noise, exact = reverting
    process = model.process
    first, last = even(process, 1)
    start = process.state(noise * process.sigma(first), y, torch.tensor(first, dtype=F64))

    def error(n: int) -> float:
        x = mean_reverting(model, y, start, even(process, n), form)
        return float((process.coordinates(x, y, torch.tensor(last, dtype=F64)) - exact).norm())

    assert math.log2(error(48) / error(96)) == pytest.approx(order, abs=0.2)
    if order == 2:
        for n in (5, 8, 10):
            euler = plan(process, "euler", timesteps=even(process, n))(model, noise, dtype=F64, y=y)
            assert error(n) < float((euler - exact).norm())
