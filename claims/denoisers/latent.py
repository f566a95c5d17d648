"""Claims of models of latents and of the linear autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, GaussianMixture, Noise, Outcome, plan, sample, tolerance
from fewstep.data.digits import load
from fewstep.denoisers.latent import Latent, PrincipalComponents
from fewstep.operators.cosine import cosine_matrix


def _turned(seed: int) -> Outcome:
    """White noise of as many components as there are pixels is white noise of pixels, turned and scaled."""
    pictures = load("train")[0].double()
    autoencoder = PrincipalComponents.of(pictures, 64)
    root = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed), dtype=F64) / 8
    covariance, basis, scale = root @ root.T, autoencoder.basis, autoencoder.scale
    here, there = (
        GaussianMixture(torch.ones(1), torch.zeros(1, 64), own[None] / scale**2, VP())
        for own in (basis @ covariance @ basis.T, covariance)
    )
    made = plan(VP(), "dpmpp-2m", 8)
    x = sample(Latent(here, autoencoder), 16, plan=made, seed=seed, dtype=F64)
    noise = Noise(seed).normal(0, (16, 64), "cpu", F64) @ basis
    exact = autoencoder.mean + scale * made(there, noise, dtype=F64).reshape(-1, 1, 8, 8)
    return tolerance(float((x - exact).abs().max()), 1e-10, "64 components of the digits, dpmpp-2m, 8 evaluations")


def _error(seed: int) -> Outcome:
    train, held = load("train")[0], load("validation")[0].double()

    def off(x: Tensor) -> float:
        return float((x - held).square().mean())

    made = PrincipalComponents.of(train, 16)
    low = cosine_matrix(8)[:4]
    smooth = low.T @ (low @ held @ low.T) @ low
    about = "16 numbers a picture; digits that were not fitted on, mean squared error of a pixel"
    return Outcome(off(made.decode(made.encode(held))), off(smooth), "the 4 x 4 lowest frequencies", about)


CLAIMS = (
    Claim("latent", "with nothing left out its samples are those of the model of pictures", _turned),
    Claim("principal-components", "lose less of unseen digits than the same number of frequencies", _error),
)
