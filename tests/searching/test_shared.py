"""Shared runs: the samples of runs alone, in fewer calls, whatever the number of threads; and races that use them."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.caching.deepcache import deepcache
from fewstep.guidance.cfg import cfg
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import fixed_plan as plan
from fewstep.searching.candidates import FINALISTS, rank, rounds, score
from fewstep.searching.learn import Learner
from fewstep.searching.problem import run_all
from fewstep.searching.reference import solve
from fewstep.searching.shared import NOISES, is_small, run_shared, threads_for

F64 = torch.float64


def counted(model):
    rows = [0]
    handle = model.register_forward_hook(lambda module, inputs, output: rows.__setitem__(0, rows[0] + len(inputs[0])))
    return rows, handle


def test_the_samples_are_those_of_each_plan_alone(make_mixture):
    model = make_mixture(VP())
    problem = solve(model, 0, 3, NOISES + 7, 20, F64)
    plans = [plan(VP(), name, nfe=6) for name in ("ddim", "heun", "dpmpp-2m", "ddpm", "dpmpp-2s", "ddim")]
    for made, run in zip(plans, run_shared(plans, model, problem), strict=True):
        alone = run_all(made, model, problem.noise, problem.condition, problem.seed, problem.first)
        torch.testing.assert_close(run.samples, alone, rtol=1e-9, atol=1e-10)
        assert run.seconds > 0


def test_what_several_plans_ask_for_is_evaluated_once(make_mixture):
    model = make_mixture(EDM())
    problem = solve(model, 0, 0, 10, 20, F64)
    rows, handle = counted(model)
    ddim, second, third = (plan(EDM(), name, nfe=5) for name in ("ddim", "dpmpp-2m", "dpmpp-3m"))
    run_shared([ddim], model, problem)
    assert rows[0] == 5 * 10
    run_shared([ddim, ddim, ddim], model, problem)
    assert rows[0] == 10 * 10
    # All see the noise first; dpmpp-3m goes as dpmpp-2m in its first steps.
    run_shared([ddim, second, third], model, problem)
    assert rows[0] - 100 <= (15 - 3) * 10
    handle.remove()


def test_threads_change_no_bit_and_come_back():
    model = fs.load("digits")
    assert is_small(model)
    problem = solve(model, 0, 0, 2 * NOISES, 6, torch.float32)
    plans = [plan(model.process, name, nfe=3) for name in ("ddim", "dpmpp-2m")]
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with threads_for(model):
                assert torch.get_num_threads() == 1
                drawn.append([run.samples for run in run_shared(plans, model, problem)])
            assert torch.get_num_threads() == threads
            with pytest.raises(KeyError), threads_for(model):
                raise KeyError
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_plan_that_diverges_spoils_no_other(make_mixture):
    model = make_mixture(VP())
    problem = solve(model, 0, 0, 8, 20, F64)
    wild = Learner(VP(), plan(VP(), "ddim", 3))
    theta = wild.initial.copy()
    theta[3:7] = 1e200
    lost, kept = run_shared([wild.plan(theta), plan(VP(), "ddim", 3)], model, problem)
    assert lost.samples is None
    assert torch.isfinite(kept.samples).all()


def test_a_broken_reference_says_where(make_mixture):
    model = make_mixture(VP())
    model.register_forward_hook(lambda module, inputs, output: output.replaced(output.value * math.nan))
    with pytest.raises(ValueError, match="not finite at evaluation"):
        solve(model, 0, 0, 4, 10, F64)


def planted(model):
    """A good plan among sixty whose steps go too far or not far enough."""
    winner = plan(model.process, "dpmpp-3m", nfe=6, timesteps="short")
    learner = Learner(model.process, winner)
    made = []
    for k in range(60):
        theta = learner.initial.copy()
        theta[7 + k % 6] *= 1 + 0.08 * (1 + k // 6) * (-1) ** k
        made.append(learner.plan(theta))
    made.insert(17, winner)
    return made, winner


def test_racing_keeps_the_winner_of_a_planted_set(make_mixture):
    model = make_mixture(EDM())
    problem = solve(model, 5, 0, 80, 60, F64)
    plans, winner = planted(model)
    whole = [score(made, model, problem) for made in plans]
    assert min(whole) == score(winner, model, problem)
    rows, handle = counted(model)
    ranked = rank(plans, model, problem)
    handle.remove()
    assert ranked[0].plan == winner
    assert ranked[0].score == pytest.approx(min(whole), rel=1e-9) and ranked[0].n == 80
    assert [c.n for c in ranked].count(80) == FINALISTS
    assert rows[0] < 0.5 * sum(made.nfe for made in plans) * 80
    assert {id(c.plan) for c in ranked} == {id(made) for made in plans}
    again = rank(plans, model, problem)
    assert [(c.name, c.score) for c in again] == [(c.name, c.score) for c in ranked]


def test_the_rounds_add_noises_and_drop_plans():
    assert rounds(492, 76) == [(492, 9), (123, 27), (FINALISTS, 76)]
    assert rounds(3, 5) == [(3, 5), (3, 5), (3, 5)]


def test_a_small_set_of_noises_scores_all(make_mixture):
    model = make_mixture(EDM())
    problem = solve(model, 5, 0, 5, 30, F64)
    plans = [plan(EDM(), name, nfe=4) for name in ("ddim", "dpmpp-2m", "heun")]
    for candidate in rank(plans, model, problem):
        assert candidate.n == 5
        assert candidate.score == pytest.approx(score(candidate.plan, model, problem), rel=1e-9)


def test_cached_and_guided_models_keep_a_memory_for_each_plan():
    model = deepcache(cfg(fs.load("digits"), 2.0), 2)
    problem = solve(model, 0, 0, 6, 6, torch.float32)
    plans = [plan(model.process, "ddim", nfe=4), plan(model.process, "ddim", nfe=4, guidance=[1.0, None, 3.0, 1.0])]
    for made, run in zip(plans, run_shared(plans, model, problem), strict=True):
        alone = run_all(made, model, problem.noise, problem.condition, problem.seed, problem.first)
        torch.testing.assert_close(run.samples, alone, rtol=1e-4, atol=1e-4)
