"""ays: the bound of a Gaussian in closed form, the least one, and the known density of its times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.ays import RULES, changes, ladder, optimise, refine, step_bounds, total
from fewstep.searching.candidates import score
from fewstep.searching.gits import best_path

C = 0.5  # standard deviation of the Gaussian


def gain(s):
    return C**2 / (C**2 + s**2)


def exact_changes(levels: np.ndarray) -> np.ndarray:
    """`E |D(y_s, s) - D(y_a, a)|^2` a dimension, s < a: D has the slope `gain`, and y_a is y_s and fresh noise."""
    s, a = np.minimum(levels[:, None], levels), np.maximum(levels[:, None], levels)
    return (gain(a) - gain(s)) ** 2 * (C**2 + s**2) + gain(a) ** 2 * (a**2 - s**2)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_the_changes_on_noised_samples_are_those_of_the_sde(process):
    model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.4), torch.tensor([C**2]), process)
    levels = np.array([0.02, 0.1, 0.5, 1.5, 8.0])
    measured = changes(model, model.sample(20000), levels.tolist(), {}, seed=1, first=0)
    np.testing.assert_allclose(measured, 3 * exact_changes(levels), rtol=0.04, atol=1e-9)


def test_the_bound_of_a_step_is_its_integral():
    levels = ladder(VP(), 400, C)
    bounds = step_bounds(levels, exact_changes(levels))
    for i, j in ((399, 200), (200, 150), (120, 0)):
        a = levels[i]
        fine = np.exp(np.linspace(np.log(levels[j]), np.log(a), 20001))
        values = ((gain(a) - gain(fine)) ** 2 * (C**2 + fine**2) + gain(a) ** 2 * (a**2 - fine**2)) / fine**3
        assert bounds[i, j] == pytest.approx(float(np.trapezoid(values, fine)), rel=5e-3)
    assert np.isinf(bounds[np.triu_indices(400)]).all()


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("steps", [4, 10, 17])
def test_descent_from_rules_comes_near_the_least_bound(process, steps):
    levels = ladder(process, 120, C)
    bounds = step_bounds(levels, exact_changes(levels))
    # The best path of all, by dynamic programming from the noisiest rung.
    best = [119 - i for i in best_path(bounds[::-1, ::-1], steps)]
    found = [optimise(process, levels, bounds, steps, rule) for rule in RULES]
    assert all(len(path) == steps + 1 and path[0] == 119 and path[-1] == 0 for path in found)
    assert total(bounds, best) <= min(total(bounds, path) for path in found) < 1.15 * total(bounds, best)
    for rule in RULES:
        made = plan(process, "ddim", steps, rule, end="min").times[1:-1]
        hand = [119, *(int(np.abs(np.log(levels) + process.log_snr(t)).argmin()) for t in made), 0]
        assert min(total(bounds, path) for path in found) < total(bounds, hand)


def test_refining_never_raises_the_bound_and_ends_where_nothing_moves():
    levels = ladder(EDM(), 100, C)
    bounds = step_bounds(levels, exact_changes(levels))
    path = [99, 90, 80, 70, 30, 10, 0]
    better = refine(bounds, path)
    assert total(bounds, better) < total(bounds, path)
    assert refine(bounds, better) == better


def test_the_times_of_a_gaussian_have_the_density_that_variations_give():
    """With many short steps a share is `gain^2 (d log s)^2`: times at equal steps of `log(s / sqrt(s^2 + c^2))`."""
    levels = np.exp(np.linspace(np.log(0.02), np.log(2.0), 1200))
    bounds = step_bounds(levels, exact_changes(levels))
    s = levels[[1199 - i for i in best_path(bounds[::-1, ::-1], 40)]]
    parts = -np.diff(np.log(s / np.sqrt(s**2 + C**2)))
    assert parts[2:].std() < 0.05 * parts.mean()
    in_log_snr = -np.diff(np.log(s))
    assert in_log_snr.std() > 0.4 * in_log_snr.mean()


def test_schedules_with_a_floor_beat_log_snr_times(searched, make_mixture):
    model = make_mixture(VP())
    for nfe in (5, 8):
        job, finished = searched("ays", model, nfe)
        assert finished and job.best.nfe == nfe
        assert job.score < score(plan(VP(), "dpmpp-2m", nfe), model, job.held_out)
    own, _ = searched("ays", model, 6, solver="ddim", floor=0.0)
    assert own.best.times[0] == VP().t_max and own.best.times[-2:] == (VP().t_min, VP().t_zero)
    assert find("ays", room="searching").__name__ == "ays"


def test_bad_options_are_refused(searched, make_mixture):
    model = make_mixture(VP())
    for nfe, options, message in (
        (1, {}, "2 steps at least"),
        (4, {"floor": 2.0}, "from 0 to 1"),
        (12, {"rungs": 20}, "at least 48 rungs"),
        (4, {"solver": "ddpm"}, "deterministic"),
    ):
        with pytest.raises(ValueError, match=message):
            searched("ays", model, nfe, **options)
