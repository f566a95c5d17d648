"""The fit of one row of numbers to many problems."""

from __future__ import annotations

import numpy as np
import pytest

import fewstep as fs
from fewstep.sampling.universal import row
from fewstep.searching.candidates import score
from fewstep.searching.joint import Form, _normal, ends, errors, fit, joint, objective
from fewstep.searching.zoo import mixture


@pytest.fixture(scope="module")
def two():
    return [
        joint("a Gaussian", "gaussians", mixture(1, 4, 1, 1.0, 1.0), 1.0, 12),
        joint("a mixture", "mixtures", mixture(2, 3, 3, 0.5, 0.2), 1.0, 12),
    ]


@pytest.mark.parametrize("band", [None, 2])
def test_rows_and_vectors_are_the_same(band):
    form = Form(5, band)
    theta = form.clamp(form.start() + 0.1 * np.random.default_rng(0).normal(size=len(form)))
    there = form.row(theta)
    assert np.allclose(form.vector(there), theta)
    assert all(sum(weights) == pytest.approx(1) for weights in there.mix)


@pytest.mark.parametrize("n", [1, 5])
def test_a_row_runs_as_the_plan_does(two, n):
    """The fit's own loop, and the plan that `universal` makes of the same numbers."""
    form, problem = Form(n), two[1]
    theta = form.vector(row(n))
    plan = fs.plan(problem.model.process, "universal", n, data_std=1.0)
    assert errors(form, problem, theta[None])[0] == pytest.approx(score(plan, problem.model, problem.problem), rel=1e-3)


def test_what_joins_late_ends_as_what_ran_from_the_start(two):
    form = Form(4)
    order = np.argsort(form.first, kind="stable")
    moved = np.repeat(form.start()[None], len(form) + 1, axis=0)
    moved[np.arange(len(form)) + 1, order] += 0.1
    late = ends(form, two[1], moved, np.concatenate([[0], form.first[order]]))
    assert float((late - ends(form, two[1], moved)).abs().max()) < 1e-5


def test_the_gradient_is_that_of_the_objective(two):
    form = Form(3)
    theta = form.start()
    _, gradient = _normal(form, two, theta)
    h = 1e-3
    moved = np.concatenate([theta + h * np.eye(len(form)), theta - h * np.eye(len(form))])
    up, down = np.split(objective(form, two, moved), 2)
    measured = (up - down) / (2 * h)
    assert np.abs(gradient - measured).max() < 0.05 * np.abs(measured).max()


def test_a_fit_lowers_both_errors_by_far(two):
    form = Form(4)
    before = objective(form, two, form.start()[None])[0]
    told: list[float] = []
    theta, value = fit(form, two, form.start(), 8, lambda _, found: told.append(found))
    assert value == told[-1] == min(told) == pytest.approx(objective(form, two, theta[None])[0])
    assert value < before - 1.5  # a geometric mean of 4.5
    assert np.all(np.diff(theta[:4]) > 0)


@pytest.mark.parametrize("fewer, n", [(1, 2), (5, 7), (5, 6)])
def test_more_evaluations_start_where_fewer_end(two, fewer, n):
    short, form = Form(fewer), Form(n)
    theta = form.longer(row(fewer))
    assert np.all(np.diff(theta[:n]) > 0)
    for problem in two:
        old, new = errors(short, problem, short.vector(row(fewer))[None]), errors(form, problem, theta[None])
        assert new[0] == pytest.approx(old[0], rel=1e-2, abs=1e-6)
