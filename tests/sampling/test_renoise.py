"""Steps of fresh noise, and jumps back up: what they are in their limits, and that they keep a law that is exact."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

F64 = torch.float64


def point(process):
    return GaussianMixture(torch.ones(1), torch.tensor([[0.5, -1.0]]), 0.3, process)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_the_ends_of_renoise_are_solvers_that_there_are(process):
    model, noise = point(process), torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def run(solver, **options):
        return fs.plan(process, solver, steps=5, **options)(model, noise, dtype=F64, seed=3)

    assert torch.allclose(run("renoise", share=0.0), run("ddim"), atol=1e-12)
    assert torch.allclose(run("renoise", share=1.0), run("multistep-consistency"), atol=1e-12)
    assert torch.allclose(run("resampled", repeats=1), run("ddpm"), atol=1e-12)


def test_jumps_are_counted():
    for steps, length, repeats in ((6, 2, 3), (7, 3, 2), (5, 1, 2)):
        made = fs.plan(VP(), "resampled", steps=steps, length=length, repeats=repeats)
        assert made.nfe == steps + (repeats - 1) * length * (steps // length)


def test_a_jump_up_has_the_law_of_its_level():
    """A clean sample thrown up from t to s has the moments of the process at s."""
    process = VP()
    times = [process.time(v) for v in (-1.0, 0.0, 1.0)]
    plan = fs.plan(process, "resampled", timesteps=times, length=2, repeats=2)
    seen = []
    n = 20_000
    exact = point(process)
    x = exact.sample(n, seed=1) * process.alpha(times[0])
    x = x + process.sigma(times[0]) * torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    plan(exact, x / process.sigma(times[0]), dtype=F64, callback=lambda number, t, x, p: seen.append((t, x.clone())))
    (first, begun), (back, up) = seen[0], seen[2]
    assert first == back == times[0]
    assert torch.allclose(up.mean(0), begun.mean(0), atol=0.02)
    # The ancestral steps between have the posterior's variance, which is too small by what x0_hat leaves open.
    assert float(up.var()) < float(begun.var()) + 0.02


def test_bad_input():
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 2"):
        fs.plan(VP(), "renoise", steps=2, share=2.0)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        fs.plan(VP(), "resampled", steps=2, length=0)
