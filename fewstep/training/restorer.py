"""Restoration as generation: how a network learns to restore plausibly rather than on average (RGM).

The loss is that of maximum a posteriori: the fidelity to the degraded data, and the divergence of the restored data
from real ones; a latent z picks the restoration. Restoring and degrading in turn, a few times, generates samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.denoisers.restorer import Restorer
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.ema import EMA
from fewstep.training.fit import Draw, rows_of
from fewstep.training.players import Moment, Player, optimise

METHODS = (
    Method(
        "rgm",
        kind="trainer",
        paper="Restoration based Generative Models (Choi, Park and Kang, 2023)",
        arxiv="2303.05456",
        claim="restores by fidelity and an adversarial prior; a few restorations generate every mode",
        use="fit_restorer",
    ),
)


BETAS = (0.5, 0.99)  # an adversary's gradients change direction, so they are averaged over a shorter time


class Drawn(NamedTuple):
    """A batch: data (B, *shape), others as real ones, the restorations, the states, and their levels (B,)."""

    x0: Tensor
    real: Tensor
    made: Tensor
    states: list[Tensor]
    level: Tensor


def degraded(
    chain: RestorationChain, x0: Tensor, generator: torch.Generator | None = None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """A batch (B, *shape) assigned to the levels in turn, B at least their number.

    Returns the states of each level, all states with their blocks filled (B, *shape), and the levels (B,).
    """
    states = []
    for k, part in enumerate(x0.tensor_split(chain.levels), 1):
        shape = (len(part), *chain.shape(k, x0.shape[1:]))
        states.append(chain.degrade(part, k, torch.randn(shape, generator=generator).to(x0)))
    filled = torch.cat([chain.adjust(y, k) for k, y in enumerate(states, 1)])
    levels = torch.cat([torch.full((len(y),), k) for k, y in enumerate(states, 1)])
    return states, filled, levels.to(x0.device)


def fidelity(chain: RestorationChain, x0: Tensor, states: Sequence[Tensor]) -> Tensor:
    """`chain.fidelity` of restored data against the states of `degraded`: (B,)."""
    parts = x0.split([len(y) for y in states])
    return torch.cat([chain.fidelity(x, y, k) for k, (x, y) in enumerate(zip(parts, states, strict=True), 1)])


def realism(critic: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    """The critic's logit that x (B, *shape) is real, (B,): the mean of its outputs."""
    return critic(x, level).flatten(1).mean(1)


def critic_loss(critic: nn.Module, real: Tensor, made: Tensor, level: Tensor, penalty: float) -> Tensor:
    """The logistic loss of a critic, with half of `penalty` times the squared gradient at real data (R1), a number."""
    real = real.detach().requires_grad_(True)
    logit = realism(critic, real, level)
    (slope,) = torch.autograd.grad(logit.sum(), real, create_graph=True)
    steep = slope.square().flatten(1).sum(1)
    return (F.softplus(-logit) + F.softplus(realism(critic, made.detach(), level)) + 0.5 * penalty * steep).mean()


def fit_restorer(
    restorer: Restorer,
    data: Tensor | Draw,
    critic: nn.Module | None,
    *,
    steps: int,
    batch: int = 256,
    lr: float = 1e-3,
    weight: float = 1.0,
    penalty: float = 0.1,
    ema: float = 0.99,
    seed: int = 0,
    watch: Callable[[int, dict[str, float]], Any] | None = None,
) -> Restorer:
    """Trains a restorer (in place) and returns a copy with the averaged weights, in evaluation mode.

    The loss is `weight |A G - y|^2 / (2 sigma^2) + softplus(-D(G))`: the fidelity, and the prior by a critic D that is
    trained alongside to tell restored data of each level from real ones. Adam with betas (0.5, 0.99), a constant rate.

    Args:
        data: samples (N, *shape), drawn with replacement, or a function `(count, generator) -> (x0, conditions)`.
        critic: `critic(x, level)`, an output of any shape per sample. None trains by mean squared error instead, whose
            minimum is the mean of all plausible data: the restorer of denoising diffusion.
        weight: of the fidelity. penalty: of the critic's squared gradient at real data.
        watch: called with the step and the losses by name.

    Raises:
        ValueError: steps below 1, a batch smaller than the chain has levels.
        FloatingPointError: a loss that is not finite, at the end.
    """
    chain = restorer.chain
    if steps < 1 or batch < chain.levels:
        raise ValueError(f"steps must be at least 1 and batch at least {chain.levels}, got {steps} and {batch}")
    take = rows_of(data) if isinstance(data, Tensor) else data
    device = next(restorer.parameters()).device
    parts: dict[str, Tensor] = {}

    def draw(count: int, generator: torch.Generator) -> Drawn:
        x0 = take(count, generator)[0].to(device)
        states, filled, levels = degraded(chain, x0, generator)
        level = levels.float() / chain.levels
        z = torch.randn(count, *restorer.latent, generator=generator).to(x0)
        # Restored once, for both players. Real data are shuffled, so that a level's are not the sources of its
        # restorations.
        made = restorer(filled, levels, z)
        real = x0 if critic is None else x0[torch.randperm(count, generator=generator).to(device)]
        return Drawn(x0, real, made, states, level)

    def error(drawn: Drawn) -> Tensor:
        parts["error"] = (drawn.made - drawn.x0).square().mean()
        return parts["error"]

    def judging(drawn: Drawn) -> Tensor:
        assert critic is not None
        parts["critic"] = critic_loss(critic, drawn.real, drawn.made, drawn.level, penalty)
        return parts["critic"]

    def restoring(drawn: Drawn) -> Tensor:
        assert critic is not None
        parts["fidelity"] = fidelity(chain, drawn.made, drawn.states).mean()
        parts["prior"] = F.softplus(-realism(critic, drawn.made, drawn.level)).mean()
        return weight * parts["fidelity"] + parts["prior"]

    def watched(moment: Moment) -> None:
        if watch is not None:
            watch(moment.step, {name: float(value.detach()) for name, value in parts.items()})

    average = EMA(restorer.network, ema)
    players = {
        "restorer": Player(restorer, error if critic is None else restoring, lr=lr, betas=BETAS, average=average)
    }
    if critic is not None:  # the critic first, then the restorer against it
        players = {"critic": Player(critic, judging, lr=lr, betas=BETAS)} | players
    restorer.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout layers
        seeded = torch.Generator().manual_seed(seed)
        optimise(players, draw, steps=steps, batch=batch, seed=seeded, watch=watched)
    result = copy.deepcopy(restorer)
    average.copy_to(result.network)
    return result.eval()
