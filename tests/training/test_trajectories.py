"""A model's own runs, recorded and gone through again."""

from __future__ import annotations

import torch
from torch import nn

import fewstep as fs
from fewstep.caching.deepcache import deepcache
from fewstep.core.noise import Noise
from fewstep.core.sampler import solver_of
from fewstep.training.trajectories import again, frozen, visits


def noise(n: int) -> torch.Tensor:
    return Noise(0).normal(0, (n, 1, 8, 8))


def test_visits_are_the_evaluations_of_the_run():
    digits, seen, count = fs.load("digits"), [], []
    plan = fs.plan(digits.process, "dpmpp-2m-sde", 5)
    plan(digits, noise(3), label=[1, 2, 3], callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())))
    run = visits(digits, plan, noise(3), {"label": [1, 2, 3]}, after=lambda: count.append(1))
    assert len(run) == len(count) == 5 and solver_of(plan) == "dpmpp-2m-sde with noise"
    for visit, (t, x, value) in zip(run, seen, strict=True):
        assert float(visit.t) == torch.tensor(t) and torch.equal(visit.x, x) and torch.equal(visit.answer.value, value)
    x, t, named, value = run[2].some(torch.tensor([2, 0]))
    assert named["label"].tolist() == [3, 1] and torch.equal(x, run[2].x[[2, 0]]) and t is run[2].t
    assert torch.equal(value, run[2].answer.value[[2, 0]])


def test_another_model_answers_at_the_same_states():
    """A cache is the model where it runs whole, and at the others what it would have been there."""
    digits = fs.load("digits")
    plan = fs.plan(digits.process, "ddim", 9)
    run = visits(digits, plan, noise(2), {"label": [1, 2]})
    with torch.no_grad():
        apart = [
            float((found.value - value).abs().max())
            for found, value in again(deepcache(digits, 3), plan, run, torch.arange(2))
        ]
    assert [gap < 1e-5 for gap in apart] == [number % 3 == 0 for number in range(9)]


def test_a_guided_run_passes_its_numbers():
    digits = fs.guide(fs.load("digits"), "cfg", scale=2.0)
    plan = fs.plan(digits.process, "ddim", 3, guidance=[1.5, 2.0, 3.0])
    run = visits(digits, plan, noise(2), {"label": [1, 2]})
    assert [float(visit.condition["guidance"][0]) for visit in run] == [1.5, 2.0, 3.0]
    for found, value in again(digits, plan, run, torch.tensor([1])):
        torch.testing.assert_close(found.value, value, rtol=0, atol=1e-5)


def test_a_frozen_model_is_as_it_was_afterwards():
    digits = fs.load("digits").train()
    first = next(digits.parameters())
    first.requires_grad_(False)
    with frozen(digits):
        assert not digits.training and not any(p.requires_grad for p in digits.parameters())
    assert digits.training and not first.requires_grad and sum(not p.requires_grad for p in digits.parameters()) == 1


def test_a_frozen_model_comes_back_part_by_part():
    """What was in evaluation mode inside a model that trains stays so, and what asked for no gradient."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [True, True, False]
    assert model[0].weight.requires_grad and not model[0].bias.requires_grad
