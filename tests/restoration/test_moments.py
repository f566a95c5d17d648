"""Each step, pointwise against the exact posterior mean, and what the wrapper promises."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.moments import Moments


def asked(model, process, log_snr: float, n: int = 5, seed: int = 9):
    t = torch.tensor(process.time(log_snr), dtype=torch.float64)
    x0 = model.sample(n, seed=seed)
    return x0 * process.alpha(t) + normal(n, D, seed=seed + 1) * process.sigma(t), t


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("operator", [wide, half])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_gaussians_posterior_is_exact(process, operator, noise):
    model, a = gaussian(process=process), operator()
    y = a.measure(model.sample(1, seed=3), noise=noise)
    for log_snr in (-6.0, -2.0, 0.0, 2.0):
        x, t = asked(model, process, log_snr)
        exact = model.posterior(a, y, noise)(x, t).x0
        own = Moments(model, a, noise, "exact")(x, t, y=y.expand(5, -1)).x0
        assert torch.allclose(own, exact, atol=1e-8)
        for krylov in ("cg", "gcr"):
            step = Moments(model, a, noise, "mmps", {"iterations": D, "krylov": krylov})
            assert torch.allclose(step(x, t, y=y.expand(5, -1)).x0, exact, atol=1e-7), (krylov, log_snr)


def test_pigdm_is_exact_where_the_data_are_isotropic():
    model, a = gaussian(isotropic=True), wide()
    y = a.measure(model.sample(1, seed=3), noise=0.2).expand(5, -1)
    std = 0.5**0.5
    for log_snr in (-4.0, 0.0, 2.0):
        x, t = asked(model, model.process, log_snr)
        exact = model.posterior(a, y[:1], 0.2)(x, t).x0
        assert torch.allclose(Moments(model, a, 0.2, "pigdm", {"data_std": std})(x, t, y=y).x0, exact, atol=1e-9)
        # With a Gaussian of another covariance it is not.
    other = gaussian()
    x, t = asked(other, other.process, 0.0)
    y = a.measure(other.sample(1, seed=3), noise=0.2)
    wrong = Moments(other, a, 0.2, "pigdm", {"data_std": std})(x, t, y=y.expand(5, -1)).x0
    assert float((wrong - other.posterior(a, y, 0.2)(x, t).x0).abs().max()) > 1e-2


def test_tmpd_is_exact_where_measurements_are_independent():
    model, a = gaussian(isotropic=True), half()
    y = a.measure(model.sample(1, seed=3), noise=0.2).expand(5, -1)
    x, t = asked(model, model.process, 0.0)
    exact = model.posterior(a, y[:1], 0.2)(x, t).x0
    assert torch.allclose(Moments(model, a, 0.2, "tmpd")(x, t, y=y).x0, exact, atol=1e-9)


def test_ddnm_makes_the_measurement_exact_and_leaves_the_rest():
    model, a = mixture(), wide()
    y = a.measure(model.sample(5, seed=3))
    x, t = asked(model, model.process, 0.0)
    x0 = Moments(model, a, method="ddnm")(x, t, y=y).x0
    assert float((a(x0) - y).abs().max()) < 1e-10
    assert torch.allclose(a.null(x0), a.null(model(x, t).x0), atol=1e-10)


def test_diffpir_is_the_proximal_step_and_ddnm_without_noise():
    model, a = mixture(), wide()
    y = a.measure(model.sample(5, seed=3), noise=0.3)
    x, t = asked(model, model.process, 0.5)
    v = float((model.process.sigma(t) / model.process.alpha(t)) ** 2)
    base = model(x, t).x0
    z = Moments(model, a, 0.3, "diffpir", {"lam": 2.0})(x, t, y=y).x0
    gradient = a.adjoint(a(z) - y) / 0.09 + 2.0 / v * (z - base)
    assert float(gradient.abs().max()) < 1e-9
    clean = Moments(model, a, 0.0, "diffpir")(x, t, y=y).x0
    assert torch.allclose(clean, Moments(model, a, method="ddnm")(x, t, y=y).x0, atol=1e-9)


def test_nrlg_is_exact_where_the_prior_says_nothing():
    a, process = wide(), VP()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, D), 1e14, process)  # whose x0_hat is x / alpha
    y = a.measure(normal(5, D, seed=3), noise=0.2)
    x, t = asked(gaussian(), process, 1.0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    precision = (alpha / sigma) ** 2 * torch.eye(D, dtype=torch.float64) + a.matrix().T @ a.matrix() / 0.04
    exact = torch.linalg.solve(precision, (alpha / sigma**2 * x + a.adjoint(y) / 0.04).T).T
    assert torch.allclose(Moments(model, a, 0.2, "nrlg")(x, t, y=y).x0, exact, atol=1e-6)


METHODS = ["pigdm", "mmps", "tmpd", "diffpir", "ddnm", "nrlg", "exact"]


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_mix_and_weight_0_is_the_model(method):
    model, a = mixture(), half()
    y = a.measure(model.sample(5, seed=3), noise=0.1)
    posterior = Moments(model, a, 0.1, method)
    x, t = asked(model, model.process, 0.0)
    times = torch.tensor([model.process.time(v) for v in (-3.0, -1.0, 0.0, 1.0, 3.0)], dtype=torch.float64)
    together = posterior(x, times, y=y).x0
    for i in range(5):
        alone = posterior(x[i : i + 1], times[i], y=y[i : i + 1]).x0
        assert torch.allclose(alone[0], together[i], rtol=1e-9, atol=1e-11)
    off = Moments(model, a, 0.1, method, weight=0.0)
    assert torch.equal(off(x, t, y=y).x0, model(x, t).x0)
    single = posterior(x.float(), t.float(), y=y.float())
    assert single.value.dtype == torch.float32 and single.kind == "x0"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_a_run_is_finite_from_pure_noise_on(method, process):
    model, a = mixture(process=process), wide()
    y = a.measure(model.sample(1, seed=3), noise=0.1)
    x = fs.sample(Moments(model, a, 0.1, method), 8, y=y, solver="ddpm", steps=6, dtype=torch.float64)
    assert x.shape == (8, D) and bool(torch.isfinite(x).all())


def test_what_does_not_fit_is_said():
    model, a = mixture(), wide()
    with pytest.raises(ValueError, match="unknown restorer 'pigd': did you mean 'pigdm'"):
        Moments(model, a, 0.1, "pigd")
    with pytest.raises(ValueError, match=r"columns measures samples of 4 numbers, not \(6,\)"):
        Moments(model, fs.operators.Matrix(torch.ones(1, 4)), 0.1)
    with pytest.raises(ValueError, match="standard deviation of at least 0, got -0.1"):
        Moments(model, a, -0.1)
    with pytest.raises(ValueError, match="conditioned on a measurement y already"):
        Moments(Moments(model, a, 0.1), a, 0.1)
    with pytest.raises(ValueError, match="'exact' is for Gaussian mixtures"):
        Moments(fs.load("digits"), fs.operators.Identity(), 0.1, "exact")
    with pytest.raises(ValueError, match=r"y must have shape \(3\) or \(B, 3\)|this model needs y"):
        fs.sample(Moments(model, a, 0.1), 4, steps=2)
