"""The reverse step's variance: bounds, a network that says where between them. Method: learned-variance."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.learned_variance import LearnedVariance, reverse_step
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


def test_it_is_registered():
    assert find("learned-variance") is LearnedVariance


def test_the_bounds_are_the_papers_under_a_variance_preserving_process():
    process, a = VP(), torch.tensor([0.05, 0.4, 1.0], dtype=F64)
    b = torch.tensor([0.02, 0.38, 0.3], dtype=F64)
    made, bar_a, bar_b = reverse_step(process, a, b), process.alpha(a) ** 2, process.alpha(b) ** 2
    beta = 1 - bar_a / bar_b
    torch.testing.assert_close((made.small + made.span).exp(), beta)
    torch.testing.assert_close(made.small.exp(), (1 - bar_b) / (1 - bar_a) * beta)
    torch.testing.assert_close(made.x, (bar_a / bar_b).sqrt() * (1 - bar_b) / (1 - bar_a))
    torch.testing.assert_close(made.x0, bar_b.sqrt() * beta / (1 - bar_a))


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_the_step_is_the_conditional_of_a_gaussian(process):
    """For x0 ~ N(0, d^2): mean and variance of x_b given x_a, from the joint covariance of the three."""
    a, b = process.time(torch.tensor([-1.0, 0.3], dtype=F64)), process.time(torch.tensor([0.1, 2.0], dtype=F64))
    made = reverse_step(process, a, b)
    alpha_a, sigma_a, alpha_b, sigma_b = process.alpha(a), process.sigma(a), process.alpha(b), process.sigma(b)
    for d2 in (0.3, 1.0):
        var_a, var_b = alpha_a**2 * d2 + sigma_a**2, alpha_b**2 * d2 + sigma_b**2
        cov = alpha_a / alpha_b * var_b  # x_a is alpha_a / alpha_b x_b and fresh noise
        x0_of_xa, left = alpha_a * d2 / var_a, d2 * sigma_a**2 / var_a
        torch.testing.assert_close(made.x + made.x0 * x0_of_xa, cov / var_a)
        torch.testing.assert_close(made.small.exp() * (1 + made.gap * left), var_b - cov**2 / var_a)
    torch.testing.assert_close((made.small + made.span).exp(), var_b - cov**2 / var_a)  # the upper bound: d = 1


def test_the_ends_are_finite():
    made = reverse_step(Flow(), torch.tensor(1.0, dtype=F64), torch.tensor(0.4, dtype=F64))
    torch.testing.assert_close(made.small.exp(), torch.tensor(0.16, dtype=F64))
    torch.testing.assert_close((made.small + made.span).exp(), torch.tensor(0.36 + 0.16, dtype=F64))
    assert float(made.x) == 0 and float(made.x0) == 0.6


def model(precondition="none"):
    torch.manual_seed(0)
    network = UNet(channels=2, size=4, width=(8,), attention=(), classes=None, out=4)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    kind = "x0" if precondition == "edm" else "v"
    return LearnedVariance(network, VP(), kind, (2, 4, 4), precondition=precondition).eval()


@pytest.mark.parametrize("precondition", ["none", "edm"])
def test_the_first_half_is_the_prediction_and_the_second_the_fraction(precondition):
    made, x, t = model(precondition), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    prediction = made(x, t)
    assert prediction.value.shape == prediction.fraction.shape == x.shape
    c_in, c_noise, c_skip, c_out = made._edm(x, t) if precondition == "edm" else (1.0, t, 0.0, 1.0)
    first, second = made.network(c_in * x, c_noise.float() if precondition == "edm" else t).chunk(2, dim=1)
    torch.testing.assert_close(prediction.fraction, (1 + second) / 2)
    torch.testing.assert_close(prediction.value, c_skip * x + c_out * first)


def test_it_starts_halfway_and_keeps_nothing():
    fresh = LearnedVariance(MLP((3,), width=8, depth=1, out=2), VP(), "eps", (3,))
    assert float((fresh(torch.randn(5, 3), torch.tensor(0.5)).fraction.detach() - 0.5).abs().max()) == 0
    before = set(vars(fresh))
    _, _, fraction = fresh.loss_parts(torch.randn(5, 3), torch.randn(5, 3), torch.full((5,), 0.5, dtype=F64))
    assert fraction.shape == (5, 3) and set(vars(fresh)) == before


def test_it_is_stored_in_a_model_folder(tmp_path):
    made, x, t = model(), torch.randn(3, 2, 4, 4), torch.tensor(0.4)
    again = load_model(save_model(made, tmp_path / "model"))
    assert type(again) is LearnedVariance
    assert torch.equal(again(x, t).fraction, made(x, t).fraction) and torch.equal(again(x, t).x0, made(x, t).x0)


def test_a_network_that_answers_once():
    plain = LearnedVariance(MLP((3,), width=8, depth=1), VP(), "eps", (3,))
    with pytest.raises(ValueError, match=r"answers 6 values for 3 .*mlp: out=2\), got shape \(2, 3\)"):
        plain(torch.randn(2, 3), torch.tensor(0.5))


def test_other_solvers_take_its_mean():
    made = model()
    assert plan(VP(), "dpmpp-2m", 4)(made, torch.randn(2, 2, 4, 4)).shape == (2, 2, 4, 4)
