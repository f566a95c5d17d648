"""dpm-solver-v3: what it reduces to, what it solves exactly, its order, and its coefficients kept."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import fewstep.sampling.dpm_solver_v3 as module
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.common import Frame, ddim, step
from fewstep.sampling.statistics import Statistics

F64 = torch.float64


def constant(process, l: float, s: float, b: float = 0.0, points: int = 90, size: int = 2) -> Statistics:  # noqa: E741
    grid = torch.linspace(-5.5, 8, points, dtype=F64)
    values = [torch.full((points, size), value, dtype=F64) for value in (l, s, b)]
    return Statistics(process.config(), grid, *values)


def adams(trace, process, times, frame, order, corrector):
    """The exponential Adams predictor-corrector of a frame, orders rising by one."""
    x = previous = trace.start()
    points = []
    for k, (a, b) in enumerate(pairwise(times)):
        prediction = trace.evaluate(x, a)
        points.append((a, prediction))
        if corrector and k > 0:
            x = step(process, frame, previous, times[k - 1], a, points[-order - 1 :])
        trace.keep(x)
        previous = x
        sigma = process.sigma(b)
        x = step(process, frame, x, a, b, points[-order:]) if sigma else ddim(process, x, a, b, prediction)
    return x


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("l,s,frame", [(1.0, 0.0, "x0"), (0.0, -1.0, "eps"), (None, None, "x0")])
def test_it_reduces_to_exponential_adams(order, corrector, l, s, frame, smooth):  # noqa: E741
    """On x0 for l = 1, s = 0 (the default); on eps for l = 0, s = -1, as f = e^-lambda eps has that drift."""
    process = smooth.process
    noise = Noise(1).normal(0, (5, 2), "cpu", F64)
    statistics = None if l is None else constant(process, l, s)
    made = plan(process, "dpm-solver-v3", 7, order=order, corrector=corrector, statistics=statistics)
    known = plan(process, adams, 7, frame=Frame(frame, "log_snr"), order=order, corrector=corrector)
    torch.testing.assert_close(
        made(smooth, noise, dtype=F64), known(smooth, noise, dtype=F64), rtol=0, atol=1e-10 if frame == "x0" else 1e-8
    )


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_an_anisotropic_gaussian_is_solved_almost_exactly(process):
    """With its true statistics l = sigma^2 / (alpha^2 c + sigma^2), s = 0, b = -l' m, in three evaluations."""
    c, m = torch.tensor([0.01, 0.3, 2.0], dtype=F64), torch.tensor([0.5, -1.0, 0.2], dtype=F64)
    model = GaussianMixture(torch.ones(1), m[None], c[None], process)
    high = process.log_snr(process.t_min)
    grid = torch.linspace(-7.5, high, 400, dtype=F64)
    l = torch.sigmoid(-2 * grid[:, None] - c.log())  # noqa: E741
    statistics = Statistics(process.config(), grid, l, 0 * l, 2 * l * (1 - l) * m)
    noise = Noise(1).normal(0, (6, 3), "cpu", F64)
    times = [process.time(v) for v in (-4.0, 0.0, 2.0, high)]
    start, end = (
        (process.alpha(times[0]), process.sigma(times[0])),
        (process.alpha(times[-1]), process.sigma(times[-1])),
    )
    x = noise * start[1]
    # x - alpha m shrinks as its standard deviation does.
    gain = ((end[0] ** 2 * c + end[1] ** 2) / (start[0] ** 2 * c + start[1] ** 2)).sqrt()
    exact = end[0] * m + gain * (x - start[0] * m)

    def error(solver: str, **options) -> float:
        return float((plan(process, solver, timesteps=times, **options)(model, noise, dtype=F64) - exact).abs().max())

    assert error("dpm-solver-v3", statistics=statistics) < 1e-5
    assert error("dpmpp-2m") > 0.05


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_the_order_is_kept_with_statistics(order, smooth):
    """Whatever the statistics are, they change the error's size, not its order."""
    process = smooth.process
    grid = torch.linspace(-5.5, 8, 200, dtype=F64)
    one = torch.ones(200, 1, dtype=F64) * torch.tensor([1.0, 0.8], dtype=F64)
    bend = grid[:, None].sin()
    statistics = Statistics(process.config(), grid, 0.5 * one + 0.2 * bend, 0.3 * one - 0.2 * bend, 0.4 * bend * one)
    noise = Noise(1).normal(0, (8, 2), "cpu", F64)
    low, high = -math.log(3), -math.log(0.1)

    def run(name: str, n: int, **options) -> torch.Tensor:
        times = [process.time(low + (high - low) * i / n) for i in range(n + 1)]
        return plan(process, name, timesteps=times, **options)(smooth, noise, dtype=F64)

    exact = run("ab-5", 300)
    coarse, fine = (float((run(f"dpm-solver-v3-{order}", n, statistics=statistics) - exact).norm()) for n in (32, 64))
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.25)


def test_coefficients_are_worked_out_once(smooth, monkeypatch, tmp_path):
    process = smooth.process
    noise = Noise(1).normal(0, (3, 2), "cpu", F64)
    statistics = constant(process, 0.7, 0.2)
    path = statistics.save(tmp_path / "statistics.safetensors")
    made, named = (plan(process, "dpm-solver-v3", 6, statistics=s) for s in (statistics, path))
    first = made(smooth, noise, dtype=F64)
    assert torch.equal(named(smooth, noise, dtype=F64), first)  # a file will do
    monkeypatch.setattr(module, "step_coefficients", None)
    assert torch.equal(made(smooth, noise, dtype=F64), first)
    assert torch.equal(named(smooth, noise, dtype=F64), first)


def test_evaluations_and_errors(smooth):
    process = smooth.process
    noise = Noise(1).normal(0, (3, 2))
    statistics = constant(process, 0.7, 0.2)
    assert [plan(process, f"dpm-solver-v3-{p}", 8, statistics=statistics).nfe for p in (1, 2, 3)] == [8, 8, 9]
    with pytest.raises(ValueError, match="order 1, 2 or 3"):
        plan(process, "dpm-solver-v3", 8, order=4)(smooth, noise)
    with pytest.raises(ValueError, match="other parameters"):
        plan(process, "dpm-solver-v3", 8, statistics=constant(VP(beta_max=9.0), 1, 0))(smooth, noise)
    with pytest.raises(ValueError, match="for samples of shape"):
        plan(process, "dpm-solver-v3", 8, statistics=constant(process, 1, 0, size=3))(smooth, noise)
