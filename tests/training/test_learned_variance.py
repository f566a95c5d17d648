"""The bound that trains a reverse variance. Method: hybrid-vlb."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from fewstep.core.methods import find
from fewstep.denoisers.learned_variance import LearnedVariance, reverse_step
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.training.fit import fit
from fewstep.training.learned_variance import VariationalBound, divergence, earlier
from fewstep.training.objective import Objective, Step

F64 = torch.float64


def test_it_is_registered():
    assert find("hybrid-vlb") is VariationalBound


def test_the_divergence_is_that_of_the_two_normals():
    process, a, b = VP(), torch.tensor(0.6, dtype=F64), torch.tensor(0.45, dtype=F64)
    made, x0, guess, x, v = reverse_step(process, a, b), 0.7, 0.2, 1.3, 0.35
    q = Normal(made.x * x + made.x0 * x0, (0.5 * made.small).exp())
    p = Normal(made.x * x + made.x0 * guess, (0.5 * (made.small + v * made.span)).exp())
    found = divergence(torch.tensor(v, dtype=F64), made.span, made.gap, torch.tensor((x0 - guess) ** 2, dtype=F64))
    torch.testing.assert_close(found, kl_divergence(q, p))


@pytest.mark.parametrize("process", [VP(), Flow(), EDM(), VE()], ids=lambda p: p.name)
def test_a_step_is_even_in_the_angle_and_stays_above_zero_noise(process):
    t = torch.linspace(process.t_min, process.t_max, 9, dtype=F64)
    b = earlier(process, t, 7)
    angle = [torch.atan2(process.sigma(s), process.alpha(s)) for s in (t, b)]
    turn = (torch.atan2(process.sigma(t[-1]), process.alpha(t[-1])) - angle[0][0]) / 7
    torch.testing.assert_close(angle[0] - angle[1], torch.minimum(turn, angle[0] / 2), rtol=1e-6, atol=1e-9)
    assert (process.sigma(b) > 0).all()


def test_the_first_time_of_a_table_makes_a_step_of_no_length():
    process = Discrete.from_betas([1e-4 + 2e-5 * i for i in range(999)], zero_terminal=True)
    t = torch.tensor([process.t_min, 3.0, process.t_max], dtype=F64)
    made = reverse_step(process, t, earlier(process, t, 50))
    assert made.span.isfinite().all() and float(made.span[0]) == float(made.gap[0]) == 0


class Exact(nn.Module):
    """The exact eps for data N(0, d^2) under a process, and one variance for each of a few times."""

    def __init__(self, process, d2, times):
        super().__init__()
        self.process, self.d2, self.times = process, d2, times
        self.second = nn.Parameter(torch.zeros(len(times), dtype=F64))

    def forward(self, x, noise):
        alpha, sigma = self.process.alpha(noise)[:, None], self.process.sigma(noise)[:, None]
        eps = x * sigma / (alpha**2 * self.d2 + sigma**2)
        nearest = (noise[:, None] - self.times).abs().argmin(1)
        return torch.cat([eps, self.second[nearest][:, None].expand_as(x)], dim=1)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM(sigma_max=5.0)], ids=lambda p: p.name)
def test_the_learned_variance_is_the_optimal_one(process):
    """For Gaussian data that is known: small (1 + gap Var[x0 | x]) (Bao et al., 2022, the optimal reverse variance)."""
    d2, generator = 0.2, torch.Generator().manual_seed(0)
    times = process.time(torch.tensor([1.0, 0.0, -1.0], dtype=F64))
    network = Exact(process, d2, times)
    denoiser, bound = LearnedVariance(network, process, "eps", (4,)), VariationalBound(12)
    n = 60_000
    x0 = d2**0.5 * torch.randn(n, 4, generator=generator, dtype=F64)
    eps, t = torch.randn(n, 4, generator=generator, dtype=F64), times.repeat(n // 3)
    optimizer = torch.optim.LBFGS([network.second], line_search_fn="strong_wolfe", max_iter=30)

    def closure():
        optimizer.zero_grad()
        loss = bound(Step(denoiser, x0, eps, t, {}, *denoiser.loss_parts(x0, eps, t))).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    made = reverse_step(process, times, earlier(process, times, 12))
    left = d2 * process.sigma(times) ** 2 / (process.alpha(times) ** 2 * d2 + process.sigma(times) ** 2)
    learned = 0.5 * (1 + network.second.detach()) * made.span
    torch.testing.assert_close(learned, torch.log1p(made.gap * left), rtol=0.03, atol=0)


def test_no_gradient_reaches_the_mean():
    torch.manual_seed(0)
    denoiser = LearnedVariance(MLP((3,), width=8, depth=1, out=2), VP(), "v", (3,))
    x0, eps, t = torch.randn(6, 3), torch.randn(6, 3), torch.linspace(0.1, 0.9, 6, dtype=F64)
    VariationalBound(10)(Step(denoiser, x0, eps, t, {}, *denoiser.loss_parts(x0, eps, t))).sum().backward()
    gradient = denoiser.network.last.weight.grad
    assert float(gradient[:3].abs().max()) == 0 and float(gradient[3:].abs().min()) > 0


@pytest.mark.slow
def test_a_network_learns_the_spread_of_a_mixture(make_mixture):
    """From samples alone, nearer to the exact optimal log-variance than either bound."""
    process, steps = VP(), 20
    mixture = make_mixture(process, spread=0.2)
    torch.manual_seed(0)
    denoiser = LearnedVariance(MLP((2,), width=32, depth=2, out=2), process, "eps", (2,))
    objective = Objective(denoiser, terms=[(0.001, VariationalBound(steps))])
    trained = fit(denoiser, mixture.sample(4000).float(), steps=400, batch=128, lr=3e-3, objective=objective)
    t = process.time(torch.linspace(1.5, -1.0, 6, dtype=F64)).repeat(50)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x = alpha * mixture.sample(300, seed=3) + sigma * torch.randn(
        300, 2, generator=torch.Generator().manual_seed(1), dtype=F64
    )
    rows = [torch.func.jvp(lambda y: mixture(y, t).x0, (x,), (e.expand_as(x),))[1] for e in torch.eye(2, dtype=F64)]
    left = sigma**2 / alpha * torch.stack([rows[0][:, 0], rows[1][:, 1]], dim=1)  # Var[x0 | x], Tweedie's second
    made = reverse_step(process, t, earlier(process, t, steps))
    best, span = torch.log1p(made.gap[:, None] * left), made.span[:, None]
    with torch.no_grad():
        learned = trained(x.float(), t).fraction.double() * span
    lower, upper, ours = (float((value - best).square().mean().sqrt()) for value in (0 * span, span, learned))
    assert ours < 0.8 * min(lower, upper)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        VariationalBound(0)
    plain = NetworkDenoiser(MLP((3,), width=8, depth=1), VP(), "eps", (3,))
    with pytest.raises(ValueError, match="trains a LearnedVariance, got NetworkDenoiser"):
        fit(plain, torch.randn(9, 3), steps=1, objective=Objective(plain, terms=[(1.0, VariationalBound())]))
