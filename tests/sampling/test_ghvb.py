"""ghvb: the paper's coefficients, exactness on uneven grids, ab at beta = 1, and stability that grows as beta falls."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from fewstep.core.denoiser import Denoiser
from fewstep.core.ops import Combine
from fewstep.core.prediction import Prediction
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


class Eps(Denoiser):
    """eps is a function of x / alpha and the log-SNR."""

    def __init__(self, process, function):
        super().__init__()
        self.process, self.function = process, function

    def forward(self, x, t, **condition):
        return Prediction(self.function(x / self.process.alpha(t), self.process.log_snr(t)), "eps", x, t, self.process)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_at_beta_1_it_is_adams_bashforth(order, make_mixture):
    process = VP()
    model = make_mixture(process, (2, 3))
    noise = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    for rule, end in (("karras", "zero"), ("uniform", "min")):
        ours = plan(process, "ghvb", 9, rule, end=end, order=order, beta=1.0)
        theirs = plan(process, f"ab-{order}", 9, rule, end=end)
        assert ours.nfe == theirs.nfe
        torch.testing.assert_close(ours(model, noise, dtype=F64), theirs(model, noise, dtype=F64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("beta", [0.3, 0.8, 1.0])
def test_order_2_has_the_papers_coefficients_on_short_equal_steps(beta):
    """((2 + beta) v_n - (2 - beta) v_(n-1)) / (2 beta): what the last combination gives to the two means."""
    process, h, n = EDM(), 1e-6, 60
    made = plan(process, "ghvb", timesteps=[math.exp(-h * k) for k in range(n + 1)], order=2, beta=beta)
    last = [op for op in made.ops if isinstance(op, Combine)][-1]
    means = [op.slot for op in made.ops if isinstance(op, Combine) and len(op.terms) == 2]
    terms, step = dict(last.terms), math.exp(-h * n) - math.exp(-h * (n - 1))
    state, found = set(terms), []
    for evaluation in made.evaluations[-2:]:
        slot = evaluation.outputs[0][1]
        found.append(slot if beta == 1 else next(s for s in means if s in state and _reads(made, s, slot)))
    newest, before = (terms[slot] / step for slot in reversed(found))
    assert newest == pytest.approx((2 + beta) / (2 * beta), rel=1e-4)
    assert before == pytest.approx(-(2 - beta) / (2 * beta), rel=1e-4)


def _reads(made, slot: int, source: int) -> bool:
    return any(isinstance(op, Combine) and op.slot == slot and dict(op.terms).get(source) for op in made.ops)


@pytest.mark.parametrize("beta", [0.25, 0.8])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomials_below_the_order_are_integrated_exactly_on_uneven_steps(order, beta):
    process = VP()
    log_snrs = [-1.0, -0.9, -0.5, -0.2, -0.15, 0.3, 0.5, 1.1, 1.2, 1.7]
    times = [process.time(value) for value in log_snrs]
    model = Eps(process, lambda y, log_snr: torch.ones_like(y) * (log_snr - 0.3) ** (order - 1))
    start = torch.zeros(1, 3, dtype=F64)
    made = plan(process, "ghvb", timesteps=times, order=order, beta=beta)
    states = made.run(model, start, dtype=F64, trajectory=True).trajectory[-len(times) :]
    first = order - 1  # before, lower orders: there are not as many predictions yet
    moved = states[-1] / process.alpha(times[-1]) - states[first] / process.alpha(times[first])
    # x / alpha moves by the integral of eps d(sigma / alpha) = -eps e^-log_snr d(log_snr)
    exact = quad(lambda v: -((v - 0.3) ** (order - 1)) * math.exp(-v), log_snrs[first], log_snrs[-1], epsabs=1e-14)[0]
    torch.testing.assert_close(moved, torch.full_like(moved, exact), rtol=0, atol=1e-11)


def growth(order: int, beta: float, k: float, h: float = 0.05, n: int = 400) -> float:
    """Growth a step of `d(x / alpha)/d(log_snr) = -k x / alpha` on equal steps of log-SNR, in the long run."""
    process = EDM(1e-12, 80.0)
    model = Eps(process, lambda y, log_snr: k * y * torch.exp(log_snr))  # d(sigma / alpha) = -e^-log_snr d(log_snr)
    times = [math.exp(2.0 - h * i) for i in range(n + 1)]
    start = torch.ones(1, 1, dtype=F64)
    made = plan(process, "ghvb", timesteps=times, order=order, beta=beta)
    size = torch.stack(made.run(model, start, dtype=F64, trajectory=True).trajectory).abs().flatten()
    return float((size[-100:].max() / size[-200:-100].max()) ** (1 / 100))


@pytest.mark.parametrize("order,kh", [(2, 1.3), (3, 0.75), (4, 0.4)])
def test_the_longer_step_is_stable_with_momentum_and_not_without(order, kh):
    """k h beyond the real stability interval of Adams-Bashforth (1, 6/11, 3/10 for orders 2, 3, 4)."""
    assert growth(order, 1.0, kh / 0.05) > 1.01
    assert growth(order, 0.5, kh / 0.05) < 0.999


def test_bad_options():
    for beta in (0.0, 1.2, -1.0):
        with pytest.raises(ValueError, match="beta must be above 0 and at most 1"):
            plan(VP(), "ghvb", 5, beta=beta)
    with pytest.raises(ValueError, match="order must be at least 1"):
        plan(VP(), "ghvb", 5, order=0)
