"""Claims of fewstep/training/restorer.py."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from claims.common import Claim, Outcome, arms, over_seeds, sliced_wasserstein
from claims.trained import MLP
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.restorer import Restorer, degraded, fidelity, fit_restorer

CHAIN = RestorationChain.preserving((0.95, 0.75, 0.4, 0.05))
HEAPS, STD, STEPS, BATCH, SAMPLES = 6, 0.1, 700, 256, 2000
TRAINED = f"{HEAPS} heaps on a circle, mlp, {STEPS} steps of {BATCH}"
WHAT = f"{TRAINED}, {SAMPLES} samples of {CHAIN.levels} evaluations"
AGAINST = "the same restorer trained by squared error"


def _centres() -> Tensor:
    angle = 2 * math.pi * torch.arange(HEAPS) / HEAPS
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def data(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, HEAPS, (n,), generator=generator)
    return _centres()[which] + STD * torch.randn(n, 2, generator=generator)


@functools.cache
def trained(adversarial: bool, seed: int) -> Restorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Restorer(MLP((2,), width=64, depth=3, picture=2), CHAIN, (2,), (2,))
        critic = MLP((2,), width=64, depth=3) if adversarial else None
    return fit_restorer(made, data(20_000, 1000 + seed), critic, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


@functools.cache
def samples(adversarial: bool, seed: int) -> Tensor:
    return trained(adversarial, seed).sample(SAMPLES, seed=seed, batch_size=SAMPLES)


def _distance(seed: int) -> Outcome:
    def figure(adversarial: bool, s: int) -> float:
        return sliced_wasserstein(samples(adversarial, s), data(SAMPLES, 2000 + s), projections=64).value

    floor = sliced_wasserstein(data(SAMPLES, 3000), data(SAMPLES, 2000), projections=64).value
    about = f"{WHAT}; data against data {floor:.2g}"
    return arms(seed, figure, True, False, AGAINST, about, unit="sliced Wasserstein distance")


def _covered(seed: int) -> Outcome:
    def figure(adversarial: bool, s: int) -> float:
        near = torch.cdist(samples(adversarial, s), _centres()) < 3 * STD
        return HEAPS * float(near.float().mean(0).min())

    about = f"{WHAT}; samples within 3 standard deviations of the heap that has the fewest"
    return arms(seed, figure, True, False, AGAINST, about, better="high", unit="share of what the heap should have")


def _consistent(seed: int) -> Outcome:
    def run(s: int) -> tuple[float, float]:
        states, filled, levels = degraded(CHAIN, data(4000, 4000 + s), torch.Generator().manual_seed(s))
        z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(s + 1))
        with torch.no_grad():
            restored = trained(True, s)(filled, levels, z)
        return float(fidelity(CHAIN, restored, states).mean()), 1.0

    about = f"{TRAINED}; |A G - y|^2 / (2 sigma^2) a number"
    return over_seeds(seed, run, "twice that of the data themselves, 1/2", about, unit="fidelity")


CLAIMS = (
    Claim("rgm", "samples closer to the data than those of a restorer trained by squared error",
          _distance, quick=False),
    Claim("rgm", "covers every mode where squared error shrinks to means", _covered, quick=False),
    Claim("rgm", "what it restores, degraded, is what it was given", _consistent, quick=False),
)  # fmt: skip
