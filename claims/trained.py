"""What claims about training use, under one import: networks, objectives, `fit`, and seeded first weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fewstep.denoisers.coordinates import CoordinateDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.training.fit import fit, rows_of
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective

__all__ = [
    "MLP", "CoordinateDenoiser", "NetworkDenoiser", "NoiseLevels", "Objective", "UNet", "fit", "fresh", "rows_of",
]  # fmt: skip


def fresh(make: Callable[..., Any], seed: int, *args: Any, **options: Any) -> Any:
    """`make(*args, **options)` with first weights that follow from the seed; torch's own generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = make(*args, **options)
    return made
