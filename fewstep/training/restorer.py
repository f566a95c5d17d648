"""Restoration as generation: a network that restores degraded data plausibly, not on average (RGM).

Trained by a maximum a posteriori loss, the fidelity to what was degraded and the divergence of the restored data from
real ones; a latent z chooses among the restorations. Restoring and degrading in turn, a few times, generates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.ema import EMA
from fewstep.training.fit import Draw, rows_of
from fewstep.training.players import Moment, Player, optimise

METHODS = (
    Method(
        "rgm",
        paper="Restoration based Generative Models (Choi, Park and Kang, 2023)",
        arxiv="2303.05456",
        claim="restores by fidelity and an adversarial prior, so a few restorations generate every mode",
        use="fit_restorer",
        facts={"kind": "trainer"},
    ),
)


BETAS = (0.5, 0.99)  # an adversary's gradients turn: they are remembered for less long


class Drawn(NamedTuple):
    """A batch: data (B, *shape), other real data, what the restorer made of the states, the states, their levels."""

    x0: Tensor
    real: Tensor
    made: Tensor
    states: list[Tensor]
    level: Tensor


class Restorer(nn.Module):
    """`x0 = G(y_k, k, z)` for the levels of a chain of degradations.

    Args:
        network: called as `network(x, noise, y=z)`: the state with every block filled, its level as a number in (0, 1],
            and z; answers with data. (`MLP(shape, picture=...)`, `UNet(picture=...)`.)
        shape: one sample's shape. latent: that of z, standard normal.

    Raises ValueError where the chain's blocks do not divide the shape.
    """

    def __init__(
        self, network: nn.Module, chain: RestorationChain, shape: Sequence[int], latent: Sequence[int]
    ) -> None:
        super().__init__()
        chain.shape(chain.levels, shape)
        self.network, self.chain, self.shape, self.latent = network, chain, tuple(shape), tuple(latent)

    def forward(self, y: Tensor, k: int | Tensor, z: Tensor) -> Tensor:
        """The restored data (B, *shape), from a state of level k, or, with k (B,), from states already filled."""
        filled = y if isinstance(k, Tensor) else self.chain.adjust(y, k)
        level = torch.as_tensor(k, device=y.device).float() / self.chain.levels
        return self.network(filled, level.expand(len(y)), y=z)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, first: int = 0, batch_size: int = 256) -> Tensor:
        """n samples (n, *shape), one call a level: restore, degrade to the level before, restore again.

        Sample i depends on (seed, first + i) alone. Raises ValueError for n or batch_size below 1.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
        device, chain, parts = next(self.parameters()).device, self.chain, []
        for begin in range(0, n, batch_size):
            source, count = Noise(seed, first + begin), min(batch_size, n - begin)

            def normal(draw: int, shape: Sequence[int], source: Noise = source, count: int = count) -> Tensor:
                return source.normal(draw, (count, *shape), device)

            y = chain.start(self.shape, normal(0, chain.shape(chain.levels, self.shape)))
            for k in range(chain.levels, 0, -1):
                x0 = self(y, k, normal(2 * k, self.latent))
                if k > 1:
                    y = chain.degrade(x0, k - 1, normal(2 * k - 1, chain.shape(k - 1, self.shape)))
            parts.append(x0)
        return torch.cat(parts)


def degraded(
    chain: RestorationChain, x0: Tensor, generator: torch.Generator | None = None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """A batch (B, *shape) dealt out to the levels in turn, B at least their number.

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
    """`chain.fidelity` of restored data against the states that `degraded` dealt out: (B,)."""
    parts = x0.split([len(y) for y in states])
    return torch.cat([chain.fidelity(x, y, k) for k, (x, y) in enumerate(zip(parts, states, strict=True), 1)])


def realism(critic: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    """The critic's logit that x (B, *shape) is real, (B,): the mean of what it answers."""
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
    trained beside it to tell restored data of each level from real ones. Adam with betas (0.5, 0.99), a constant rate.

    Args:
        data: samples (N, *shape), drawn with replacement, or a function `(count, generator) -> (x0, conditions)`.
        critic: `critic(x, level)`, an answer of any shape a sample. None trains by mean squared error instead, whose
            minimum is the mean of all plausible data: the restorer of denoising diffusion.
        weight: of the fidelity. penalty: of the critic's squared gradient at real data.
        watch: called with the step and the losses by name.

    Raises:
        ValueError: steps below 1, a batch smaller than the chain has levels. FloatingPointError: a loss that is not finite.
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
        # Restored once, for both; the real data shuffled, so that each level's are not those its restorations came from.
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
    players = {"restorer": Player(restorer, error if critic is None else restoring, lr=lr, betas=BETAS, average=average)}
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
