"""Claims of fewstep/denoisers/network.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claims.claim import Claim, Outcome
from fewstep.core.noise import Noise
from fewstep.data.digits import load
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.ve import EDM

SIGMAS = (0.002, 0.02, 0.2, 0.5, 1.0, 3.0, 10.0, 80.0)


class _Constant(nn.Module):
    """A network that answers a constant, and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.seen = x
        return self.value.expand_as(x)


def _denoiser(kind: str, value: float = 0.0) -> NetworkDenoiser:
    if kind == "edm":
        data = load("train")[0]
        return NetworkDenoiser(_Constant(value), EDM(), "x0", (1, 8, 8), precondition="edm", data_std=float(data.std()))
    return NetworkDenoiser(_Constant(value), EDM(), kind, (1, 8, 8))


def _variances(kind: str, seed: int) -> float:
    """How far the variance of the network's input or target is from 1, as a factor, at worst."""
    data = load("train")[0].double()
    data = data - data.mean()
    eps, model, worst = Noise(seed).normal(0, tuple(data.shape), "cpu", torch.float64), _denoiser(kind), 1.0
    for sigma in SIGMAS:
        _, target = model.loss_pair(data, eps, torch.full((len(data),), sigma, dtype=torch.float64))
        assert isinstance(model.network, _Constant) and model.network.seen is not None
        for values in (target, model.network.seen):
            variance = float(values.var())
            worst = max(worst, variance, 1 / variance)
    return worst


def _unit_variance(seed: int) -> Outcome:
    return Outcome(
        _variances("edm", seed),
        _variances("eps", seed),
        "a plain network that predicts eps",
        f"digits about their mean, sigma in {SIGMAS}",
        unit="largest factor between 1 and the variance of input or target",
    )


def _amplification(kind: str) -> float:
    """Largest change of x0 where the network's output changes by 1, over all noise levels."""
    x, worst = torch.zeros(1, 1, 8, 8, dtype=torch.float64), 0.0
    for sigma in SIGMAS:
        t = torch.tensor(sigma, dtype=torch.float64)
        with torch.no_grad():
            worst = max(worst, float((_denoiser(kind, 1.0)(x, t).x0 - _denoiser(kind, 0.0)(x, t).x0).abs().max()))
    return worst


def _errors(seed: int) -> Outcome:
    return Outcome(
        _amplification("edm"),
        _amplification("eps"),
        "a plain network that predicts eps",
        f"sigma in {SIGMAS}",
        unit="largest change of x0 per change of the output",
    )


def _small_noise(seed: int) -> Outcome:
    """Near the data, where a plain x0 network's error is an error of the sample as it stands."""
    x, t = torch.zeros(1, 1, 8, 8, dtype=torch.float64), torch.tensor(SIGMAS[0], dtype=torch.float64)
    with torch.no_grad():
        change = [
            float((_denoiser(kind, 1.0)(x, t).x0 - _denoiser(kind, 0.0)(x, t).x0).abs().max()) for kind in ("edm", "x0")
        ]
    return Outcome(
        change[0],
        change[1],
        "a plain network that predicts x0",
        f"sigma = {SIGMAS[0]}",
        unit="change of x0 per change of the output",
    )


CLAIMS = (
    Claim("network", "EDM's preconditioning keeps its input and its target near unit variance", _unit_variance),
    Claim("network", "EDM's preconditioning does not amplify the network's errors in the noise", _errors),
    Claim("network", "EDM's preconditioning damps the network's errors near the data", _small_noise),
)
