"""A small teacher of points with labels, its data, and settings of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distill
from fewstep.distillation.method import Setting
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM


@pytest.fixture
def teacher() -> NetworkDenoiser:
    torch.manual_seed(3)
    network = MLP((2,), 12, 3, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(network, EDM(), "x0", (2,), {"label": Label(3)}, "edm", 0.5).eval()


@pytest.fixture
def few_noises(monkeypatch) -> None:
    """Checks of few samples and evaluations."""
    monkeypatch.setattr(distill, "CHECKED", 24)
    monkeypatch.setattr(distill, "CHECK_NFE", 8)


@pytest.fixture
def points() -> Dataset:
    raw = (0.4 * torch.randn(60, 2, generator=torch.Generator().manual_seed(5))).clamp(-1, 1)
    return Dataset(DataSpec("points", (2,), (-1.0, 1.0), 3, 60), raw, torch.arange(60) % 3)


@pytest.fixture
def setting(teacher) -> Any:
    def make(**changes: Any) -> Setting:
        torch.manual_seed(11)
        given: dict[str, Any] = {"start": 3.0, "iterations": 12, "batch": 6, "data_std": 0.5, "lr": 1e-2} | changes
        return Setting(teacher.requires_grad_(False), copy.deepcopy(teacher), **given)

    return make
