"""dpm-solver-adaptive and rk-adaptive: the tolerance is met, and every sample goes its own way."""

from __future__ import annotations

import math

import pytest
import torch
from sampled import sampled

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
CASES = [("dpm-solver-adaptive", {"order": 2}), ("dpm-solver-adaptive", {"order": 3}), ("rk-adaptive", {})]


@pytest.mark.parametrize("name,options", CASES)
def test_the_error_is_proportional_to_the_tolerance(name, options, smooth):
    process = smooth.process
    noise = Noise(2).normal(0, (16, 2), "cpu", F64)
    grid = [process.time(process.log_snr(1.0) + i / 500 * 9.6) for i in range(501)]
    exact = plan(process, "ab-5", timesteps=[*grid[:-1], process.t_min])(smooth, noise, dtype=F64)
    errors, counts = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        made = plan(process, name, rtol=tolerance, atol=tolerance, end="min", **options)
        result = made.run(smooth, noise, dtype=F64)
        errors.append(float((result.samples - exact).norm() / exact.norm()))
        counts.append(float(result.report["nfe_per_sample"].double().mean()))
        assert errors[-1] < 6 * tolerance
    slope = math.log10(errors[0] / errors[2]) / 2
    assert slope == pytest.approx(1, abs=0.3)
    # A step's error is of the lower order plus one, so evaluations grow with tolerance^(-1/order); the generic pair's
    # are still those of stability, not of accuracy.
    assert name == "rk-adaptive" or math.log10(counts[2] / counts[0]) / 2 == pytest.approx(
        1 / options.get("order", 3), abs=0.13
    )


@sampled("number, process", range(len(CASES)), [VP(), Flow()])
def test_a_sample_equals_its_single_run(number, process, make_mixture):
    name, options = CASES[number]
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (4, 2, 3), "cpu", F64)
    made = plan(process, name, rtol=3e-4, atol=3e-4, **options)
    together = made.run(model, noise, dtype=F64)
    alone = [made.run(model, noise[i : i + 1], dtype=F64) for i in range(4)]
    torch.testing.assert_close(together.samples, torch.cat([r.samples for r in alone]), rtol=1e-9, atol=1e-9)
    for key in ("nfe_per_sample", "rejected", "steps"):
        assert together.report[key].tolist() == [int(r.report[key]) for r in alone]
    assert len(set(together.report["nfe_per_sample"].tolist())) > 1


@pytest.mark.parametrize("name,options", CASES)
def test_every_evaluation_is_counted(name, options, make_mixture):
    """A step costs its stages, a rejected one all but the first; what a step leaves for the next is not made again."""
    process = Flow()
    model = make_mixture(process, (3,))
    seen = torch.zeros(6, dtype=torch.long)
    noise = Noise(7).normal(0, (6, 3), "cpu", F64)

    class Counted(Denoiser):
        def forward(self, x, t, **condition):
            seen.add_(torch.bincount(condition["label"], minlength=6))
            return model(x, t)

        def check_condition(self, condition, batch, device):
            return {"label": torch.arange(6)}

    counted = Counted()
    counted.process = process
    result = plan(process, name, rtol=1e-3, atol=1e-3, **options).run(counted, noise, dtype=F64)
    assert torch.equal(result.report["nfe_per_sample"], seen)
    steps, rejected = result.report["steps"], result.report["rejected"]
    assert int(rejected.sum()) > 0
    ends = 2  # from alpha = 0, and to sigma = 0
    if name == "rk-adaptive":
        expected = 1 + 3 * (steps + rejected) + ends
    else:
        expected = options["order"] * steps + (options["order"] - 1) * rejected + ends
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("name,options", CASES)
def test_too_many_evaluations_name_the_tolerance(name, options, smooth):
    noise = Noise(2).normal(0, (4, 2))
    made = plan(smooth.process, name, rtol=1e-5, atol=1e-5, max_nfe=40, **options)
    assert made.nfe == 40
    with pytest.raises(ValueError, match=r"rtol=1e-05, atol=1e-05 needs more than max_nfe=40"):
        made(smooth, noise)


@pytest.mark.parametrize("name,options", CASES)
def test_a_step_whose_answer_is_not_finite_is_taken_shorter(name, options, smooth):
    """The error of such a step is no number; it must shrink, not be taken."""
    process = smooth.process

    class Breaks(Denoiser):
        calls = 0

        def forward(self, x, t, **condition):
            answer = smooth(x, t)
            self.calls += 1
            value = answer.value * math.nan if self.calls == 2 else answer.value
            return Prediction(value, answer.kind, x, t, process)

    broken = Breaks()
    broken.process = process
    result = plan(process, name, **options).run(broken, Noise(2).normal(0, (2, 2)))
    assert int(result.report["rejected"].min()) >= 1


def test_bad_options(smooth):
    noise = Noise(2).normal(0, (4, 2))
    with pytest.raises(ValueError, match="the pair 12"):
        plan(smooth.process, "dpm-solver-adaptive", order=4)(smooth, noise)
    with pytest.raises(ValueError, match="rtol and atol"):
        plan(smooth.process, "rk-adaptive", rtol=-1.0)(smooth, noise)
    with pytest.raises(ValueError, match="chooses its own steps"):
        plan(smooth.process, "rk-adaptive", 10)
