"""The trainer beside a bare loop on the same network, batch and data: seconds a step, and memory over many steps."""

from __future__ import annotations

import copy
import gc
import resource
import statistics
import time
from typing import Any

import torch
from accelerate import Accelerator

from fewstep.data.digits import load
from fewstep.training.recipe import Recipe
from fewstep.training.state import TrainingState

ROUNDS, STEPS = 7, 40
GROWTH_STEPS = 2000
CASES: dict[str, dict[str, Any]] = {
    "unet, 8x8, batch 64": {"name": "unet", "width": [32, 64], "attention": [4]},
    "unet, 8x8, batch 64, large": {"name": "unet", "width": [64, 96], "attention": [4], "blocks": 2},
    "dit, 8x8, batch 64": {"name": "dit", "width": 96, "depth": 4, "patch": 2},
}


def recipe(network: dict[str, Any]) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"source": "digits", "labels": True},
            "network": network,
            "process": {"name": "edm"},
            "denoiser": {"predicts": "x0", "precondition": "edm"},
            "noise_levels": {"draw": "log-normal", "mean": -0.8, "std": 1.2},
            "train": {"batch": 64, "steps": 100_000, "lr": 1e-3, "ema": 0.999},
        }
    )


class Bare:
    """What one writes by hand: EDM's loss, clipping, AdamW and a moving average, nothing else."""

    def __init__(self, state: TrainingState) -> None:
        self.network = copy.deepcopy(state.network)
        self.images, self.labels = load("train")
        self.std = state.denoiser.data_std
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def step(self) -> None:
        rows = torch.randint(len(self.images), (64,))
        x0, label = self.images[rows], self.labels[rows]
        sigma = (torch.randn(64) * 1.2 - 0.8).exp()
        s = sigma[:, None, None, None]
        x = x0 + s * torch.randn_like(x0)
        norm = (s**2 + self.std**2).sqrt()
        output = self.network(x / norm, sigma.log() / 4, label)
        target = (s * x0 / self.std - self.std * (x - x0) / s) / norm
        (output - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.network.parameters()), 0.001)


def _seconds(step: Any, steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def measure() -> list[dict[str, Any]]:
    """Milliseconds a step (median of rounds that alternate), and their ratio; then the growth of the largest size."""
    torch.set_num_threads(1)
    rows = []
    for name, network in CASES.items():
        state = TrainingState(recipe(network), Accelerator(cpu=True))
        bare = Bare(state)
        _seconds(state.advance, 5), _seconds(bare.step, 5)
        pairs = [(_seconds(state.advance, STEPS), _seconds(bare.step, STEPS)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append({"case": name, "trainer_ms": 1e3 * ours, "bare_ms": 1e3 * theirs, "ratio": ratio})
    return [*rows, growth()]


def growth() -> dict[str, Any]:
    """Resident megabytes after 200 and after 2,000 steps."""
    state = TrainingState(recipe({"name": "unet", "width": [16, 32], "attention": [4]}), Accelerator(cpu=True))
    sizes = []
    for steps in (200, GROWTH_STEPS - 200):
        for _ in range(steps):
            state.advance()
        gc.collect()
        sizes.append(_resident())
    return {"case": "growth", "steps": GROWTH_STEPS, "after_200_mb": sizes[0], "after_all_mb": sizes[1]}


def _resident() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:  # elsewhere the largest size so far, which shows growth as well
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
