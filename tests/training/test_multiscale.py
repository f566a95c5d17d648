"""The multiscale distance on known errors. Method: multiscale."""

from __future__ import annotations

import functools

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.training.multiscale import multiscale
from fewstep.training.objective import Objective


def test_it_is_registered():
    assert find("multiscale") is multiscale


def test_known_errors():
    """Sides 8, 4, 2 weigh 1/8, 1/4, 1/2: 1/7, 2/7, 4/7. Each error lives at some of them alone."""
    flat = torch.full((8, 8), 3.0)  # at all
    pixels = torch.ones(8, 8) - 2 * ((torch.arange(8)[:, None] + torch.arange(8)[None]) % 2)  # chessboard: at 8 alone
    blocks = pixels[:4, :4].repeat_interleave(2, 0).repeat_interleave(2, 1)  # chessboard of 2x2: at 8 and 4
    error = torch.stack([flat, pixels, blocks])[:, None].repeat(1, 2, 1, 1)
    torch.testing.assert_close(multiscale(error, 2), torch.tensor([9.0, 1 / 7, 3 / 7]))
    torch.testing.assert_close(multiscale(error, 3), torch.tensor([9.0, 1 / 3, 1.0]))
    torch.testing.assert_close(multiscale(error, 8), error.square().flatten(1).mean(1))


def test_sides_that_do_not_halve_end_it():
    error = torch.randn(2, 1, 12, 6, generator=torch.Generator().manual_seed(0))
    halved = error.unflatten(2, (6, 2)).unflatten(4, (3, 2)).mean((3, 5))
    expected = (error.square().mean((1, 2, 3)) / 6 + halved.square().mean((1, 2, 3)) / 3) / (1 / 6 + 1 / 3)
    torch.testing.assert_close(multiscale(error, 1), expected)


def test_it_is_a_distance_of_an_objective():
    denoiser = NetworkDenoiser(UNet(size=4, width=(8,), attention=(), classes=None), VP(), "v", (1, 4, 4))
    x0, eps, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    output, target = denoiser.loss_pair(x0, eps, t)
    loss = Objective(denoiser, distance=functools.partial(multiscale, smallest=2))(x0, eps, t, {})
    torch.testing.assert_close(loss, multiscale(output - target, 2))


def test_bad_input():
    with pytest.raises(ValueError, match=r"is for pictures \(B, C, H, W\), got shape \(3, 2\)"):
        multiscale(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="smallest must be 1 to 8 for pictures of 8x16, got 32"):
        multiscale(torch.zeros(3, 1, 8, 16))
