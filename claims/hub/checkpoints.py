"""Claims of fewstep/hub/checkpoints.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from claims.common import F64, Claim, Noise, Outcome, gap
from claims.trained import fresh
from fewstep.hub.checkpoints import load_checkpoint

SIGMAS = (0.002, 0.05, 0.5, 3.0, 80.0)
DATA_STD = 0.5


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) * torch.cos(noise)[:, None]


def _table_1(net: nn.Module, kind: str, x: Tensor, s: float) -> Tensor:
    """D(x; sigma) of Karras et al., Table 1, in float64, for the columns EDM, VP and VE."""
    sigma = torch.full((len(x), 1), s, dtype=F64)
    if kind == "VEPrecond":
        return x + sigma * net(x, (sigma / 2).log()[:, 0])
    if kind == "VPPrecond":
        t = ((0.01 + 39.8 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x - sigma * net(x / (1 + sigma**2).sqrt(), 999 * t[:, 0])
    norm = (sigma**2 + DATA_STD**2).sqrt()
    return DATA_STD**2 / norm**2 * x + sigma * DATA_STD / norm * net(x / norm, sigma.log()[:, 0] / 4)


def _formulas(seed: int) -> Outcome:
    net, worst = fresh(_Net, seed).eval(), 0.0
    clean, eps = (Noise(seed).normal(draw, (8, 6), "cpu", F64) for draw in (0, 1))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "net.safetensors"
        save_file({f"ema.{key}": value for key, value in net.state_dict().items()}, path)
        for kind in ("EDMPrecond", "VPPrecond", "VEPrecond"):
            model = load_checkpoint(_Net(), path, {"precondition": kind, "shape": [6]}, prefix="ema.").double()
            for sigma in SIGMAS:
                x = DATA_STD * clean + sigma * eps
                made = model(x, torch.tensor(sigma, dtype=F64)).x0
                worst = max(worst, gap(made, _table_1(net.double(), kind, x, sigma)))
            net.float()
    about = f"a small network saved and loaded under three preconditionings, sigma in {SIGMAS}"
    return Outcome(worst, 1e-5, "a tolerance", about, unit="largest relative difference from the formulas of Table 1")


CLAIMS = (Claim("checkpoint", "a loaded network is the paper's function", _formulas),)
