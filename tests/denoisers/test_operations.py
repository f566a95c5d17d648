"""What an evaluation costs: counted by hand on a network of two layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.denoisers.operations import operations
from fewstep.processes.vp import VP


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_two_for_each_product():
    model = fs.wrap(Two(), VP(), "eps", (2, 4, 6))
    assert operations(model) == 2 * 4 * 6 * (2 * 5 * 9 + 5 * 2)
    assert operations(fs.load("digits")) > 1e7


def test_without_a_shape():
    with pytest.raises(ValueError, match="needs a shape"):
        operations(fs.wrap(Two(), VP(), "eps"))
