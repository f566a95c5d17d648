"""A whole network as a part: heard, and answered for in the form in which it is asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.caching.ahead import Network
from fewstep.networks.surgery import Block, replaced

X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.7)


class Outer(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def test_what_a_network_said_is_what_it_says_next():
    model, store = fs.load("digits"), {}
    part = Network("answer", (Block("network"),), False)
    named = model.check_condition({"label": 3}, 2, X.device)
    with torch.no_grad():
        wanted = model(X, T, **named).value
        assert torch.equal(replaced(model, part.keeping(model, store))(X, T, **named).value, wanted)
        assert store["answer"].shape == X.shape
        stands = replaced(model, part.standing(model, store))
        assert torch.equal(stands(X, T, **named).value, wanted)
        assert not torch.equal(stands(2 * X, T, **named).value, wanted)  # its preconditioning sees the state
    assert next(stands.parameters()).dtype == torch.float32  # who asks for the network's dtype is told


def test_a_network_of_diffusers_answers_in_its_form():
    diffusers = pytest.importorskip("diffusers")
    stages = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    outer = Outer(
        diffusers.UNet2DModel(
            8, 1, 1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **stages
        )
    )
    part, store = Network("answer", (Block("network"),), False), {}
    heard = replaced(outer, part.keeping(outer, store)).network
    said = replaced(outer, part.standing(outer, store)).network
    with torch.no_grad():
        for named in ({}, {"return_dict": False}):
            answer = heard(X, 3, **named)
            value = answer[0] if named else answer.sample
            assert torch.equal(store["answer"], value)
            again = said(X, 3, **named)
            assert torch.equal(again[0] if named else again.sample, value)
        assert torch.equal(said(X, 3)["sample"], value)
