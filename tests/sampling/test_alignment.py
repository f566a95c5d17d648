"""timestep-alignment: only what the network is told changes."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import conversion, scales
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.alignment import align
from fewstep.sampling.build import plan

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "dpmpp-2s"])
def test_the_plans_own_times_give_the_same_plan_back(process, solver):
    made = plan(process, solver, 4, "karras")
    assert align(made, [op.t for op in made.evaluations]) == made


@pytest.mark.parametrize("predicts", ["x0", "eps"])
@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: p.name)
def test_answers_are_used_at_the_grids_noise_level(process, predicts, make_mixture):
    """DDIM by hand: ask at tau, read the answer as if it had been given at t."""
    model = make_mixture(process, (3,), predicts)
    made = plan(process, "ddim", 3, "karras")
    times = made.times
    taus = [0.9 * times[0], 0.5 * (times[1] + times[2]), 1.2 * times[2]]
    noise = Noise(1).normal(0, (4, 3), "cpu", F64)
    x = noise * process.sigma(times[0])
    for a, b, tau in zip(times, times[1:], taus, strict=False):
        value = model(x, torch.tensor(tau, dtype=F64)).value
        p, q = conversion(predicts, "x0", *scales(process, a))
        x0 = p * x + q * value
        carry = process.sigma(b) / process.sigma(a)
        x = carry * x + (process.alpha(b) - carry * process.alpha(a)) * x0
    aligned = align(made, taus)
    torch.testing.assert_close(aligned(model, noise, dtype=F64), x, rtol=1e-9, atol=1e-10)
    assert aligned.nfe == 3 and aligned.times == made.times
    assert Plan.from_json(aligned.to_json()) == aligned


def test_times_that_do_not_fit_are_refused():
    made = plan(VP(), "ddim", 3)
    with pytest.raises(ValueError, match="3 evaluations, got 2"):
        align(made, [0.5, 0.4])
    with pytest.raises(ValueError, match="between 0 and 1"):
        align(made, [1.0, 0.5, 1.2])
