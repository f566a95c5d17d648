"""learned-plan: the parameterisation is exact, the fit goes down, and what it returns is a plan like any other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.tell import tell
from fewstep.searching.candidates import Candidate, hand_made, rank, score
from fewstep.searching.learn import Learner, learn, tabulate
from fewstep.searching.problem import Problem
from fewstep.searching.reference import error_estimate, relative_error, solve

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc-2", "vab-3", "deis-2", "dpmpp-2s", "dpm-solver-2"])
@pytest.mark.parametrize("end", ["zero", "min"])
def test_a_plan_read_into_parameters_and_written_back_gives_the_same_samples(process, solver, end, make_mixture):
    model = make_mixture(process, (3,))
    made = plan(process, solver, 4, "karras", end=end)
    learner = Learner(process, made)
    noise = Noise(1).normal(0, (5, 3), "cpu", F64)
    again = learner.plan(learner.initial)
    assert again.nfe == made.nfe
    torch.testing.assert_close(again(model, noise, dtype=F64), made(model, noise, dtype=F64), rtol=1e-8, atol=1e-9)


def test_rows_of_a_consistent_solver_sum_to_one():
    """A constant prediction must be followed exactly whatever the weights, so each row of m sums to 1 and s is 1."""
    made = plan(VP(), "unipc-2", 5)
    learner = Learner(VP(), made)
    n = made.nfe
    s, m = learner.initial[n : 2 * n + 1], np.zeros((n, n))
    m[np.tril_indices(n)] = learner.initial[2 * n + 1 :]
    np.testing.assert_allclose(m.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(s, 1, atol=1e-9)


def test_plans_that_cannot_be_learned_from_are_recognised():
    assert tabulate(plan(VP(), "heun", 3)) is None  # evaluates a time twice
    assert tabulate(plan(VP(), "ddpm", 3)) is None  # draws noise
    assert tabulate(plan(VP(), "dpmpp-2m", 3)) is not None


def test_a_flow_maps_times_to_go_to_move_with_the_plans():
    process = EDM()
    made = plan(process, "flow-map", 3, gamma=0.0)
    learner = Learner(process, made)
    model = GaussianMap(torch.tensor([0.3, -0.2]), torch.tensor([0.04, 0.25]), process)
    noise = Noise(1).normal(0, (5, 2), "cpu", F64)
    again = learner.plan(learner.initial)
    torch.testing.assert_close(again(model, noise, dtype=F64), made(model, noise, dtype=F64), rtol=1e-8, atol=1e-9)
    moved = learner.plan(learner.clamp(learner.initial + 0.2 * (np.arange(len(learner.initial)) == 1)))
    assert moved.times[1] != made.times[1] and learner.numbers is False
    for found in (again, moved):
        assert [dict(op.given)["to"] for op in found.evaluations] == list(found.times[1:])
    # An exact map lands where the flow does, whatever the times are.
    torch.testing.assert_close(moved(model, noise, dtype=F64), made(model, noise, dtype=F64), rtol=1e-6, atol=1e-7)


def test_a_plan_to_times_that_are_none_of_its_own_is_not_learned():
    made = tell(plan(EDM(), "ddim", 3), to=0.123)
    with pytest.raises(ValueError, match="sends a flow map to 0.123, none of its own times, is not learned"):
        Learner(EDM(), made)


def test_a_solver_of_a_linear_problem_is_found_exactly():
    """For one Gaussian the flow is linear in the noise with one factor per direction of equal variance: two evaluations
    and free coefficients can land on it exactly, where the best hand-made plan is far off."""
    from fewstep.denoisers.gaussian_mixture import GaussianMixture

    process = EDM()
    model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.3), torch.tensor([0.25]), process)
    problem = solve(model, 0, 0, 96, 200, F64)
    start = [Candidate(plan(process, "dpmpp-2m", 2, "short"), 1.0)]
    before = score(start[0].plan, model, problem)
    made, figures = learn(model, start, problem.part(0, 64), problem.part(64, 96), iterations=15)
    assert made is not None and figures["learned"]
    assert before > 0.05
    assert score(made, model, problem) < 1e-4


def test_learning_beats_the_best_hand_made_plan_on_unseen_noises(make_mixture):
    process = VP()
    model = make_mixture(process)
    problem = solve(model, 0, 0, 256, 100, F64)
    train, held_out, test = problem.part(0, 96), problem.part(96, 160), problem.part(160, 256)
    plans = [
        plan(process, s, 4, t, end=e)
        for s in ("ddim", "vab-2", "dpmpp-2m")
        for t in ("karras", "quadratic")
        for e in ("zero", "min")
    ]
    ranked = rank(plans, model, held_out)
    made, figures = learn(model, ranked, train, held_out, iterations=3)
    assert score(made, model, test) < 0.5 * score(ranked[0].plan, model, test)
    assert figures["held_out_after"] < figures["held_out_before"]
    assert figures["parameters"] == 4 + 5 + 10
    assert Plan.from_json(made.to_json()) == made
    again, _ = learn(model, ranked, train, held_out, iterations=3)
    assert again == made  # no randomness, no clock


def test_every_hand_made_plan_is_offered_once_and_has_the_evaluations():
    tried = [name for name in solver_names() if not name.startswith(("ghvb", "rho-rk", "restart", "unified"))]
    plans = list(hand_made(VP(), 4, tried))
    assert len(plans) > 300
    assert all(made.nfe == 4 and not made.stochastic for made in plans)
    names = {(made.about["solver"], made.about["timesteps"], made.about["end"]) for made in plans}
    assert len(names) == len(plans)
    # Another name of log-snr makes the same plans, which are offered under the first name alone.
    assert "exponential" not in {rule for _, rule, _ in names} and "log-snr" in {rule for _, rule, _ in names}


def test_a_plan_that_diverges_scores_infinity(make_mixture):
    model = make_mixture(VP())
    problem = solve(model, 0, 0, 8, 20, F64)
    wild = Learner(VP(), plan(VP(), "ddim", 3))
    theta = wild.initial.copy()
    theta[3:7] = 1e200
    assert score(wild.plan(theta), model, problem) == math.inf


def test_the_reference_is_as_exact_as_its_estimate_says(make_mixture):
    model = make_mixture(EDM())
    problem = solve(model, 3, 0, 16, 100, F64)
    fine = solve(model, 3, 0, 16, 800, F64)
    truth = relative_error(problem.reference, fine.reference)
    estimate = error_estimate(model, problem, 100)
    assert truth < estimate < 30 * truth
    assert torch.equal(problem.noise, fine.noise)


def test_parts_keep_their_place_in_the_stream(make_mixture):
    model = make_mixture(EDM())
    problem = solve(model, 3, 5, 6, 10, torch.float32)
    part = problem.part(2, 5)
    assert isinstance(part, Problem) and part.first == 7 and len(part) == 3
    assert torch.equal(part.noise, Noise(3, 7).normal(0, (3, 2)))
