"""Forecasts: exact on polynomials, and the coordinate of EDM's networks."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.caching.forecast import COORDINATES, FAR, change, lagrange, level, pair, weighted
from fewstep.core.prediction import scales
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_polynomial_of_degree_one_less_is_exact(order):
    nodes = [-1.3, -0.2, 0.9, 1.1][:order]

    def f(u: float) -> float:
        return sum((k + 1) * u**k for k in range(order))

    for at in (1.7, -3.0, 0.4):
        weights = lagrange(nodes, at)
        assert math.isclose(sum(weights), 1.0, rel_tol=1e-12)
        assert math.isclose(sum(w * f(u) for w, u in zip(weights, nodes, strict=True)), f(at), rel_tol=1e-12)


def test_weights_of_rows_of_their_own():
    values = [torch.randn(3, 2, 2, dtype=F64) for _ in range(2)]
    rows = torch.tensor([[2.0, -1.0], [1.5, -0.5], [1.0, 0.0]], dtype=F64)
    whole = weighted(values, rows)
    for i, row in enumerate(rows.tolist()):
        torch.testing.assert_close(whole[i], weighted([value[i] for value in values], row))


def test_the_own_coordinate_is_the_output_of_edms_network():
    torch.manual_seed(0)
    network = MLP((3,)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = NetworkDenoiser(network, EDM(), "x0", (3,), precondition="edm", data_std=0.7)
    x, t = torch.randn(4, 3, dtype=F64), torch.tensor(1.3, dtype=F64)
    alpha, sigma, dalpha, dsigma = scales(model.process, t)
    own, x0 = (pair(name, alpha, sigma, dalpha, dsigma, 0.7) for name in ("own", "x0"))
    p, q = change(x0, own, alpha, sigma)
    norm = (sigma**2 + 0.49) ** 0.5
    output = network(x / norm, (sigma.log() / 4).expand(4))
    torch.testing.assert_close(p * x + q * model(x, t).value, output)


@pytest.mark.parametrize("name", COORDINATES)
def test_there_and_back(name):
    for process in (VP(), Flow(), EDM()):
        numbers = [float(value) for value in scales(process, 0.4)]
        source, target = pair("x0", *numbers, 0.5), pair(name, *numbers, 0.5)
        p, q = change(source, target, *numbers[:2])
        back_p, back_q = change(target, source, *numbers[:2])
        assert math.isclose(q * back_q, 1.0, rel_tol=1e-9)
        assert math.isclose(back_p + back_q * p, 0.0, abs_tol=1e-9)


def test_v_is_the_own_coordinate_of_unit_data_but_for_its_sign():
    numbers = [float(value) for value in scales(VP(), 0.4)]
    assert pair("own", *numbers, 1.0) == pytest.approx([-c for c in pair("v", *numbers, 1.0)])


def test_pure_noise_and_clean_samples_are_far_and_finite():
    assert level(Flow(), 1.0) == -FAR and level(Flow(), 0.0) == FAR and level(VP(), 0.5) == VP().log_snr(0.5)
