"""deis, ab, lms, vab, dpmpp-3m and unipc against formulas written out independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.common import Frame, step_weights

F64 = torch.float64
NODES = (0.9, 0.8, 0.65)


def basis(j: int, nodes, s: float) -> float:
    return math.prod((s - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "name,frame", [("deis", Frame("eps", "t")), ("ab", Frame("eps", "log_snr")), ("lms", Frame("eps", "mu"))]
)
def test_weights_are_the_integrals_of_the_lagrange_basis(name, frame, process):
    """x_b / alpha_b = x_a / alpha_a + integral of eps d(sigma / alpha), by adaptive quadrature over the time."""
    a, b = 0.65, 0.5
    scale, weights = step_weights(process, frame, a, b, NODES)
    ratio = lambda t: process.sigma(t) / process.alpha(t)  # noqa: E731
    variable = {"t": lambda t: t, "log_snr": process.log_snr, "mu": ratio}[frame.variable]
    nodes = [variable(t) for t in NODES]

    def slope(t):
        return (process.dsigma(t) * process.alpha(t) - process.sigma(t) * process.dalpha(t)) / process.alpha(t) ** 2

    exact = [
        process.alpha(b) * quad(lambda t, j=j: basis(j, nodes, variable(t)) * slope(t), a, b, epsabs=1e-13)[0]
        for j in range(3)
    ]
    assert scale == pytest.approx(process.alpha(b) / process.alpha(a), rel=1e-12)
    np.testing.assert_allclose(weights, exact, rtol=1e-8, atol=1e-10)


def test_vab_is_adams_bashforth_on_the_flows_velocity():
    """On the rectified flow with equal steps its weights are the classical (3/2, -1/2) h."""
    scale, weights = step_weights(Flow(), Frame("flow", "mu"), 0.6, 0.5, (0.7, 0.6))
    assert scale == pytest.approx(1)
    np.testing.assert_allclose(weights, [0.05, -0.15], atol=1e-14)


def test_dpmpp_3m_integrates_a_linear_x0_exactly():
    """With x0 linear in the log-SNR neither the steps nor the corrected start make an error, on any grid."""
    process = VP()

    class Polynomial(Denoiser):
        def __init__(self, degree: int):
            super().__init__()
            self.process, self.degree = process, degree

        def forward(self, x, t, **condition):
            return Prediction(torch.full_like(x, 1.0) * process.log_snr(t) ** self.degree, "x0", x, t, process)

    times = [process.time(v) for v in (-1.0, -0.6, 0.1, 0.5, 1.2)]
    noise = torch.zeros(1, 2, dtype=F64)
    for degree, tolerance in ((0, 1e-12), (1, 1e-12)):
        x = plan(process, "dpmpp-3m", timesteps=times)(Polynomial(degree), noise, dtype=F64)
        integral = quad(lambda v, d=degree: math.exp(v - 1.2) * v**d, -1.0, 1.2, epsabs=1e-13)[0]
        assert float(x[0, 0]) == pytest.approx(process.alpha(times[-1]) * integral, abs=tolerance)


def test_unipc_1_is_the_papers_two_formulas():
    """UniP-1 is DDIM; UniC-1 adds `-alpha_b B(h) (x0_b - x0_a) / 2` to it (Zhao et al., eq. 9 with R = 1/2)."""
    process = VP()
    times = [process.time(v) for v in (-1.0, -0.3, 0.6)]

    class Linear(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x, t, **condition):
            return Prediction(0.4 * x + process.log_snr(t), "x0", x, t, process)

    noise = torch.tensor([[0.3, -1.1]], dtype=F64)
    a, b, c = times
    x = noise * process.sigma(a)
    step = lambda x, x0, s, t: (  # noqa: E731
        process.sigma(t) / process.sigma(s) * x
        - process.alpha(t) * math.expm1(process.log_snr(s) - process.log_snr(t)) * x0
    )
    first = 0.4 * x + process.log_snr(a)
    predicted = step(x, first, a, b)
    second = 0.4 * predicted + process.log_snr(b)
    for variant in ("bh1", "bh2"):
        h = process.log_snr(b) - process.log_snr(a)
        scale = -h if variant == "bh1" else math.expm1(-h)
        corrected = predicted - process.alpha(b) * scale * 0.5 * (second - first)
        result = plan(process, "unipc-1", timesteps=times, variant=variant)(Linear(), noise, dtype=F64)
        torch.testing.assert_close(result, step(corrected, second, b, c), rtol=1e-12, atol=1e-12)
