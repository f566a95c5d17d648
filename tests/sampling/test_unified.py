"""unified: uniform schedules are the known solvers, mixed ones keep the order of their steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sampled import sampled

from claims.problems import first_order_start
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.unified import Choice, derivatives, evaluations

F64 = torch.float64
UNIFORM = [
    (("eps", 1, "full"), "ddim"),
    (("x0", 1, "inside"), "ddim"),
    (("eps", 2, "full"), "ab-2"),
    (("eps", 2, "low"), "ab-2"),
    (("x0", 2, "full"), "ab-x0-2"),
    (("x0", 2, "low"), "ab-x0-2"),
    (("x0", 2, "middle"), "dpmpp-2m"),
    (("eps", 2, "inside"), "dpm-solver-2"),
    (("eps", 3, "inside"), "dpm-solver-3"),
    (("x0", 2, "inside"), "dpmpp-2s"),
]


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("choice, name", UNIFORM)
def test_a_uniform_schedule_is_the_known_solver(process, choice, name, make_mixture):
    model = make_mixture(process, (3,))
    noise = Noise(1).normal(0, (5, 3), "cpu", F64)
    known = plan(process, name, 7, "karras")
    made = plan(process, "unified", timesteps=known.times, schedule=[choice])
    assert made.nfe == known.nfe
    torch.testing.assert_close(made(model, noise, dtype=F64), known(model, noise, dtype=F64), rtol=1e-10, atol=1e-10)


def test_third_order_over_known_predictions_is_the_uncorrected_multistep_solver(make_mixture):
    process = VP()
    model = make_mixture(process)
    noise = Noise(1).normal(0, (5, 2), "cpu", F64)
    made = plan(process, "unified", 9, schedule=[("x0", 3, "full")])
    known = plan(process, first_order_start, 9)
    torch.testing.assert_close(made(model, noise, dtype=F64), known(model, noise, dtype=F64), rtol=1e-10, atol=1e-10)


def test_derivatives_are_exact_on_polynomials_of_their_degree():
    offsets = [0.0, -0.4, -1.1]
    values = np.array([2 - 3 * u + 5 * u**2 for u in offsets])
    np.testing.assert_allclose(derivatives(offsets, "full") @ values, [2, -3, 10], atol=1e-12)
    low = derivatives(offsets, "low") @ values
    # Row 1 is the slope of the newest two, exact on straight lines only; row 2 takes all three.
    np.testing.assert_allclose(low, [2, -3 + 5 * -0.4, 10], atol=1e-12)


def _order(smooth, schedule) -> float:
    process = smooth.process
    noise = Noise(2).normal(0, (16, 2), "cpu", F64)

    def grid(n: int) -> list[float]:
        return [process.time(float(v)) for v in np.linspace(-math.log(3), -math.log(0.1), n + 1)]

    exact = plan(process, "ab-5", timesteps=grid(800))(smooth, noise, dtype=F64)
    errors = [
        float(
            (
                plan(process, "unified", n, schedule=schedule(n), timesteps=grid(n))(smooth, noise, dtype=F64) - exact
            ).norm()
        )
        for n in (96, 192)
    ]
    return math.log2(errors[0] / errors[1])


@sampled("estimate, kind", ["full", "low", "middle", "inside"], ["eps", "x0"])
def test_third_order_steps_after_a_third_order_start_have_the_order_of_their_estimate(smooth, kind, estimate):
    order = 3 if estimate in ("full", "inside") else 2

    def schedule(n: int) -> list[Choice]:
        return [Choice(kind, 3, "inside")] * 2 + [Choice(kind, 3, estimate)] * (n - 2)

    assert _order(smooth, schedule) == pytest.approx(order, abs=0.2)


def test_kinds_and_estimates_of_second_order_mix_freely(smooth):
    cycle = [("eps", 2, "full"), ("x0", 2, "middle"), ("eps", 2, "inside"), ("x0", 2, "inside"), ("x0", 3, "low")]
    assert _order(smooth, lambda n: [cycle[i % 5] for i in range(n)]) == pytest.approx(2, abs=0.2)


def test_evaluations_are_those_of_the_choices_but_for_the_steps_of_infinite_length():
    choices = [
        Choice("eps", 3, "inside"),
        Choice("x0", 2, "inside"),
        Choice("x0", 3, "full"),
        Choice("eps", 3, "inside"),
    ]
    assert [evaluations(choice) for choice in choices] == [3, 2, 1, 3]
    assert plan(VP(), "unified", 4, schedule=choices).nfe == 3 + 2 + 1 + 1  # to sigma = 0
    assert plan(VP(), "unified", 4, end="min", schedule=choices).nfe == 3 + 2 + 1 + 3
    assert plan(Flow(), "unified", 4, schedule=choices).nfe == 1 + 2 + 1 + 1  # from alpha = 0


def test_a_plan_keeps_its_schedule_as_a_file():
    made = plan(VP(), "unified", 3, schedule=[Choice("eps", 2, "low"), Choice("x0", 1, "full"), Choice("x0", 3, "low")])
    again = Plan.from_json(made.to_json())
    assert again.ops == made.ops
    assert plan(VP(), "unified", 3, **again.about["options"]).ops == made.ops


@pytest.mark.parametrize(
    "schedule, words",
    [
        ([("x1", 2, "full")], "did you mean 'x0'"),
        ([("x0", 4, "full")], "1, 2 or 3"),
        ([("x0", 2, "fulll")], "did you mean 'full'"),
        ([("x0", 2)], "kind, order, estimate"),
        ([("x0", 2, "full")] * 2, "2 choices for 3 steps"),
    ],
)
def test_choices_that_there_are_not(schedule, words):
    with pytest.raises(ValueError, match=words):
        plan(VP(), "unified", 3, schedule=schedule)
