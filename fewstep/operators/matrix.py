"""A measurement given as a matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.operator import LinearOperator

METHODS = (Method("matrix", claim="any matrix: y = A x of the sample as one vector", use="Matrix"),)


class Matrix(LinearOperator):
    """`y = A x`, x being the sample as a vector. matrix: `(m, d)`, finite, d the numbers of a sample."""

    values: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        values = torch.as_tensor(matrix, dtype=torch.float64)
        if values.ndim != 2 or not values.numel() or not bool(torch.isfinite(values).all()):
            raise ValueError(f"a measurement's matrix is (m, d) of finite numbers, got shape {tuple(values.shape)}")
        self.register_buffer("values", values, persistent=False)

    def config(self) -> dict[str, Any]:
        return {"matrix": self.values}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        m, d = self.values.shape
        if math.prod(shape) != d:
            raise ValueError(f"a matrix of {d} columns measures samples of {d} numbers, not {shape}")
        return (m,)

    def act(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.values.to(x.dtype).mT

    def transpose(self, y: Tensor) -> Tensor:
        assert self.shape is not None
        return (y @ self.values.to(y.dtype)).reshape(-1, *self.shape)

    def matrix(self) -> Tensor:
        return self.values
