from __future__ import annotations

import pytest
import torch

from fewstep.networks.unet import Attention, UNet


def perturbed(network):
    """The network with its zero-initialised layers moved, so that every path carries signal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def small(**arguments):
    torch.manual_seed(0)
    given = {"channels": 3, "size": (8, 12), "width": (16, 24), "classes": 5}
    return perturbed(UNet(**(given | arguments)))


def inputs(batch=2, channels=3, size=(8, 12)):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels, *size, generator=generator),
        torch.rand(batch, generator=generator),
        torch.arange(batch) % 5,
    )


@pytest.mark.parametrize(
    "arguments, size",
    [
        ({}, (8, 12)),
        ({"patch": 2, "attention": (2,)}, (8, 12)),
        ({"width": (16, 24, 40), "attention": (2, 8), "blocks": 2}, (8, 12)),
        ({"attention": (), "classes": None}, (8, 12)),
        ({"size": 8}, (16, 4)),  # another size than the one it is meant for
    ],
)
def test_output_has_the_shape_of_the_input(arguments, size):
    network = small(**arguments)
    x, noise, label = inputs(size=size)
    out = network(x, noise, None if network.classes is None else label)
    assert out.shape == x.shape and out.isfinite().all()


def test_starts_at_zero():
    torch.manual_seed(0)
    x, noise, label = inputs()
    assert (UNet(channels=3, size=(8, 12), width=(16, 24), classes=5)(x, noise, label) == 0).all()


def test_attention_has_no_sense_of_place_and_sees_every_pixel():
    torch.manual_seed(0)
    block = perturbed(Attention(64)).double()
    x, none = torch.randn(2, 64, 3, 5, dtype=torch.float64), torch.zeros(0)
    order = torch.randperm(15)
    shuffled = x.flatten(2)[:, :, order].view(x.shape)
    assert torch.allclose(block(shuffled, none).flatten(2), block(x, none).flatten(2)[:, :, order], atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda pixel: block(pixel, none)[0, 0].flatten(), x)
    assert (jacobian[:, 0].abs().sum(1) > 0).all() and (jacobian[:, 1] == 0).all()


def test_the_names_of_the_blocks():
    network = small(width=(16, 24), attention=(4, 8), blocks=2)
    names = [
        *("down.0.res0", "down.0.attn0", "down.0.res1", "down.0.attn1", "down.0.down"),
        *("down.1.res0", "down.1.attn0", "down.1.res1", "down.1.attn1"),
        *("mid.res0", "mid.attn", "mid.res1"),
        *("up.1.res0", "up.1.attn0", "up.1.res1", "up.1.attn1", "up.1.up"),
        *("up.0.res0", "up.0.attn0", "up.0.res1", "up.0.attn1"),
    ]
    assert list(network.blocks) == names


def test_dropout_acts_in_training_alone():
    network = small(dropout=0.5)
    assert torch.equal(network(*inputs()), network(*inputs()))
    network.train()
    assert not torch.equal(network(*inputs()), network(*inputs()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": (8, 11)}, "8x11 do not divide by 2"),
        ({"width": (16, 16, 16), "patch": 2, "size": 12}, "12x12 do not divide by 8"),
        ({"attention": (5,)}, r"attention at \[5\]: the levels of this network are \[8, 4\]"),
        ({"size": "8"}, "size must be"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"width": ()}, "every width"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_wrong_sizes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_wrong_inputs_raise():
    network = small()
    x, noise, label = inputs()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3, H, W\)"):
        network(x[:, :1], noise, label)
    with pytest.raises(ValueError, match="8x11 do not divide by 2"):
        network(x[..., :11], noise, label)
    with pytest.raises(ValueError, match="noise must be one number"):
        network(x, noise[:1].expand(3), label)
    with pytest.raises(ValueError, match="label must be 2 integers in 0 to 5"):
        network(x, noise, label.float())
    with pytest.raises(ValueError, match="built without classes"):
        small(classes=None)(x, noise, label)
