"""aligner: a Gaussian's steps become exact, every time is the minimum it is said to be, plans get better."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.alignment import align
from fewstep.sampling.build import plan
from fewstep.searching.alignment import fit_times, time_between
from fewstep.searching.candidates import score
from fewstep.searching.job import Job

F64 = torch.float64


@pytest.mark.parametrize(
    "process", [VP(), *(pytest.param(p, marks=pytest.mark.slow) for p in (EDM(), Flow()))], ids=lambda p: p.name
)
def test_ddim_on_a_centred_gaussian_becomes_exact(process):
    """Its denoiser only scales, by a factor that falls with the noise: one time a step is all that is missing."""
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.tensor([0.25]), process)
    job = Job(model, 4, method="aligner", noises=16, reference_nfe=200)
    made = plan(process, "ddim", 4, "karras", end="min")
    taus = fit_times(job, made, 16)
    before, after = (score(p, model, job.held_out) for p in (made, align(made, taus)))
    assert before > 0.1 and after < 0.05 * before
    # The first-order step sees too much noise in the whole of the step: it must be told of less.
    assert all(tau < op.t for tau, op in zip(taus, made.evaluations, strict=True))


def test_time_between_moves_in_log_snr_and_stays_on_the_clock():
    process = VP()
    grid = [1.0, 0.5, 0.01, process.t_min, 0.0]
    assert time_between(process, grid, 1, 0.0) == 0.5
    middle = process.log_snr(time_between(process, grid, 1, 0.5))
    assert middle == pytest.approx((process.log_snr(0.5) + process.log_snr(0.01)) / 2)
    assert time_between(process, grid, 1, -1.0) == pytest.approx(1.0)
    assert time_between(process, grid, 0, -1.0) == 1.0  # nothing before the first
    assert time_between(process, grid, 3, 1.0) == process.t_min
    flow = Flow()
    assert time_between(flow, [1.0, 0.4, 0.0], 0, 0.5) == pytest.approx(0.7)  # no log-SNR at pure noise: in time


@pytest.mark.parametrize("solver", [pytest.param("ddim", marks=pytest.mark.slow), "unipc-3"])
def test_every_time_minimises_the_distance_to_the_teachers_next_state(solver, make_mixture):
    process = VP()
    model = make_mixture(process)
    job = Job(model, 4, method="aligner", noises=16, reference_nfe=60)
    made = plan(process, solver, nfe=4)
    taus = fit_times(job, made, 12)
    assert len(taus) == 4
    own = [op.t for op in made.evaluations]
    part = job.train.part(0, 12)
    for k in range(4):
        at = [*own[1:], made.times[-1]][k]
        (target,) = job.trajectory([at], 12)

        def miss(tau, k=k, target=target):
            run = align(made, [*taus[:k], tau, *own[k + 1 :]]).run(model, part.noise, dtype=F64, trajectory=True)
            return float((run.trajectory[k + 1] - target).norm(dim=1).mean())

        assert miss(taus[k]) <= miss(own[k]) + 1e-12
        if own[k] > process.t_min:
            shifted = [process.time(process.log_snr(taus[k]) + d) for d in (-0.1, 0.1)]
            clock = [t for t in shifted if process.t_min <= t <= process.t_max]
            assert miss(taus[k]) < min(miss(t) for t in clock) + 1e-3
    assert fit_times(job, made, 12, taus[:2]) == taus


def test_aligned_times_lower_the_error_on_noises_that_were_not_fitted(searched, make_mixture):
    model = make_mixture(EDM())
    job, finished = searched("aligner", model, 5, solver="ddim", timesteps="log-snr")
    assert finished and job.best.nfe == 5 and len(job.best.about["network times"]) == 5
    assert job.score < 0.5 * score(plan(EDM(), "ddim", 5), model, job.held_out)
    assert find("aligner", room="searching").__name__ == "aligner"


def test_with_more_steps_the_network_is_told_nearly_the_truth(make_mixture):
    process = VP()
    model = make_mixture(process)
    job = Job(model, 8, method="aligner", noises=16, reference_nfe=100)
    shifts = []
    for steps in (6, 24):
        made = plan(process, "ddim", steps)
        taus = fit_times(job, made, 16)
        pairs = [(tau, op.t) for tau, op in zip(taus, made.evaluations, strict=True)]
        shifts.append(sum(abs(process.log_snr(a) - process.log_snr(b)) for a, b in pairs) / steps)
    assert shifts[1] < 0.5 * shifts[0] and math.isfinite(shifts[0])
