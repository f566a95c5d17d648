"""What every block adds, ours and diffusers': it stands alone, on a shortcut that runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.caching.branches import Branch, branches
from fewstep.core.denoiser import Denoiser
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP

F64 = torch.float64


class Foreign(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.network(x, 1000 * t).sample
        return answer


def unet2d() -> nn.Module:
    """With blocks that change the resolution by themselves, and a scale of the sum."""
    diffusers = pytest.importorskip("diffusers")
    downs, ups = (
        ("DownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        ("UpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
    )
    return Foreign(
        diffusers.UNet2DModel(
            8, 2, 2, down_block_types=downs, up_block_types=ups, block_out_channels=(8, 8, 16), norm_num_groups=4,
            mid_block_scale_factor=2.0,
        )
    )  # fmt: skip


NETWORKS = {
    "unet": lambda: UNet(2, 8, (8, 8, 16), 2, (2, 4), None),
    "dit": lambda: DiT(2, 8, width=8, depth=2, classes=None),
    "UNet2DModel": unet2d,
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Denoiser:
    network = NETWORKS[request.param]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return fs.wrap(network.double().eval(), VP(), "eps", (2, 8, 8))


def test_each_stands_where_it_was_kept_and_lets_its_input_through(model):
    x, t = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64), torch.tensor(0.4, dtype=F64)
    with torch.no_grad():
        answer, other = model(x, t).value, model(x + 0.1, t).value
        for part in branches(model).values():
            store: dict[str, Tensor] = {}
            assert torch.equal(replaced(model, part.keeping(model, store))(x, t).value, answer)
            assert set(store) == {part.name}
            stands = replaced(model, part.standing(model, store))
            torch.testing.assert_close(stands(x, t).value, answer, rtol=0, atol=1e-12)
            moved = stands(x + 0.1, t).value
            assert not torch.equal(moved, other) and float((moved - answer).abs().max()) > 1e-6


def test_which_blocks_they_are(model):
    found = branches(model)
    kinds = {name: type(part) for name, part in found.items()}
    if isinstance(model.get_submodule("network" if hasattr(model, "network") else ""), DiT):
        assert Branch not in kinds.values()
    if "up.0.res0" in found:
        assert kinds["up.0.res0"] is Branch and kinds["down.0.res0"] is not Branch
        assert not any(name.endswith((".up", ".down")) for name in found)
    some = list(found)[1:3]
    assert list(branches(model, some)) == some
    with pytest.raises(ValueError, match="unknown block 'mid.re'"):
        branches(model, ["mid.re"])
