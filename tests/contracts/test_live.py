"""The contract of every live solver, whose arithmetic depends on the data: registered ones enter by themselves."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

from fewstep.core.methods import card
from fewstep.core.noise import Noise
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names

SOLVERS = solver_names(live=True)
F64 = torch.float64
# Both start at alpha = 0 and end at sigma = 0.
PROCESSES = [Flow(), Discrete.from_betas([1e-4 + 2e-5 * i for i in range(999)], zero_terminal=True)]


def facts(name: str):
    return card(name, "sampling")[0].facts


def make(process, name: str, steps: int, rule: str = "log-snr", **options):
    """A plan; solvers that choose their own steps get none."""
    return (
        plan(process, name, timesteps=rule, **options)
        if facts(name).get("adaptive")
        else plan(process, name, steps, rule, **options)
    )


def counts(name: str) -> tuple[int, ...]:
    return (1,) if facts(name).get("adaptive") else (1, 2, 3, 4, 7, 30)


@sampled("name, process, end", SOLVERS, PROCESSES, ["zero", "min"])
def test_finite_with_the_stated_evaluations_at_1_to_30_steps(name, process, end, make_mixture):
    model = make_mixture(process, (3,))
    noise = Noise(5).normal(0, (2, 3), "cpu", F64)
    for i, n in enumerate(counts(name)):
        for rule in ("log-snr", "uniform")[i % 2 :: 2]:
            made = make(process, name, n, rule, end=end)
            result = made.run(model, noise, dtype=F64)
            assert bool(torch.isfinite(result.samples).all()), (n, rule)
            assert 1 <= result.nfe
            made_each = result.report["nfe_per_sample"]
            assert made_each.shape == (2,) and int(made_each.max()) <= min(result.nfe, result.planned_nfe)
            assert int(made_each.min()) >= 1


@sampled("name, process", SOLVERS, [VP(), EDM(), Flow()])
def test_a_batch_equals_its_single_runs(name, process, make_mixture):
    """In evaluations as in samples; and the first samples of a larger batch are the same."""
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (4, 2, 3), "cpu", F64)
    made = make(process, name, 6, "karras")
    together = made.run(model, noise, seed=7, dtype=F64)
    alone = [made.run(model, noise[i : i + 1], seed=7, first=i, dtype=F64) for i in range(4)]
    torch.testing.assert_close(together.samples, torch.cat([r.samples for r in alone]), rtol=1e-7, atol=1e-7)
    assert together.report["nfe_per_sample"].tolist() == [int(r.report["nfe_per_sample"]) for r in alone]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_noise_is_the_seeds(name, make_mixture):
    process = VP()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (4, 2, 3))
    made = make(process, name, 6)
    first = made(model, noise, seed=7)
    assert torch.equal(first, made(model, noise, seed=7))
    stochastic = bool(facts(name).get("stochastic"))
    assert made.stochastic == stochastic
    assert torch.equal(first, made(model, noise, seed=8)) != stochastic


@sampled("name, dtype", SOLVERS, [torch.float32, F64])
def test_dtype_and_shape_are_kept_and_the_noise_is_not_written_to(name, dtype, make_mixture):
    process = EDM()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (5, 2, 3), "cpu", dtype)
    before = noise.clone()
    seen: list[torch.dtype] = []
    made = make(process, name, 5, "karras")
    x = made(model, noise, dtype=dtype, callback=lambda count, t, state, prediction: seen.append(state.dtype))
    assert x.dtype == dtype and x.shape == noise.shape and set(seen) == {dtype}
    assert torch.equal(noise, before)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_samples_are_of_the_data(name, make_mixture):
    """Not only finite: with 50 steps the mean and spread of the mixture are found."""
    process = VP()
    model = make_mixture(process)
    noise = Noise(3).normal(0, (512, 2), "cpu", F64)
    x = make(process, name, 50)(model, noise, seed=3, dtype=F64)
    exact = model.sample(4096, 1)
    assert float((x.mean(0) - exact.mean(0)).abs().max()) < 0.15
    assert float((x.std(0) / exact.std(0) - 1).abs().max()) < 0.15
