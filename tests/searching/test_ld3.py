"""ld3: the gradient is that of the sampler, a schedule is exact, the soft teacher keeps within its ball."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewstep.core.methods import find
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.ld3 import WINDOW, Schedule, _bounded, gradient

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["dpmpp-2m", "vab-3"])
def test_a_schedule_gives_back_the_grid_it_was_made_from(process, solver):
    made = plan(process, solver, 5, "short")
    again = Schedule(process, solver, made.times).plan(Schedule(process, solver, made.times).initial)
    assert again.nfe == 5 and again.times[-1] == process.t_zero
    want = [process.log_snr(t) for t in made.times[:-1]]
    np.testing.assert_allclose([process.log_snr(t) for t in again.times[:-1]], want, atol=0.03)  # gaps have a floor


def test_the_networks_time_stays_within_its_window():
    process = VP()
    schedule = Schedule(process, "dpmpp-2m", plan(process, "dpmpp-2m", 4, "karras").times)
    theta = schedule.initial.copy()
    theta[5:] = [9.0, -9.0, 9.0, -9.0]
    made = schedule.plan(theta)
    grid = np.array([process.log_snr(t) for t in made.times[:-1]])
    told = np.array([process.log_snr(op.t) for op in made.evaluations])
    edges = np.diff([schedule.low, *grid, schedule.high])
    np.testing.assert_allclose(np.abs(told - grid), WINDOW * np.minimum(edges[:-1], edges[1:]), rtol=1e-4)
    assert list(np.sign(told - grid)) == [1, -1, 1, -1]


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-2"])
def test_the_gradient_is_that_of_the_sampler(process, solver, make_mixture):
    """Against central differences of whole runs, in the schedule and in the noise."""
    model = make_mixture(process, (3,))
    job = Job(model, 4, method="ld3", noises=16, reference_nfe=30)
    schedule = Schedule(process, solver, plan(process, solver, 4, "karras").times)
    theta = schedule.initial + 0.1 * np.sin(np.arange(9.0))
    problem = job.train
    offset = 0.01 * torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

    def distances(vector, moved):
        x = job.run(schedule.plan(vector), dataclasses.replace(problem, noise=problem.noise + moved))
        return (x - problem.reference).norm(dim=1)

    with torch.no_grad():
        found, slope, pull = gradient(schedule, theta, job, problem, offset, "x0")
    torch.testing.assert_close(found, distances(theta, offset))
    for k in range(9):
        step = 1e-5 * np.eye(9)[k]
        numeric = (distances(theta + step, offset).mean() - distances(theta - step, offset).mean()) / 2e-5
        assert slope[k] == pytest.approx(float(numeric), rel=1e-4, abs=1e-7)
    for axis in range(3):
        step = torch.zeros(16, 3, dtype=F64)
        step[:, axis] = 1e-5
        numeric = (distances(theta, offset + step) - distances(theta, offset - step)) / 2e-5
        torch.testing.assert_close(pull[:, axis], numeric, rtol=1e-4, atol=1e-7)


def test_offsets_are_projected_onto_the_ball():
    offset = torch.tensor([[3.0, 4.0], [0.03, 0.04]])
    bounded = _bounded(offset, 1.0)
    torch.testing.assert_close(bounded[0].norm(), torch.tensor(2.0).sqrt())
    torch.testing.assert_close(bounded[0] / bounded[0].norm(), torch.tensor([0.6, 0.8]))
    assert torch.equal(bounded[1], offset[1])


@pytest.mark.slow  # as the claims say
def test_learned_times_beat_the_best_hand_made_grid_of_the_solver(searched, make_mixture):
    model = make_mixture(VP())
    for radius in (0.0, 0.5):
        job, finished = searched("ld3", model, 4, solver="dpmpp-2m", iterations=15, radius=radius)
        assert finished and job.best.about["timesteps"] == "ld3" and job.best.nfe == 4
        assert job.score < 0.8 * job.history[0][1]  # the first offer is the best hand-made grid
    rules = [plan(VP(), "dpmpp-2m", 4, rule) for rule in ("log-snr", "karras", "uniform", "short")]
    assert job.history[0][1] <= min(score(made, model, job.held_out) for made in rules)
    assert find("ld3", room="searching").__name__ == "ld3"


def test_bad_options_are_refused(searched, make_mixture):
    for options in ({"iterations": 0}, {"rate": 0.0}, {"radius": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            searched("ld3", make_mixture(VP()), 4, **options)
