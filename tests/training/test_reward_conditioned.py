"""Reward-conditioned sampling: Gaussian data and a linear reward, whose conditional law is known."""

from __future__ import annotations

import warnings

import pytest
import torch

from fewstep.networks.mlp import MLP
from fewstep.training.reward_conditioned import fit_conditional

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(2000, 2, generator=GENERATOR)
REWARDS = DATA[:, 0] + 0.5 * torch.randn(2000, generator=GENERATOR)


@pytest.fixture(scope="module")
def fitted():
    return fit_conditional(DATA, REWARDS, steps=200, width=32, depth=2, batch=96, lr=5e-3)


def test_reward_conditioned_samples_move_as_the_exact_law_does(fitted):
    """x | y = a is N(0.8 a, 0.2) along the reward and N(0, 1) across it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, other = (fitted.ask(target, 400, steps=12) for target in (1.5, -1.0))
    assert float(x[:, 0].mean()) == pytest.approx(1.2, abs=0.15)
    assert float(other[:, 0].mean()) == pytest.approx(-0.8, abs=0.15)
    assert float(x[:, 1].mean()) == pytest.approx(0.0, abs=0.15)
    assert float(x[:, 0].var()) < 0.4 < float(x[:, 1].var())
    assert torch.equal(fitted.ask(1.5, 400, steps=12), x)


def test_beyond_the_labels_it_warns(fitted):
    assert (fitted.low, fitted.high) == (float(REWARDS.min()), float(REWARDS.max()))
    with pytest.warns(UserWarning, match=r"the target 9 lies beyond the rewards of the data, -\d.* to \d"):
        assert fitted.ask(9.0, 2, steps=3).shape == (2, 2)


def test_pictures_take_a_network_of_their_own():
    network = MLP(shape=(1, 2, 2), width=8, depth=1, picture=1)
    fitted = fit_conditional(torch.randn(8, 1, 2, 2), torch.arange(8.0), network=network, steps=2, batch=4)
    assert fitted.ask(3.0, 2, steps=2).shape == (2, 1, 2, 2)


def test_messages(fitted):
    for data, rewards, message in (
        (DATA, REWARDS[:5], r"rewards must be 2000 finite numbers, one for each sample, got \(5,\)"),
        (DATA[:2], torch.tensor([1.0, float("nan")]), "rewards must be 2 finite numbers"),
        (DATA[:2], torch.ones(2), "the rewards are all 1: there is nothing to ask for"),
        (torch.zeros(2, 1, 4, 4), torch.arange(2.0), r"data of shape \(1, 4, 4\) need a network that takes y"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_conditional(data, rewards, steps=1)
    with pytest.raises(ValueError, match="the target must be a finite reward, got nan"):
        fitted.ask(float("nan"))
    with pytest.raises(ValueError, match="target must be a number, got 'high'"):
        fitted.ask("high")
