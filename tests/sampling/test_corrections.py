"""heavy-ball, time-shift and adaptive-diffusion: wrappers of any plan, off at their neutral settings."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.check import stability
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.heavy_ball import heavy_ball
from fewstep.sampling.skipping import reuse, skip
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
def test_no_window_and_no_delta_are_the_plan_bit_for_bit(solver, make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), solver, 8)
    wanted = made(model, start(), seed=3, dtype=F64)
    assert torch.equal(time_shift(made, 0.0)(model, start(), seed=3, dtype=F64), wanted)
    result = skip(made, 0.0).run(model, start(), seed=3, dtype=F64)
    assert torch.equal(result.samples, wanted) and result.nfe == made.nfe
    assert not bool(result.report["skipped"].any())


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


def test_time_shift_and_skip_check_their_numbers():
    made = plan(VP(), "ddim", 3)
    with pytest.raises(ValueError, match="window must not be negative"):
        time_shift(made, -0.1)
    with pytest.raises(ValueError, match="data_variance must not be negative"):
        time_shift(made, data_variance=-1)
    with pytest.raises(ValueError, match="delta must not be negative"):
        skip(made, -1)
    with pytest.raises(ValueError, match="most must be a whole number of at least 1, got 0"):
        skip(made, 0.1, most=0)
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        skip(skip(made))


def test_skipping_is_each_samples_own_and_is_counted(make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), "dpmpp-2m", 40)
    together = skip(made, 0.3).run(model, start(6), dtype=F64)
    each = [skip(made, 0.3).run(model, start(6)[i : i + 1], dtype=F64) for i in range(6)]
    torch.testing.assert_close(together.samples, torch.cat([one.samples for one in each]), rtol=1e-9, atol=1e-9)
    counts = together.report["nfe_per_sample"]
    assert counts.tolist() == [one.nfe for one in each] and len(set(counts.tolist())) > 1
    assert torch.equal(counts, made.nfe - together.report["skipped"].sum(0)) and counts.max() < made.nfe


def test_the_error_falls_with_delta_and_runs_of_skips_are_capped(make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), "ddim", 50)
    whole = made(model, start(16), dtype=F64)
    errors = []
    for delta in (0.02, 0.1, 0.5):
        result = skip(made, delta).run(model, start(16), dtype=F64)
        errors.append(float((result.samples - whole).norm()))
    assert errors == sorted(errors) and errors[0] < errors[-1]
    skipped = skip(made, 1e9, most=2).run(model, start(2), dtype=F64).report["skipped"][:, 0].tolist()
    assert skipped == [False] * 3 + ([True, True, False] * 16)[:47]


def test_reuse_is_the_plan_with_the_last_eps(make_mixture):
    """DDIM with every second evaluation reused is DDIM on every second time: a constant eps carries over both steps."""
    process = VP()
    model, made = make_mixture(process, (2, 3)), plan(process, "ddim", 8, end="min")
    half = plan(process, "ddim", timesteps=made.times[::2])
    rewritten = reuse(made, (1, 3, 5, 7))
    assert type(rewritten).from_json(rewritten.to_json()) == rewritten
    assert rewritten.nfe == 4
    wanted = half(model, start(), dtype=F64)
    torch.testing.assert_close(rewritten(model, start(), dtype=F64), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="evaluations 1 to 7 can be skipped, not 0"):
        reuse(made, (0,))
