"""Kinetic-optimal paths against the calculus of variations, closed forms and simulation. Method: kinetic-optimal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.process import process_from_config
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.kinetic_optimal import KineticOptimal, energy, separation
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


def gaussian(variances: list[float], process) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.zeros(1, len(variances)), torch.tensor([variances], dtype=F64), process)


def test_speeds_of_one_are_the_straight_line():
    for rms in (1.0, 0.4, 2.0):
        process, t = KineticOptimal((1.0, 1.0, 1.0), rms), torch.linspace(0, 1, 31, dtype=F64)
        torch.testing.assert_close(process.alpha(t), 1 - t, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(process.sigma(t), t, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(process.log_snr(t[1:-1]), Flow().log_snr(t[1:-1]), rtol=1e-11, atol=1e-11)
        assert process.log_snr(1.0) == -math.inf and process.time(-math.inf) == 1


CURVED = KineticOptimal((0.3, 0.6, 0.9, 1.0, 0.95, 0.7), 0.6)


def test_both_inverses_and_the_derivatives_hold_to_rounding():
    t = torch.tensor([1e-9, 1e-4, 0.02, 0.3, 0.5, 0.77, 0.999, 1 - 1e-9], dtype=F64)
    torch.testing.assert_close(CURVED.time(CURVED.log_snr(t)), t, rtol=1e-12, atol=1e-15)
    u = t.clone().requires_grad_(True)
    for f, df in ((CURVED.alpha, CURVED.dalpha), (CURVED.sigma, CURVED.dsigma)):
        torch.testing.assert_close(df(t), torch.autograd.grad(f(u).sum(), u)[0], rtol=1e-9, atol=1e-9)


def test_alpha_and_sigma_have_continuous_derivatives():
    edges = [CURVED.time(-math.log(0.6 * math.tan(k * math.pi / 10))) for k in (1, 2, 3, 4)]
    t = torch.tensor(edges, dtype=F64)
    for f in (CURVED.dalpha, CURVED.dsigma):
        torch.testing.assert_close(f(t - 1e-10), f(t + 1e-10), rtol=1e-7, atol=1e-7)


def test_the_path_solves_the_euler_lagrange_equation():
    """SciPy's boundary value solver on `q'^2 + q^2 w(psi)^2 psi'^2` in (q, psi), with a smooth w, gives it as well."""
    from scipy.integrate import solve_bvp

    rms, nodes = 0.6, 401
    w = lambda psi: 0.7 + 0.25 * np.cos(2 * psi)  # noqa: E731
    dw = lambda psi: -0.5 * np.sin(2 * psi)  # noqa: E731
    process = KineticOptimal(tuple(w(np.linspace(0, math.pi / 2, nodes)).tolist()), rms)

    def right(t, y):
        q, psi, dq, dpsi = y
        # d/dt (q^2 w^2 psi') = q^2 w w' psi'^2
        return np.stack((dq, dpsi, q * w(psi) ** 2 * dpsi**2, -2 * dq * dpsi / q - dw(psi) / w(psi) * dpsi**2))

    t = np.linspace(0, 1, 101)
    ends = lambda a, b: np.array([a[0] - rms, a[1], b[0] - 1, b[1] - math.pi / 2])  # noqa: E731
    guess = np.stack((rms + (1 - rms) * t, 0.5 * math.pi * t, np.full_like(t, 1 - rms), np.full_like(t, 1.5)))
    found = solve_bvp(right, ends, t, guess, tol=1e-8, max_nodes=20_000)
    assert found.success
    q, psi, _, _ = found.sol(t)
    np.testing.assert_allclose(process.sigma(torch.from_numpy(t)).numpy(), q * np.sin(psi), atol=2e-5)
    np.testing.assert_allclose(process.alpha(torch.from_numpy(t)).numpy(), q * np.cos(psi) / rms, atol=2e-5)


def test_its_energy_is_the_squared_chord():
    process = KineticOptimal(CURVED.speeds, CURVED.rms, t_min=1e-9)
    angle = sum(0.5 * (a + b) * math.pi / 10 for a, b in zip(process.speeds, process.speeds[1:], strict=False))
    chord = 1 + process.rms**2 - 2 * process.rms * math.cos(angle)
    assert energy(process, process.speeds, process.rms) == pytest.approx(chord, rel=1e-6)
    for other in (Flow(t_min=1e-9), VP(), Cosine(t_max=1.0)):
        assert energy(other, process.speeds, process.rms) > chord


def test_the_speeds_of_a_gaussian_are_in_closed_form():
    """Variances c_j, m their mean: `w^2 = 1 - mean(c sigma^2 / (alpha^2 c + sigma^2)) / (m sin(psi)^2)`."""
    variances = [0.04, 0.5, 1.7]
    model = gaussian(variances, EDM(sigma_max=1e3))
    data = model.sample(20_000, 1)
    found, rms = separation(model, data, nodes=9, draws=1)
    c, m = np.array(variances), np.mean(variances)
    assert rms == pytest.approx(math.sqrt(m), rel=0.03)
    psi = np.linspace(0, math.pi / 2, 9)[2:-1]
    sigma = math.sqrt(m) * np.tan(psi)
    mmse = (c * sigma[:, None] ** 2 / (c + sigma[:, None] ** 2)).mean(1)
    np.testing.assert_allclose(found[2:-1].numpy(), np.sqrt(1 - mmse / (m * np.sin(psi) ** 2)), atol=0.04)


def test_isotropic_gaussian_data_take_the_transport_geodesic():
    """With nothing to tell apart, the standard deviation of x_t runs straight from rms to 1, and no energy is lost."""
    model = gaussian([0.25] * 3, Flow())
    process = KineticOptimal.of(model, model.sample(4000, 1), nodes=9)
    t = torch.linspace(0, 1, 21, dtype=F64)
    spread = (process.sigma(t) ** 2 + process.rms**2 * process.alpha(t) ** 2).sqrt()
    torch.testing.assert_close(spread, process.rms + (1 - process.rms) * t, rtol=0, atol=0.01)
    assert energy(process, process.speeds, process.rms) == pytest.approx((1 - process.rms) ** 2, abs=0.01)


def test_separated_points_take_the_straight_line():
    """As the dimension grows with a fixed number of points, lambda nears 1, w nears 1, and the path Cond-OT's."""
    least, gap = [], []
    t = torch.linspace(0, 1, 21, dtype=F64)
    for dimension in (2, 32, 2048):
        data = torch.randn(10, dimension, generator=torch.Generator().manual_seed(0))
        model = DatasetDenoiser(data, Flow())
        speeds, rms = separation(model, data, nodes=9, draws=8)
        least.append(float(speeds[:-2].min()))  # up to sigma / alpha = 2.4 rms
        gap.append(float((KineticOptimal.of(model, data, nodes=9, draws=8).alpha(t) - (1 - t)).abs().max()))
    assert least[0] < least[1] < least[2] and least[2] > 0.99
    assert gap[2] < gap[1] < gap[0] and gap[2] < 0.02


@pytest.mark.parametrize("kind", [Flow, VP, KineticOptimal])
def test_the_energy_is_that_of_the_velocity(kind, make_mixture):
    """E|v|^2 / N by simulation, at times spread evenly over the clock."""
    process = kind((0.5, 0.8, 0.9, 0.6, 0.4), 0.7) if kind is KineticOptimal else kind()
    model = make_mixture(process)
    n, data = 8192, model.sample(8192, 5)
    speeds, rms = separation(model, data, nodes=33, draws=1)
    length = process.t_max - process.t_min
    t = process.t_min + length * (torch.randperm(n, generator=torch.Generator().manual_seed(1)) + 0.5) / n
    alpha, sigma = process.alpha(t).unsqueeze(1), process.sigma(t).unsqueeze(1)
    v = length * model(alpha * data + sigma * Noise(2).normal(0, (n, 2), "cpu", F64), t).velocity
    assert energy(process, speeds, rms) == pytest.approx(float(v.square().mean()), rel=0.05)


def test_solvers_run_on_it_and_it_is_a_config(make_mixture):
    process = KineticOptimal.of(make_mixture(Flow()), make_mixture(Flow()).sample(500, 1), nodes=9, draws=1)
    assert process_from_config(process.config()) == process
    model = make_mixture(process)
    noise = Noise(3).normal(0, (16, 2), "cpu", F64)
    ends = [plan(process, solver, n, "uniform")(model, noise, dtype=F64) for solver, n in (("vab-2", 60), ("heun", 60))]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0.01)


@pytest.mark.parametrize("options", [((1.0,), 1.0), ((1.0, 0.0), 1.0), ((1.0, 1.2), 1.0), ((1.0, 1.0), 0.0)])
def test_wrong_tables(options):
    with pytest.raises(ValueError, match="needs"):
        KineticOptimal(*options)
