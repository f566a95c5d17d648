"""Skip layer guidance: against the network without the blocks."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.skip_layers import slg
from fewstep.networks.blocks import blocks_of
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import without
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP

F64 = torch.float64


def model_of(network) -> NetworkDenoiser:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return NetworkDenoiser(network.double().eval(), VP(), "v", (1, 8, 8), {"label": Label(3)})


def unet() -> NetworkDenoiser:
    torch.manual_seed(0)
    return model_of(UNet(channels=1, size=8, width=(8, 8), attention=(4,), classes=3))


def dit() -> NetworkDenoiser:
    torch.manual_seed(0)
    return model_of(DiT(channels=1, size=8, width=32, depth=3, classes=3))


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
T, CONDITION = torch.tensor(0.6, dtype=F64), {"label": torch.tensor([0, 1, 3])}


@pytest.mark.parametrize(
    "make, names, chosen",
    [
        (unet, None, ["mid.res0", "mid.attn", "mid.res1"]),
        (unet, ["mid.attn", "up.1.attn0"], ["mid.attn", "up.1.attn0"]),
        (dit, None, ["block.1.attn", "block.1.mlp"]),
    ],
)
def test_it_leads_away_from_the_network_without_them(make, names, chosen):
    model = make()
    weak = without(model, [blocks_of(model)[name] for name in chosen])
    own, other = (one(X, T, **CONDITION).value for one in (model, weak))
    assert float((own - other).detach().norm()) > 1e-3
    torch.testing.assert_close(slg(model, 1.5, names)(X, T, **CONDITION).value, own + 1.5 * (own - other))
    assert torch.equal(slg(model, 0.0, names)(X, T, **CONDITION).value, own)


def test_with_cfg_three_rows_a_sample():
    guided = fs.guide(fs.guide(unet(), "slg", scale=1.0), "cfg", scale=2.0)
    result = fs.plan(VP(), "ddim", 2).run(guided, X, label=1, dtype=F64)
    assert result.report["rows"] == 6


def test_faulty_arguments():
    model = unet()
    with pytest.raises(ValueError, match="unknown block 'mid.re0': did you mean 'mid.res0'"):
        fs.guide(model, "slg", blocks=["mid.re0"])
    with pytest.raises(ValueError, match="unknown block 'down.1.res0'|unknown block 'down.0.down'"):
        fs.guide(model, "slg", blocks=["down.0.down"])  # its output has another shape than its input
    with pytest.raises(ValueError, match="blocks must be a list of names, at least one"):
        fs.guide(model, "slg", blocks=[])
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        fs.guide(GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP()), "slg")

    class Shrinks(torch.nn.Module):
        blocks = {"down": torch.nn.AvgPool2d(2)}

    with pytest.raises(ValueError, match="no block of this network can be left out"):
        fs.guide(NetworkDenoiser(Shrinks(), VP()), "slg")
    with pytest.raises(ValueError, match="the guidance scale must be at least 0"):
        fs.guide(model, "slg", scale=-0.1)
