from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.dit import DiT
from fewstep.processes.ve import EDM


@pytest.fixture(scope="session")
def dit() -> NetworkDenoiser:
    """A transformer of four blocks on 8x8 pixels, of random weights, none zero."""
    torch.manual_seed(0)
    network = DiT(channels=1, size=8, width=32, depth=4, classes=10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), {"label": Label(10)}, precondition="edm").eval()
