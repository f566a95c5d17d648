"""Restoration through a decoder, where the posterior of the latents is known: principal components of the digits.

A mixture with one component a digit in 16 linear latents: a measurement of pictures is an affine one of latents, so
its posterior is a mixture again. Pictures and latents are as far apart as each other but for one factor, and distances
are those of latents.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.common import F64, VP, Claim, GaussianMixture, over_seeds, sliced, slow
from fewstep.data.digits import load
from fewstep.denoisers.latent import Latent, PrincipalComponents
from fewstep.operators.operator import LinearOperator

LATENTS, NOISE, NFE = 16, 0.1, 20
MEASUREMENTS, DRAWS = 6, 200
DISTANCE = "sliced Wasserstein distance to the exact posterior of the latents"
PROBLEMS = ("left half seen", "2x smaller")


@functools.cache
def model() -> Latent:
    """The classes' means and covariances in latents, these with a thousandth of the latents' own variance added."""
    pictures, labels = load("train")
    autoencoder = PrincipalComponents.of(pictures, LATENTS)
    z = autoencoder.encode(pictures.double())
    classes = [z[labels == digit] for digit in range(10)]
    means = torch.stack([one.mean(0) for one in classes])
    covariances = torch.stack([torch.cov(one.mT) for one in classes]) + 1e-3 * torch.eye(LATENTS, dtype=F64)
    weights = torch.tensor([float(len(one)) for one in classes])
    return Latent(GaussianMixture(weights, means, covariances, VP()), autoencoder, (-1.0, 1.0))


def operator(name: str) -> LinearOperator:
    """One of `PROBLEMS`."""
    if name == "2x smaller":
        return fs.operators.Downsample(2).fit((1, 8, 8))  # type: ignore[no-any-return]
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    return fs.operators.Inpaint(mask).fit((1, 8, 8))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cell:
    """Six measurements of pictures that the model draws, and draws of the exact posteriors of their latents."""

    operator: LinearOperator
    y: Tensor
    truth: tuple[Tensor, ...]

    def distance(self, z: Tensor) -> float:
        """Of latents `(6, n, 16)`, the mean over the measurements."""
        return sum(sliced(own, exact) for own, exact in zip(z, self.truth, strict=True)) / len(self.truth)


@functools.cache
def cell(name: str, seed: int) -> Cell:
    own, a = model(), operator(name)
    law, autoencoder = own.model, own.autoencoder
    assert isinstance(law, GaussianMixture) and isinstance(autoencoder, PrincipalComponents)
    y = a.measure(autoencoder.decode(law.sample(MEASUREMENTS, seed=seed + 2)), NOISE, seed=seed)
    through = a.matrix() @ (autoencoder.scale * autoencoder.basis).mT
    left = (y - a(autoencoder.mean[None])).flatten(1)
    inside = fs.operators.Matrix(through).fit((LATENTS,))
    exact = [law.posterior(inside, one[None], NOISE) for one in left]
    return Cell(a, y, tuple(one.sample(DRAWS, seed=seed + 3) for one in exact))


@functools.cache
def away(name: str, method: str, seed: int) -> float:
    """The distance of a method's draws; "prior" are those of the model, which know nothing of y."""
    own = cell(name, seed)
    law: Any = model().model
    if method == "prior":
        return own.distance(torch.stack([law.sample(DRAWS, seed=seed + 9)] * MEASUREMENTS))
    x = fs.restore(model(), own.y, own.operator, NOISE, method=method, n=DRAWS, nfe=NFE, seed=seed, dtype=F64)
    return own.distance(model().encode(x.flatten(0, 1)).unflatten(0, (MEASUREMENTS, DRAWS)))


def claim(name: str, method: str, against: str) -> Claim:
    """That a method is nearer to the posterior than draws of the prior, or than another at equal evaluations."""
    other = "draws of the prior are" if against == "prior" else "dps through the decoder"
    about = f"mixture of 10 in {LATENTS} principal components of the digits, {name}, noise {NOISE:g},"
    about += f" {MEASUREMENTS} measurements x {DRAWS} draws, {NFE} evaluations"

    def run(seed: int) -> tuple[float, float]:
        return away(name, method, seed), away(name, against, seed)

    sentence = f"is nearer to the posterior of latents than {other}, {name}"
    return slow(method, sentence, over_seeds(run, against, about, unit=DISTANCE))


METHODS = ("psld", "resample", "flowdps", "stsl")

CLAIMS = tuple(claim(name, method, against) for method in METHODS for name in PROBLEMS for against in ("prior", "dps"))
