"""Rewards as functions, names and mappings, what they are shown, and what they may not return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.methods import find, methods
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.reward import Goal, Named, reward
from fewstep.processes.vp import VP

F64 = torch.float64


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.2**2, VP())


def run(function: Any, method: str = "fk", k: int = 2, n: int = 2, **options: Any) -> Any:
    plan = fs.plan(VP(), "ddpm", steps=3)
    steered = fs.steer(plan, method, reward=function, particles=k, **options)
    return steered.run(mixture(), Noise(1).normal(0, (n, 2), dtype=F64), seed=1, dtype=F64)


def test_a_named_reward_takes_what_it_was_not_given_from_the_conditions():
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    label = torch.tensor([1, 2, 3])
    assert torch.equal(reward("digit")(x, label=label), reward("digit", label=[1, 2, 3])(x, label=0))
    assert torch.equal(reward("ink")(x, label=label), find("ink", "reward")(x))
    assert reward("digit", label=[4, 5]).repeated(2, 3).options["label"] == [4, 4, 4, 5, 5, 5]
    template = torch.zeros(1, 8, 8)
    assert reward("likeness", template=template).repeated(5, 2).options["template"] is template
    for call, message in (
        (lambda: reward("digti"), "unknown reward 'digti': did you mean 'digit'"),
        (lambda: reward("digit", lable=3), "unknown option of the reward 'digit' 'lable': did you mean 'label'"),
        (lambda: reward("soft-caption")(template[None]), "the reward 'soft-caption' needs text="),
        (
            lambda: reward("digit", label=[1, 2]).repeated(3, 2),
            "label of the reward 'digit' must be one for all, or a list with one for each of the 3 samples of a run",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_every_reward_says_whether_it_has_a_gradient():
    cards = methods("reward")
    assert {card.name for card in cards} >= {"ink", "symmetry", "likeness", "digit", "soft-caption", "caption"}
    assert all(isinstance(card.facts["differentiable"], bool) for card in cards)


def test_a_goal_by_name_by_mapping_and_not_at_all():
    assert isinstance(Goal("ink", 1.0).reward, Named)
    assert Goal({"name": "digit", "label": 3}, 1.0).reward == Named("digit", {"label": 3})
    for call, message in (
        (lambda: Goal({"label": 3}, 1.0), r"needs its name, \{'name': 'digit', ...\}, got \['label'\]"),
        (lambda: Goal(3.0, 1.0), "reward must be a function, a name or a mapping, got 3.0"),
        (lambda: Goal(None, float("inf")), "the strength of a reward must be finite, got inf"),
        (lambda: Goal(None, 1.0, (0, 3, 1)), "when must be .first, last, every., numbers of evaluations from 1 on"),
        (lambda: Goal(None, 1.0, (3, 2, 1)), "with first at most last, got .3, 2, 1."),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_predictions_are_shown_within_the_value_range_and_samples_as_they_are():
    seen: list[Tensor] = []

    def watched(x: Tensor, **condition: Tensor) -> Tensor:
        seen.append(x)
        return x[:, 0]

    model = mixture()
    model.value_range = (-0.5, 0.5)
    plan = fs.plan(VP(), "ddpm", steps=5)
    steered = fs.steer(plan, "fk", reward=watched, particles=3, when=(2, 4, 2), keep=True)
    x = steered.run(model, Noise(1).normal(0, (2, 2), dtype=F64), seed=1, dtype=F64)
    assert len(seen) == 3  # evaluations 2 and 4, and the samples
    assert all(float(part.abs().max()) <= 0.5 for part in seen[:2])
    assert torch.equal(seen[2], x.report["particles"].flatten(0, 1)) and float(seen[2].abs().max()) > 0.5


def test_what_a_reward_may_not_return():
    for function, message in (
        (lambda x, **_: x, r"one number for each sample, shape \(4,\), got shape \(4, 2\)"),
        (lambda x, **_: 3.0, r"one number for each sample, shape \(4,\), got 3.0"),
        (lambda x, **_: x[:, 0] / 0, "the reward is not finite at evaluation 1, t = "),
    ):
        with pytest.raises(ValueError, match=message):
            run(function)
    calls = iter(range(10))
    with pytest.raises(ValueError, match="the reward is not finite at evaluation 3, t = "):
        run(lambda x, **_: x[:, 0] + (torch.nan if next(calls) == 2 else 0))
    with pytest.raises(ValueError, match="the reward is not finite at the samples"):
        run(lambda x, **_: x[:, 0] - torch.inf, potential="importance")
