"""rho-rk and restart: Runge-Kutta in sigma/alpha against its own formulas, and what a restart adds and mixes."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.ops import Draw
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.rho_rk import TABLEAUS

F64 = torch.float64


class Power(Denoiser):
    """eps = (sigma / alpha)^q."""

    def __init__(self, process, q: int):
        super().__init__()
        self.process, self.q = process, q

    def forward(self, x, t, **condition):
        ratio = self.process.sigma(t) / self.process.alpha(t)
        return Prediction(torch.ones_like(x) * ratio**self.q, "eps", x, t, self.process)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_powers_below_the_order_are_exact_in_one_step(order):
    process = VP()
    a, b = 0.6, 0.2
    low, high = (process.sigma(t) / process.alpha(t) for t in (b, a))
    for q in range(order + (order == 3)):  # Kutta's weights are Simpson's: exact one power further
        made = plan(process, "rho-rk", timesteps=[a, b], order=order)
        assert made.nfe == order
        x = made(Power(process, q), torch.zeros(1, 2, dtype=F64), dtype=F64)
        exact = process.alpha(b) * (low ** (q + 1) - high ** (q + 1)) / (q + 1)
        torch.testing.assert_close(x, torch.full_like(x, exact), rtol=1e-9, atol=1e-12)


def test_the_tables_meet_the_order_conditions():
    for order, (rows, weights) in TABLEAUS.items():
        c = [0.0, *(sum(row) for row in rows)]
        b, a = list(weights), [(), *rows]
        product = lambda u, b=b: sum(x * y for x, y in zip(b, u, strict=True))  # noqa: E731
        applied = lambda u, a=a: [sum(x * y for x, y in zip(row, u, strict=False)) for row in a]  # noqa: E731
        wanted = {1: [([1.0] * len(b), 1)], 2: [(c, 1 / 2)], 3: [([v**2 for v in c], 1 / 3), (applied(c), 1 / 6)]}
        wanted[4] = [
            ([v**3 for v in c], 1 / 4),
            ([u * v for u, v in zip(c, applied(c), strict=True)], 1 / 8),
            (applied([v**2 for v in c]), 1 / 12),
            (applied(applied(c)), 1 / 24),
        ]
        for p in range(1, order + 1):
            for vector, value in wanted[p]:
                assert product(vector) == pytest.approx(value, abs=1e-14), (order, p)


def test_order_2_is_edms_heun(make_mixture):
    process = EDM()
    model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
    ours, theirs = (plan(process, name, 8, "karras") for name in ("rho-rk-2", "heun"))
    assert ours.nfe == theirs.nfe == 15
    torch.testing.assert_close(ours(model, noise, dtype=F64), theirs(model, noise, dtype=F64), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_no_stage_lies_at_an_end(order):
    made = plan(Flow(), "rho-rk", 6, order=order)
    assert made.nfe == 1 + 4 * order + 1
    for evaluation in made.evaluations[1:]:
        assert 0 < evaluation.scales[0] and 0 < evaluation.scales[1]
    with pytest.raises(ValueError, match="order 2, 3 or 4, got 5"):
        plan(Flow(), "rho-rk", 6, order=5)


def test_restart_without_intervals_is_its_solver(make_mixture):
    process = VP()
    for name in ("rho-rk-2", "ab-3"):
        assert plan(process, "restart", 7, descent=name).ops == plan(process, name, 7).ops


def test_restart_evaluates_where_algorithm_1_does():
    """Down to the time nearest `low`, then (up by noise, down in Karras's steps) twice, then on to the data."""
    process, times = EDM(), [80.0, 20.0, 5.0, 1.0, 0.2]
    made = plan(process, "restart", timesteps=times, intervals=[(1.2, 8.0, 2, 3)], descent="ddim")
    levels = [(8.0 ** (1 / 7) + (1.0 - 8.0 ** (1 / 7)) * k / 3) ** 7 for k in range(3)]
    assert [e.t for e in made.evaluations] == pytest.approx([80, 20, 5, *levels, *levels, 1.0], rel=1e-9)
    assert len([op for op in made.ops if isinstance(op, Draw)]) == 2
    assert made.nfe == 4 + 2 * 3


def test_a_restart_keeps_the_variance_and_forgets_errors():
    """On N(0, c) every level's variance is c + sigma^2. A start far too wide is wider by a factor after the ODE alone,
    and mixed away by restarts: each leaves the deviation times (c + low^2) / (c + high^2)."""
    process, c = EDM(), 0.5
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 1), c, process)
    times = [10.0 * 0.5**k for k in range(10)]
    n = 20_000
    interval, rounds = (0.5, 4.0), 2
    for scale in (1.0, 3.0):
        start = Noise(0).normal(0, (n, 1), "cpu", F64) * (scale * math.sqrt(c + 100) / 10)
        ends = [
            plan(process, "restart", timesteps=times, intervals=i, descent="dpm-solver-3")(model, start, dtype=F64)
            for i in ([], [(*interval, rounds, 12)])
        ]
        plain, mixed = (float(x.var()) / (c + times[-1] ** 2) for x in ends)
        low = min(times, key=lambda t: abs(math.log(t / interval[0])))
        left = ((c + low**2) / (c + interval[1] ** 2)) ** rounds
        assert plain == pytest.approx(scale**2, rel=0.05)
        assert mixed == pytest.approx(1 + (scale**2 - 1) * left, rel=0.05)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"intervals": [(2.0, 1.0, 1, 3)]}, "needs 0 < low < high"),
        ({"intervals": [(1.0, 100.0, 1, 3)]}, "leaves the process"),
        ({"intervals": [(1.0, 2.0, 0, 3)]}, "at least one repetition and one step, got 0 and 3"),
        ({"descent": "ddpm"}, "deterministic solver, such as 'rho-rk-2'"),
        ({"descent": "rho-rk-22"}, "order 2, 3 or 4"),
        ({"descent": "rhork"}, "unknown solver 'rhork'"),
    ],
)
def test_bad_restarts(options, message):
    with pytest.raises(ValueError, match=message):
        plan(EDM(), "restart", 5, **options)


def test_restart_is_finite_from_pure_noise_in_one_step(make_mixture):
    model = make_mixture(Flow(), (3,))
    for steps in (1, 2, 5):
        made = plan(Flow(), "restart", steps, intervals=[(0.3, 2.0, 2, 2)])
        assert bool(torch.isfinite(made(model, Noise(1).normal(0, (2, 3)))).all())


def test_edms_stochastic_sampler_is_algorithm_2(make_mixture):
    """heun with churn, against Karras et al.'s Algorithm 2 written out, S_noise, S_tmin and S_tmax included."""
    process = EDM()
    model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
    made = plan(process, "heun", 8, "karras", churn=3.0, churn_min=0.05, churn_max=20.0, churn_noise=1.007)
    times, gamma = made.times, min(3.0 / 8, math.sqrt(2) - 1)
    x, draw = noise * 80.0, 0
    for a, b in zip(times, times[1:], strict=False):
        if 0.05 <= a <= 20.0:
            draw += 1
            raised = a * (1 + gamma)
            x = x + math.sqrt(raised**2 - a**2) * 1.007 * Noise(4).normal(draw, (4, 3), "cpu", F64)
            a = raised
        slope = (x - model(x, torch.tensor(a, dtype=F64)).x0) / a
        predicted = x + (b - a) * slope
        if b > 0:
            after = (predicted - model(predicted, torch.tensor(b, dtype=F64)).x0) / b
            predicted = x + (b - a) * 0.5 * (slope + after)
        x = predicted
    assert draw == 4
    torch.testing.assert_close(made(model, noise, dtype=F64, seed=4), x, rtol=1e-9, atol=1e-9)
