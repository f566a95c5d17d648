"""Control by a picture: nothing at first, where it is added, and its sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewstep.networks.control import Beside, Control
from fewstep.networks.surgery import replaced
from fewstep.networks.temporal import TemporalUNet, moments
from fewstep.networks.unet import UNet

OPTIONS = {"channels": 2, "size": 8, "width": (8, 16), "attention": (4,), "classes": 3, "vocabulary": 5, "captions": 3}


def drawn(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def network(frames=4, **options):
    made = TemporalUNet(**OPTIONS | options, frames=frames) if frames else UNet(**OPTIONS | options)
    return drawn(made)


def asked(frames=4, batch=3):
    generator = torch.Generator().manual_seed(2)
    shape = (batch, frames, 2, 8, 8) if frames else (batch, 2, 8, 8)
    x, noise = torch.randn(shape, generator=generator), torch.rand(batch, generator=generator)
    named = {"label": torch.arange(batch) % 4, "text": torch.arange(3 * batch).view(batch, 3) % 6}
    return x, noise, named, torch.randn(batch, 2, 8, 8, generator=generator)


@pytest.mark.parametrize("options", [{}, {"patch": 2, "attention": (2,)}, {"blocks": 2, "places": True}])
@pytest.mark.parametrize("frames", [4, 0])
@torch.no_grad()
def test_at_zero_the_network_is_itself_and_then_it_sees_the_picture(frames, options):
    plain = network(frames, **options)
    control = Control(plain, 2)
    x, noise, named, picture = asked(frames)
    before = plain(x, noise, **named)
    assert torch.equal(replaced(plain, control(plain, picture))(x, noise, **named), before)
    drawn(control, 3)
    after = replaced(plain, control(plain, picture))(x, noise, **named)
    assert float((after - before).abs().amin(0).max()) > 1e-3 and torch.equal(plain(x, noise, **named), before)
    alone = replaced(plain, control(plain, picture[1:2]))(
        x[1:2], noise[1:2], **{name: value[1:2] for name, value in named.items()}
    )
    torch.testing.assert_close(after[1:2], alone, rtol=1e-4, atol=1e-5)


def test_it_stands_beside_the_residual_blocks_on_the_way_down():
    control = Control(network(blocks=2), 2)
    assert list(control.levels) == ["down.0.res0", "down.0.res1", "down.1.res0", "down.1.res1", "mid.res0", "mid.res1"]
    assert [level.shape[1:] for level in control.seen(torch.zeros(1, 2, 8, 8))] == [(8, 8, 8), (16, 4, 4)]


@torch.no_grad()
def test_what_is_added_by_hand():
    beside = drawn(Beside(4, 6, 3).double())
    seen = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    told = torch.randn(2 * 3, 3, 6, dtype=torch.float64)  # a vector, then two words, which are not read
    out = beside(seen, told)
    for clip in range(2):
        for frame in range(3):
            row = told[3 * clip + frame, 0] + moments(3, 6)[frame]
            scale, shift = (beside.modulation.weight @ row + beside.modulation.bias).chunk(2)
            hidden = F.conv2d(seen[clip], beside.conv.weight, beside.conv.bias, padding=1)
            hidden = hidden * (1 + scale[:, None, None]) + shift[:, None, None]
            expected = torch.einsum("oc,chw->ohw", beside.last.weight[..., 0, 0], F.silu(hidden))
            torch.testing.assert_close(out[3 * clip + frame], expected + beside.last.bias[:, None, None])
