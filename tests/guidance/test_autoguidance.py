"""Autoguidance: on Gaussians the law at the end is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.autoguidance import autoguidance
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


def gaussian(std: float, process=None, shape: tuple[int, ...] = (1,), predicts: str = "x0") -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.zeros(1, *shape), std**2, process or EDM(), predicts)


def test_the_variance_at_the_end_of_two_gaussians():
    """x goes as sqrt((a^2 + s^2)^w (b^2 + s^2)^(1 - w)) between levels s with one scale w."""
    a, b, w, low, high = 0.5, 0.8, 2.0, 0.3, 4.0
    guided = fs.guide(gaussian(a), "autoguidance", weak=gaussian(b), scale=w, interval=(low, high))
    top, end = 80.0, 0.0
    levels = torch.logspace(math.log10(top), -3, 400, dtype=F64).tolist()
    made = fs.plan(EDM(), "heun", timesteps=[*levels, end])
    noise = torch.ones(1, 1, dtype=F64)
    found = float(made(guided, noise, dtype=F64)) ** 2
    expected = top**2
    for lower, upper, scale in ((high, top, 1.0), (low, high, w), (end, low, 1.0)):
        for std, power in ((a, scale), (b, 1 - scale)):
            expected *= ((std**2 + lower**2) / (std**2 + upper**2)) ** power
    assert found == pytest.approx(expected, rel=2e-3)
    whole = fs.guide(gaussian(a), "autoguidance", weak=gaussian(b), scale=w)
    ratio = ((a**2 / (a**2 + top**2)) ** w) * ((b**2 / (b**2 + top**2)) ** (1 - w))
    assert float(made(whole, noise, dtype=F64)) ** 2 == pytest.approx(top**2 * ratio, rel=2e-3)


def test_the_model_itself_as_the_weak_one_changes_no_bit():
    model, x = gaussian(0.5, shape=(3,)), torch.randn(4, 3, dtype=F64)
    for t in (0.0, 0.7, 80.0):
        now = torch.tensor(t, dtype=F64)
        for weak, scale in ((model, 3.0), (copy.deepcopy(model), 3.0), (gaussian(0.9, shape=(3,)), 1.0)):
            assert torch.equal(autoguidance(model, weak, scale)(x, now).value, model(x, now).value)


def test_of_another_kind_and_finite_at_both_ends():
    model, x = gaussian(0.5, VP()), torch.randn(4, 1, dtype=F64)
    for t in (0.0, 0.4, 1.0):
        now = torch.tensor(t, dtype=F64)
        same, other = (
            autoguidance(model, gaussian(0.8, VP(), predicts=kind), 2.0)(x, now).value for kind in ("x0", "eps")
        )
        assert bool(torch.isfinite(other).all())
        if t:
            torch.testing.assert_close(other, same)


def test_the_weak_one_gets_the_conditions_it_knows():
    torch.manual_seed(0)
    network = lambda classes: UNet(channels=1, size=4, width=(8,), attention=(), classes=classes).double().eval()  # noqa: E731
    model, weak, plain = (
        NetworkDenoiser(network(c), VP(), "v", (1, 4, 4), {"label": Label(c)} if c else {}) for c in (3, 3, None)
    )
    with torch.no_grad():
        for parameter in (*model.parameters(), *weak.parameters(), *plain.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, label = torch.randn(2, 1, 4, 4, dtype=F64), torch.tensor(0.5, dtype=F64), torch.tensor([0, 2])
    own = model(x, t, label=label).value
    for other, said in ((weak, {"label": label}), (plain, {}), (fs.guide(weak, "cfg", scale=1.0), {"label": label})):
        expected = own + 1.5 * (own - other(x, t, **said).value)
        torch.testing.assert_close(autoguidance(model, other, 2.5)(x, t, label=label).value, expected)
    both = fs.guide(fs.guide(model, "cfg", scale=2.0), "autoguidance", weak=weak, scale=2.0)
    assert fs.plan(VP(), "ddim", 2).run(both, x, label=1, dtype=F64).report["rows"] == 6


def test_faulty_arguments():
    model = gaussian(0.5)
    with pytest.raises(ValueError, match="the method of guidance 'autoguidance' needs weak="):
        fs.guide(model, "autoguidance")
    with pytest.raises(
        ValueError, match="weak of the method of guidance 'autoguidance' must be a denoiser, as fs.load"
    ):
        fs.guide(model, "autoguidance", weak="digits")
    with pytest.raises(ValueError, match="the weak model must have the model's shape, .1,., got .2,."):
        fs.guide(model, "autoguidance", weak=gaussian(0.5, shape=(2,)))
    with pytest.raises(ValueError, match="the weak model must have the model's process"):
        fs.guide(model, "autoguidance", weak=gaussian(0.5, VP()))
    with pytest.raises(ValueError, match="the guidance scale must be at least 0"):
        fs.guide(model, "autoguidance", weak=gaussian(0.6), scale=-1.0)
    asked = [NetworkDenoiser(MLP((1,)), EDM(), "x0", (1,), {"label": Label(n)}) for n in (3, 4)]
    with pytest.raises(ValueError, match="the weak model takes 'label', which the model does not"):
        fs.guide(model, "autoguidance", weak=asked[0])
    with pytest.raises(ValueError, match="the weak model must take 'label' as the model does, Label.*3.*got Label.*4"):
        fs.guide(asked[0], "autoguidance", weak=asked[1])
