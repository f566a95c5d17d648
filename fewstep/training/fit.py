"""A training run in memory: no folder, no checkpoints, any data; for small experiments and fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.arguments import checked
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.ema import EMA
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective
from fewstep.training.players import Moment, Player, cosine, optimise

# (number of samples, generator) to x0 (B, *shape) and the conditions.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
# (x0, eps, generator) to the noise that each sample gets.
Coupling = Callable[[Tensor, Tensor, torch.Generator], Tensor]
# (losses (B,), t (B,), parameters) leaves gradients in the parameters; plain training uses those of the mean.
Backward = Callable[[Tensor, Tensor, Sequence[nn.Parameter]], None]


def rows_of(data: Tensor, **condition: Tensor) -> Draw:
    """Draws with replacement from samples (N, *shape) in memory, and what goes with them, each (N, ...)."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = torch.randint(len(data), (count,), generator=generator)
        return data[rows], {name: value[rows] for name, value in condition.items()}

    return draw


@checked
def fit(
    denoiser: NetworkDenoiser,
    data: Tensor | Draw,
    *,
    steps: int,
    batch: int = 256,
    lr: float = 1e-3,
    objective: nn.Module | None = None,
    levels: NoiseLevels | None = None,
    coupling: Coupling | None = None,
    backward: Backward | None = None,
    ema: float = 0.99,
    clip: float = 1.0,
    seed: int = 0,
    parameters: Sequence[nn.Parameter] | None = None,
    watch: Callable[[int, Tensor], Any] | None = None,
) -> NetworkDenoiser:
    """Trains a denoiser (in place) and returns a copy with the averaged weights, in evaluation mode.

    AdamW with a linear warm-up over a twentieth of the steps and half a cosine to zero. Everything random follows from
    `seed`; torch's own generator is left as it was.

    Args:
        data: samples (N, *shape), drawn with replacement, or a function `(count, generator) -> (x0, conditions)`.
        objective: by default `Objective(denoiser)`, or a wrapper of one; levels: by default uniform in t.
        coupling: which noise goes with which sample. backward: how losses become gradients.
        parameters: those to train, by default all of the objective's.
        watch: called with the step and its losses (B,).

    Raises:
        ValueError: steps or batch below 1. FloatingPointError: a loss that is not finite, at the end.
    """
    if isinstance(data, Tensor) and not data.is_floating_point():
        raise ValueError(f"data must be floats in the denoiser's range, got {data.dtype}")
    objective = objective or Objective(denoiser)
    levels = levels or NoiseLevels(denoiser.process)
    take, device = rows_of(data) if isinstance(data, Tensor) else data, denoiser.device

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        x0, condition = take(count, generator)
        eps = denoiser.process.eps(lambda: torch.randn(x0.shape, generator=generator))
        if coupling is not None:
            eps = coupling(x0, eps, generator)
        t = levels.quantile(torch.rand(count, generator=generator, dtype=torch.float64))
        return x0.to(device), eps.to(device), t, {name: value.to(device) for name, value in condition.items()}

    def loss(drawn: tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]) -> Tensor:
        x0, eps, t, condition = drawn
        return objective(x0, eps, t.to(device), condition)

    def watched(moment: Moment) -> None:
        if watch is not None:
            watch(moment.step, moment.losses["model"])

    average = EMA(denoiser.network, ema)
    player = Player(
        objective,
        loss,
        parameters=parameters,
        lr=cosine(lr, steps, warmup=max(1, steps // 20)),
        clip=clip,
        average=average,
        backward=None if backward is None else lambda losses, drawn, trained: backward(losses, drawn[2], trained),
    )
    denoiser.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout layers
        optimise(
            {"model": player},
            draw,
            steps=steps,
            batch=batch,
            seed=torch.Generator().manual_seed(seed),
            watch=watched,
        )
    result = copy.deepcopy(denoiser)
    average.copy_to(result.network)
    return result.eval()
