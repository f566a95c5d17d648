"""DMID is the tail of a plan, and the mean of several such."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.restoration.dmid import DMID, tail

F64 = torch.float64


def denoised(model, y, noise, nfe, seed=0, n=None, **options):
    a = fs.operators.Identity()
    return fs.restore(model, y, a, noise, method="dmid", options=options, nfe=nfe, dtype=F64, seed=seed, n=n)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_run_is_the_plans_own_tail(process, eta):
    model, noise = mixture(process), 0.4
    y = model.sample(3, seed=3) + noise * normal(3, D, seed=4)
    times = tail(process, noise, 4)
    assert process.sigma(times[0]) / process.alpha(times[0]) == pytest.approx(noise)
    plan = fs.plan(process, "ddim", timesteps=times, eta=eta)
    start = y * process.alpha(times[0]) / process.sigma(times[0])
    assert torch.allclose(denoised(model, y, noise, 4, eta=eta), plan(model, start, dtype=F64, seed=0), atol=1e-8)


def test_runs_come_to_the_posteriors_mean():
    model, noise = mixture(), 0.4
    y = model.sample(40, seed=3) + noise * normal(40, D, seed=4)
    a = fs.operators.Identity().fit((D,))
    laws = [model.posterior(a, row[None], noise) for row in y]
    mean = torch.stack([(law.log_weights.exp()[:, None] * law.means).sum(0) for law in laws])
    errors = [float((denoised(model, y, noise, 8 * runs, runs=runs) - mean).square().mean()) for runs in (1, 4, 16)]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1]


def test_counts_go_through_the_transform():
    model = mixture()
    model.value_range = (-2.0, 2.0)
    law = fs.operators.Poisson(30.0, low=-2.0)
    clean = model.sample(3, seed=3).clamp(-2, 2)
    a = fs.operators.Identity().fit((D,))
    y = a.measure(clean, law)
    x = denoised(model, y, law, 4)
    assert x.shape == clean.shape and float((x - y).abs().max()) < 3 and float(x.min()) >= -2


def test_bad_input_is_said():
    model, y = mixture(), normal(1, D)
    with pytest.raises(ValueError, match="takes the sample itself"):
        fs.restore(model, y, half(), 0.1, method="dmid")
    with pytest.raises(ValueError, match="divides by the noise: without noise"):
        denoised(model, y, 0.0, 4)
    with pytest.raises(ValueError, match="this model has none"):
        denoised(model, y.abs().round(), fs.operators.Poisson(1.0), 4)
    with pytest.raises(ValueError, match="runs must be at least 1"):
        DMID(runs=0)
