"""Optimisation by sampling: learn p(x | reward) from labelled data, and ask for a high reward."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.picture import Picture
from fewstep.core.arguments import checked
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.cosine import Cosine
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit, rows_of

METHODS = (
    Method(
        "reward-conditioned",
        kind="reward-model",
        paper="An Overview of Diffusion Models: Applications, Guided Generation, Statistical Rates and Optimization"
        " (Chen et al., 2024)",
        arxiv="2404.07771",
        claim="samples asked for with a reward near the labels' top reach it; far beyond it they leave the data",
        use="fit_conditional",
    ),
)


@dataclass(frozen=True)
class RewardConditioned:
    """A denoiser of p(x | reward), and the range of the rewards that it has seen.

    `model` is conditioned on `y` `(B, 1)`, the reward in its own units; `low` and `high` are the labels' extremes.
    """

    model: NetworkDenoiser
    low: float
    high: float

    @checked
    def ask(self, target: float, n: int = 1, *, steps: int = 30, seed: int = 0, **options: Any) -> Tensor:
        """n samples `(n, *shape)` that are asked for with the reward `target`; options are those of `fs.sample`.

        Warns where the target lies beyond the labels: the network extrapolates there, and what it reaches falls short
        of the target, or leaves the data (Chen et al., section 5; docs/chapters/theory.md).

        Raises:
            ValueError: a target that is not finite; as `fs.sample`.
        """
        if not math.isfinite(target):
            raise ValueError(f"the target must be a finite reward, got {target}")
        if not self.low <= target <= self.high:
            warnings.warn(
                f"the target {target:g} lies beyond the rewards of the data, {self.low:g} to {self.high:g}: what is"
                " asked for there was never seen",
                stacklevel=3,
            )
        return sample(self.model, n, steps=steps, seed=seed, y=torch.full((n, 1), float(target)), **options)


@checked
def fit_conditional(
    data: Tensor,
    rewards: Tensor,
    *,
    network: nn.Module | None = None,
    process: Process | None = None,
    steps: int = 3000,
    batch: int = 256,
    lr: float = 2e-3,
    width: int = 128,
    depth: int = 3,
    seed: int = 0,
) -> RewardConditioned:
    """Trains a denoiser of p(x | reward) on labelled data (Chen et al., section 5.1; noisy labels will do).

    Args:
        data: `(N, *shape)`. rewards: `(N,)`, in any units of order one: the network sees them as they are.
        network: takes the reward as `y` `(B, 1)`; by default an MLP of `width` and `depth`, for data `(N, D)`.
        process: by default `Cosine()`. steps, batch, lr, seed: as of `fewstep.training.fit`; the first weights of the
            default network follow from the seed as well.

    Raises:
        ValueError: rewards that are not one finite number for each sample, or all the same; data that are no vectors
            without a network for them.
    """
    if rewards.shape != (len(data),) or not bool(rewards.isfinite().all()):
        raise ValueError(f"rewards must be {len(data)} finite numbers, one for each sample, got {tuple(rewards.shape)}")
    low, high = float(rewards.min()), float(rewards.max())
    if low == high:
        raise ValueError(f"the rewards are all {low:g}: there is nothing to ask for")
    shape = tuple(data.shape[1:])
    if network is None:
        if len(shape) != 1:
            raise ValueError(f"data of shape {shape} need a network that takes y: network=...")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MLP(shape=shape, width=width, depth=depth, picture=1)
    conditions = {"y": Picture((1,))}
    model = NetworkDenoiser(network, process or Cosine(), "v", shape=shape, conditions=conditions, value_range=None)
    draw = rows_of(data.float(), y=rewards[:, None].float())
    return RewardConditioned(fit(model, draw, steps=steps, batch=batch, lr=lr, seed=seed), low, high)
