"""Autoencoders of diffusers ("autoencoder"): scaling, tiles, memory, sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.hub.autoencoder import Autoencoder

diffusers = pytest.importorskip("diffusers")
from claims.pipelines import gradient_memory, kl, seam  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def tiny_autoencoder():
    torch.manual_seed(5)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=4,
    ).eval()


def deep_compression():
    torch.manual_seed(5)
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41,
    ).eval()


KINDS = {"kl": kl, "tiny": tiny_autoencoder, "dc": deep_compression}


def smooth(height, width, batch=1):
    """Pictures of slow waves, in [-1, 1]."""
    y, x = torch.linspace(0, 5, height)[:, None], torch.linspace(0, 4, width)
    return torch.stack([torch.sin(y + c) * torch.cos(x - c) * 0.9 for c in range(3)]).expand(batch, 3, height, width)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_scaled_and_come_back(kind):
    vae = KINDS[kind]()
    made = Autoencoder(vae)
    pictures = smooth(32, 48, 2)
    latents = made.encode(pictures)
    assert latents.shape == (2, made.channels, 32 // made.factor, 48 // made.factor)
    with torch.no_grad():
        raw = vae.encode(pictures)
        raw = raw.latent_dist.mode() if kind == "kl" else raw[0]
        torch.testing.assert_close(latents, raw * vae.config.scaling_factor)
        torch.testing.assert_close(made.decode(latents), vae.decode(raw).sample)


def test_shift_and_statistics():
    raw = Autoencoder(kl(scaling_factor=1.0)).encode(smooth(16, 24))
    shifted = Autoencoder(kl(scaling_factor=0.5, shift_factor=0.3))
    torch.testing.assert_close(shifted.encode(smooth(16, 24)), (raw - 0.3) * 0.5)
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 1.2, 2.0]
    normed = Autoencoder(kl(scaling_factor=0.5, latents_mean=mean, latents_std=std))
    m, s = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std))
    torch.testing.assert_close(normed.encode(smooth(16, 24)), (raw - m) / s * 0.5)
    torch.testing.assert_close(normed.decode((raw - m) / s * 0.5), shifted.decode((raw - 0.3) * 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_leave_no_seam(kind):
    """The steps between pixels at the borders of tiles are no larger than elsewhere, and the whole is the same but for
    what each tile cannot see."""
    made = Autoencoder(KINDS[kind]())
    tile, (height, width) = (128, (288, 192)) if kind == "tiny" else (64, (160, 128))
    latents = made.encode(smooth(height, width, 2))
    plain = made.decode(latents)
    made.tile = tile
    tiled = made.decode(latents)
    assert tiled.shape == plain.shape
    across, inside = seam(tiled, plain, tile, 8 if kind == "tiny" else 4)
    assert across <= inside, (across, inside)
    encoded = made.encode(smooth(height, width, 2))
    assert encoded.shape == latents.shape
    assert float((encoded - latents).abs().mean()) < 0.1 * float(latents.std()) + 0.02
    made.tile = None
    torch.testing.assert_close(made.decode(latents), plain)


def test_small_pictures_are_not_tiled():
    made = Autoencoder(kl())
    latents = made.encode(smooth(32, 32))
    plain = made.decode(latents)
    made.tile = 32
    assert torch.equal(made.decode(latents), plain)


@pytest.mark.parametrize("tile", [0, 8, 20, 36])
def test_tiles_whose_overlap_is_no_whole_latent(tile):
    with pytest.raises(ValueError, match=f"tile must be a multiple of 8 pixels, at least 16, got {tile}"):
        Autoencoder(kl(), tile=tile)


def test_bad_input():
    made = Autoencoder(kl())
    with pytest.raises(ValueError, match="takes sides that are multiples of 2, got 15 x 16"):
        made.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"takes \(B, 3, H, W\), got \(1, 1, 16, 16\)"):
        made.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"decodes \(B, 4, H, W\), got \(4, 8, 8\)"):
        made.decode(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match="unsupported autoencoder 'Linear'; supported: AutoencoderDC, AutoencoderKL"):
        Autoencoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("way", ["encode", "decode"])
def test_gradients_come_through_where_they_are_asked_for(way, tile):
    """That of a sum of squares, along a direction, is what finite differences say."""
    made = Autoencoder(kl().double(), tile=tile)
    x = smooth(24, 32, 2).double() if way == "encode" else normal(2, 4, 12, 16)
    along = normal(*x.shape) / x[0].numel() ** 0.5
    run = getattr(made, way)
    assert not run(x).requires_grad

    def value(x):
        return run(x).square().sum()

    state = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(state), state)
    found = float((value(x + 1e-5 * along) - value(x - 1e-5 * along)) / 2e-5)
    assert float((gradient * along).sum()) == pytest.approx(found, rel=1e-5)
    with torch.no_grad():
        assert not run(state).requires_grad
    assert all(parameter.grad is None for parameter in made.parameters())


def test_tiles_bound_the_memory_of_a_gradient():
    assert gradient_memory(128, 32) < 0.35 * gradient_memory(128, None)


MEASURE = """
import sys
sys.path.insert(0, {root!r})
from claims.pipelines import decoding_memory
print(decoding_memory({side}, {tile}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of memory")
def test_tiles_bound_the_memory():
    """Peak memory of a process that decodes a large picture, less that of one that decodes a single tile."""

    def peak(side, tile):
        code = MEASURE.format(root=str(ROOT), side=side, tile=tile)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    base, whole, tiled = peak(128, None), peak(1024, None), peak(1024, 128)
    assert tiled - base < 0.25 * (whole - base), (base, whole, tiled)


def overflowing(vae):
    """The autoencoder with weights within float16, and activations beyond it."""
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(2e4)
        vae.decoder.conv_in.bias.mul_(2e4)
    return vae


def test_what_overflows_in_float16_computes_in_float32():
    vae = overflowing(kl(latents_mean=None))
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    pictures = Autoencoder(vae).decode(latents)
    moved = Autoencoder(vae).half()
    assert moved.dtype == torch.float32 and float((moved.decode(latents) - pictures).abs().max()) < 0.02
    given = overflowing(kl()).half()
    made = Autoencoder(given)
    assert next(given.parameters()).dtype == torch.float16 and made.dtype == torch.float32
    assert float((made.decode(latents) - pictures).abs().max()) < 0.02
    assert made.decode(latents.half()).dtype == torch.float16
    assert Autoencoder(kl()).to(torch.bfloat16).dtype == torch.bfloat16  # whose range is float32's
    assert Autoencoder(kl(force_upcast=False)).half().dtype == torch.float16


def test_pictures_that_are_not_finite():
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    unsaid = Autoencoder(overflowing(kl(force_upcast=False))).half()
    with pytest.raises(ValueError, match=r"pictures are not finite: it overflows in float16; model.autoencoder.to\("):
        unsaid.decode(latents)
    assert unsaid.to(torch.float32).decode(latents).isfinite().all()
    with pytest.raises(ValueError, match="what the autoencoder was given is not finite"):
        unsaid.decode(latents / 0)
