"""Polynomials through known values: the one formula that multistep solvers, forecasts and interpolations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

At = TypeVar("At", float, np.ndarray, Tensor)


def lagrange(nodes: Sequence[Any], at: At) -> list[At]:
    """The Lagrange basis of `nodes` at `at`: for each node the weight of its value in the polynomial through all.

    The weights sum to 1, and one node has the weight 1. Numbers, arrays and tensors alike: `at` of any shape, and
    nodes that are numbers or of a shape that goes with it, for a basis of its own in each element.
    """
    basis = []
    for j, node in enumerate(nodes):
        weight = at**0
        for k, other in enumerate(nodes):
            if k != j:
                weight = weight * ((at - other) / (node - other))
        basis.append(weight)
    return basis
