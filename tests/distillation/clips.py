"""A small model of clips whose weights are all drawn, for tests of the methods that distil such."""

from __future__ import annotations

from typing import Any

import torch

from fewstep.conditions.label import Label
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.method import Distiller, Setting
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.ve import EDM

SHAPE = (4, 2, 4, 4)
NETWORK: dict[str, Any] = {"channels": 2, "size": 4, "width": [8], "attention": [4], "classes": 3, "embedding": 8}


def model() -> NetworkDenoiser:
    torch.manual_seed(3)
    network = TemporalUNet(**NETWORK, frames=SHAPE[0])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(
        network, EDM(), "x0", SHAPE, {"label": Label(3)}, precondition="edm", data_std=0.5
    ).eval()  # fmt: skip


def samples(shape: tuple[int, ...] = SHAPE) -> Dataset:
    raw = 0.5 * torch.randn(40, *shape, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    return Dataset(DataSpec("drawn", shape, (-1.0, 1.0), 3, 40), raw, torch.arange(40) % 3)


def setting(**changes: Any) -> Setting:
    teacher = model().requires_grad_(False)
    return Setting(teacher, model(), 40.0, iterations=6, data=samples(), data_std=0.5, batch=6, **changes)


def drawn(method: Distiller, batch: int = 6) -> dict[str, Any]:
    return method.setting.mine(method.draw(batch, torch.Generator().manual_seed(7)))
