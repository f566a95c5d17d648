"""Claims of fewstep/processes/rdbm.py."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from claims.bridges import largest
from claims.claim import Claim, Outcome, over_seeds
from claims.problems import clock, identities
from fewstep.data import digits
from fewstep.denoisers.bridge import BridgeDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.rdbm import GOUB, RDBM
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit, rows_of

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
    return Outcome(worst, 1e-6, "tolerance", "a and c^2 at theta = 1e-6 against 1 - t and t (1 - t)", unit="error")


def half(images: Tensor) -> Tensor:
    """Digits whose lower half is darkened and blurred by 3x3 means."""
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([images[:, :, :4], 0.5 * (blurred[:, :, 4:] - 1)], dim=2)


@functools.cache
def restored(modulated: bool, seed: int) -> tuple[float, float]:
    """Root mean square errors in the intact and in the damaged half, of 256 held-out digits."""
    images = digits.load("train")[0]
    torch.manual_seed(seed)
    process = (RDBM if modulated else GOUB)(theta=1.0, spread=0.5, t_min=1e-3)
    network = UNet(1, 8, (32, 48), attention=(), classes=None, picture=1)
    model = fit(
        BridgeDenoiser(network, process, shape=(1, 8, 8)),
        rows_of(images, y=half(images)),
        steps=STEPS,
        batch=BATCH,
        lr=2e-3,
        seed=seed,
    )
    held = digits.load("validation")[0][:256]
    out = sample(model, len(held), steps=EVALUATIONS, solver="ddim", timesteps="uniform", seed=seed, y=half(held))
    error = (out - held).square()
    return float(error[:, :, :4].mean().sqrt()), float(error[:, :, 4:].mean().sqrt())


def _part(part: int, where: str, seed: int) -> Outcome:
    return over_seeds(
        lambda number: (restored(True, number)[part], restored(False, number)[part]),
        range(seed, seed + 3),
        "goub, the same network and training",
        f"digits with their lower half damaged, {STEPS} training steps of {BATCH}, ddim, {EVALUATIONS} evaluations,"
        f" 256 held-out digits",
        unit=f"root mean square error in the {where} half",
    )


CLAIMS = (
    Claim("goub", "is the sinh bridge, and its formulas agree", _sinh),
    Claim("rdbm", "has the Brownian bridge for its limit at small theta", _brownian),
    Claim("rdbm", "leaves intact pixels nearer to what they were", lambda s: _part(0, "intact", s), quick=False),
    Claim("rdbm", "restores damaged pixels no worse", lambda s: _part(1, "damaged", s), quick=False),
)
