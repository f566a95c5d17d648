"""Forecasts: exact on polynomials, and the coordinate of EDM's networks."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.caching.forecast import COORDINATES, check_coordinate, coordinate_at, level, nodes, weighted, weights
from fewstep.core.prediction import conversion, scales
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_polynomial_of_degree_one_less_is_exact(order):
    through = list(enumerate([-1.3, -0.2, 0.9, 1.1][:order]))

    def f(u: float) -> float:
        return sum((k + 1) * u**k for k in range(order))

    for at in (1.7, -3.0, 0.4):
        by = weights(through, at)
        assert math.isclose(sum(by), 1.0, rel_tol=1e-12)
        assert math.isclose(sum(w * f(u) for w, (_, u) in zip(by, through, strict=True)), f(at), rel_tol=1e-12)


def test_which_evaluations_a_forecast_goes_through():
    made = [(0, -math.inf), (1, -2.0), (2, -1.0), (4, 0.5), (5, 0.5), (6, 1.0)]
    assert nodes(made, 1.5, 3) == [(6, 1.0), (5, 0.5), (2, -1.0)]  # of two at one noise level the later
    assert nodes(made, 1.5, 9) == [(6, 1.0), (5, 0.5), (2, -1.0), (1, -2.0)]  # never pure noise
    assert nodes(made, math.inf, 3) == nodes(made, 1.5, 1) == [(6, 1.0)]
    assert nodes(made[:1], -3.0, 2) == [(0, -math.inf)] and weights(nodes(made[:1], -3.0, 2), -3.0) == [1.0]


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
    numbers = scales(model.process, t)
    sigma = numbers[1]
    p, q = conversion("x0", coordinate_at("own", *numbers[:2], 0.7), *numbers)
    norm = (sigma**2 + 0.49) ** 0.5
    output = network(x / norm, (sigma.log() / 4).expand(4))
    torch.testing.assert_close(p * x + q * model(x, t).value, output)


@pytest.mark.parametrize("name", COORDINATES)
def test_there_and_back(name):
    for process in (VP(), Flow(), EDM()):
        numbers = [float(value) for value in scales(process, 0.4)]
        own = coordinate_at(name, *numbers[:2], 0.5)
        p, q = conversion("x0", own, *numbers)
        back_p, back_q = conversion(own, "x0", *numbers)
        assert math.isclose(q * back_q, 1.0, rel_tol=1e-9)
        assert math.isclose(back_p + back_q * p, 0.0, abs_tol=1e-9)


def test_pure_noise_and_clean_samples_are_infinite():
    assert level(Flow(), 1.0) == -math.inf and level(Flow(), 0.0) == math.inf and level(VP(), 0.5) == VP().log_snr(0.5)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown coordinate 'ep': did you mean 'eps'"):
        check_coordinate("ep", None)
    with pytest.raises(ValueError, match="data_std must be positive and finite, got 0"):
        check_coordinate("own", 0)
    assert check_coordinate("own", None) == 1.0
