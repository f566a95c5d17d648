"""The claim of a consistency model's boundary: on a perceptron that knows nothing of it."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Outcome, tolerance
from claims.parts import Flow
from claims.trained import MLP, NetworkDenoiser, fresh
from fewstep.denoisers.boundary import Boundary


def _clean(seed: int) -> Outcome:
    network = fresh(MLP, seed, width=32)
    with torch.no_grad():
        network.last.bias.fill_(3.0)
    model = Boundary(NetworkDenoiser(network, Flow(), "x0", (2,)))
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        off = (model(x, torch.zeros(256, dtype=F64)).x0 - x).abs().max()
    return tolerance(float(off), 1e-7, "perceptron that answers 3 everywhere, 256 clean states")


CLAIMS = (Claim("boundary", "a clean state comes back as it is from a network that answers another", _clean),)
