"""ab-x0 and ab-v: weights by adaptive quadrature, the solvers they contain, and the regular ends of the angle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.common import Frame, step_weights

F64 = torch.float64


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=F64)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_the_weights_of_v_are_the_integrals_in_the_angle(process):
    """x_b / r_b = x_a / r_a + integral of (v / r) d(phi): by adaptive quadrature, v / r through three nodes."""
    nodes, a, b = (0.9, 0.8, 0.65), 0.65, 0.3
    angle = lambda t: math.atan2(process.sigma(t), process.alpha(t))  # noqa: E731
    norm = lambda t: math.hypot(process.sigma(t), process.alpha(t))  # noqa: E731
    scale, weights = step_weights(process, Frame("v", "mu"), a, b, nodes)
    phis = [angle(t) for t in nodes]
    basis = lambda j, s: math.prod((s - phis[k]) / (phis[j] - phis[k]) for k in range(3) if k != j)  # noqa: E731
    exact = [
        norm(b) * quad(lambda s, j=j: basis(j, s), angle(a), angle(b), epsabs=1e-14)[0] / norm(nodes[j])
        for j in range(3)
    ]
    assert scale == pytest.approx(norm(b) / norm(a), rel=1e-14)
    np.testing.assert_allclose(weights, exact, rtol=1e-12)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_ab_v_1_turns_the_state_by_the_angle(process):
    """One step is x_b = r_b (x_a / r_a + dphi v / r_a): finite from alpha = 0 and to sigma = 0."""

    class Constant(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x, t, **condition):
            return Prediction(torch.full_like(x, 0.4), "v", x, t, process)

    x = noise(3, 2)
    times = [process.t_max, process.t_zero]
    made = plan(process, "ab-v-1", timesteps=times)(Constant(), x, dtype=F64)
    (a0, s0), (a1, s1) = ((process.alpha(t), process.sigma(t)) for t in times)
    turn = math.atan2(s1, a1) - math.atan2(s0, a0)
    norm = math.hypot(a0, s0)
    expected = math.hypot(a1, s1) * (x * s0 / norm + turn * 0.4 / norm)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)


def test_ab_v_follows_normal_data_exactly():
    """For data N(0, 1) under VP, v = 0: every step is exact, the one to sigma = 0 included."""
    from fewstep.denoisers.gaussian_mixture import GaussianMixture

    process = VP()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, process)
    x = noise(5, 2)
    made = plan(process, "ab-v-3", 4, "uniform")
    torch.testing.assert_close(made(model, x, dtype=F64), x * made.start[1], rtol=1e-10, atol=1e-10)


def test_ab_x0_holds_dpmpp_3m_and_the_heun_form_of_2m(make_mixture):
    process = VP()
    model, x = make_mixture(process, (3,)), noise(4, 3)
    ours, theirs = (plan(process, name, 7, "karras", end="min") for name in ("ab-x0-3", "dpmpp-3m"))
    assert torch.equal(ours(model, x, dtype=F64), theirs(model, x, dtype=F64))

    def heun_form(trace, process, times):  # DPM-Solver++(2M), solver_type "heun"
        x, last, last_h = trace.start(), None, 0.0
        for a, b in zip(times, times[1:], strict=False):
            x0, h = trace.evaluate(x, a).x0, process.log_snr(b) - process.log_snr(a)
            x = x * (process.sigma(b) / process.sigma(a)) - x0 * (process.alpha(b) * math.expm1(-h))
            if last is not None:
                slope = (x0 - last) * (h / last_h)
                x = x + slope * (process.alpha(b) * (math.expm1(-h) / h + 1))
            last, last_h = x0, h
        return x

    ours, theirs = (plan(process, solver, 7, "karras", end="min") for solver in ("ab-x0-2", heun_form))
    torch.testing.assert_close(ours(model, x, dtype=F64), theirs(model, x, dtype=F64), rtol=1e-11, atol=1e-12)
