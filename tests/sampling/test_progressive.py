"""Small samples enlarged, sharpened, noised and sampled at the large size."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.haar import low_band
from fewstep.networks.convolution import Convolution
from fewstep.networks.dit import DiT
from fewstep.processes.vp import VP
from fewstep.sampling.progressive import enlarged, progressive


def denoiser(make: type = Convolution, **options) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(make(channels=2, **({"width": 8, "depth": 1} | options)), VP(), "v", (2, 8, 8))


X = Noise(3).normal(0, (2, 2, 8, 8)).clamp(-1, 1)


def test_what_is_enlarged_is_sharpened():
    plane = torch.full((1, 2, 4, 5), 0.3)
    torch.testing.assert_close(enlarged(plane, (9, 10)), torch.full((1, 2, 9, 10), 0.3))
    step = torch.zeros(1, 1, 6, 6).double()
    step[..., 3:] = 1.0
    flat, sharp = (enlarged(step, (12, 12), amount)[0, 0, 5] for amount in (0.0, 1.0))
    # On a ramp in one direction the blur is the mean with the two neighbours, and what it takes away comes on top.
    inner = 2 * flat[1:-1] - (flat[:-2] + 2 * flat[1:-1] + flat[2:]) / 4
    torch.testing.assert_close(sharp[1:-1], inner)
    assert float(sharp.diff().max()) > float(flat.diff().max())


def test_it_samples_at_the_large_size_along_the_enlarged_picture():
    model = denoiser()
    made = progressive(model, X, 16, 0.6, guided=4, steps=4, solver="ddim", seed=5)
    target = enlarged(X, (16, 16)).clamp(-1, 1)
    # All evaluations are guided, so the last x0, which is the sample, has the low band.
    torch.testing.assert_close(low_band(made), low_band(target), rtol=0, atol=1e-4)
    held = fs.guide(model, "diffusehigh", picture=target, guided=4)
    again = fs.sample(held, 2, init=target, strength=0.6, steps=4, solver="ddim", seed=5)
    assert torch.equal(made, again)
    free = progressive(model, X, 16, 0.6, guided=0, steps=4, solver="ddim", seed=5)
    assert float((low_band(free) - low_band(target)).abs().max()) > 0.01
    assert progressive(model, X[0], [9, 16], 0.5, steps=2).shape == (1, 2, 9, 16)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 7}, "size must be a whole number of at least 8, got 7"),
        ({"size": [16, 16, 16]}, "size is a number, or a height and a width, got"),
        ({"size": 16.5}, "size must be a whole number or a list of whole numbers, got 16.5"),
        ({"strength": 1.0}, "strength must be above 0 and below 1, got 1"),
        ({"guided": -1}, "guided must be a whole number of at least 0"),
        ({"x": X[:, :1]}, "the picture is .1, 16, 16. in the model's coordinates, its samples are .2, 8, 8."),
        ({"batch_size": 1}, "there are 2 pictures for 1 samples"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        progressive(**{"model": denoiser(), "x": X, "size": 16, "strength": 0.5, "steps": 2, **changes})


def test_a_network_of_one_size_is_refused_by_name():
    with pytest.raises(ValueError, match="the network 'dit' makes pictures of 8x8 alone"):
        progressive(denoiser(DiT, width=16, classes=None), X, 16, 0.5)
