"""The Lagrange basis: exact on polynomials, for numbers, arrays and tensors alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.lagrange import lagrange


def cubic(x):
    return 2 - x + 0.5 * x**2 - 3 * x**3


def test_a_polynomial_of_a_lower_degree_than_there_are_nodes_is_met():
    nodes = [-1.0, 0.3, 0.7, 2.0]
    at = np.array([-2.0, 0.3, 5.0])
    weights = lagrange(nodes, at)
    np.testing.assert_allclose(sum(w * cubic(x) for w, x in zip(weights, nodes, strict=True)), cubic(at), rtol=1e-12)
    np.testing.assert_allclose([w[1] for w in weights], [0, 1, 0, 0], atol=1e-15)
    assert [w[2] for w in weights] == lagrange(nodes, 5.0)
    assert sum(lagrange(nodes, 5.0)) == pytest.approx(1, abs=1e-11)


def test_nodes_of_shape_are_a_basis_in_each_element():
    nodes = [torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)]
    weights = lagrange(nodes, torch.full((2,), 3.0, dtype=torch.float64))
    assert [[float(w[i]) for w in weights] for i in (0, 1)] == [lagrange([0.0, 2.0], 3.0), lagrange([1.0, -1.0], 3.0)]


def test_one_node_is_the_constant_wherever_it_lies():
    assert lagrange([1.5], 7.0) == [1.0] and lagrange([1.5], math.inf) == [1.0]
    assert torch.equal(lagrange([torch.full((2,), math.nan)], torch.zeros(2))[0], torch.ones(2))
