"""Claims of fewstep/training/single_image.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Outcome, arms, experiment, over_seeds, sliced_wasserstein
from claims.trained import fit, fresh
from fewstep.data.pyramid import Pyramid, scaled
from fewstep.training.single_image import SingleImage

SIZE, STEPS, BATCH, CROP, PATCH = 40, 400, 4, 24, 6
CONDITIONS = f"texture of {SIZE}x{SIZE}, {STEPS} steps of {BATCH} crops of {CROP}, one network"


def texture(seed: int) -> Tensor:
    """Blobs of two sizes, ten and four pixels across, (1, 40, 40) within -1 and 1."""
    white = torch.fft.rfft2(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    rows, columns = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None]
    waves = SIZE * (rows.square() + columns.square()).sqrt()  # over the picture's width

    def band(centre: float, width: float) -> Tensor:
        part = torch.fft.irfft2(white * torch.exp(-(((waves - centre) / width) ** 2)), s=(SIZE, SIZE))
        return part / part.std()

    return torch.tanh(1.5 * band(4, 1) + 0.6 * band(10, 1.5))[None]


@functools.cache
def learnt(seed: int, several: bool) -> SingleImage:
    """A model of the texture with four scales, or with one."""
    pyramid = Pyramid(texture(seed), factor=1.4, coarsest=14 if several else SIZE, crop=CROP)
    model: Any = fit(fresh(SingleImage, seed, pyramid, width=24), pyramid, steps=STEPS, batch=BATCH, lr=3e-3, seed=seed)
    return model


def _patches(images: Tensor) -> Tensor:
    return images.unfold(2, PATCH, 2).unfold(3, PATCH, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def patch_distance(samples: Tensor, source: Tensor) -> float:
    """Sliced Wasserstein distance of 6x6 patches, mean of those at full size and at half."""
    half = [scaled(images, (images.shape[2] // 2, images.shape[3] // 2)) for images in (samples, source)]
    pairs = ((samples, source), (half[0], half[1]))
    return sum(sliced_wasserstein(_patches(a), _patches(b), projections=72).value for a, b in pairs) / 2


@experiment
def _quality(seed: int, canvas: tuple[int, int] | None) -> Outcome:
    def figure(several: bool, s: int) -> float:
        made = learnt(s, several).sample(12, canvas, steps=10 if several else 40, seed=s)
        return patch_distance(made, texture(s)[None])

    size = canvas or (SIZE, SIZE)
    about = f"{CONDITIONS}; 12 samples of {size[0]}x{size[1]}, 10 evaluations at each of four scales or 40 at one"
    return arms(seed, figure, True, False, "the same at one scale", about, unit="patch distance to the source")


def _copies(seed: int) -> Outcome:
    """The least mean squared difference of a 20x20 crop of a sample from any place of the source, over its variance."""

    def run(s: int) -> tuple[float, float]:
        source = texture(s)
        crops = learnt(s, True).sample(12, seed=s)[:, 0, 10:30, 10:30]
        places = source[0].unfold(0, 20, 1).unfold(1, 20, 1).flatten(0, 1)
        nearest = torch.cdist(crops.flatten(1), places.flatten(1)).square().min(1).values / 400
        return float(nearest.mean() / source.var()), 0.1

    about, unit = f"{CONDITIONS}; 12 samples", "squared difference from the nearest place over variance"
    return over_seeds(seed, run, "a tenth of the variance", about, better="high", unit=unit)


CLAIMS = (
    Claim("sinddm", "patches closer to the source's than at one scale", _quality(None), quick=False),
    Claim("sinddm", "the same on another canvas, patches closer than at one scale", _quality((32, 72)), quick=False),
    Claim("sinddm", "no copies: every place of the source differs from the sample", _copies, quick=False),
)
