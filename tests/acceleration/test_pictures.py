"""Models that take a picture, such as bridges, are accelerated, searched and compared on data that have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.bridge import BridgeDenoiser
from fewstep.processes.ddbm import DDBM

SHAPE = (1, 2, 2)


class Mean(torch.nn.Module):
    """An answer that depends on the state and on the picture."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (0.3 * x + 0.6 * y).tanh()


@pytest.fixture
def bridge() -> BridgeDenoiser:
    return BridgeDenoiser(Mean(), DDBM(), "x0", SHAPE)


@pytest.fixture
def pairs() -> Dataset:
    x0 = torch.rand(90, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5
    return Dataset(DataSpec("pairs", SHAPE, (-1.0, 1.0), None, 90), x0, given={"y": x0 + 0.1})


def test_a_bridge_is_accelerated_searched_and_compared_on_pairs(bridge, pairs):
    found = fs.accelerate(bridge, 2, noises=60, iterations=1, data=pairs)
    assert found.plan.nfe == 2 and found.rows[0]["frechet_against"] == "pairs, train split"
    searched = fs.search(bridge, 3, "gits", noises=16, reference_nfe=40, points=11, data=pairs)
    assert searched.plan.nfe == 3 and searched.error < 1
    rows = fs.compare(bridge, (2,), ("ddim",), ("uniform",), noises=16, reference_nfe=40, data=pairs).rows
    assert any(row["error"] is not None and row["error"] > 0 for row in rows)
    figures = fs.evaluate(bridge, found.plan, 40, ["psnr", "endpoint"], data=pairs)["figures"]
    assert figures["psnr"]["value"] > 0 and figures["endpoint"]["value"] < 1
    for call in (fs.accelerate, fs.search):
        with pytest.raises(ValueError, match="this model needs y, a picture .*: give data="):
            call(bridge, 2, noises=60)
