"""Captions in the UNet: the encoder, attention to words, and pictures that go with the input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewstep.networks.common import attend
from fewstep.networks.text import TextEncoder
from fewstep.networks.unet import UNet, grid


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Off its zeros, in float64, the same each time."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def unet(**options) -> UNet:
    return moved(UNet(3, 8, width=(8, 16), attention=(4,), classes=None, vocabulary=6, captions=5, **options))


def test_attention_reads_the_words_beside_the_pixels():
    """Against softmax written out over pixels and words."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 6, generator=generator, dtype=torch.float64)
    words = torch.randn(2, 3, 2 * 6, generator=generator, dtype=torch.float64)
    query, key, value = qkv.chunk(3, dim=2)
    key, value = torch.cat([key, words[..., :6]], 1), torch.cat([value, words[..., 6:]], 1)
    for head in (slice(0, 3), slice(3, 6)):
        weights = F.softmax(query[..., head] @ key[..., head].mT / 3**0.5, dim=-1)
        torch.testing.assert_close(attend(qkv, 2, words)[..., head], weights @ value[..., head])


def test_the_caption_and_its_order_matter():
    network, x = unet(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    noise = torch.tensor(0.3, dtype=torch.float64)
    answers = [network(x, noise, text=torch.tensor([text])) for text in ([1, 2, 3, 0, 0], [2, 1, 3, 0, 0], [0] * 5)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (answers[a] - answers[b]).abs().max() > 1e-4


def test_no_text_is_the_empty_caption():
    network, x = unet(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    noise = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(network(x, noise), network(x, noise, text=torch.zeros(2, 5, dtype=torch.long)))


def test_gradient_reaches_every_parameter():
    network = unet(picture=2).train()
    x, y = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    network(x, torch.tensor(0.3), text=torch.tensor([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0]]), y=y).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_picture_goes_with_its_own_sample():
    network = unet(picture=2)
    x, y = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    noise = torch.tensor(0.3, dtype=torch.float64)
    first = network(x, noise, y=y)
    y[1] += 1
    second = network(x, noise, y=y)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1e-12)
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_configuration_and_channels_out():
    network = unet(picture=2, out=4)
    again = UNet(**{key: value for key, value in network.config().items() if key != "network"})
    assert again.config() == network.config()
    assert network(torch.zeros(1, 3, 8, 8).double(), torch.tensor(0.0), y=torch.zeros(1, 2, 8, 8)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": torch.zeros(2, 6, dtype=torch.long)}, r"text must be whole numbers \(B, 5\)"),
        ({"text": torch.zeros(2, 5)}, "of torch.float32"),
        ({"y": torch.zeros(2, 1, 8, 8)}, "built without a picture"),
    ],
)
def test_faulty_conditions(options, message):
    with pytest.raises(ValueError, match=message):
        unet()(torch.zeros(2, 3, 8, 8).double(), torch.tensor(0.0), **options)


def test_a_network_without_words_or_pictures_says_so():
    plain = UNet(1, 8, width=(8,), attention=(), classes=None)
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="built without captions"):
        plain(x, torch.tensor(0.0), text=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"y must have shape \(2, 2, 8, 8\), got nothing"):
        UNet(1, 8, width=(8,), attention=(), classes=None, picture=2)(x, torch.tensor(0.0))


def test_faulty_encoders():
    with pytest.raises(ValueError, match="must be at least 1"):
        TextEncoder(0, 5, 8)


def test_pixels_may_be_told_where_they_lie():
    places = grid(torch.zeros(2, 5, 4, 3))
    assert places.shape == (2, 2, 4, 3)
    assert places[1, 0, :, 2].tolist() == [-0.75, -0.25, 0.25, 0.75]
    torch.testing.assert_close(places[0, 1, 3], torch.tensor([-2 / 3, 0.0, 2 / 3]))
    network = moved(UNet(1, 32, width=(8,), attention=(), classes=None, places=True))
    assert network.config()["places"] and UNet(1, 8, width=(8,), attention=()).config()["places"] is False
    # Far from the borders an even picture looks the same everywhere to convolutions alone.
    even = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    without = moved(UNet(1, 32, width=(8,), attention=(), classes=None))
    middle = (slice(None), slice(None), slice(13, 19), slice(13, 19))
    assert network(even, torch.tensor(0.0))[middle].std() > 1e-3
    assert without(even, torch.tensor(0.0))[middle].std() < 1e-9
