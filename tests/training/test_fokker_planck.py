"""The Fokker-Planck residual of a score, and the gap it closes. Methods: fokker-planck, ode-sde-gap."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.prediction import Prediction
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP, SubVP
from fewstep.training.fit import fit
from fewstep.training.fokker_planck import FokkerPlanck, ode_sde_gap, residual
from fewstep.training.objective import Objective

F64 = torch.float64
PROCESSES = [VP(), SubVP(), Cosine(), Flow(), EDM(), VE()]


def test_they_are_registered():
    assert find("fokker-planck") is FokkerPlanck and find("ode-sde-gap") is ode_sde_gap


def points(process, shape, n=7):
    t = process.time(torch.linspace(2, -2, n, dtype=F64))
    normal = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    norm = (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
    return normal * norm.reshape(-1, *[1] * len(shape)), t


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_zero_on_the_exact_mixture(process, kind, make_mixture):
    model = make_mixture(process, (2, 2), kind)
    x, t = points(process, (2, 2))
    assert float(residual(model, x, t).detach().abs().max()) < 1e-12
    with torch.no_grad():
        assert not residual(model, x, t).requires_grad


class Odd(Denoiser):
    """`eps = c(t) x + b x^3` in one dimension or more: the score of nothing in particular."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t, **condition):
        t = t[:, None]
        return Prediction(self.process.sigma(t) * (0.3 + t**2) * x + 0.1 * x**3, "eps", x, t[:, 0], self.process)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_it_is_the_residual_of_the_scores_equation(process):
    """Against the equation as the papers write it, `d_t s - grad(1/2 g^2 (div s + |s|^2) - f x.s)`, by differences."""
    model, h = Odd(process), 1e-4
    x = torch.linspace(-1.5, 1.5, 7, dtype=F64)[:, None]
    t = torch.linspace(0.2, 0.8, 7, dtype=F64)

    def score(x, t):
        return -model(x, t).eps / process.sigma(t)[:, None]

    def inner(x):
        divergence = (score(x + h, t) - score(x - h, t)) / (2 * h)
        f, g2 = process.drift(t)[:, None], process.diffusion2(t)[:, None]
        return 0.5 * g2 * (divergence + score(x, t) ** 2) - f * x * score(x, t)

    papers = (score(x, t + h) - score(x, t - h)) / (2 * h) - (inner(x + h) - inner(x - h)) / (2 * h)
    slope = process.dsigma(t) / process.sigma(t) - process.dalpha(t) / process.alpha(t)  # d log(sigma / alpha) / dt
    expected = papers * (process.sigma(t) / slope)[:, None]
    found = residual(model, x, t)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_random_probes_have_the_exact_mean():
    """`residual` is linear in the divergence's estimate."""
    torch.manual_seed(0)
    network = MLP((3,), width=16, depth=1)
    torch.nn.init.normal_(network.last.weight)
    model = NetworkDenoiser(network.double(), VP(), "v", (3,))
    x, t = points(VP(), (3,), 2)
    with torch.no_grad():
        exact, many = residual(model, x, t), residual(model, x.repeat(4000, 1), t.repeat(4000), probes=1)
    spread = many.unflatten(0, (4000, 2)).std(0) / 4000**0.5
    assert (((many.unflatten(0, (4000, 2)).mean(0) - exact) / spread).abs() < 4).all()


def test_the_term_has_the_gradient_of_its_differences():
    torch.manual_seed(0)
    network = MLP((2,), width=8, depth=1).double()
    torch.nn.init.normal_(network.last.weight)
    model = NetworkDenoiser(network, VP(), "eps", (2,))
    x, t = points(VP(), (2,), 5)
    loss = residual(model, x, t).square().mean()
    (gradient,) = torch.autograd.grad(loss, network.last.bias)
    for i in range(2):
        losses = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                network.last.bias[i] += h
                losses.append(float(residual(model, x, t).square().mean()))
                network.last.bias[i] -= h
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(gradient[i]), rel=1e-5)


def test_it_trains_an_mlp_and_a_unet_with_attention():
    for network, shape in (
        (MLP((2,), width=8, depth=1), (2,)),
        (UNet(size=4, width=(8,), attention=(4,), classes=None), (1, 4, 4)),
    ):
        model = NetworkDenoiser(network, VP(), "v", shape)
        before = [p.clone() for p in network.parameters()]
        fit(model, torch.randn(20, *shape), steps=3, batch=4, objective=Objective(model, terms=[(0.1, FokkerPlanck())]))
        assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_exact_scores_have_no_gap_and_wrong_ones_have(make_mixture):
    model = make_mixture(VP())

    class Wrong(Denoiser):
        process, shape = VP(), (2,)

        def forward(self, x, t, **condition):
            return Prediction(0.7 * model(x, t).eps, "eps", x, t, self.process)

    truth = model.sample(1500, seed=5)
    exact, wrong = (ode_sde_gap(m, truth, n=1500, steps=30) for m in (model, Wrong()))
    assert exact.between < 0.1 and exact.ode < 0.1 and exact.sde < 0.1
    assert wrong.between > 3 * exact.between and min(wrong.ode, wrong.sde) > 0.2
    assert ode_sde_gap(model, n=100, steps=3).ode is None


def test_bad_input(smooth):
    with pytest.raises(ValueError, match="probes must be at least 1"):
        FokkerPlanck(0)
    with pytest.raises(ValueError, match="probes must be at least 1"):
        residual(smooth, torch.zeros(1, 2), torch.full((1,), 0.5, dtype=F64), probes=-1)
    with pytest.raises(ValueError, match="knows the shape"):
        ode_sde_gap(NetworkDenoiser(MLP(), VP(), "eps"))
