"""Restoration by bridges and by a conditional diffusion: small training runs that claims and benchmarks share.

Every arm of a comparison has the same network, first weights, data, degradations, optimiser and number of steps; all
predict x0, with the preconditioning of their class. All was fixed before any outcome was seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from claims.common import EDM, Plan, Process, Run, arms, plan, sample
from claims.trained import NetworkDenoiser, NoiseLevels, UNet, fit, fresh
from fewstep.conditions.picture import Picture
from fewstep.data import digits, photographs
from fewstep.denoisers.bridge import BridgeDenoiser, statistics
from fewstep.processes.bridge import Bridge
from fewstep.processes.ddbm import DDBM
from fewstep.processes.mean_reverting import MeanReverting
from fewstep.processes.rddm import RDDM
from fewstep.processes.resshift import ResShift

SEEDS = (0, 1, 2)
STEPS, RATE = 600, 2e-3
HELD_OUT = 128  # pictures on which is measured
PATCH = 24  # side of a photograph's patch, grey

DIFFUSION = "conditional diffusion"
ARMS: dict[str, Process] = {
    "ddbm": DDBM(),
    "resshift": ResShift(),
    "rddm": RDDM(),
    # The paper's 50 of 255 grey levels, where the pictures are 2 wide.
    "mean-reverting": MeanReverting(spread=0.4),
    DIFFUSION: EDM(),
}
# Two solvers that all share and, for a class whose own sampler is neither, that one. RDDM's own step is ddim, and
# MR-Sampler's second order is dpmpp-2m, both in the bridge's coordinates.
SOLVERS = {
    "ddbm": ("ddim", "dpmpp-2m", "bridge-hybrid"),
    "resshift": ("ddim", "dpmpp-2m", "shift-ancestral"),
    "rddm": ("ddim", "dpmpp-2m"),
    "mean-reverting": ("ddim", "dpmpp-2m"),
    DIFFUSION: ("ddim", "dpmpp-2m", "heun"),
}
_DIGITS = (("channels", 1), ("size", 8), ("width", (16, 32)), ("attention", (4,)))
_PHOTOGRAPHS = (("channels", 1), ("size", PATCH), ("patch", 2), ("width", (16, 32)), ("attention", (6,)))


@dataclass(frozen=True)
class Task:
    """Pictures, "digits" or "photographs", and what is wrong with them: `noise` added after a Gaussian `blur`."""

    pictures: str
    blur: float
    noise: float
    batch: int
    network: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{'deblurring' if self.blur else 'denoising'} {self.pictures}"

    def degrade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """y `(B, 1, H, W)` from x, the noise new with every call."""
        y = blurred(x, self.blur) if self.blur else x
        return y + self.noise * torch.randn(x.shape, generator=generator)


TASKS = (
    Task("digits", 0.0, 0.5, 64, _DIGITS),
    Task("digits", 1.0, 0.05, 64, _DIGITS),
    Task("photographs", 0.0, 0.5, 32, _PHOTOGRAPHS),
    Task("photographs", 1.5, 0.05, 32, _PHOTOGRAPHS),
)


def blurred(x: Tensor, std: float) -> Tensor:
    """Gaussian blur of `(B, 1, H, W)`, cut at three deviations and mirrored at the border; std in pixels."""
    reach = math.ceil(3 * std)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None, :])


@functools.cache
def pictures(kind: str, split: str) -> Tensor:
    """Grey pictures `(N, 1, H, W)` in [-1, 1]."""
    if kind == "digits":
        return digits.load(split)[0]
    return photographs.load(split, PATCH, colour=False)[0]


@functools.cache
def held_out(task: Task) -> tuple[Tensor, Tensor]:
    """x0 and y, from all over the validation pictures."""
    every = pictures(task.pictures, "validation")
    x0 = every[torch.linspace(0, len(every) - 1, HELD_OUT).long()]
    return x0, task.degrade(x0, torch.Generator().manual_seed(1000))


@functools.cache
def restorer(task: Task, arm: str, seed: int) -> NetworkDenoiser:
    """A small unet trained for one of the `ARMS`; the noise levels are uniform in t under a bridge, in log-SNR else."""
    process, data = ARMS[arm], pictures(task.pictures, "train")
    network = fresh(UNet, seed, **dict(task.network), classes=None, picture=1)
    shape = tuple(data.shape[1:])
    found = statistics(data, task.degrade(data, torch.Generator().manual_seed(1001)))
    if isinstance(process, Bridge):
        model: NetworkDenoiser = BridgeDenoiser(network, process, "x0", shape, precondition="bridge", **found)
    else:
        condition = {"y": Picture(shape)}
        model = NetworkDenoiser(network, process, "x0", shape, condition, "edm", float(data.std()))
    levels = NoiseLevels(process, "uniform" if isinstance(process, Bridge) else "log-snr")

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0 = data[torch.randint(len(data), (count,), generator=generator)]
        return x0, {"y": task.degrade(x0, generator)}

    return fit(model, draw, steps=STEPS, batch=task.batch, lr=RATE, levels=levels, seed=seed)


def plan_of(arm: str, solver: str, nfe: int) -> Plan:
    """The largest plan of at most `nfe` evaluations.

    On times uniform in t under a bridge, but on ResShift's own chain for its sampler, and on EDM's under a diffusion.
    """
    process = ARMS[arm]
    if solver == "shift-ancestral" and isinstance(process, ResShift):
        return plan(process, solver, timesteps=process.grid(nfe))
    return plan(process, solver, timesteps="uniform" if isinstance(process, Bridge) else "karras", nfe=nfe)


def restored(model: NetworkDenoiser, made: Plan, y: Tensor, seed: int) -> Tensor:
    """One sample for each degraded picture, clipped to the pictures' range."""
    return sample(model, len(y), plan=made, seed=seed, y=y).clamp(-1, 1)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, `10 log10(2^2 / mse)`, mean over the pictures."""
    return float((10 * torch.log10(4 / (x - truth).square().flatten(1).mean(1))).mean())


def against_diffusion(arm: str) -> Run:
    """Digits deblurred in 5 evaluations by a bridge and by a conditional diffusion, each by its best solver."""
    task = TASKS[1]
    x0, y = held_out(task)

    def best(name: str, s: int) -> float:
        model = restorer(task, name, s)
        return max(psnr(restored(model, plan_of(name, solver, 5), y, s), x0) for solver in SOLVERS[name])

    against = f"{DIFFUSION} (edm, y beside the state), the best of {', '.join(SOLVERS[DIFFUSION])}"
    about = f"{arm}, the best of {', '.join(SOLVERS[arm])}; {task.name}: blur of {task.blur:g} pixels and noise of"
    about += f" {task.noise:g}, small unet, {STEPS} steps of {task.batch}, {HELD_OUT} held-out pictures"
    return arms(best, arm, DIFFUSION, against, about, better="high", unit="PSNR, dB")
