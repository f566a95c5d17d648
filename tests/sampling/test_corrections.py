"""heavy-ball and time-shift: wrappers of any plan, off at their neutral settings."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.check import stability
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.heavy_ball import heavy_ball
from fewstep.sampling.time_shift import time_shift

F64 = torch.float64
SOLVERS = ("ddim", "plms", "dpmpp-2m", "unipc-3", "heun", "ab-4")


def start(n: int = 4, seed: int = 3):
    return Noise(seed).normal(0, (n, 2, 3), "cpu", F64)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", SOLVERS)
def test_heavy_ball_at_one_is_the_plan_and_close_to_one_nearly(process, solver, make_mixture):
    model, made = make_mixture(process, (2, 3)), plan(process, solver, 9)
    assert heavy_ball(made, 1.0) is made
    nearly = heavy_ball(made, 1 - 1e-9)
    assert type(nearly).from_json(nearly.to_json()) == nearly
    assert nearly.nfe == made.nfe
    torch.testing.assert_close(nearly(model, start(), dtype=F64), made(model, start(), dtype=F64), rtol=1e-6, atol=1e-6)


def test_heavy_ball_on_euler_is_the_papers_recursion(make_mixture):
    """v = (1 - b) v + b eps; y += (mu' - mu) v, in y = x / alpha, mu = sigma / alpha."""
    process, b = VP(), 0.6
    model = make_mixture(process, (2, 3))
    times = [process.time(-1.5 + 0.5 * i) for i in range(7)]
    y, v = start() * (process.sigma(times[0]) / process.alpha(times[0])), None
    for t, s in zip(times, times[1:], strict=False):
        eps = model(y * process.alpha(t), torch.tensor(t, dtype=F64)).eps
        v = eps if v is None else (1 - b) * v + b * eps
        y = y + (process.sigma(s) / process.alpha(s) - process.sigma(t) / process.alpha(t)) * v
    made = heavy_ball(plan(process, "ddim", timesteps=times), b)
    torch.testing.assert_close(made(model, start(), dtype=F64), y * process.alpha(times[-1]), rtol=1e-9, atol=1e-9)


def test_heavy_ball_widens_the_stability_of_plms():
    made = plan(VP(), "plms", 12)
    radii = [stability(heavy_ball(made, b)) for b in (1.0, 0.8, 0.5)]
    assert radii[0] < radii[1] < radii[2]


def test_heavy_ball_refuses_what_it_cannot_damp():
    with pytest.raises(ValueError, match="damping must be above 0 and at most 1, got 0"):
        heavy_ball(plan(VP(), "ddim", 3), 0.0)
    with pytest.raises(ValueError, match="draws noise"):
        heavy_ball(plan(VP(), "ddpm", 3), 0.5)


@pytest.mark.parametrize("solver", [*SOLVERS, "ddpm"])
def test_no_window_is_the_plan_bit_for_bit(solver, make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), solver, 8)
    wanted = made(model, start(), seed=3, dtype=F64)
    assert torch.equal(time_shift(made, 0.0)(model, start(), seed=3, dtype=F64), wanted)


def test_time_shift_asks_where_the_variance_says(make_mixture):
    """States made too noisy on purpose are asked at a noisier time, too calm ones at a calmer."""
    process = VP()
    model, made = make_mixture(process, (2, 3)), plan(process, "ddim", 5)
    for factor, sign in ((1.3, -1), (0.7, 1)):
        noise = start(64)
        noise = noise / noise.flatten(1).std(1).view(-1, 1, 1) * factor
        result = time_shift(made, 1.0, cutoff=-0.5).run(model, noise, dtype=F64)
        shift = result.report["shift"]
        assert shift[0] == 0 and sign * float(shift[1]) > 0 and shift[-1] == 0
        assert -sign * float(result.report["gap"][0]) > 0
    alone = torch.cat([time_shift(made, 1.0)(model, start(3)[i : i + 1], dtype=F64) for i in range(3)])
    torch.testing.assert_close(time_shift(made, 1.0)(model, start(3), dtype=F64), alone, rtol=1e-9, atol=1e-9)


def test_time_shift_checks_its_numbers():
    made = plan(VP(), "ddim", 3)
    with pytest.raises(ValueError, match="window must not be negative"):
        time_shift(made, -0.1)
    with pytest.raises(ValueError, match="data_variance must not be negative"):
        time_shift(made, data_variance=-1)
