"""A short training on the digits, shared by the claims about networks and training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from claims.common import F64, Noise, Outcome, compared, experiment, plan, tolerance
from claims.trained import NetworkDenoiser, fresh
from fewstep.training.ema import EMA
from fewstep.training.recipe import Recipe
from fewstep.training.state import TrainingState

STEPS = 300
NETWORKS: dict[str, dict[str, Any]] = {  # of about equal size
    "unet": {"name": "unet", "width": [16, 32], "attention": [4]},
    "dit": {"name": "dit", "width": 48, "depth": 4, "patch": 2},
}


def recipe(network: str, seed: int, **train: Any) -> Recipe:
    """The recipe of the embedded model, made short: a constant rate, and an average over about a hundred steps."""
    settings = {"batch": 64, "steps": STEPS, "lr": 2e-3, "warmup": 20, "ema": 0.99, "condition_dropout": 0.1}
    return Recipe.from_dict(
        {
            "data": {"source": "digits", "labels": True},
            "network": NETWORKS[network],
            "process": {"name": "edm"},
            "denoiser": {"predicts": "x0", "precondition": "edm"},
            "noise_levels": {"draw": "log-normal", "mean": -0.8, "std": 1.2},
            "train": settings | {"seed": seed, "validate_every": STEPS} | train,
        }
    )


def start(made: Recipe) -> TrainingState:
    """A fresh state on the CPU, torch's own generator left as it was."""
    from accelerate import Accelerator

    with torch.random.fork_rng(devices=[]):
        return TrainingState(made, Accelerator(cpu=True))


def advance(state: TrainingState, steps: int) -> None:
    """So many steps, torch's own generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        for _ in range(steps):
            state.advance()


@functools.cache
def trained(network: str, seed: int) -> TrainingState:
    """The state after `STEPS` steps."""
    state = start(recipe(network, seed))
    advance(state, STEPS)
    return state


def held_out(state: TrainingState, averaged: bool = True) -> float:
    """Loss on the held-out digits, of the averaged weights or of the last ones."""
    if averaged:
        return state.validation_loss()
    kept, state.ema = state.ema, EMA(state.network, 0.0)  # an average of the last weights alone
    try:
        return state.validation_loss()
    finally:
        state.ema = kept


def weights(state: TrainingState) -> int:
    return sum(parameter.numel() for parameter in state.network.parameters())


@experiment
def learns(seed: int, network: str) -> Outcome:
    """Held-out loss after the run against that of the untrained network, which answers 0 everywhere."""
    state = trained(network, seed)
    losses = held_out(state), held_out(start(recipe(network, seed)))
    return compared(losses, "untrained", f"{STEPS} steps of 64 digits, {weights(state)} weights", unit="held-out loss")


@experiment
def alone(seed: int, make: Callable[..., torch.nn.Module], **options: Any) -> Outcome:
    """A sample's answer in a batch of five against its answer alone, weights moved off their zeros."""
    generator = torch.Generator().manual_seed(seed)
    size = (8, 12)
    network = fresh(make, seed, channels=3, size=size, classes=7, **options).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=F64))
        x = Noise(seed).normal(0, (5, 3, *size), "cpu", F64)
        noise, label = torch.linspace(-1, 1, 5, dtype=F64), torch.tensor([0, 1, 2, 6, 7])
        batch = network(x, noise, label)
        alone = torch.cat([network(x[i : i + 1], noise[i : i + 1], label[i : i + 1]) for i in range(5)])
    if batch.shape != x.shape:
        raise ValueError(f"the network returned {tuple(batch.shape)} for {tuple(x.shape)}")
    about = f"3 channels of {size[0]}x{size[1]}, 7 classes and none, float64, random weights"
    off = float((batch - alone).abs().max() / batch.abs().max())
    return tolerance(off, 1e-12, about, "largest relative difference")


def samples(model: NetworkDenoiser, n: int, seed: int) -> torch.Tensor:
    """n samples, the classes in turn, by dpmpp-2m in 10 evaluations."""
    return plan(model.process, "dpmpp-2m", 10)(model, Noise(seed).normal(0, (n, 1, 8, 8)), label=torch.arange(n) % 10)
