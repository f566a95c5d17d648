"""A zoo of problems: what universal plans are fitted to and judged by.

All of them run on the clock of `EDM`: in `x / alpha` every Gaussian process is this one but for
its range. They come in families, so that a fit can leave a whole family out and be judged by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.data.open import open_data
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.processes.ve import EDM

CLOCK = EDM(0.002, 80.0)


@dataclass(frozen=True)
class Species:
    """A problem of the zoo: its name, its family and how its denoiser is made, whose `data_std` is known.

    `judging` problems are never learned from.
    """

    name: str
    family: str
    make: Callable[[], Denoiser]
    judging: bool = False


def _known(model: Denoiser, std: float) -> Denoiser:
    model.data_std = std  # type: ignore[assignment]  # torch types every attribute of a module so
    return model


def mixture(
    seed: int, size: int, components: int, power: float, tight: float, offset: float = 0.0, uneven: float = 0.5
) -> GaussianMixture:
    """A random Gaussian mixture whose numbers have a mean square of 1.

    Args:
        size: dimensions. power: the variance along direction i is `i^-power`. tight: the components' share of the
            variance, 1 for a single Gaussian. offset: the share of the mean square that is the square of the mean.
            uneven: the standard deviation of the logarithms of the components' variances about that.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    spectrum = spectrum / spectrum.mean()
    basis = torch.linalg.qr(normal(size, size))[0]
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.3
    weights = weights / weights.sum()
    means = normal(components, size) * spectrum.sqrt()
    means = means - weights @ means
    inner = spectrum * torch.exp(uneven * normal(components, size))
    between = (weights @ means.square()).mean()
    means = means * ((1 - tight) / between.clamp_min(1e-30)).sqrt()
    inner = inner * tight / (weights @ inner).mean()
    if components == 1:
        inner = inner / inner.mean()
    covariances = torch.einsum("ij,kj,lj->kil", basis, inner, basis)
    mean = normal(size)
    means = means * math.sqrt(1 - offset) + mean * math.sqrt(offset) / mean.square().mean().sqrt()
    covariances = covariances * (1 - offset)
    model = GaussianMixture(
        weights, means @ basis.T, (covariances + covariances.mT.clone()) / 2, CLOCK, dtype=torch.float32
    )
    _known(model, 1.0)
    return model


def finite(pictures: Tensor, labels: Tensor | None = None) -> Denoiser:
    """The closed form on some pictures."""
    return _known(DatasetDenoiser(pictures, CLOCK, labels), float(pictures.std()))


def patches(n: int, size: int, seed: int) -> Tensor:
    """`(n, 1, size, size)` cut out of the photographs, the first colour."""
    images = open_data("photographs").images
    rng = np.random.default_rng(seed)
    places = zip(
        rng.integers(len(images), size=n),
        rng.integers(33 - size, size=n),
        rng.integers(33 - size, size=n),
        strict=True,
    )
    return torch.stack([images[i, :1, row : row + size, column : column + size] for i, row, column in places])


def _faces() -> Tensor:
    from skimage.data import lfw_subset

    return torch.from_numpy(np.array(lfw_subset()[:100], dtype=np.float32))[:, None] * 2 - 1


def _by_brightness(pictures: Tensor) -> Denoiser:
    means = pictures.flatten(1).mean(1)
    return finite(pictures, torch.bucketize(means, means.quantile(torch.tensor([0.25, 0.5, 0.75]))))


def _digits_set() -> Denoiser:
    data = open_data("digits")
    return finite(data.images, data.labels)


def _mixtures(sizes: tuple[int, ...], each: int, seed: int, judging: bool) -> Iterator[Species]:
    rng = np.random.default_rng(seed)
    for size in sizes:
        for i in range(each):
            components = int(rng.integers(2, 25))
            power = float(rng.choice([0.0, 0.5, 1.0, 2.0] if size > 5 else [0.0, 0.5]))
            tight = float(np.exp(rng.uniform(np.log(0.01), np.log(0.5 if size > 5 else 0.15))))
            offset = float(rng.choice([0.0, 0.1, 0.3]))
            name = f"mixture of {components} in {size}, 1/i^{power:g}, {tight:.2f}, mean {offset:g}"
            make = _later(mixture, seed + 10 * size + i, size, components, power, tight, offset)
            yield Species(name, "mixtures", make, judging)


def _later(function: Callable[..., Denoiser], *arguments: object) -> Callable[[], Denoiser]:
    return lambda: function(*arguments)


def _guided(make: Callable[[], Denoiser], scale: float) -> Callable[[], Denoiser]:
    return lambda: guide(make(), "cfg", scale=scale)


def zoo() -> list[Species]:
    """All problems, family by family."""
    found = [
        *_mixtures((1, 2, 3, 4, 5), 5, 100, False),
        *_mixtures((8, 12, 16, 32, 64), 3, 700, False),
        *_mixtures((2, 4, 10, 24, 48), 2, 9000, True),
    ]
    for i, size in enumerate((1, 2, 2, 3, 3, 4, 5, 5)):
        rng = np.random.default_rng(500 + i)
        components, tight = int(rng.integers(4, 16)), float(np.exp(rng.uniform(np.log(0.02), np.log(0.1))))
        make = _later(mixture, 500 + i, size, components, 0.0, tight, 0.1, 1.2)
        found.append(Species(f"uneven mixture {i} of {components} in {size}, {tight:.2f}", "uneven mixtures", make))
    for size, power in ((16, 1.0), (64, 0.5), (64, 1.0), (256, 1.0), (64, 2.0), (256, 2.0)):
        make = _later(mixture, size, size, 1, power, 1.0)
        found.append(Species(f"Gaussian in {size}, 1/i^{power:g}", "gaussians", make))
    steep = ((64, 8, 0.1, 0.2), (64, 12, 0.3, 0.0), (256, 4, 0.05, 0.1), (256, 8, 0.3, 0.0), (256, 12, 0.15, 0.3))
    for size, components, tight, offset in steep:
        make = _later(mixture, 7 * size + components, size, components, 2.0, tight, offset)
        name = f"mixture of {components} in {size}, 1/i^2, {tight}, mean {offset:g}"
        found.append(Species(name, "steep mixtures", make))
    found += [
        Species("digits, all", "sets", lambda: finite(open_data("digits").images)),
        Species("digits, 50", "sets", lambda: finite(open_data("digits").images[:50])),
        Species("patches, 8x8", "sets", lambda: finite(patches(1000, 8, 0))),
        Species("patches, 16x16", "sets", lambda: finite(patches(600, 16, 1))),
        Species("faces", "sets", lambda: finite(_faces())),
        Species("shapes, 300", "sets", lambda: finite(open_data("shapes").images[:300])),
        Species("photographs, 300", "sets", lambda: finite(open_data("photographs").images[:300]), True),
        Species("digits network", "networks", lambda: load("digits")),
        Species("shapes network", "networks", lambda: load("shapes"), True),
        Species("digits network, scale 2", "guided", _guided(lambda: load("digits"), 2.0)),
        Species("digits network, scale 4", "guided", _guided(lambda: load("digits"), 4.0)),
        Species("digits, all, scale 2", "guided", _guided(_digits_set, 2.0)),
        Species("digits, all, scale 5", "guided", _guided(_digits_set, 5.0)),
        Species("patches, 8x8, scale 2", "guided", _guided(lambda: _by_brightness(patches(1000, 8, 0)), 2.0)),
        Species("patches, 8x8, scale 4", "guided", _guided(lambda: _by_brightness(patches(1000, 8, 0)), 4.0)),
        Species("digits network, scale 3", "guided", _guided(lambda: load("digits"), 3.0), True),
        Species("shapes network, scale 2", "guided", _guided(lambda: load("shapes"), 2.0), True),
    ]
    return found
