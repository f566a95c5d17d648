"""A training run in memory: no folder, no checkpoints, any data. What small experiments and fine-tuning need."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.ema import EMA
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective

# (number of samples, generator) to x0 (B, *shape) and the conditions.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
# (x0, eps, generator) to the noise that each sample gets.
Coupling = Callable[[Tensor, Tensor, torch.Generator], Tensor]
# (losses (B,), t (B,), parameters) leaves gradients in the parameters; plain training takes those of the mean.
Backward = Callable[[Tensor, Tensor, Sequence[nn.Parameter]], None]


def rows_of(data: Tensor, **condition: Tensor) -> Draw:
    """Draws with replacement from samples (N, *shape) in memory, and what goes with them, each (N, ...)."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = torch.randint(len(data), (count,), generator=generator)
        return data[rows], {name: value[rows] for name, value in condition.items()}

    return draw


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
        objective: by default `Objective(denoiser)`, or what wraps one; levels: by default uniform in t.
        coupling: which noise goes with which sample. backward: how losses become gradients.
        parameters: those to train, by default all of the objective's.
        watch: called with the step and its losses (B,).

    Raises:
        ValueError: steps or batch below 1. FloatingPointError: a loss that is not finite, at the end.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}")
    objective = objective or Objective(denoiser)
    levels = levels or NoiseLevels(denoiser.process)
    draw = rows_of(data) if isinstance(data, Tensor) else data
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in (parameters if parameters is not None else objective.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average, warmup = EMA(denoiser.network, ema), max(1, steps // 20)
    device = denoiser.device
    denoiser.train()
    summed = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout layers
        for step in range(steps):
            x0, condition = draw(batch, generator)
            eps = denoiser.process.eps(lambda x0=x0: torch.randn(x0.shape, generator=generator))  # type: ignore[misc]
            if coupling is not None:
                eps = coupling(x0, eps, generator)
            t = levels.quantile(torch.rand(batch, generator=generator, dtype=torch.float64))
            done = (step - warmup) / max(steps - warmup, 1)
            for group in optimizer.param_groups:
                group["lr"] = lr * ((step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * done))
            losses = objective(
                x0.to(device), eps.to(device), t.to(device), {k: v.to(device) for k, v in condition.items()}
            )
            if backward is None:
                losses.mean().backward()
            else:
                backward(losses, t, trained)
            nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            optimizer.zero_grad()
            average.update(denoiser.network)
            summed += losses.detach().mean()
            if watch is not None:
                watch(step, losses.detach())
    if not bool(summed.isfinite()):
        raise FloatingPointError("the loss was not finite: a lower lr may do")
    result = copy.deepcopy(denoiser)
    average.copy_to(result.network)
    return result.eval()
