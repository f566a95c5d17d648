"""sa-solver: its variance on Gaussian data, its special cases, and its start."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


def grid(process, n: int) -> list[float]:
    return [process.time(-1.0 + 3.0 * (i / n) ** 1.3) for i in range(n + 1)]


def test_without_noise_and_corrector_it_is_adams_bashforth_on_x0(make_mixture):
    process = VP()
    model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
    for order in (1, 2, 3, 4):
        ours = plan(process, "sa-solver", 8, tau=0.0, predictor_order=order, corrector_order=0)
        theirs = plan(process, f"ab-x0-{order}", 8)
        assert not ours.stochastic
        assert torch.equal(ours(model, noise, dtype=F64), theirs(model, noise, dtype=F64)), order


def test_one_step_predictor_is_ancestral_sampling(make_mixture):
    """SA-Predictor-1 at tau = 1 is DDPM (Xue et al., section 5.3), draw by draw."""
    for process in (VP(), Flow()):
        model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
        ours = plan(process, "sa-solver", 6, predictor_order=1, corrector_order=0)(model, noise, dtype=F64, seed=2)
        theirs = plan(process, "ddpm", 6)(model, noise, dtype=F64, seed=2)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_the_noise_has_the_variance_of_the_sde(tau):
    """One datum: x0 is exact, so every step's mean and variance are, and the end is N(alpha m, sigma^2)."""
    process, m = VP(), 0.7
    model = GaussianMixture(torch.ones(1), torch.full((1, 1), m), 1e-12, process)
    times = grid(process, 5)
    a, b = times[0], times[-1]
    n = 20_000
    noise = Noise(3).normal(0, (n, 1), "cpu", F64)
    start = torch.full((n, 1), m, dtype=F64)
    x = plan(process, "sa-solver", timesteps=times, tau=tau)(model, noise, init=start, dtype=F64, seed=5)
    assert a > b
    assert float(x.mean()) == pytest.approx(process.alpha(b) * m, abs=4 * process.sigma(b) / math.sqrt(n))
    assert float(x.std()) == pytest.approx(process.sigma(b), rel=4 / math.sqrt(2 * n))


@pytest.mark.parametrize(
    "predictor,corrector,order",
    [(1, 0, 1), (2, 3, 3)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2, 2), (3, 4, 4), (2, 2, 2), (4, 0, 4))],
)
def test_the_order_without_noise(predictor, corrector, order, smooth):
    process = smooth.process
    noise = Noise(2).normal(0, (16, 2), "cpu", F64)
    exact = plan(process, "ab-5", timesteps=grid(process, 600))(smooth, noise, dtype=F64)
    options = {"tau": 0.0, "predictor_order": predictor, "corrector_order": corrector}
    errors = []
    for n in (100, 200):
        x = plan(process, "sa-solver", timesteps=grid(process, n), **options)(smooth, noise, dtype=F64)
        errors.append(float((x - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_the_start_carries_its_noise():
    """With one datum the corrected states of the start differ from the predicted ones by round-off alone."""
    process, m = VP(), 0.7
    model = GaussianMixture(torch.ones(1), torch.full((1, 3), m), 1e-12, process)
    noise = Noise(3).normal(0, (4, 3), "cpu", F64)
    times = grid(process, 7)
    low, high = (
        plan(process, "sa-solver", timesteps=times, predictor_order=p, corrector_order=p + 1)(
            model, noise, dtype=F64, seed=1
        )
        for p in (1, 4)
    )
    torch.testing.assert_close(low, high, rtol=0, atol=1e-8)


def test_one_evaluation_a_step_and_bad_options():
    assert plan(VP(), "sa-solver", 9).nfe == 9
    with pytest.raises(ValueError, match=r"tau must not be negative, got -0.5"):
        plan(VP(), "sa-solver", 9, tau=-0.5)
    with pytest.raises(ValueError, match="predictor_order must be at least 1"):
        plan(VP(), "sa-solver", 9, predictor_order=0)
