"""Claims of fewstep/denoisers/network.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from claims.common import EDM, F64, Claim, Noise, Outcome, compared, experiment
from claims.trained import NetworkDenoiser
from fewstep.data.digits import load

SIGMAS = (0.002, 0.02, 0.2, 0.5, 1.0, 3.0, 10.0, 80.0)


class _Constant(nn.Module):
    """A network that answers a constant, and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=F64))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.seen = x
        return self.value.expand_as(x)


def _denoiser(kind: str, value: float = 0.0) -> NetworkDenoiser:
    if kind == "edm":
        std = float(load("train")[0].std())
        return NetworkDenoiser(_Constant(value), EDM(), "x0", (1, 8, 8), precondition="edm", data_std=std)
    return NetworkDenoiser(_Constant(value), EDM(), kind, (1, 8, 8))


def _variances(kind: str, seed: int) -> float:
    """How far the variance of the network's input or target is from 1, as a factor, at worst."""
    data = load("train")[0].double()
    data = data - data.mean()
    eps, model, worst = Noise(seed).normal(0, tuple(data.shape), "cpu", F64), _denoiser(kind), 1.0
    for sigma in SIGMAS:
        _, target = model.loss_pair(data, eps, torch.full((len(data),), sigma, dtype=F64))
        assert isinstance(model.network, _Constant) and model.network.seen is not None
        for values in (target, model.network.seen):
            variance = float(values.var())
            worst = max(worst, variance, 1 / variance)
    return worst


def _unit_variance(seed: int) -> Outcome:
    about, unit = (
        f"digits about their mean, sigma in {SIGMAS}",
        "largest factor between 1 and the variance of input or target",
    )
    figures = [_variances(kind, seed) for kind in ("edm", "eps")]
    return compared(figures, "a plain network that predicts eps", about, unit=unit)


@torch.no_grad()
def _change(kind: str, sigma: float) -> float:
    """Largest change of x0 where the network's output changes by 1."""
    x, t = torch.zeros(1, 1, 8, 8, dtype=F64), torch.tensor(sigma, dtype=F64)
    return float((_denoiser(kind, 1.0)(x, t).x0 - _denoiser(kind, 0.0)(x, t).x0).abs().max())


@experiment
def _damped(seed: int, kind: str, sigmas: Sequence[float], unit: str) -> Outcome:
    """EDM's network against a plain one, where the network's output changes by 1."""
    figures = [max(_change(name, sigma) for sigma in sigmas) for name in ("edm", kind)]
    where = f"sigma in {sigmas}" if len(sigmas) > 1 else f"sigma = {sigmas[0]}"
    return compared(figures, f"a plain network that predicts {kind}", where, unit=unit)


CLAIMS = (
    Claim("network", "EDM's preconditioning keeps its input and its target near unit variance", _unit_variance),
    Claim("network", "EDM's preconditioning does not amplify the network's errors in the noise",
          _damped("eps", SIGMAS, "largest change of x0 per change of the output")),
    Claim("network", "EDM's preconditioning damps the network's errors near the data",
          _damped("x0", SIGMAS[:1], "change of x0 per change of the output")),  # where its error is the sample's own
)  # fmt: skip
