"""A sampler with a start of its own is the base from the starter's states."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.started import started
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64


@pytest.fixture
def model(make_mixture):
    return make_mixture(EDM(), (2, 3))


@pytest.mark.parametrize("name", ["dpmpp-2m", "ddpm"])
def test_it_runs_the_base_from_the_starters_states(name, model):
    base = plan(model.process, name, 5)
    seen = []

    def starter(noise, seed, first, condition):
        seen.append((seed, first, condition))
        return 3 * noise + 1

    made = started(base, starter, start="thrice")
    noise = Noise(2).normal(0, (4, 2, 3), "cpu", F64)
    result = made.run(model, noise, seed=2, first=7, dtype=F64)
    expected = base.run(model, (3 * noise + 1) / base.start[1], seed=2, first=7, dtype=F64)
    assert torch.equal(result.samples, expected.samples) and result.nfe == base.nfe == made.nfe
    assert seen == [(2, 7, {})]
    assert (made.stochastic, made.times, made.process) == (base.stochastic, base.times, base.process)
    assert made.about == base.about | {"start": "thrice"}
    assert str(made) == f"Started: start thrice\n{base}"


def test_the_bases_own_start_changes_nothing(model):
    base = plan(model.process, "dpmpp-2m", 5)
    noise = Noise(2).normal(0, (4, 2, 3), "cpu", F64)
    same = started(base, lambda noise, seed, first, condition: noise * base.start[1])
    torch.testing.assert_close(same(model, noise, dtype=F64), base(model, noise, dtype=F64), rtol=1e-12, atol=1e-12)


def test_what_it_is_not(model):
    made = started(plan(model.process, "ddim", 3), lambda noise, seed, first, condition: noise)
    noise = torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match="takes no init"):
        made.run(model, noise, init=noise)
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        _ = made.table
