from __future__ import annotations

import pytest
import torch

from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import without
from fewstep.networks.temporal import TemporalUNet, moments
from fewstep.networks.unet import UNet

OPTIONS = {"channels": 2, "size": 8, "width": (8, 16), "attention": (4,), "classes": 3, "vocabulary": 5, "captions": 3}


def image(**options) -> UNet:
    """A network of pictures with no weight zero."""
    torch.manual_seed(0)
    made = UNet(**OPTIONS | options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def moved(network: TemporalUNet) -> TemporalUNet:
    """With no weight of its layers of time zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.times.values():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def clip(batch: int = 3, frames: int = 4) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x, noise = torch.randn(batch, frames, 2, 8, 8, generator=generator), torch.rand(batch, generator=generator)
    return x, noise, {"label": torch.arange(batch) % 4, "text": torch.arange(3 * batch).view(batch, 3) % 6}


@pytest.mark.parametrize("options", [{}, {"patch": 2, "attention": (2,)}, {"blocks": 2, "places": True, "experts": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_a_clip_is_its_frames_bit_for_bit(options, dtype, frozen):
    # torch multiplies by weights that ask for gradients in another order: both ask, or neither.
    still = image(**options).to(dtype).requires_grad_(not frozen)
    network = TemporalUNet.around(still, frames=4, frozen=frozen)
    x, noise, named = clip()
    x = x.to(dtype)
    apart = still(
        x.flatten(0, 1), noise.repeat_interleave(4), **{k: v.repeat_interleave(4, 0) for k, v in named.items()}
    )
    assert torch.equal(network(x, noise, **named).flatten(0, 1), apart)
    for frame in range(4):  # and each by itself, but for the order of sums
        alone = still(x[:, frame], noise, **named)
        torch.testing.assert_close(network(x, noise, **named)[:, frame], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_frames_meet_once_the_layers_have_weights():
    network, (x, noise, named) = moved(TemporalUNet.around(image(), frames=4)), clip()
    out = network(x, noise, **named)
    other = x.clone()
    other[:, 3] += 1
    changed = (network(other, noise, **named) - out).flatten(2).abs().amax(2)
    assert float(changed.detach().min()) > 1e-4  # every frame of every clip
    assert not torch.allclose(network(x.flip(1), noise, **named).flip(1), out, atol=1e-3)  # time has a direction
    blocks = blocks_of(network)
    left_out = without(network, [blocks[name] for name in network.times])
    assert torch.equal(left_out(x, noise, **named), TemporalUNet.around(image(), frames=4)(x, noise, **named))


def test_the_picture_network_inside_shares_its_weights():
    network, (x, noise, named) = moved(TemporalUNet.around(image(), frames=4)), clip()
    before, state = image(), torch.get_rng_state()
    still = network.still()
    assert torch.equal(torch.get_rng_state(), state) and type(still) is UNet and still.config() == before.config()
    assert torch.equal(still(x[:, 0], noise, **named), before(x[:, 0], noise, **named))
    own = dict(network.named_parameters())
    assert all(parameter is own[name] for name, parameter in still.named_parameters())
    assert not any(parameter.requires_grad for parameter in still.parameters())  # frozen here as there
    assert len(own) == len(list(still.parameters())) + sum(1 for m in network.times.values() for _ in m.parameters())


def test_frozen_weights_are_those_of_pictures():
    still = image()
    network = moved(TemporalUNet.around(still, frames=4))
    x, noise, named = clip()
    network(x, noise, **named).square().sum().backward()
    got = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in network.named_parameters() if ".time" in name} and network.config()["frozen"]
    network.freeze(False)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in still.parameters())
    assert not TemporalUNet(**OPTIONS, frames=4).frozen and TemporalUNet(**OPTIONS, frozen=True).frozen


def test_blocks_are_those_of_pictures_and_of_time_in_turn():
    assert list(TemporalUNet.around(image(), frames=4).blocks) == [
        "down.0.res0", "down.0.time0", "down.0.down", "down.1.res0", "down.1.attn0", "down.1.time0",
        "mid.res0", "mid.attn", "mid.res1", "mid.time",
        "up.1.res0", "up.1.attn0", "up.1.time0", "up.1.up", "up.0.res0", "up.0.time0",
    ]  # fmt: skip


def test_a_picture_beside_a_clip_is_one_for_all_frames_or_one_for_each():
    network, (x, noise, _) = moved(TemporalUNet.around(image(picture=1), frames=4)), clip()
    y = torch.randn(3, 1, 8, 8)
    assert torch.equal(network(x, noise, y=y), network(x, noise, y=y[:, None].expand(-1, 4, -1, -1, -1)))


def test_moments_are_apart():
    found = moments(16, 8)
    assert found.shape == (16, 8) and float(torch.cdist(found, found).add(torch.eye(16)).min()) > 0.1


def test_faulty_clips():
    network, (x, noise, _) = TemporalUNet.around(image(), frames=4), clip()
    for wrong in (x[:, :3], x[:, 0], x[:, :, :1]):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 4, 2, H, W\)"):
            network(wrong, noise)
    with pytest.raises(ValueError, match="at least two frames, got frames=1"):
        TemporalUNet(**OPTIONS, frames=1)
