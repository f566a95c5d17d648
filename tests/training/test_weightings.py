"""Weights of the noise levels. Methods: uniform-weighting, snr-weighting, elbo-weighting, min-snr, debiased, p2,
edm-weighting, sigmoid-weighting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.core.methods import methods
from fewstep.core.prediction import expand, scales
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.training.objective import Objective
from fewstep.training.weightings import weighting

F64 = torch.float64
NAMES = (
    "uniform-weighting", "snr-weighting", "elbo-weighting", "min-snr", "debiased", "p2", "edm-weighting",
    "sigmoid-weighting",
)  # fmt: skip
T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=F64)


def test_they_are_registered():
    assert {card.name for card in methods("weighting")} == set(NAMES)


def of_output(name, predicts, process, t, precondition="none", **options):
    """The weight of the squared error of the network's own output, as `Objective` takes it."""
    denoiser = NetworkDenoiser(nn.Identity(), process, predicts, (3,), precondition=precondition, data_std=0.6)
    return weighting(name, **options)(process, t) * denoiser.own_error(t)


@pytest.mark.parametrize("process", [VP(), Cosine()], ids=lambda p: p.name)
def test_each_papers_statement_in_its_own_kind(process):
    t, snr = T, (2 * process.log_snr(T)).exp()
    one, v_share = torch.ones_like(snr), 1 / (snr + 1)
    stated = [
        ("uniform-weighting", "eps", {}, one),
        ("uniform-weighting", "x0", {"kind": "x0"}, one),
        ("uniform-weighting", "v", {"kind": "v"}, one),
        ("uniform-weighting", "velocity", {"kind": "velocity"}, one),
        ("uniform-weighting", "flow", {"kind": "flow"}, one),
        ("snr-weighting", "x0", {"variant": "snr"}, snr),
        ("snr-weighting", "x0", {"variant": "truncated"}, snr.clamp_min(1)),
        ("snr-weighting", "x0", {"variant": "plus-one"}, snr + 1),
        ("snr-weighting", "v", {"variant": "plus-one"}, one),  # under a variance-preserving process
        ("min-snr", "x0", {"gamma": 3.0}, snr.clamp_max(3)),
        ("min-snr", "eps", {"gamma": 3.0}, snr.clamp_max(3) / snr),
        ("min-snr", "v", {"gamma": 3.0}, snr.clamp_max(3) * v_share),
        ("debiased", "eps", {}, snr**-0.5),
        ("debiased", "x0", {}, snr**0.5),
        ("p2", "eps", {"gamma": 0.5, "k": 2.0}, (2 + snr) ** -0.5),
        ("p2", "eps", {"gamma": 0.0}, one),
        ("edm-weighting", "x0", {"data_std": 0.6}, (1 / snr + 0.36) / (0.36 / snr)),
    ]
    for name, kind, options, expected in stated:
        torch.testing.assert_close(of_output(name, kind, process, t, **options), expected, msg=f"{name} {kind}")
    torch.testing.assert_close(of_output("edm-weighting", "x0", process, t, "edm", data_std=0.6), one)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_the_bound_weighs_by_the_slope_of_the_snr(process):
    """`-1/2 SNR'(t)` on the squared error of x0 (Kingma et al., 2021), and the sigmoid on top."""
    t = T.clone().requires_grad_(True)
    snr = (2 * process.log_snr(t)).exp()
    (slope,) = torch.autograd.grad(snr.sum(), t)
    snr = snr.detach()
    torch.testing.assert_close(of_output("elbo-weighting", "x0", process, T), -0.5 * slope)
    share = 1 / (1 + snr * math.exp(-0.7))  # sigmoid(b - log SNR) with b = 0.7
    torch.testing.assert_close(of_output("sigmoid-weighting", "eps", process, T, bias=0.7), -slope / snr * share)
    torch.testing.assert_close(of_output("sigmoid-weighting", "eps", process, T, bias=0.7, over="log-snr"), share)
    assert torch.equal(weighting("elbo-weighting", over="log-snr")(process, T), torch.full_like(T, 0.5))


@pytest.mark.parametrize(
    "process",
    [VP(), Flow(), EDM(), VE(), Discrete.from_betas([1e-4 + 2e-5 * i for i in range(999)], zero_terminal=True)],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("name", NAMES)
def test_finite_and_not_negative_at_both_ends(name, process):
    t = torch.tensor([process.t_min, process.t_max], dtype=F64)
    for kind in ("eps", "x0", "v"):
        weight = of_output(name, kind, process, t)
        assert weight.dtype == F64 and weight.shape == t.shape
        assert weight.float().isfinite().all() and (weight >= 0).all()


def test_limits():
    """Towards the data min-SNR vanishes on eps and p2 on SNR's scale; towards pure noise both count eps fully."""
    t = torch.tensor([1e-6, 1 - 1e-6], dtype=F64)
    torch.testing.assert_close(
        weighting("min-snr")(Flow(), t), torch.tensor([5e-12, 1.0], dtype=F64), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(weighting("p2")(Flow(), t), torch.tensor([1e-12, 1.0], dtype=F64), rtol=1e-4, atol=0)


class Cubic(nn.Module):
    """eps = a x + b x^3, said in any kind: four networks with one and the same denoiser behind them."""

    def __init__(self, process, kind, data_std=0.6):
        super().__init__()
        self.process, self.kind, self.data_std = process, kind, data_std
        self.weights = nn.Parameter(torch.tensor([0.7, -0.02], dtype=F64))

    def forward(self, x, noise):
        t = noise if self.kind != "edm" else self.process.time(-4 * noise)
        alpha, sigma, _, _ = (expand(value, x) for value in scales(self.process, t))
        norm = (sigma**2 + alpha**2 * self.data_std**2).sqrt()
        state = x * norm if self.kind == "edm" else x
        eps = self.weights[0] * state + self.weights[1] * state**3
        x0 = (state - sigma * eps) / alpha
        if self.kind == "edm":
            return (x0 - alpha * self.data_std**2 / norm**2 * state) * norm / (sigma * self.data_std)
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.kind]


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_network_has_the_same_gradient(name, process):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    gradients = []
    for kind in ("eps", "x0", "v", "edm"):
        network, edm = Cubic(process, kind), kind == "edm"
        denoiser = NetworkDenoiser(
            network, process, "x0" if edm else kind, (3,), precondition="edm" if edm else "none", data_std=0.6
        )
        # In float64 throughout: the difference is not taken in float32.
        objective = Objective(denoiser, weighting(name))
        output, target = denoiser.loss_pair(x0, eps, T)
        loss = (output - target).square().mean(1) * objective.weighting(process, T) * denoiser.own_error(T)
        gradients.append(torch.autograd.grad(loss.sum(), network.weights)[0])
        close = objective(x0, eps, T, {})
        torch.testing.assert_close(close.double(), loss, rtol=1e-3, atol=1e-5)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-6, atol=0)


def test_bad_input():
    for name, options, message in (
        ("min-snrr", {}, "unknown weighting 'min-snrr': did you mean 'min-snr'"),
        ("min-snr", {"gama": 1}, "unknown option of the weighting 'min-snr' 'gama': did you mean 'gamma'"),
        ("debiased", {"gamma": 1}, "'debiased' has no options"),
        ("min-snr", {"gamma": 0.0}, "gamma must be positive"),
        ("p2", {"k": -1.0}, "k must be positive"),
        ("edm-weighting", {"data_std": 0.0}, "data_std must be positive"),
        ("snr-weighting", {"variant": "truncate"}, "did you mean 'truncated'"),
        ("sigmoid-weighting", {"over": "logsnr"}, "did you mean 'log-snr'"),
        ("uniform-weighting", {"kind": "epsilon"}, "did you mean 'eps'"),
    ):
        with pytest.raises(ValueError, match=message):
            weighting(name, **options)
