"""Noise levels drawn by their loss. Method: importance."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.fit import fit
from fewstep.training.importance import ImportanceLevels
from fewstep.training.noise_levels import NoiseLevels

F64 = torch.float64
SHARES = (torch.arange(40_000, dtype=F64) + 0.5) / 40_000


def loss_at(t):
    return 0.1 + t**3 * 5


def warm(base, bins=16, floor=0.01, history=4):
    """Levels that have seen every bin, with losses that depend on t."""
    levels = ImportanceLevels(base, bins, history, floor)
    for _ in range(2 * history):
        t = base.quantile((torch.arange(bins, dtype=F64) + 0.5) / bins)
        levels.update(t, loss_at(t))
    return levels


def test_it_is_registered():
    assert find("importance") is ImportanceLevels


@pytest.mark.parametrize(
    "base",
    [NoiseLevels(VP()), NoiseLevels(VP(), "log-snr"), NoiseLevels(EDM(), "log-normal", mean=-1.2, std=1.2)],
    ids=lambda base: base.draw,
)
def test_the_weighted_mean_is_the_bases(base):
    levels = warm(base)
    t, plain = levels.quantile(SHARES), base.quantile(SHARES)
    for function in (lambda t: t / (1 + t), lambda t: torch.sin(4 * t), torch.ones_like):
        torch.testing.assert_close(
            (levels.weight(t) * function(t)).mean(), function(plain).mean(), rtol=2e-3, atol=2e-3
        )
    assert (t.diff() >= 0).all()


def test_probabilities_follow_the_root_mean_square_and_leave_a_floor():
    levels = ImportanceLevels(NoiseLevels(VP()), bins=4, history=2, floor=0.1)
    t = levels.base.quantile((torch.arange(4, dtype=F64) + 0.5) / 4)
    assert torch.equal(levels.probabilities, torch.full((4,), 0.25, dtype=F64))
    levels.update(t, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(levels.probabilities, torch.full((4,), 0.25, dtype=F64))  # not every bin is full
    levels.update(t, torch.tensor([7.0, 2.0, 3.0, 0.0]))
    size = torch.tensor([25.0, 4.0, 9.0, 8.0], dtype=F64).sqrt()
    torch.testing.assert_close(levels.probabilities, 0.9 * size / size.sum() + 0.025)
    counts = levels.bin(levels.quantile(SHARES)).bincount(minlength=4) / len(SHARES)
    torch.testing.assert_close(counts.double(), levels.probabilities, rtol=1e-3, atol=0)


def test_the_history_forgets_the_oldest():
    levels = ImportanceLevels(NoiseLevels(VP()), bins=2, history=3)
    t = torch.full((7,), 0.3, dtype=F64)
    levels.update(t[:2], torch.tensor([1.0, 2.0]))
    levels.update(t[:2], torch.tensor([3.0, 4.0]))
    assert sorted(levels.losses[0].tolist()) == [2.0, 3.0, 4.0]
    levels.update(t, torch.arange(10.0, 17.0))  # more in one batch than the history holds
    assert sorted(levels.losses[0].tolist()) == [14.0, 15.0, 16.0] and levels.seen.tolist() == [11, 0]


def test_a_drawn_loss_varies_less():
    """The point of it: for p ~ loss the weighted loss is nearly constant."""
    levels = warm(NoiseLevels(VP()), bins=64, floor=0.0)
    t, plain = levels.quantile(SHARES), levels.base.quantile(SHARES)
    assert float((levels.weight(t) * loss_at(t)).var()) < 0.01 * float(loss_at(plain).var())


def test_a_saved_history_draws_the_same():
    levels = warm(NoiseLevels(VP()))
    again = ImportanceLevels(NoiseLevels(VP()), 16, 4, 0.01)
    again.load(levels.state())
    assert torch.equal(again.quantile(SHARES), levels.quantile(SHARES))
    with pytest.raises(ValueError, match=r"shape \(16, 4\), these levels \(8, 4\)"):
        ImportanceLevels(NoiseLevels(VP()), 8, 4).load(levels.state())


def test_training_with_it():
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP((2,), width=8, depth=1), VP(), "eps", (2,))
    levels = ImportanceLevels(NoiseLevels(VP()), bins=4, history=5)
    fit(denoiser, torch.randn(50, 2), steps=10, batch=32, levels=levels, backward=levels.backward)
    assert int(levels.seen.sum()) == 320 and float(levels.probabilities.std()) > 0


def test_bad_input():
    for arguments in ({"bins": 0}, {"history": 0}, {"floor": 1.5}):
        with pytest.raises(ValueError, match="must be at least 1 and floor within 0 and 1"):
            ImportanceLevels(NoiseLevels(VP()), **arguments)
    with pytest.raises(ValueError, match="have a whole bin of 64 at one time"):
        ImportanceLevels(NoiseLevels(EDM(), "log-normal", mean=6.0, std=1.0))
