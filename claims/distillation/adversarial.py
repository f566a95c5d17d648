"""Claims of adversarial students: of a grid of 25 points, and of the eight-component mixture.

An evaluation is a forward pass of one sample by any network; with its backward pass it is 3. Both sides of a claim have
spent as many, but for DDPM's, whose denoiser is exact: no training of one would do better.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from claims.common import EDM, F64, SLICED, Denoiser, GaussianMixture, Noise, Run, over_seeds, sliced, slow
from claims.distillation import consistency
from claims.distillation.consistency import arm
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.distillation.distill import plan_of
from fewstep.distillation.method import Distiller, Setting

PROCESS = EDM()
SIDE, SPREAD, STEPS = 5, 0.05, 4  # points along a side of the grid, from -1 to 1; their deviation; steps of a student
BUDGET, RATE = 2_000_000, 1e-3  # evaluations of a run, its rate
N, NEAR, SHARE = 2048, 3, 0.25  # samples judged; deviations within which, and share of its samples that, a mode has
MODES = f"modes of {SIDE**2} with a quarter of their share within {NEAR} deviations"
ABOUT = (
    f"{SIDE}x{SIDE} points of deviation {SPREAD}, perceptron of 64, {BUDGET:,} evaluations, {STEPS} steps, {N} samples"
)


class Side(NamedTuple):
    """A student with so many numbers of latent, or the exact denoiser sampled by DDPM."""

    latent: int | None = None
    exact: bool = False


OURS, WITHOUT, DDPM = Side(), Side(latent=0), Side(exact=True)


@functools.cache
def law() -> GaussianMixture:
    line = torch.linspace(-1, 1, SIDE, dtype=F64)
    return GaussianMixture(torch.ones(SIDE**2), torch.cartesian_prod(line, line), SPREAD**2, PROCESS)


@functools.cache
def data(seed: int) -> Dataset:
    raw = law().sample(8192, seed).float()
    return Dataset(DataSpec("grid", (2,), (-math.inf, math.inf), None, len(raw)), raw)


@functools.cache
def base(seed: int) -> NetworkDenoiser:
    """The diffusion model that every student of a seed begins as."""
    network = fresh(MLP, seed, width=64, depth=3)
    model = NetworkDenoiser(
        network, PROCESS, "x0", (2,), precondition="edm", data_std=data(seed).std(), value_range=None
    )
    levels = NoiseLevels(PROCESS, "log-normal", -1.2, 1.2)
    return fit(model, data(seed).images, steps=1500, batch=256, lr=2e-3, levels=levels, seed=seed)


def start(seed: int) -> float:
    return default_start(PROCESS, data(seed).std())


@functools.cache
def student(side: Side, seed: int) -> tuple[Denoiser, Distiller]:
    """A side's student after its budget, with its averaged weights."""

    def build(iterations: int) -> Distiller:
        own = Setting(base(seed), base(seed), start(seed), STEPS, iterations, data(seed), data_std=data(seed).std(),
                      batch=consistency.BATCH, lr=RATE, seed=seed)  # fmt: skip
        found: Distiller = made("distiller", "ddgan", 1, latent=side.latent)(own)
        return found

    work = build(consistency.within(build, BUDGET, seed))
    consistency.train(work, 0, work.setting.iterations, seed)
    found, average = copy.deepcopy(work.student).eval().requires_grad_(False), work.players["student"].average
    assert average is not None
    average.copy_to(found)
    return found, work


@functools.cache
def samples(side: Side, seed: int) -> Tensor:
    noise = Noise(seed + 100).normal(0, (N, 2))
    if side.exact:
        plan = plan_of(PROCESS, "denoiser", STEPS, start(seed), None, "ddpm")
        return plan(law(), noise.double(), seed=seed, dtype=F64)
    model, work = student(side, seed)
    return plan_of(PROCESS, work.kind, STEPS, start(seed), work.times(), work.solver)(model, noise, seed=seed).double()


def modes(x: Tensor) -> int:
    """How many points have a quarter of their share of the samples near."""
    near, which = torch.cdist(x, law().means).min(1)
    count = torch.bincount(which[near < NEAR * SPREAD], minlength=SIDE**2)
    return int((count >= SHARE * len(x) / SIDE**2).sum())


def figure(side: Side, seed: int, unit: str) -> float:
    x = samples(side, seed)
    return modes(x) if unit == MODES else sliced(x, law().sample(N, consistency.TRUTH + seed))


def grid(theirs: Side, against: str, unit: str) -> Run:
    better = "high" if unit == MODES else "low"
    return over_seeds(lambda s: [figure(side, s, unit) for side in (OURS, theirs)], against, ABOUT, better, unit)


def mixture(theirs: consistency.Arm, against: str) -> Run:
    about = f"{consistency.ABOUT}; 1 step"
    return over_seeds(
        lambda s: [consistency.wasserstein(side, s) for side in (LADD, theirs)], against, about, unit=SLICED
    )


LADD, REGRESSION, DMD2 = arm("ladd"), arm("ladd", gan=0.0), arm("dmd2")
EXACT, NONE = "DDPM in four steps, exact denoiser", "the same without a latent"

CLAIMS = (
    slow("ddgan", "four steps find more points of a grid than DDPM's four", grid(DDPM, EXACT, MODES)),
    slow("ddgan", "four steps are nearer to a grid of points than DDPM's four", grid(DDPM, EXACT, SLICED)),
    slow("ddgan", "its latent finds more points of a grid", grid(WITHOUT, NONE, MODES)),
    slow("ddgan", "its latent brings samples nearer to a grid of points", grid(WITHOUT, NONE, SLICED)),
    slow("ladd", "one step is nearer to the data than its regression's", mixture(REGRESSION, "its regression alone")),
    slow("ladd", "one step is nearer to the data than dmd2's", mixture(DMD2, "dmd2")),
)  # fmt: skip
