"""Training by ranges of noise levels, and routing between what it gives.

Methods: train-experts.
"""

from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.training.clusters import level_losses
from fewstep.training.experts import RangeLevels, fit_ranges, range_cuts, train_experts
from fewstep.training.noise_levels import NoiseLevels

F64 = torch.float64


def made() -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NetworkDenoiser(MLP((2,), width=24, depth=2), Flow(), "flow", (2,))


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(400, 2, generator=generator) * 0.1 + torch.randint(0, 2, (400, 1), generator=generator) * 2 - 1


def test_levels_of_a_range():
    base = NoiseLevels(EDM(), "log-normal", mean=-1.0, std=1.2)
    u = (torch.arange(10_000, dtype=F64) + 0.5) / 10_000
    inside = RangeLevels(base, 0.25, 0.75).quantile(u)
    ends = base.quantile(torch.tensor([0.25, 0.75]))
    assert bool(((inside >= ends[0]) & (inside <= ends[1])).all())
    torch.testing.assert_close(inside, base.quantile(0.25 + 0.5 * u))
    mixed = RangeLevels(base, 0.25, 0.75, outside=0.2).quantile(u)
    # a fifth comes from everywhere, and half of that from outside the range
    assert float(((mixed < ends[0]) | (mixed > ends[1])).double().mean()) == pytest.approx(0.1, abs=1e-3)
    torch.testing.assert_close(RangeLevels(base, 0.2, 0.3, outside=1.0).quantile(u), base.quantile(u))
    torch.testing.assert_close(torch.tensor(range_cuts(base, (0.25, 0.75)), dtype=F64), ends)


def test_each_copy_is_trained_on_its_range_and_the_base_is_kept():
    base, seen = made(), []
    before = {name: value.clone() for name, value in base.state_dict().items()}
    models = fit_ranges(
        base, data(), (0.5,), steps=(40, 60), batch=32, prepare=lambda own: {"watch": lambda *_: seen.append(id(own))}
    )
    assert [seen.count(number) for number in dict.fromkeys(seen)] == [40, 60] and len(models) == 2
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


@pytest.mark.slow
def test_each_expert_is_best_where_it_was_trained():
    experts = train_experts(made(), data(), (0.5,), steps=150, batch=128, lr=5e-3)
    low, high = torch.linspace(0.05, 0.45, 5), torch.linspace(0.55, 0.95, 5)
    losses = [
        [float(level_losses(expert, data(), part).mean()) for part in (low, high)] for expert in experts.denoisers
    ]
    assert losses[0][0] < losses[1][0] and losses[1][1] < losses[0][1]
    torch.testing.assert_close(experts.cuts, torch.tensor([0.5], dtype=F64), rtol=0, atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="must rise between"):
        fit_ranges(made(), data(), (0.7, 0.3), steps=1)
    with pytest.raises(ValueError, match="as many numbers of steps"):
        fit_ranges(made(), data(), (0.5,), steps=(1, 2, 3))
    with pytest.raises(ValueError, match="low < high"):
        RangeLevels(NoiseLevels(Flow()), 0.5, 0.5)
