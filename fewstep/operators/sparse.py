"""What operators share that are sparse matrices, the same for every channel."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from fewstep.operators.operator import LinearOperator, size_axes


class SparseOperator(LinearOperator):
    """`y = M x` of each channel of samples `(C, *size)`, or of vectors, with a sparse M; the adjoint is its transpose.

    A kind writes `entries`. A measurement is `(C, *out)`, or `(*out)` of a vector.
    """

    places: Tensor
    weights: Tensor

    @abstractmethod
    def entries(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """The measurement's shape without its channels, the places `(2, entries)` of M's numbers, and these."""

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = size_axes(shape)
        out, places, weights = self.entries(tuple(shape[axis] for axis in axes))
        self.sides = math.prod(out), math.prod(shape[axis] for axis in axes)
        whole = torch.sparse_coo_tensor(places, weights.double(), self.sides, check_invariants=True).coalesce()
        self.register_buffer("places", whole.indices(), persistent=False)
        self.register_buffer("weights", whole.values(), persistent=False)
        return (*shape[: axes.start], *out)

    def _times(self, x: Tensor, back: bool) -> Tensor:
        """M, or its transpose, times the last axis of `(..., n)`."""
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        places, sides = (self.places.flip(0), self.sides[::-1]) if back else (self.places, self.sides)
        weights = self.weights.to(dtype)
        matrix = torch.sparse_coo_tensor(places, weights, sides, is_coalesced=not back, check_invariants=False)
        return torch.sparse.mm(matrix, x.reshape(-1, sides[1]).to(dtype).T).T.to(x.dtype)

    def act(self, x: Tensor) -> Tensor:
        return self._times(x, False).reshape(-1, *self.out)

    def transpose(self, y: Tensor) -> Tensor:
        assert self.shape is not None
        return self._times(y, True).reshape(-1, *self.shape)
