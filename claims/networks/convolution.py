"""Claims of fewstep/networks/convolution.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome, compared
from claims.trained import fresh
from fewstep.networks.convolution import Convolution


def _reach(seed: int) -> Outcome:
    """Gradient of one pixel's answer by the input beyond the receptive field, with no weight zero."""
    network = fresh(Convolution, seed, channels=2, width=12, depth=4)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(1, 2, 25, 31, generator=generator).requires_grad_(True)
    network(x, torch.tensor(0.4))[0, :, 12, 15].sum().backward()
    reach, inside = network.receptive_field // 2, torch.zeros(25, 31, dtype=torch.bool)
    inside[12 - reach : 13 + reach, 15 - reach : 16 + reach] = True
    size = x.grad.abs().amax((0, 1))
    figures = float(size[~inside].max()), float(size[inside].min())
    about = f"25x31 pixels, receptive field {network.receptive_field}"
    return compared(figures, "the least within it", about, unit="gradient of a pixel's answer")


CLAIMS = (Claim("convolution", "an answer depends on its receptive field, all of it and nothing else", _reach),)
