"""dpm-fast, dpmpp-3s, the ancestral pair, and solvers that are the same numbers under two names."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.common import Frame, noise_std, step

F64 = torch.float64


def noise(*shape: int) -> torch.Tensor:
    return Noise(1).normal(0, shape, "cpu", F64)


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_dpm_fast_uses_as_many_evaluations_as_the_grid_has_steps(process, end):
    for n in range(1, 21):
        made = plan(process, "dpm-fast", n, "karras", end=end)
        assert made.nfe == n
        assert all(e.scales[1] > 0 for e in made.evaluations)


@pytest.mark.parametrize("n,orders", [(6, [3, 2, 1]), (7, [3, 3, 1]), (8, [3, 3, 2])])
def test_dpm_fast_is_the_papers_sequence_on_equal_steps(n, orders, make_mixture):
    """M = n // 3 + 1 equal steps in log-SNR, each a DPM-Solver of its order."""
    process = VP()
    model = make_mixture(process, (3,))
    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
    bounds = [process.time(low + (high - low) * k / len(orders)) for k in range(len(orders) + 1)]
    bounds[0], bounds[-1] = process.t_max, process.t_min
    x = noise(4, 3)
    state = x * process.sigma(process.t_max)
    for a, b, order in zip(bounds, bounds[1:], orders, strict=False):
        made = plan(process, "dpm-solver", timesteps=[a, b], order=order)
        state = made(model, state / process.sigma(a), dtype=F64)
    ours = plan(process, "dpm-fast", n, "log-snr", end="min")
    torch.testing.assert_close(ours(model, x, dtype=F64), state, rtol=1e-8, atol=1e-9)


def test_dpmpp_3s_integrates_a_line_exactly_and_a_parabola_to_third_order():
    process = VP()

    class Polynomial(Denoiser):
        def __init__(self, degree: int):
            super().__init__()
            self.process, self.degree = process, degree

        def forward(self, x, t, **condition):
            return Prediction(torch.ones_like(x) * (process.log_snr(t) + 0.2) ** self.degree, "x0", x, t, process)

    def error(degree: int, h: float) -> float:
        times = [process.time(0.1), process.time(0.1 + h)]
        x = plan(process, "dpmpp-3s", timesteps=times)(Polynomial(degree), torch.zeros(1, 2, dtype=F64), dtype=F64)
        exact = quad(lambda v: math.exp(v - 0.1 - h) * (v + 0.2) ** degree, 0.1, 0.1 + h, epsabs=1e-14)[0]
        return abs(float(x[0, 0]) - process.alpha(times[-1]) * exact)

    assert error(0, 0.9) < 1e-12 and error(1, 0.9) < 1e-12
    assert math.log2(error(2, 0.2) / error(2, 0.1)) == pytest.approx(4, abs=0.2)
    assert plan(process, "dpmpp-3s", 5).nfe == 3 * 4 + 1


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("name", ["dpm-2-ancestral", "dpmpp-2s-ancestral"])
def test_the_ancestral_pair_is_k_diffusions_formula(name, eta, make_mixture):
    """sigma_up and sigma_down, the middle in log sigma, written out where alpha = 1."""
    process = EDM()
    model, times = make_mixture(process, (3,)), [40.0, 9.0, 2.0, 0.5, 0.1]
    x = noise(4, 3) * 40.0
    for k, (a, b) in enumerate(zip(times, times[1:], strict=False)):
        up = eta * math.sqrt(b**2 * (a**2 - b**2) / a**2)
        down = math.sqrt(b**2 - up**2)
        middle = math.sqrt(a * down)
        x0 = model(x, torch.tensor(a, dtype=F64)).x0
        state = x + (x - x0) / a * (middle - a)
        answer = model(state, torch.tensor(middle, dtype=F64)).x0
        x = (
            x + (state - answer) / middle * (down - a)
            if name == "dpm-2-ancestral"
            else (down / a * x + (1 - down / a) * answer)
        )
        x = x + up * Noise(6).normal(k + 1, (4, 3), "cpu", F64)
    made = plan(process, name, timesteps=times, eta=eta)
    torch.testing.assert_close(made(model, noise(4, 3), dtype=F64, seed=6), x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_without_noise_the_ancestral_pair_are_the_solvers_they_wrap(process, make_mixture):
    model, x = make_mixture(process, (3,)), noise(4, 3)
    for ours, theirs in (("dpm-2-ancestral", "dpm-solver-2"), ("dpmpp-2s-ancestral", "dpmpp-2s")):
        a, b = plan(process, ours, 7, eta=0.0), plan(process, theirs, 7)
        assert a.nfe == b.nfe and not a.stochastic
        torch.testing.assert_close(a(model, x, dtype=F64), b(model, x, dtype=F64), rtol=1e-8, atol=1e-9)
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        plan(process, "dpm-2-ancestral", 4, eta=1.5)


def test_one_method_under_two_names(make_mixture):
    """k-diffusion's dpm_2 is dpm-solver-2, its euler_ancestral is ddim with eta, SDE-DPM-Solver++(1) is ddpm."""
    process = EDM()
    model, x, times = make_mixture(process, (3,)), noise(4, 3), [40.0, 9.0, 2.0, 0.5, 0.1]
    state, wanted = x * 40.0, x * 40.0
    for k, (a, b) in enumerate(zip(times, times[1:], strict=False)):
        x0 = model(state, torch.tensor(a, dtype=F64)).x0
        middle = math.sqrt(a * b)
        half = state + (state - x0) / a * (middle - a)
        state = state + (half - model(half, torch.tensor(middle, dtype=F64)).x0) / middle * (b - a)
        x0 = model(wanted, torch.tensor(a, dtype=F64)).x0
        up = 0.6 * math.sqrt(b**2 * (a**2 - b**2) / a**2)
        wanted = wanted + (wanted - x0) / a * (math.sqrt(b**2 - up**2) - a)
        wanted = wanted + up * Noise(6).normal(k + 1, (4, 3), "cpu", F64)
    ours = plan(process, "dpm-solver-2", timesteps=times)
    torch.testing.assert_close(ours(model, x, dtype=F64), state, rtol=1e-9, atol=1e-10)
    ours = plan(process, "ddim", timesteps=times, eta=0.6)
    torch.testing.assert_close(ours(model, x, dtype=F64, seed=6), wanted, rtol=1e-9, atol=1e-10)

    def sde_1(trace, process, times):
        x, frame = trace.start(), Frame("x0", "log_snr", 1.0)
        for a, b in zip(times, times[1:], strict=False):
            x = step(process, frame, x, a, b, [(a, trace.evaluate(x, a))])
            x = x + trace.noise(a, b) * noise_std(process, 1.0, a, b)
        return x

    ours, theirs = (plan(process, solver, timesteps=times) for solver in (sde_1, "ddpm"))
    torch.testing.assert_close(
        ours(model, x, dtype=F64, seed=2), theirs(model, x, dtype=F64, seed=2), rtol=1e-10, atol=1e-11
    )
