"""A user's own function, and the adjoint that it may bring."""

from __future__ import annotations

import pytest
import torch

from fewstep.operators.linear import Linear

MATRIX = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def test_functions_of_one_dtype():
    operator = Linear(lambda x: x.flatten(1) @ MATRIX.T, (2, 4), dtype=torch.float32)
    assert operator.out == (5,) and torch.allclose(operator.matrix().float(), MATRIX)
    y = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(operator.adjoint(y).flatten(1).float(), y.float() @ MATRIX, atol=1e-6)
    own = Linear(operator.function, (2, 4), lambda y: (y @ MATRIX).reshape(-1, 2, 4), torch.float32)
    assert torch.allclose(own.adjoint(y), operator.adjoint(y), atol=1e-6)


def test_where_float64_is_not_taken_float32_is():
    operator = Linear(lambda x: x.flatten(1) @ MATRIX.T, (2, 4))
    assert (
        operator.dtype == torch.float32 and operator(torch.zeros(1, 2, 4, dtype=torch.float64)).dtype == torch.float64
    )
    assert Linear(torch.diff, (6,)).dtype is None
    with pytest.raises(RuntimeError):
        Linear(lambda x: x.flatten(1) @ MATRIX.T, (3, 4))


def test_an_adjoint_that_is_none():
    with pytest.raises(ValueError, match=r"the adjoint given is none: .* differ by [\d.]+ % of \|A x\| \|y\|"):
        Linear(lambda x: x.cumsum(-1), (6,), lambda y: y.cumsum(-1))
    with pytest.raises(ValueError, match=r"the adjoint makes \(5,\) of a measurement, not samples \(6,\)"):
        Linear(torch.diff, (6,), lambda y: y)


def test_bad_input():
    with pytest.raises(ValueError, match="forward is not linear: it makes values up to 1 of zeros"):
        Linear(lambda x: x + 1, (4,))
    with pytest.raises(ValueError, match=r"linear\(diff\) measures samples of shape \(6,\), not \(7,\)"):
        Linear(torch.diff, (6,))(torch.zeros(1, 7))
