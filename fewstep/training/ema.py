"""The moving average of the weights, from which samples are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method

METHODS = (
    Method(
        "ema",
        kind="average",
        paper="Improved Techniques for Training Score-Based Generative Models (Song and Ermon, 2020)",
        arxiv="2006.09011",
        claim="averaged weights sample better than the last ones",
        use="EMA",
    ),
)


class EMA:
    """average <- d average + (1 - d) weights, after every step, in float32 whatever the network's dtype.

    In update n (from 1) the factor d is min(decay, (1 + n) / (10 + n)): early averages forget the random start within
    a few steps. `decay` lies in [0, 1); 0 keeps the last weights. `network` is the one whose weights are averaged.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average must be at least 0 and below 1, got {decay}")
        self.network, self.decay = network, decay
        self.updates = 0
        self.average = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in network.named_parameters()
        }

    @torch.no_grad()
    def update(self, network: nn.Module | None = None) -> None:
        """Adds the network's present weights to the average, or those of another network if given."""
        self.updates += 1
        factor = min(self.decay, (1 + self.updates) / (10 + self.updates))
        source = self.network if network is None else network
        weights = [parameter.float() for parameter in source.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - factor)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Writes the average into the network, in the network's dtype; weights that have none stay as they are."""
        for name, parameter in network.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Continues from a saved average."""
        for name, kept in self.average.items():
            kept.copy_(average[name])
        self.updates = updates
