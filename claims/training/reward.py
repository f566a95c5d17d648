"""Claims of fewstep/training/reward.py."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import F64, VP, Claim, Noise, Outcome, arms, gap, plan, tolerance
from claims.problems import smooth
from claims.trained import NetworkDenoiser
from claims.tuning import chain, data, in_turn, labels, samples
from fewstep.hub.models import load
from fewstep.training.reward import ink, reward_samples, symmetry, tune


def _finite_differences(seed: int) -> Outcome:
    """The gradient of a reward in a mixture's log-weights, by autograd through five steps and by differences."""
    model = copy.deepcopy(smooth(VP()))
    model.log_weights = nn.Parameter(model._buffers.pop("log_weights").clone())  # type: ignore[union-attr, assignment]
    made, noise = plan(model.process, "dpmpp-2m", 5), Noise(seed).normal(0, (16, 2), "cpu", F64)

    def reward(x: Tensor) -> Tensor:
        return -(x - 0.5).square().sum(1).mean()

    (gradient,) = torch.autograd.grad(reward(reward_samples(model, noise, made, "full")), model.log_weights)
    flat, found = model.log_weights.detach(), torch.zeros_like(gradient)
    for k in range(len(flat)):
        for sign in (1, -1):
            flat[k] += sign * 1e-5
            found[k] += sign * reward(made(model, noise, dtype=F64)) / 2e-5
            flat[k] -= sign * 1e-5
    about = "full gradient in the 5 log-weights of the smooth mixture, dpmpp-2m of 5 steps, central differences of 1e-5"
    return tolerance(gap(gradient, found), 1e-6, about, "relative error")


@functools.cache
def _bounds() -> tuple[Tensor, Tensor]:
    """Per class: the median ink, and the 95th percentile of a digit's distance to the nearest other, (10,) each."""
    images, own = data()
    flat, near = images.flatten(1), []
    for k in range(10):
        distance = torch.cdist(flat[own == k], flat[own == k])
        near.append(distance.fill_diagonal_(math.inf).min(1).values.quantile(0.95))
    return torch.stack([ink(images[own == k]).median() for k in range(10)]), torch.stack(near)


def _still_digits(x: Tensor, label: Tensor) -> Tensor:
    """Whether a picture has more ink than its class's median and is as near a digit of the class as digits are."""
    (median, limit), (images, own) = _bounds(), data()
    distance = torch.cdist(x.flatten(1), images.flatten(1))
    distance = distance.masked_fill(label[:, None] != own[None, :], math.inf).min(1).values
    return ((ink(x) > median[label]) & (distance <= limit[label])).float()


@torch.no_grad()
def _share(model: NetworkDenoiser, seed: int) -> float:
    """Of 200 new samples: how many are still digits, with more ink."""
    label = in_turn(200)
    return float(_still_digits(samples(model, chain(model, 6), 200, 900 + seed, label), label).mean())


def _hacked(verified: bool, seed: int) -> float:
    model = load("digits")
    options: dict[str, Any] = {"steps": 40, "batch": 16, "lr": 3e-4, "conditions": labels, "seed": seed, "fresh": 60}
    options |= {"verify": _still_digits, "every": 5} if verified else {"verify": None, "every": 40}
    tune(model, lambda x, **_: ink(x), chain(model, 6), **options)
    return _share(model, seed)


def _verified(seed: int) -> Outcome:
    about = "digits, reward: ink, gradient through the last of 6 evaluations; share of 200 new samples with more ink"
    about += " than their class's median that are as near a digit of it as digits are to each other; untuned"
    about += f" {_share(load('digits'), seed):.2f}"
    return arms(seed, _hacked, True, False, "no verifier, all 40 steps", about, better="high")


def _symmetric(model: NetworkDenoiser, seed: int) -> float:
    with torch.no_grad():
        return float(symmetry(samples(model, chain(model, 6), 200, 900 + seed, in_turn(200))).mean())


def _through(method: str, seed: int) -> float:
    """Equal evaluations, one with a gradient counted as three: 12 x 18 through all six, 27 x 8 through the last."""
    model = load("digits")
    options: dict[str, Any] = {"steps": {"full": 12, "truncated": 27}[method], "batch": 16, "lr": 3e-4, "seed": seed}
    options |= {"method": method, "segment": 6, "conditions": labels, "every": 100, "fresh": 20}
    tune(model, lambda x, **_: symmetry(x), chain(model, 6), **options)
    return _symmetric(model, seed)


def _full(seed: int) -> Outcome:
    about = "digits, reward: left-right symmetry, 6 evaluations, 12 steps of 16 through all of them: as many"
    about += f" evaluations, one with a gradient counted as three; untuned {_symmetric(load('digits'), seed):.3f}"
    against, unit = "the last evaluation alone, 27 steps", "reward of 200 new samples"
    return arms(seed, _through, "full", "truncated", against, about, better="high", unit=unit)


CLAIMS = (
    Claim("draft", "the gradient through a plan is that of finite differences", _finite_differences),
    Claim("draft", "a verifier on fresh noises stops reward hacking", _verified, quick=False),
    Claim("draft", "the whole chain's gradient raises symmetry more than the last step's", _full, quick=False),
)
