"""Claims of fewstep/denoisers/coordinates.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claims.common import F64, VP, Claim, Noise, Outcome, compared, plan, tolerance
from claims.trained import CoordinateDenoiser, NetworkDenoiser
from fewstep.data.digits import load
from fewstep.denoisers.coordinates import DCT

SHAPE = (1, 8, 8)


def _correlation(data: Tensor) -> float:
    """Mean square of the correlations between different elements."""
    correlations = data.flatten(1).double().T.corrcoef().nan_to_num()
    n = len(correlations)
    return float((correlations.square().sum() - correlations.diagonal().square().sum()) / (n * (n - 1)))


def _compact(seed: int) -> Outcome:
    data, _ = load("train")
    figures = _correlation(DCT(SHAPE).encode(data, {})), _correlation(data)
    return compared(figures, "pixels", f"{len(data)} digits", unit="mean squared correlation")


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return (self.scale + noise.to(x).reshape(-1, 1, 1, 1)) * x


def _parity(seed: int) -> Outcome:
    """A linear network commutes with an orthonormal transform, so nothing may change but the basis."""
    network, dct, made = _Linear(), DCT(SHAPE), plan(VP(), "dpmpp-2m", 8)
    noise = Noise(seed).normal(0, (16, *SHAPE), "cpu", F64)
    ours = CoordinateDenoiser(network, VP(), dct, shape=SHAPE)
    found = ours.decode(made(ours, dct.encode(noise, {}), dtype=F64))
    wanted = made(NetworkDenoiser(network, VP(), shape=SHAPE), noise, dtype=F64)
    about = "cosine transform against pixels, a linear network, dpmpp-2m, 8 steps, 16 noises"
    return tolerance(
        float((found - wanted).abs().max() / wanted.abs().max()), 1e-9, about, "largest relative difference"
    )


CLAIMS = (
    Claim("coordinates", "a change of basis changes nothing where it must not", _parity),
    Claim("dct", "decorrelates the digits", _compact),
)
