"""Claims of networks of clips."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, tolerance
from claims.trained import fresh
from fewstep.networks.temporal import TemporalUNet
from fewstep.networks.unet import UNet

FRAMES = 4


@torch.no_grad()
def _frames(seed: int) -> Outcome:
    still = fresh(UNet, seed, channels=2, size=8, width=(8, 16), attention=(4,)).requires_grad_(False).eval()
    torch.nn.init.normal_(still.last.weight if hasattr(still, "last") else next(still.parameters()), std=0.1)
    network = TemporalUNet.around(still, frames=FRAMES).eval()
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(3, FRAMES, 2, 8, 8, generator=generator), torch.rand(3, generator=generator)
    each = torch.stack([still(x[:, frame], noise) for frame in range(FRAMES)], 1)
    assert each.abs().max() > 0
    return tolerance(float((network(x, noise) - each).abs().max()), 1e-12, f"3 clips of {FRAMES} frames", "difference")


CLAIMS = (Claim("temporal-unet", "before it is trained a clip is its frames, bit for bit", _frames),)
