"""Claims of asking for a reward: what targets within and beyond the labels reach."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from claims.claim import Outcome, compared, experiment, slow, thrice
from fewstep.training.reward_conditioned import RewardConditioned, fit_conditional

D, RANK, LABELLED, DRAWN, TOP = 16, 4, 2000, 400, 20
ABOUT = f"{LABELLED} noisy labels on a {RANK}-dimensional subspace of {D}, an MLP of 1500 steps, {DRAWN} samples"


@functools.cache
def _problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, RewardConditioned]:
    """Data, labels, the subspace, the direction of the reward, and what has learned from the labels."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, RANK, generator=generator))[0]
    theta = basis @ torch.tensor([0.6, 0.8, 0.0, 0.0])
    data = torch.randn(LABELLED, RANK, generator=generator) @ basis.T
    label = data @ theta + 0.5 * torch.randn(LABELLED, generator=generator)
    return data, label, basis, theta, fit_conditional(data, label, steps=1500, batch=128, seed=seed)


def _reward(x: Tensor, seed: int) -> float:
    """The true reward: along the direction, less the squared distance from the subspace."""
    _, _, basis, theta, _ = _problem(seed)
    return float((x @ theta - (x - x @ basis @ basis.T).square().sum(1)).mean())


def _asked(target: float, seed: int) -> float:
    with warnings.catch_warnings():  # some lie beyond the labels, which is the point
        warnings.simplefilter("ignore")
        return _reward(_problem(seed)[4].ask(target, DRAWN, seed=seed), seed)


@experiment
def _rising(seed: int, more: float, less: float) -> Outcome:
    high = _problem(seed)[4].high
    figures = [_asked(share * high, seed) for share in (more, less)]
    about = f"{ABOUT}; targets in units of the largest label, {high:.2f}"
    return compared(figures, f"target {less:g}", f"target {more:g}; {about}", "high", "true reward")


def _selected(seed: int) -> Outcome:
    data, label, *_, model = _problem(seed)
    best = data[label.topk(TOP).indices]
    figures = [_asked(model.high, seed), _reward(best, seed)]
    about = f"{ABOUT}, asked for the largest label"
    return compared(figures, f"the {TOP} samples with the highest labels", about, "high", "true reward")


CLAIMS = (
    slow("reward-conditioned", "a target at the largest label reaches more than one at half of it",
         thrice(_rising(1.0, 0.5))),
    slow("reward-conditioned", "it reaches more than the best of the labelled data", thrice(_selected)),
    slow("reward-conditioned", "a target ten times as high reaches less than one at the largest label",
         thrice(_rising(1.0, 10.0))),
)  # fmt: skip
