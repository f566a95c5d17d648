"""Claims of samples that are larger than those a network was trained on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, compared, experiment, slow, thrice
from claims.common import sample
from claims.parts import Denoiser, Prediction
from claims.trained import NetworkDenoiser, NoiseLevels, UNet, fit, fresh
from fewstep.core.denoiser import Wrapper
from fewstep.data.shapes_render import BACKGROUND, PALETTE, coverage, paint
from fewstep.guidance.haar import haar
from fewstep.processes.ve import EDM
from fewstep.sampling.progressive import enlarged, progressive

SMALL, LARGE, N, STEPS, STRENGTH, GUIDED = 16, 32, 128, 20, 0.6, 5
TRAIN: dict[str, Any] = {"steps": 900, "batch": 32, "lr": 2e-3}


def _scenes(n: int, generator: torch.Generator) -> Tensor:
    """Pictures (n, 3, 16, 16) of one thing on the dark ground: one of four shapes, of any size, anywhere."""
    radius = (0.2 + 0.1 * torch.rand(n, 1, generator=generator)) * SMALL
    room = 1.2 * radius[..., None]
    centre = room + (SMALL - 2 * room) * torch.rand(n, 1, 2, generator=generator)
    shape, colour = (torch.randint(most, (n, 1), generator=generator) for most in (4, len(PALETTE)))
    return paint(torch.tensor(PALETTE)[colour], coverage(shape, radius, centre, SMALL))


def _things(pictures: Tensor) -> Tensor:
    """How many connected things of at least a hundredth of the picture stand out from the ground: (n,)."""
    from scipy import ndimage

    found = []
    for mask in ((pictures - BACKGROUND).abs().amax(1) > 0.5).numpy():
        labels, count = ndimage.label(mask)
        found.append(sum(int((labels == k).sum()) >= 0.01 * mask.size for k in range(1, count + 1)))
    return torch.tensor(found)


class _Large(Wrapper):
    """The model at the large size, directly."""

    def __init__(self, model: Denoiser):
        super().__init__(model, shape=(3, LARGE, LARGE))

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Prediction:
        return self.model(x, t, **condition)


@functools.cache
def _model(seed: int) -> NetworkDenoiser:
    network = fresh(UNet, seed, channels=3, size=SMALL, width=(16, 32), attention=(), classes=None)
    denoiser = NetworkDenoiser(network, EDM(), "x0", (3, SMALL, SMALL), None, "edm", 0.4)
    levels = NoiseLevels(denoiser.process, "log-normal", mean=-0.5, std=1.3)
    return fit(denoiser, lambda n, generator: (_scenes(n, generator), {}), levels=levels, seed=seed, **TRAIN)


@functools.cache
def _small(seed: int) -> Tensor:
    return sample(_model(seed), N, steps=STEPS, solver="dpmpp-2m", seed=seed)


@functools.cache
def _large(seed: int, guided: int, strength: float = STRENGTH) -> Tensor:
    asked: dict[str, Any] = {"steps": STEPS, "solver": "dpmpp-2m", "seed": seed}
    return progressive(_model(seed), _small(seed), LARGE, strength, guided, **asked)


def _one(pictures: Tensor) -> float:
    return float((_things(pictures) == 1).double().mean())


ABOUT = (
    f"a convolutional UNet, {TRAIN['steps']} steps of {TRAIN['batch']} pictures of one thing, {SMALL}x{SMALL}; {N}"
    f" samples of {LARGE}x{LARGE}, {STEPS} steps of dpmpp-2m"
)


def _count(seed: int) -> Outcome:
    direct = sample(_Large(_model(seed)), N, steps=STEPS, solver="dpmpp-2m", seed=seed)
    own = f"{ABOUT}, strength {STRENGTH:g}; at the small size {_one(_small(seed)):.3g} show one thing"
    return compared([_one(_large(seed, GUIDED)), _one(direct)], "direct sampling", own, "high", "share with one thing")


@experiment
def _guided(seed: int, strength: float) -> Outcome:
    figures = [_one(_large(seed, guided, strength)) for guided in (GUIDED, 0)]
    about = f"{ABOUT}, strength {strength:g}, {GUIDED} guided evaluations"
    return compared(figures, "no guided evaluations", about, "high", "share with one thing")


def _details(seed: int) -> Outcome:
    """Mean square of the Haar details."""
    pictures = _large(seed, GUIDED), enlarged(_small(seed), (LARGE, LARGE), 0.0)
    figures = [float(sum(band.square().mean() for band in haar(x)[1])) for x in pictures]
    return compared(
        figures, "bicubic interpolation", f"{ABOUT}, strength {STRENGTH:g}", "high", "energy of the details"
    )


CLAIMS = (
    slow("diffusehigh", "twice the size without a second object", thrice(_count)),
    slow("diffusehigh", "from much noise the guided evaluations keep the object one", thrice(_guided(0.8))),
    slow("diffusehigh", "and it has more fine detail than the enlarged sample", thrice(_details)),
)  # fmt: skip
