"""The contract of every forward process that can be made without arguments: registered ones enter by themselves.

Those with required arguments (and denoisers' coordinates, which are no processes) have tests of their own.
"""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
import torch

from fewstep.core.methods import methods
from fewstep.core.prediction import expand
from fewstep.core.process import Process, process_from_config
from fewstep.denoisers.gaussian_mixture import GaussianMixture

F64 = torch.float64


def collect() -> list[Process]:
    found = []
    for card in methods("processes"):
        kind = card.load()
        if inspect.isclass(kind) and issubclass(kind, Process):
            required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            found += [] if required else [kind()]
    return found


PROCESSES = collect()
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)


def inside(process: Process, n: int = 53) -> torch.Tensor:
    """Times strictly inside the clock, off the steps of a table."""
    return process.t_min + torch.linspace(0.0041, 0.9957, n, dtype=F64) * (process.t_max - process.t_min)


def moderate(process: Process, n: int) -> list[float]:
    """n + 1 rising times, even in log-SNR, from sigma / alpha = 0.1 to 3 or as far as the clock goes."""
    t = inside(process)
    ends = [max(min(v, float(process.log_snr(t[0]))), float(process.log_snr(t[-1]))) for v in (2.3, -1.1)]
    return [process.time(float(v)) for v in np.linspace(*ends, n + 1)]


@each
def test_config_round_trips_through_json(process):
    config = json.loads(json.dumps(process.config()))
    assert config == process.config()
    assert process_from_config(config) == process


@each
def test_log_snr_falls_and_is_that_of_the_coefficients(process):
    t = inside(process, 301)
    assert bool((process.log_snr(t).diff() < 0).all())
    torch.testing.assert_close(process.log_snr(t), (process.alpha(t) / process.sigma(t)).log(), rtol=1e-8, atol=1e-8)


@each
def test_time_is_the_inverse_of_log_snr(process):
    t = inside(process, 301)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-8, atol=1e-8)


@each
@pytest.mark.parametrize("function", ["alpha", "sigma"])
def test_derivatives_by_differences_and_by_autograd(process, function):
    t = inside(process)
    f, df = getattr(process, function), getattr(process, f"d{function}")
    h = 1e-6 * (process.t_max - process.t_min)
    scale = float(df(t).abs().max()) or 1.0
    torch.testing.assert_close(df(t) / scale, (f(t + h) - f(t - h)) / (2 * h) / scale, rtol=3e-6, atol=2e-7)
    u = t.clone().requires_grad_(True)
    value = f(u)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), u)
        torch.testing.assert_close(df(t) / scale, gradient / scale, rtol=1e-7, atol=1e-10)
    else:
        assert bool((df(t) == 0).all())


@each
def test_floats_and_tensors_agree(process):
    for t in inside(process, 5):
        for function in ("alpha", "sigma", "dalpha", "dsigma", "log_snr"):
            value = getattr(process, function)(float(t))
            assert isinstance(value, float) and value == float(getattr(process, function)(t))


@each
def test_the_ends(process):
    """The clean sample at t_zero; at t_max finite, and pure noise only where alpha is exactly 0."""
    assert process.alpha(process.t_zero) == pytest.approx(1, abs=1e-12)
    assert process.sigma(process.t_zero) == 0
    assert process.log_snr(process.t_zero) == math.inf
    assert process.t_zero <= process.t_min < process.t_max
    last = [getattr(process, f)(process.t_max) for f in ("alpha", "sigma", "dalpha", "dsigma")]
    assert all(math.isfinite(v) for v in last) and last[1] > 0
    assert (process.log_snr(process.t_max) == -math.inf) == (last[0] == 0)


def sde(process: Process, t: float) -> tuple[float, float]:
    try:
        return process.drift(t), process.diffusion2(t)
    except ValueError as error:
        pytest.skip(str(error))


@each
def test_paths_of_the_sde_have_the_marginals(process):
    """Samples carried by exact Gaussian transitions, their integrals of f and g^2 by quadrature."""
    times = moderate(process, 12)
    sde(process, times[0])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    generator = torch.Generator().manual_seed(3)
    n, x0 = 20_000, torch.tensor([0.7, -1.3], dtype=F64)
    normal = lambda: torch.randn(n, 2, generator=generator, dtype=F64)  # noqa: E731
    x = process.alpha(times[0]) * x0 + process.sigma(times[0]) * process.eps(normal)
    for a, b in zip(times, times[1:], strict=False):
        # From u in [a, b] to b: exp(integral of f) is a product over the nodes' cells.
        u = a + (b - a) * 0.5 * (nodes + 1)
        f, g2 = np.array([sde(process, float(v)) for v in u]).T
        basis = np.polynomial.legendre.legvander(nodes, len(nodes) - 1)
        coefficients = np.linalg.solve(basis, f)
        integral = np.polynomial.legendre.legint(coefficients, lbnd=-1)
        to = 0.5 * (b - a) * np.polynomial.legendre.legval(np.append(nodes, 1.0), integral)
        assert bool((g2 >= -1e-9).all())
        variance = float((weights * 0.5 * (b - a) * g2 * np.exp(2 * (to[-1] - to[:-1]))).sum())
        x = math.exp(float(to[-1])) * x + math.sqrt(max(variance, 0.0)) * normal()
    alpha, sigma = process.alpha(times[-1]), process.sigma(times[-1])
    eps = (x - alpha * x0) / sigma
    # Five standard errors of a mean, of a variance and of a covariance.
    assert float(eps.mean(0).abs().max()) < 5 / math.sqrt(n)
    torch.testing.assert_close(eps.T @ eps / n, torch.eye(2, dtype=F64), rtol=0, atol=5 * math.sqrt(2 / n))


@each
def test_moments_of_the_sde(process):
    """m' = f m and s' = 2 f s + g^2 give back the derivatives of alpha and of sigma^2, to rounding."""
    for t in moderate(process, 9):
        f, g2 = sde(process, t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        scale = abs(process.dsigma(t)) + abs(process.dalpha(t))
        assert f * alpha == pytest.approx(process.dalpha(t), abs=1e-9 * scale)
        assert 2 * f * sigma**2 + g2 == pytest.approx(2 * sigma * process.dsigma(t), abs=1e-9 * scale * sigma)


@each
def test_score_and_probability_flow_at_a_gaussian(process):
    """x_t ~ N(alpha m, alpha^2 c + sigma^2): its score, and `velocity = f x - g^2 score / 2`."""
    mean, variance = torch.tensor([[0.4, -0.9, 1.2]], dtype=F64), 0.36
    model = GaussianMixture(torch.ones(1), mean, variance, process)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor(moderate(process, 6), dtype=F64)
    prediction = model(x, t)
    alpha, sigma = (expand(c, x) for c in (process.alpha(t), process.sigma(t)))
    score = -(x - alpha * mean) / (alpha**2 * variance + sigma**2)
    torch.testing.assert_close(prediction.score, score, rtol=1e-7, atol=1e-7)
    f, g2 = (expand(torch.tensor(c, dtype=F64), x) for c in zip(*(sde(process, float(v)) for v in t), strict=True))
    torch.testing.assert_close(prediction.velocity, f * x - 0.5 * g2 * score, rtol=1e-7, atol=1e-7)
