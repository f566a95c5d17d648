"""Block caching: schedules from measured changes, scales and shifts. Methods: block-caching."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.block_caching import WHOLE, adjusted, block_caching
from fewstep.caching.block_changes import calibrate
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise

BLOCK = "mid.res1"


@pytest.fixture(scope="module")
def digits() -> Denoiser:
    return fs.load("digits")


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed).normal(0, (n, 1, 8, 8))


@pytest.fixture(scope="module")
def measured(digits):
    return calibrate(digits, fs.plan(digits.process, "ddim", 12), noise(4, 1), label=[1, 3, 5, 7])


def test_a_block_runs_once_what_adds_up_is_more_than_delta(digits):
    """Equation 5: at 0.1 an evaluation, or after a jump."""
    plan = fs.plan(digits.process, "ddim", 8)
    changes = {BLOCK: [0.0] + [0.1] * 7, "mid.res0": [0.0, 0.0, 0.05, 0.5, 0.0, 0.1, 0.1, 0.1]}
    cached = block_caching(digits, changes, plan.moments, "ddim", delta=0.25)
    both = f"mid.res0, {BLOCK}"
    assert cached.schedule == (WHOLE, both, both, WHOLE, both, both, "mid.res0", BLOCK)
    result = plan.run(cached, noise(2), label=3)
    assert (result.report["whole"], result.report["part"]) == (2, 6)
    assert result.report["cost"] == pytest.approx(2 + 4 * cached.cost(("mid.res0", BLOCK)) + cached.cost((BLOCK,))
                                                  + cached.cost(("mid.res0",)))  # fmt: skip


def test_it_costs_less_the_more_may_change(digits, measured):
    plan = fs.plan(digits.process, "ddim", 12)
    whole, costs, errors = plan(digits, noise(4), label=3), [], []
    for delta in (0.0, 0.2, 0.4, 0.8, 100.0):
        result = plan.run(block_caching(digits, **measured, delta=delta), noise(4), label=3)
        costs.append(result.report.get("cost", 12.0))
        errors.append(float((result.samples - whole).norm() / whole.norm()))
    assert costs == sorted(costs, reverse=True) and costs[0] == 12.0 and costs[-1] < 3.0
    assert errors[0] == 0.0 and errors == sorted(errors)


def test_scales_of_one_and_shifts_of_nothing_are_none(digits, measured):
    plan = fs.plan(digits.process, "ddim", 12)
    tables = {name: torch.stack([torch.ones(12, 64), torch.zeros(12, 64)], dim=1) for name in (BLOCK, "mid.res0")}
    plain, same = (block_caching(digits, **measured, delta=0.4, scale_shift=one) for one in (None, tables))
    assert torch.equal(plan(plain, noise(3), label=3), plan(same, noise(3), label=3))
    tables[BLOCK][7:] *= 1.5  # the first evaluations are as they were
    other, seen = block_caching(digits, **measured, delta=0.4, scale_shift=tables), []
    for model in (plain, other):
        plan(model, noise(3), label=3, callback=lambda n, t, x, p: seen.append(p.value.clone()))
    equal = [torch.equal(a, b) for a, b in zip(seen[:12], seen[12:], strict=True)]
    assert all(equal[:7]) and not all(equal[7:])


def test_rows_of_other_evaluations_have_their_own_scale():
    table = torch.arange(12.0).reshape(3, 2, 2)
    picture, tokens = torch.ones(3, 2, 4, 5), torch.ones(3, 4, 2)
    for value in (picture, tokens):
        found = adjusted(table, value, [(2, 1), (0, 2)])
        apart = [adjusted(table, value[:1], [(2, 1)]), adjusted(table, value[1:], [(0, 2)])]
        assert torch.equal(found, torch.cat(apart))
    assert adjusted(table, picture, [(1, 3)])[0, :, 0, 0].tolist() == [4.0 + 6.0, 5.0 + 7.0]
    assert adjusted(None, picture, [(1, 3)]) is picture


def test_runs_of_one_plan_share_calls_at_other_evaluations(digits, measured):
    """Live requests are at different places of the plan: each row gets the scale of its own evaluation."""
    tables = {BLOCK: torch.randn(12, 2, 64, generator=torch.Generator().manual_seed(0))}
    cached = block_caching(digits, **measured, delta=0.4, scale_shift=tables)
    whole = fs.plan(digits.process, "ddim", 12)
    late = fs.plan(digits.process, "ddim", timesteps=whole.times[3:])
    requests = [(whole, noise(2, 1), {"label": 3}), (late, noise(1, 2), {"label": 5})]
    for found, (plan, x, given) in zip(fs.run_mixed(requests, cached), requests, strict=True):
        torch.testing.assert_close(found, plan(cached, x, **given), rtol=0, atol=2e-5)


def test_a_calibration_holds_for_its_plan(digits, measured):
    cached = block_caching(digits, **measured, delta=0.4)
    for plan in (fs.plan(digits.process, "ddim", 11), fs.plan(digits.process, "dpmpp-2m", 12)):
        with pytest.raises(ValueError, match="was calibrated for ddim, 12 evaluations, and the run is"):
            plan(cached, noise(1), label=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": -0.1}, "delta must be at least 0 and finite, got -0.1"),
        ({"order": 0}, "order must be a whole number of at least 1"),
        ({"changes": {"mid.re": [0.0] * 3}}, "unknown block 'mid.re'"),
        ({"changes": {"up.1.up": [0.0] * 3}}, "unknown block 'up.1.up'"),
        ({"changes": {BLOCK: [0.0] * 2}}, f"the changes of {BLOCK!r} must be 3 numbers of at least 0"),
        ({"changes": {BLOCK: [0.0, -1.0, 0.0]}}, "must be 3 numbers of at least 0"),
        ({"scale_shift": {"mid.re": torch.zeros(3, 2, 64)}}, "unknown block 'mid.re'"),
        ({"scale_shift": {BLOCK: torch.zeros(3, 64)}}, r"must be \(3, 2, channels\), got \(3, 64\)"),
    ],
)
def test_bad_input(digits, options, message):
    times = fs.plan(digits.process, "ddim", 3).moments
    with pytest.raises(ValueError, match=message):
        block_caching(digits, **{"changes": {BLOCK: [0.0] * 3}, "times": times, "solver": "ddim"} | options)
