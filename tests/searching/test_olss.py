"""olss: the fit is the orthogonal projection, a Gaussian is solved exactly, the planned path bounds its errors."""

from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import score
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job
from fewstep.searching.olss import follow, olss, regress, within

F64 = torch.float64


def test_the_residual_is_the_orthogonal_projection_error():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 4, generator=generator, dtype=F64)
    targets = torch.randn(50, 3, generator=generator, dtype=F64)
    coefficients, residual = regress(columns, targets)
    projector = torch.eye(50, dtype=F64) - columns @ torch.linalg.pinv(columns)
    torch.testing.assert_close(residual, projector @ targets)
    torch.testing.assert_close(columns @ coefficients + residual, targets)
    assert float((columns.T @ residual).abs().max()) < 1e-12


def test_a_column_that_says_nothing_new_is_left_out():
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(30, 3, generator=generator, dtype=F64)
    dependent = torch.stack([columns[:, 0], 2 * columns[:, 0], columns[:, 1], columns[:, 2]], 1)
    targets = torch.randn(30, 2, generator=generator, dtype=F64)
    plain, residual = regress(columns, targets)
    coefficients, same = regress(dependent, targets)
    assert float(coefficients[1].abs().max()) == 0
    torch.testing.assert_close(coefficients[[0, 2, 3]], plain)
    torch.testing.assert_close(same, residual)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_a_gaussian_is_solved_exactly(process, searched):
    """Its states are in the span of the noise and one prediction, so two evaluations land on the reference."""
    model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.3), torch.tensor([0.25]), process)
    job, _ = searched("olss", model, 2, points=9)
    assert score(plan(process, "dpmpp-3m", nfe=2), model, job.held_out) > 0.05
    assert job.score < 1e-9


def test_the_plan_makes_the_projections_it_was_fitted_with(make_mixture):
    model = make_mixture(VP(), (3,))
    job = Job(model, 4, method="olss", noises=40, reference_nfe=60)
    times = [model.process.t_max, 0.6, 0.3, 0.1, 0.0]
    states = torch.stack(job.trajectory(times))
    with torch.no_grad():
        rollout = follow(job, times, states)
    made = rollout.plan(0.0, "mine")
    result = made.run(model, job.train.noise, dtype=F64, trajectory=True)
    assert made.nfe == 4 and [e.t for e in made.evaluations] == times[:4]
    size = [1.0, 1.0, 1.0, 1.0, 1.0]  # alpha^2 + sigma^2 in VP
    errors = [
        float((x - y).square().mean().sqrt()) / s for x, y, s in zip(result.trajectory, states, size, strict=True)
    ]
    assert max(errors) == pytest.approx(rollout.error, rel=1e-6)
    # The last state is the best that the plan's own predictions allow.
    columns = torch.stack([c for c in rollout.columns], 1)
    _, residual = regress(columns, states[-1].flatten()[:, None])
    torch.testing.assert_close((states[-1] - result.samples).flatten(), residual[:, 0], rtol=1e-5, atol=1e-8)


def test_the_planner_bounds_every_step_and_a_tighter_bound_fails(make_mixture):
    model = make_mixture(VP(), (3,))
    job = Job(model, 4, method="olss", noises=40, reference_nfe=60)
    times = fine_grid(model.process, 41)
    states = torch.stack(job.trajectory(times))
    with torch.no_grad():
        even = follow(job, [times[i] for i in (0, 10, 20, 30, 40)], states[[0, 10, 20, 30, 40]])
        for first in (True, False):
            low, high = 0.0, even.error
            for _ in range(12):
                bound = (low + high) / 2
                path = within(job, times, states, 4, bound, first)
                if path is None:
                    low = bound
                else:
                    high = bound
                    assert path.error <= bound and len(path.times) == 4
                    assert (path.times[0] == times[0]) == first or not first
            assert high < 0.7 * even.error
            assert low > 0 and within(job, times, states, 4, low, first) is None


def test_olss_beats_hand_made_solvers(searched, make_mixture):
    model = make_mixture(VP())
    job, _ = searched("olss", model, 5)
    hand = [plan(model.process, s, 5, r) for s in ("ddim", "dpmpp-2m", "vab-3") for r in ("log-snr", "karras")]
    assert job.score < 0.3 * min(score(made, model, job.held_out) for made in hand)
    assert job.best.nfe == 5 and not job.best.stochastic


def test_a_rule_may_give_the_times(searched, make_mixture):
    job, _ = searched("olss", make_mixture(EDM()), 3, timesteps="log-snr")
    assert list(job.best.times) == list(plan(EDM(), "ddim", 3, "log-snr").times)
    with pytest.raises(ValueError, match="at least 5 points"):
        searched("olss", make_mixture(EDM()), 3, points=4)
    assert olss.__module__ == "fewstep.searching.olss"
