"""Claims of fewstep/processes/rdbm.py."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from claims.bridges import largest
from claims.common import Claim, Outcome, arms, experiment, sample, tolerance
from claims.duels import identities
from claims.problems import clock
from claims.trained import UNet, fit, fresh, rows_of
from fewstep.data import digits
from fewstep.denoisers.bridge import BridgeDenoiser
from fewstep.processes.rdbm import GOUB, RDBM

STEPS, BATCH, EVALUATIONS = 300, 64, 5


def _sinh(seed: int) -> Outcome:
    process = GOUB(theta=1.7, spread=0.6)
    t = clock(process)
    s = process.integral(t)
    mean = torch.sinh(1.7 - s) / math.sinh(1.7)
    variance = 2 * 0.36 * torch.sinh(s) * torch.sinh(1.7 - s) / math.sinh(1.7)
    return identities(process, largest([process.a(t) - mean, process.c(t) ** 2 - variance]), "the sinh formulas")


def _brownian(seed: int) -> Outcome:
    """theta = 1e-6 with 2 theta spread^2 = 1."""
    process = RDBM(theta=1e-6, spread=math.sqrt(0.5e6))
    t = clock(process)
    share = process.integral(t) / 1e-6
    worst = largest([process.a(t) - (1 - share), process.c(t) ** 2 - share * (1 - share)])
    return tolerance(worst, 1e-6, "a and c^2 at theta = 1e-6 against 1 - t and t (1 - t)", "error")


def half(images: Tensor) -> Tensor:
    """Digits whose lower half is darkened and blurred by 3x3 means."""
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([images[:, :, :4], 0.5 * (blurred[:, :, 4:] - 1)], dim=2)


@functools.cache
def restored(modulated: bool, seed: int) -> tuple[float, float]:
    """Root mean square errors in the intact and in the damaged half, of 256 held-out digits."""
    images, held = digits.load("train")[0], digits.load("validation")[0][:256]
    process = (RDBM if modulated else GOUB)(theta=1.0, spread=0.5, t_min=1e-3)
    network = fresh(UNet, seed, 1, 8, (32, 48), attention=(), classes=None, picture=1)
    model, rows = BridgeDenoiser(network, process, shape=(1, 8, 8)), rows_of(images, y=half(images))
    model = fit(model, rows, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)
    out = sample(model, len(held), steps=EVALUATIONS, solver="ddim", timesteps="uniform", seed=seed, y=half(held))
    error = (out - held).square()
    return float(error[:, :, :4].mean().sqrt()), float(error[:, :, 4:].mean().sqrt())


@experiment
def _part(seed: int, part: int, where: str) -> Outcome:
    about = f"digits with their lower half damaged, {STEPS} training steps of {BATCH}, ddim, {EVALUATIONS} evaluations,"
    about += " 256 held-out digits"
    against, unit = "goub, the same network and training", f"root mean square error in the {where} half"
    return arms(seed, lambda arm, s: restored(arm, s)[part], True, False, against, about, unit=unit)


CLAIMS = (
    Claim("goub", "is the sinh bridge, and its formulas agree", _sinh),
    Claim("rdbm", "has the Brownian bridge for its limit at small theta", _brownian),
    Claim("rdbm", "leaves intact pixels nearer to what they were", _part(0, "intact"), quick=False),
    Claim("rdbm", "restores damaged pixels no worse", _part(1, "damaged"), quick=False),
)
