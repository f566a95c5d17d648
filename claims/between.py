"""Two densities in the plane, neither of them normal, and what is exact between them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.common import F64, Flow, GaussianMixture, plan, sliced
from claims.trained import MLP, fit
from fewstep.denoisers.interpolant import InterpolantNetwork, MixtureInterpolant, drawn_from
from fewstep.processes.interpolants import Interpolant

_MEANS, _VARIANCES = torch.tensor([[1.0, 1], [-1, 0.5], [0, -1.2]]), torch.tensor([0.03, 0.06, 0.04])
DATA = GaussianMixture(torch.tensor([1.0, 2, 1]), _MEANS, _VARIANCES, Flow())
FLOOR = "1.5 times the most of five sets of exact samples"
OTHER = GaussianMixture(torch.ones(2), torch.tensor([[1.5, 0], [-1.5, 0.3]]), torch.tensor([0.2, 0.1]), Flow())


@functools.cache
def between(path: str = "linear", latent: str = "zero") -> MixtureInterpolant:
    """The exact interpolant of independent pairs."""
    return MixtureInterpolant.independent(DATA, OTHER, Interpolant(path=path, latent=latent))


@functools.cache
def ends(seed: int, n: int = 256) -> tuple[Tensor, Tensor]:
    """Samples x1 and where the ODE of the straight line takes them: vab-4, 400 even steps."""
    x1, exact = OTHER.sample(n, seed), between()
    return x1, plan(exact.process, "vab-4", 400, "uniform")(exact, x1, dtype=F64)


def distance(samples: Tensor, seed: int) -> float:
    """Sliced Wasserstein distance from as many exact samples of the data."""
    return sliced(samples, DATA.sample(len(samples), seed + 1000))


@functools.cache
def learned(seed: int, steps: int, latent: str = "brownian", predicts: str = "both") -> InterpolantNetwork:
    """A small perceptron trained on 4096 samples of each density, 256 pairs a step."""
    torch.manual_seed(seed)
    network = MLP(width=48, depth=2, out=2 if predicts == "both" else 1)
    model = InterpolantNetwork(network, Interpolant(latent=latent), predicts, shape=(2,))
    coupling = drawn_from(OTHER.sample(4096, seed + 1).float())
    made = fit(model, DATA.sample(4096, seed).float(), steps=steps, batch=256, lr=2e-3, coupling=coupling, seed=seed)
    assert isinstance(made, InterpolantNetwork)
    return made
