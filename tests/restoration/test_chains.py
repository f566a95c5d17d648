"""The published chains: their steps by hand, and the cases in which they are something simpler."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.restoration.ddnm_plus import shares
from fewstep.restoration.restore import chain

F64 = torch.float64


def run(method, model, a, y, noise, nfe=5, seed=0, **options):
    return fs.restore(model, y, a, noise, method=method, options=options, nfe=nfe, dtype=F64, seed=seed)


def test_dps_without_zeta_is_ddpm_bit_for_bit():
    model, a = mixture(), wide()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    plain = fs.sample(model, 3, solver="ddpm", timesteps="karras", steps=5, dtype=F64)
    assert torch.equal(run("dps", model, a, y, 0.1, zeta=0.0), plain)
    assert not torch.equal(run("dps", model, a, y, 0.1), plain)


def test_dps_gradient_is_the_analytic_one():
    """On a Gaussian x0_hat is affine in x, so one step can be written out."""
    model, a = gaussian(), wide()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    process, times = model.process, [0.7, 0.3]
    denoiser, sampler, _ = chain(model, a, 0.1, "dps", 1, timesteps=times, options={"zeta": 0.4})
    noise = normal(3, D, seed=6)
    seen = []
    x = sampler(denoiser, noise, y=y, dtype=F64, seed=4, callback=lambda *args: seen.append(args))
    plain = fs.plan(process, "ddpm", timesteps=times)(model, noise, dtype=F64, seed=4)
    alpha, sigma = process.alpha(0.7), process.sigma(0.7)
    c = (model.basis * model.variances[0]) @ model.basis.T
    jacobian = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(D, dtype=F64))
    r = y - a(model(noise * sigma, torch.tensor(0.7, dtype=F64)).x0)
    gradient = -(r / r.norm(dim=1, keepdim=True)) @ a.matrix() @ jacobian
    assert torch.allclose(x, plain - 0.4 * gradient, atol=1e-8) and len(seen) == 1


def test_dps_steps_are_those_of_a_variance_preserving_process():
    """The same law under VP and under a flow, whose states are multiples of each other, gives the same samples."""
    from fewstep.processes.flow import Flow
    from fewstep.processes.vp import VP

    made = []
    for process in (VP(), Flow()):
        model, a = mixture(process=process), wide()
        y = a.measure(model.sample(3, seed=3), noise=0.1)
        levels = [process.time(v) for v in (-2.0, -1.0, 0.0, 1.0)] + [process.t_zero]
        denoiser, sampler, _ = chain(model, a, 0.1, "dps", 4, timesteps=levels)
        made.append(sampler(denoiser, normal(3, D, seed=6), y=y, dtype=F64, seed=4))
    assert torch.allclose(made[0], made[1], atol=1e-6)


def test_ddrm_has_its_three_cases():
    """One step between two levels on a diagonal operator: an unseen, a badly and a well measured number."""
    weights = torch.tensor([0.0, 0.1, 1.0, 1.0, 1.0, 1.0], dtype=F64)
    a = fs.operators.Inpaint(weights).fit((D,))
    model, noise_std, eta, eta_b = gaussian(), 0.2, 0.6, 0.8
    process = model.process
    y = a.measure(model.sample(1, seed=3), noise=noise_std)
    times = [process.time(0.0), process.time(1.5)]
    options = {"eta": eta, "eta_b": eta_b}
    denoiser, sampler, _ = chain(model, a, noise_std, "ddrm", 1, timesteps=times, options=options)
    noise = normal(1, D, seed=6)
    states = []
    x = sampler(denoiser, noise, y=y, dtype=F64, seed=4, callback=lambda n, t, x, p: states.append((x.clone(), p.x0)))
    ((start, x0),) = states
    (alpha_a, sigma_a), (alpha, sigma) = [(process.alpha(t), process.sigma(t)) for t in times]
    from fewstep.core.noise import Noise

    e = Noise(4).normal(1, (1, D), dtype=F64)[0]
    t_a, t_b, n = sigma_a / alpha_a, sigma / alpha, noise_std / weights
    target = y[0] / weights
    z = start[0] / alpha_a
    by_hand = torch.empty(D, dtype=F64)
    by_hand[0] = x0[0, 0] + (1 - eta**2) ** 0.5 * t_b * (z[0] - x0[0, 0]) / t_a + eta * t_b * e[0]
    assert n[1] > t_b and n[2] < t_b  # the two other cases
    by_hand[1] = x0[0, 1] + (1 - eta**2) ** 0.5 * t_b * (target[1] - x0[0, 1]) / n[1] + eta * t_b * e[1]
    room = (t_b**2 - (n[2] * eta_b) ** 2) ** 0.5
    by_hand[2:] = (1 - eta_b) * x0[0, 2:] + eta_b * target[2:] + room * e[2:]
    assert torch.allclose(x[0] / alpha, by_hand, atol=1e-9)
    # It starts around the measurement where the first level has more noise, and at noise elsewhere.
    assert torch.allclose(start[0, :2], noise[0, :2] * sigma_a)
    first = alpha_a * target[2:] + (sigma_a**2 - (alpha_a * n[2:]) ** 2) ** 0.5 * noise[0, 2:]
    assert torch.allclose(start[0, 2:], first)


def test_exact_zeros_of_a_spectrum_are_not_divided_by():
    kernel = torch.zeros(D, dtype=F64)
    kernel[[0, 1, -1]] = torch.tensor([0.5, 0.25, 0.25], dtype=F64)  # 1, 2, 1: the highest frequency is lost
    circulant = torch.stack([kernel.roll(i) for i in range(D)])
    a, model = fs.operators.Matrix(circulant).fit((D,)), mixture()
    assert int(a.spectrum().seen().sum()) == D - 1
    y = a.measure(model.sample(4, seed=3), noise=0.05)
    for method in ("ddrm", "ddnm-plus", "ddnm", "pigdm"):
        x = run(method, model, a, y, 0.05)
        assert float(x.abs().max()) < 10, method


def test_ddnm_plus_without_noise_is_ddnm():
    model, a = mixture(), wide()
    y = a.measure(model.sample(3, seed=3))
    assert torch.allclose(run("ddnm-plus", model, a, y, 0.0), run("ddnm", model, a, y, 0.0), atol=1e-9)


def test_ddnm_plus_adds_up_to_the_noise_of_its_step():
    n, s, k = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=F64), 0.3, 0.8
    taken, room = shares(n, s, k)
    whole = (k * taken * n) ** 2 + room
    assert torch.allclose(whole[:2], torch.full((2,), s**2, dtype=F64))
    assert bool((whole <= s**2 + 1e-12).all()) and bool((taken <= 1).all())
    assert taken.tolist()[:2] == [1.0, 1.0] and float(taken[3]) == pytest.approx(s / (k * 2.0))


def test_official_pigdm_is_its_step_written_out():
    model, a = gaussian(), wide()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    process, times = model.process, [0.7, 0.3]
    options = {"eta": 0.0, "data_std": 1.0}
    denoiser, sampler, _ = chain(model, a, 0.1, "pigdm-official", 1, timesteps=times, options=options)
    noise = normal(3, D, seed=6)
    x = sampler(denoiser, noise, y=y, dtype=F64)
    alpha, sigma = process.alpha(0.7), process.sigma(0.7)
    plain = fs.plan(process, "ddim", timesteps=times)(model, noise, dtype=F64)
    c, eye = (model.basis * model.variances[0]) @ model.basis.T, torch.eye(D, dtype=F64)
    jacobian = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * eye)
    r2 = (sigma / alpha) ** 2 / (1 + (sigma / alpha) ** 2)
    r = y - a(model(noise * sigma, torch.tensor(0.7, dtype=F64)).x0)
    u = torch.linalg.solve(r2 * a.matrix() @ a.matrix().T + 0.01 * torch.eye(3, dtype=F64), r.T).T
    assert torch.allclose(x, plain + alpha * r2 * u @ a.matrix() @ jacobian, atol=1e-8)


def test_daps_draws_exactly_where_it_can():
    """One level of a Gaussian whose x0_hat and C are known: the law of its answer is in closed form."""
    from restoration.test_calibrated import true_calibration

    model, a, n = gaussian(), half(), 20_000
    y = a.measure(model.sample(1, seed=3), noise=0.3)
    t = model.process.time(0.0)
    options = {"calibration": true_calibration(model)}
    denoiser, sampler, _ = chain(model, a, 0.3, "daps", 1, timesteps=[t, model.process.t_zero], options=options)
    noise = normal(1, D, seed=6).expand(n, -1)
    x = sampler(denoiser, noise, y=y.expand(n, -1), dtype=F64)
    x0 = model(noise[:1] * model.process.sigma(t), torch.tensor(t, dtype=F64)).x0
    c = options["calibration"].covariance(torch.tensor(0.0)).matrix((D,))[0]
    gain = c @ a.matrix().T @ torch.linalg.inv(a.matrix() @ c @ a.matrix().T + 0.09 * torch.eye(D, dtype=F64))
    mean, exact = x0[0] + gain @ (y - a(x0))[0], c - gain @ a.matrix() @ c
    assert float(((x.mean(0) - mean) / (exact.diagonal() / n).sqrt()).abs().max()) < 4
    spread = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / n).sqrt()
    assert float(((torch.cov(x.T) - exact) / spread).abs().max()) < 4.5
    # Langevin steps with Metropolis' rule reach the same law.
    moved = {"spread": "moment", "moves": 60, "step": 0.2}
    other = chain(model, a, 0.3, "daps", 1, timesteps=[t, model.process.t_zero], options=moved)[1]
    near = other(denoiser, noise, y=y.expand(n, -1), dtype=F64)
    from fewstep.restoration.daps import DAPS

    DAPS._exact, kept = staticmethod(lambda *args: False), DAPS._exact
    try:
        walked = other(denoiser, noise, y=y.expand(n, -1), dtype=F64)
    finally:
        DAPS._exact = staticmethod(kept)
    assert float((walked.mean(0) - near.mean(0)).abs().max()) < 0.03
    assert float((torch.cov(walked.T) - torch.cov(near.T)).abs().max()) < 0.03


@pytest.mark.parametrize("method", ["dps", "ddrm", "ddnm-plus", "daps", "pigdm-official"])
def test_rows_do_not_mix(method):
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(4, seed=3), noise=0.1)
    together = run(method, model, a, y, 0.1)
    assert together.shape == (4, D) and bool(torch.isfinite(together).all())
    assert torch.allclose(run(method, model, a, y[:1], 0.1)[0], together[0], rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_said():
    model, a = mixture(), wide()
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    cases = (
        (lambda: run("dps", model, a, y, 0.1, zeta=-1.0), "zeta must be at least 0"),
        (lambda: run("ddrm", model, a, y, 0.1, eta=2.0), "eta must be between 0 and 1"),
        (lambda: run("ddrm", model, a, y, torch.full((3,), 0.1)), "takes noise of one deviation"),
        (lambda: run("daps", model, a, y, 0.1, inner=9), "makes 9 evaluations a step"),
        (lambda: run("dpss", model, a, y, 0.1), "did you mean 'dps'"),
        (lambda: fs.restore(model, y, a, 0.1, method="dps", weight=0.5), "an option of it, not weight"),
        (lambda: fs.restore(model, y, a, 0.1, method="dps", solver="ddim"), "leave the solver out"),
        (lambda: fs.posterior(model, a, 0.1, "dps"), "is a chain of its own, not a denoiser"),
        (lambda: fs.restore(model, y[:, :2], a, 0.1), r"y of shape \(2, 2\) is no measurement of matrix"),
        (lambda: fs.restore(model, y), "knows nothing of measurements"),
        (lambda: fs.restore(model, y * float("nan"), a), "not finite"),
        (lambda: fs.restore(model, y, a, 0.1, method="pigdm", final="cut"), "final must be 'project'"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
