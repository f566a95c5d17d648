"""Pictures of a sphere by a model of planar views: what overlaps agrees, and what was measured is met."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import normal

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.restoration.omni import Spherical

SIZE = (6, 12)


def planar(process=None, channels=1) -> GaussianMixture:
    """Views that are flat or rising, of any brightness."""
    rise = torch.linspace(-1, 1, 4, dtype=torch.float64).expand(4, 4)
    means = torch.stack([rise, 0 * rise])[:, None].expand(2, channels, 4, 4)
    covariance = 0.3 * torch.ones(16 * channels, 16 * channels) + 0.02 * torch.eye(16 * channels)
    return GaussianMixture(torch.ones(2), means, covariance.expand(2, -1, -1), process or VP())


def sphere(process=None, channels=1) -> Spherical:
    return Spherical(planar(process, channels), SIZE, views=18, field=90)


def test_overlaps_of_a_constant_are_exact():
    """A model whose answer is the same everywhere is not changed by being looked at and fused."""
    flat = GaussianMixture(torch.ones(1), torch.full((1, 1, 4, 4), 0.75), 0.0, VP())
    answer = Spherical(flat, SIZE)(normal(2, 1, *SIZE), torch.tensor(0.5)).x0
    assert torch.allclose(answer, torch.full_like(answer, 0.75), rtol=0, atol=1e-12)


def test_views_are_answered_each_and_fused():
    model, t = sphere(channels=2), torch.tensor([0.3, 0.6], dtype=torch.float64)
    views = normal(2, *model.tangents.out)
    each = model(views, t)
    for number in (0, 7, 17):
        assert torch.allclose(each.x0[:, :, number], model.model(views[:, :, number], t).x0)
    x = normal(2, 2, *SIZE)
    assert torch.allclose(model(x, t).x0, model.tangents.fused(model(model.tangents(x), t).x0))
    assert model.conditions == {} and model.shape == (2, *SIZE)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
def test_what_is_restored_meets_the_measurement(process):
    model, a = sphere(process), fs.operators.Downsample(2)
    y = a(0.5 * normal(3, 1, *SIZE, seed=2))
    x = fs.restore(model, y, a, method="omni", nfe=5, n=2)
    assert x.shape == (3, 2, 1, *SIZE)
    assert torch.allclose(a(x.flatten(0, 1)), y.float().repeat_interleave(2, 0), atol=1e-4)
    assert torch.allclose(fs.restore(model, y[:1], a, method="omni", nfe=5), x[:1, 0], atol=1e-5)
    assert float((x[:, 0] - x[:, 1]).abs().max()) > 0.01  # draws


def test_one_step_is_what_the_views_say_brought_to_the_measurement():
    model, a = sphere(), fs.operators.Downsample(2).fit((1, *SIZE))
    y = a(normal(1, 1, *SIZE, seed=3))
    x = fs.restore(model, y, a, method="omni", nfe=1, timesteps=[1.0, 0.0], dtype=torch.float64)
    noise = fs.Noise(0).normal(1, (1, *model.tangents.out), dtype=torch.float64)
    t = torch.tensor(1.0, dtype=torch.float64)
    views = model.model(float(model.process.sigma(1.0)) * noise.transpose(1, 2).flatten(0, 1), t).x0
    whole = model.tangents.fused(views.unflatten(0, (1, 18)).transpose(1, 2))
    assert torch.allclose(x, whole + a.pinv(y - a(whole)), atol=1e-10)
    assert torch.allclose(a.null(x), a.null(whole), atol=1e-10)


def test_bad_input_is_said():
    a = fs.operators.Downsample(2)
    y = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"'omni' takes a model of a sphere's views, fewstep.restor"):
        fs.restore(planar(), y, a, method="omni")
    model, a = sphere(), fs.operators.Downsample(2)
    with pytest.raises(ValueError, match="'omni' meets a linear measurement exactly: leave the noise out"):
        fs.restore(model, a(normal(1, 1, *SIZE)), a, 0.1, method="omni")
    clip = fs.operators.Clip()
    with pytest.raises(
        ValueError, match="'omni' takes a linear operator, and clip.* is none: ads, daps, dps, red-diff"
    ):
        fs.restore(model, clip(normal(1, 1, *SIZE)), clip, method="omni")
    with pytest.raises(ValueError, match=r"square pictures \(C, s, s\), and the model's shape is \(6,\)"):
        Spherical(GaussianMixture(torch.ones(1), torch.zeros(1, 6), 1.0, VP()), SIZE)
    with pytest.raises(ValueError, match=r"of 800 pixels are seen by none of 18 views of 4 pixels and 90 degrees"):
        Spherical(planar(), (20, 40))
