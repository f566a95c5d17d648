"""Restoration as generation: a network that restores degraded data plausibly, not on average (RGM).

Trained by a maximum a posteriori loss, the fidelity to what was degraded and the divergence of the restored data from
real ones; a latent z chooses among the restorations. Restoring and degrading in turn, a few times, generates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.ema import EMA
from fewstep.training.fit import Draw, rows_of

METHODS = (
    Method(
        "rgm",
        kind="trainer",
        paper="Restoration based Generative Models (Choi, Park and Kang, 2023)",
        arxiv="2303.05456",
        claim="restores by fidelity and an adversarial prior, so a few restorations generate every mode",
        use="fit_restorer",
    ),
)


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
        ValueError: steps below 1, a batch smaller than the chain has levels. FloatingPointError: weights not finite.
    """
    chain = restorer.chain
    if steps < 1 or batch < chain.levels:
        raise ValueError(f"steps must be at least 1 and batch at least {chain.levels}, got {steps} and {batch}")
    draw = rows_of(data) if isinstance(data, Tensor) else data
    generator = torch.Generator().manual_seed(seed)
    device = next(restorer.parameters()).device

    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.5, 0.99), weight_decay=0.0, fused=True)

    makes, judges = adam(restorer), None if critic is None else adam(critic)
    average = EMA(restorer.network, ema)
    restorer.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout layers
        for step in range(steps):
            x0 = draw(batch, generator)[0].to(device)
            states, filled, levels = degraded(chain, x0, generator)
            level = levels.float() / chain.levels
            z = torch.randn(batch, *restorer.latent, generator=generator).to(x0)
            made = restorer(filled, levels, z)
            if critic is None or judges is None:
                parts = {"error": (made - x0).square().mean()}
                loss = parts["error"]
            else:
                # Shuffled, so that each level's real data are not those its restorations came from.
                real = x0[torch.randperm(batch, generator=generator).to(device)]
                judging = critic_loss(critic, real, made, level, penalty)
                judges.zero_grad()
                judging.backward()
                judges.step()
                critic.requires_grad_(False)
                prior = F.softplus(-realism(critic, made, level)).mean()
                critic.requires_grad_(True)
                parts = {"fidelity": fidelity(chain, made, states).mean(), "prior": prior, "critic": judging}
                loss = weight * parts["fidelity"] + prior
            makes.zero_grad()
            loss.backward()
            makes.step()
            average.update(restorer.network)
            if watch is not None:
                watch(step, {name: float(value.detach()) for name, value in parts.items()})
    result = copy.deepcopy(restorer)
    average.copy_to(result.network)
    if not all(bool(parameter.isfinite().all()) for parameter in result.parameters()):
        raise FloatingPointError("the weights are not finite: a lower lr may do")
    return result.eval()
