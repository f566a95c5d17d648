"""Small laws and measurements whose posteriors are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.latent import Latent, PrincipalComponents
from fewstep.operators.mask import Inpaint
from fewstep.operators.matrix import Matrix
from fewstep.operators.operator import LinearOperator
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

D = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(isotropic: bool = False, process=None) -> GaussianMixture:
    """One component of 6 numbers."""
    root = normal(D, D, seed=1) * 0.4 + 0.5 * torch.eye(D, dtype=torch.float64)
    covariance = 0.5 * torch.eye(D, dtype=torch.float64) if isotropic else root @ root.T
    return GaussianMixture(torch.ones(1), normal(1, D, seed=2), covariance[None], process or VP())


def mixture(process=None) -> GaussianMixture:
    """Three components of 6 numbers."""
    roots = normal(3, D, D, seed=3) * 0.2
    covariances = roots @ roots.mT + 0.02 * torch.eye(D, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), normal(3, D, seed=4), covariances, process or VP())


def autoencoder() -> PrincipalComponents:
    """6 numbers as 6 latents: turned, moved and scaled."""
    return PrincipalComponents(normal(D, seed=6), torch.linalg.qr(normal(D, D, seed=7))[0], 0.8)


def latent(process=None) -> Latent:
    """The mixture as a model of latents."""
    made = Latent(mixture(process), autoencoder())
    made.sample = lambda n, seed=0: made.decode(made.model.sample(n, seed))
    return made


def wide() -> LinearOperator:
    return Matrix(normal(3, D, seed=5)).fit((D,))


def half() -> LinearOperator:
    return Inpaint(torch.tensor([1.0, 0, 1, 0, 1, 0])).fit((D,))


PROCESSES = (VP(), Flow())
