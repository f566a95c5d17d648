"""dynamic-compensation: rho = 1 changes nothing, other ratios are the interpolation written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.record import record
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.compensation import compensate, updates
from fewstep.sampling.unipc import unipc

F64 = torch.float64
MULTISTEP = ("unipc-2", "unipc-3", "dpmpp-2m", "dpmpp-3m", "vab-2", "deis-3", "ddim")


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", MULTISTEP)
def test_a_ratio_of_one_gives_the_same_plan_back(process, solver):
    made = plan(process, solver, 5, "karras")
    assert compensate(made, [1.0] * len(updates(made))) == made


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", MULTISTEP)
def test_any_ratio_keeps_the_operations_and_the_evaluations(process, solver, make_mixture):
    made = plan(process, solver, 5, "karras")
    other = compensate(made, [0.9, 1.1, 0.8, 1.2][: len(updates(made))])
    assert [type(op) for op in other.ops] == [type(op) for op in made.ops]
    assert [(e.x, e.t) for e in other.evaluations] == [(e.x, e.t) for e in made.evaluations]
    assert Plan.from_json(other.to_json()) == other
    model = make_mixture(process, (3,))
    noise = Noise(2).normal(0, (4, 3), "cpu", F64)
    x = other(model, noise, dtype=F64)
    assert bool(torch.isfinite(x).all())
    assert not torch.equal(x, made(model, noise, dtype=F64))


def test_a_constant_prediction_is_followed_whatever_the_ratios():
    """The interpolation's weights sum to 1, so a network that always says the same lands where it says."""
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.prediction import Prediction

    class Constant(Denoiser):
        process = VP()

        def forward(self, x, t, **condition):
            return Prediction(torch.full_like(x, 0.7), "x0", x, t, self.process)

    made = plan(VP(), "unipc-2", 6)
    x = compensate(made, [0.5, 1.7, 0.2, 1.1, 0.9])(Constant(), Noise(0).normal(0, (2, 3), "cpu", F64), dtype=F64)
    torch.testing.assert_close(x, torch.full_like(x, 0.7))


def test_dpmpp_2m_with_ratios_is_what_the_paper_writes(make_mixture):
    """Independently: a buffer whose newest entry is replaced before each update (Zhao et al., Algorithm 2)."""
    process = VP()
    model = make_mixture(process, (3,))
    made = plan(process, "dpmpp-2m", 5, "uniform")
    times, ratios = made.times, [1.2, 0.7, 1.4, 0.9]
    noise = Noise(3).normal(0, (4, 3), "cpu", F64)
    x, raw, buffer = noise * process.sigma(times[0]), [], []
    for i in range(5):
        a, b = times[i], times[i + 1]
        raw.append(model(x, torch.tensor(a, dtype=F64)).x0)
        newest = raw[-1]
        if i > 0:
            at = ratios[i - 1] * a + (1 - ratios[i - 1]) * times[i - 1]
            nodes = list(range(max(0, i - 2), i + 1))
            newest = sum(
                raw[j] * math.prod((at - times[k]) / (times[j] - times[k]) for k in nodes if k != j) for j in nodes
            )
        buffer.append(newest)
        h = process.log_snr(b) - process.log_snr(a)
        if math.isinf(h):
            x = buffer[-1] * process.alpha(b)
            continue
        guess = buffer[-1]
        if i > 0:
            last = process.log_snr(a) - process.log_snr(times[i - 1])
            guess = guess + (buffer[-1] - buffer[-2]) * (h / (2 * last))
        x = x * (process.sigma(b) / process.sigma(a)) - guess * (process.alpha(b) * math.expm1(-h))
    torch.testing.assert_close(compensate(made, ratios)(model, noise, dtype=F64), x, rtol=1e-10, atol=1e-12)


def test_a_corrector_still_sees_the_prediction_as_it_was(make_mixture):
    """In UniPC the state at t_1 is corrected with the prediction there before that is compensated."""
    process = VP()
    model = make_mixture(process, (3,))
    times = [0.9, 0.6, 0.3, 0.2]
    whole = record(unipc, process, times, {"order": 2}, {"solver": "unipc-2"})
    noise = Noise(4).normal(0, (4, 3), "cpu", F64)

    def states(made):
        values = {0: noise * made.start[1]}
        from fewstep.searching.problem import Problem
        from fewstep.searching.stepwise import Stepper

        return Stepper(model, Problem(noise, noise, {}, 0, 0)).run(made.ops, values)

    before, after = states(whole), states(compensate(whole, [0.6, 1.0]))
    combines = [op.slot for op in whole.ops if hasattr(op, "slot")]
    fed = [e.x for e in whole.evaluations]
    corrected = [slot for slot in combines if slot not in fed and slot != whole.result]
    assert len(corrected) == 2
    assert torch.equal(before[corrected[0]], after[corrected[0]])  # at t_1, from the raw prediction there
    assert not torch.equal(before[fed[2]], after[fed[2]])  # the update from t_1
    assert not torch.equal(before[corrected[1]], after[corrected[1]])  # at t_2, with the compensated one in the buffer


def test_only_updates_that_leave_a_second_time_are_compensated():
    assert updates(plan(VP(), "unipc-2", 4)) == (1, 2, 3)
    made = plan(VP(), "unipc-3", 4)  # evaluates its second time twice
    assert [made.evaluations[e].t for e in updates(made)] == list(made.times[1:4])
    assert updates(plan(VP(), "ddim", 1)) == ()


def test_two_points_extrapolate_linearly(make_mixture):
    made = compensate(plan(VP(), "ddim", 3, "uniform"), [1.0, 0.5], points=2)
    last = made.ops[-1]
    weights = [c for _, c in last.terms if c != 0]
    np.testing.assert_allclose(weights[-1], weights[-2])  # half way between the two newest, equally


def test_bad_ratios_are_refused():
    made = plan(VP(), "unipc-2", 4)
    for ratios, points, message in (
        ([1.0], 3, "3 updates to compensate, got 1"),
        ([1.0, math.nan, 1.0], 3, "finite"),
        ([1.0] * 3, 1, "at least 2 points"),
    ):
        with pytest.raises(ValueError, match=message):
            compensate(made, ratios, points)
    with pytest.raises(ValueError, match="draws noise"):
        compensate(plan(VP(), "ddpm", 4), [1.0] * 3)
