"""gits: the dynamic programme is exact, the costs are those of real Euler steps, trajectories are nearly flat."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.gits import best_path, euler_costs, start_costs
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job

F64 = torch.float64


def brute_force(costs: np.ndarray, steps: int, factor: float, start: np.ndarray | None) -> tuple[float, list[int]]:
    n = len(costs)
    best = (math.inf, [])
    for inner in itertools.combinations(range(n - 1), steps):
        if start is None and inner[0] != 0:
            continue
        path = [*inner, n - 1]
        total, weight = 0.0, 1.0
        if start is not None:
            total, weight = start[path[0]], factor
        for i, j in itertools.pairwise(path):
            total += weight * costs[i, j]
            weight *= factor
        best = min(best, (total, path))
    return best


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("free", [False, True])
def test_the_dynamic_programme_finds_what_brute_force_finds_on_ten_points(steps, factor, free):
    rng = np.random.default_rng(steps)
    costs = np.where(np.triu(np.ones((10, 10)), 1) > 0, rng.random((10, 10)), np.inf)
    start = np.append(rng.random(9), np.inf) if free else None
    assert best_path(costs, steps, factor, start) == brute_force(costs, steps, factor, start)[1]


def test_paths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="between 1 and 9"):
        best_path(np.ones((10, 10)), 10)
    with pytest.raises(ValueError, match="between 1 and 9"):
        best_path(np.ones((10, 10)), 0)


def test_a_larger_factor_asks_for_shorter_last_steps():
    """With costs h^2 on a line the best steps fall geometrically by the factor; at 1 they are equal."""
    u = np.linspace(0, 1, 101)
    costs = np.where(u[None] > u[:, None], (u[None] - u[:, None]) ** 2, np.inf)
    equal, falling = (np.diff(u[best_path(costs, 4, factor)]) for factor in (1.0, 1.5))
    np.testing.assert_allclose(equal, 0.25)
    # Lagrange: factor^m h_m is constant.
    wanted = 1.5 ** -np.arange(4.0)
    np.testing.assert_allclose(falling, wanted / wanted.sum(), atol=0.011)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_costs_are_the_errors_of_real_ddim_steps(process, make_mixture):
    model = make_mixture(process, (3,))
    job = Job(model, 4, method="gits", noises=6, reference_nfe=100)
    times = fine_grid(process, 8)
    states, answers = job.paths(times)
    costs = euler_costs(process, times, states, answers)
    for i, j in ((0, 3), (2, 3), (4, 7), (6, 7)):
        step = plan(process, "ddim", timesteps=[times[i], times[j]])
        made = step(model, states[i] / process.sigma(times[i]), dtype=F64)
        assert float((made - states[j]).norm(dim=1).mean()) == pytest.approx(costs[i, j], rel=1e-6)
    assert np.isinf(costs[np.tril_indices(8)]).all()
    free = start_costs(process, times, states)
    assert free[0] < 1e-12 and np.isinf(free[-1]) and (np.diff(free[:-1]) > 0).any()


def test_the_paths_of_a_job_are_the_exact_ones(make_mixture):
    """On a single Gaussian the probability flow is known: x_t = mean_t + std_t / std_T (x_T - mean_T)."""
    from fewstep.denoisers.gaussian_mixture import GaussianMixture

    process = VP()
    model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.4), torch.tensor([0.3]), process)
    job = Job(model, 4, method="gits", noises=5, reference_nfe=100)
    for end in (process.t_zero, process.t_min):
        times = [process.t_max, 0.7, 0.4, 0.2, end]
        states, answers = job.paths(times)
        assert len(answers) == (4 if end == process.t_zero else 5)

        def std(t, process=process):
            return math.sqrt(0.3 * process.alpha(t) ** 2 + process.sigma(t) ** 2)

        for i, t in enumerate(times):
            first = states[0] - 0.4 * process.alpha(process.t_max)
            exact = 0.4 * process.alpha(t) + first * (std(t) / std(process.t_max))
            torch.testing.assert_close(states[i], exact, rtol=0, atol=2e-4)
            if i < len(answers):
                gain = 0.3 * process.alpha(t) / std(t) ** 2
                torch.testing.assert_close(answers[i], 0.4 + gain * (states[i] - 0.4 * process.alpha(t)))


def test_three_principal_components_hold_a_trajectory(make_mixture):
    """Chen et al., section 3: trajectories lie near a three-dimensional subspace of the sample space."""
    model = make_mixture(EDM(), (3, 7))
    job = Job(model, 4, method="gits", noises=9, reference_nfe=100)
    path = torch.stack(job.trajectory(fine_grid(model.process, 61))).flatten(2).transpose(0, 1)  # (n, N, 21)
    centred = path - path.mean(1, keepdim=True)
    power = torch.linalg.svdvals(centred).square()
    assert float((power[:, :3].sum(1) / power.sum(1)).min()) > 0.95


def test_gits_beats_the_same_solver_on_hand_made_grids(searched, make_mixture):
    model = make_mixture(VP())
    job, finished = searched("gits", model, 5, solver="dpmpp-2m")
    assert finished and job.best.about["solver"] == "dpmpp-2m" and job.best.nfe == 5
    from fewstep.searching.candidates import score

    rules = [plan(model.process, "dpmpp-2m", 5, rule) for rule in ("karras", "log-snr", "uniform")]
    assert job.score < min(score(made, model, job.held_out) for made in rules)


@pytest.mark.slow
def test_a_search_taken_up_again_ends_as_if_it_had_not_been_stopped(resumed, make_mixture, tmp_path):
    model = make_mixture(VP())
    # The training reference and the path take about 3200 evaluations, the held-out one 1280, every offer 128.
    whole = resumed("gits", model, 4, tmp_path, (3000, 1600, 1600), points=21)
    assert whole.best.about["timesteps"].startswith("gits")


def test_bad_options_are_refused_at_once(searched, make_mixture):
    model = make_mixture(VP())
    for options, message in (
        ({"solver": "ddpm"}, "deterministic"),
        ({"solver": "gits"}, "unknown solver"),
        ({"factor": 0.0}, "must be positive"),
        ({"points": 4}, "at most 3 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            searched("gits", model, 4, **options)
