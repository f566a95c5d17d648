"""ParaDiGMS for any plan: the sequential samples in fewer calls."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.parallel import run_parallel

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m", "unipc-3", "heun", "ab-4", "dpmpp-2s-sde"])
def test_paradigms_gives_the_sequential_samples(process, solver, make_mixture):
    model = make_mixture(process, (2, 3))
    made = plan(process, solver, 12)
    noise = Noise(3).normal(0, (4, 2, 3), "cpu", F64)
    wanted = made(model, noise, seed=3, dtype=F64)
    for window in (1, 5, 99):
        result = run_parallel(made, model, noise, window, 0.0, seed=3, dtype=F64)
        torch.testing.assert_close(result.samples, wanted, rtol=1e-9, atol=1e-9)
        assert result.depth <= made.nfe == result.planned_nfe
    assert run_parallel(made, model, noise, 1, 0.0, dtype=F64).depth == made.nfe


def test_depth_falls_and_the_tolerance_is_held(make_mixture):
    model = make_mixture(VP(), (2, 3))
    made = plan(VP(), "ddim", 50)
    noise = Noise(3).normal(0, (8, 2, 3), "cpu", F64)
    wanted = made(model, noise, dtype=F64)
    before = None
    for tolerance in (1e-5, 1e-3, 1e-2):
        result = run_parallel(made, model, noise, 50, tolerance, dtype=F64)
        error = float((result.samples - wanted).flatten(1).square().mean(1).amax().sqrt())
        assert error < 10 * tolerance
        assert before is None or result.depth <= before.depth
        before = result
    assert before.depth * 3 < made.nfe < before.nfe


def test_conditions_are_repeated_for_the_window():
    from fewstep.hub.models import load

    model = load("digits")
    made = plan(model.process, "dpmpp-2m", 6)
    noise = Noise(3).normal(0, (3, 1, 8, 8))
    labels = torch.tensor([1, 4, 7])
    result = run_parallel(made, model, noise, 4, 0.0, label=labels)
    torch.testing.assert_close(result.samples, made(model, noise, label=labels), rtol=1e-3, atol=1e-4)


def test_bad_input_is_named(make_mixture):
    model, noise = make_mixture(VP(), (3,)), torch.zeros(2, 3)
    made = plan(VP(), "ddim", 3)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1, got 0"):
        run_parallel(made, model, noise, 0)
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        run_parallel(made, model, noise, 3, -1.0)
    with pytest.raises(ValueError, match="made for the process"):
        run_parallel(plan(Flow(), "ddim", 3), model, noise)
