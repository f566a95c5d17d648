"""Solutions of `(A C A^T + S) u = r`, which nearly every method of restoration needs: exact, or by Krylov steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.operators.covariance import Covariance, Same
from fewstep.operators.krylov import Solved, conjugate_gradients
from fewstep.operators.operator import LinearOperator
from fewstep.operators.spectrum import LEAST

DIRECT = 256  # measurements up to which the matrix is made and factored: beyond, products are the cheaper way


class Inverse:
    """`u = (A C A^T + S)^{-1} r`, made once for a noise level and used for any number of right-hand sides.

    In closed form where C and S are numbers and the spectrum of A is known, by a factored matrix for at most `DIRECT`
    measurements, and by conjugate gradients otherwise. Where the matrix is singular (S = 0 and a measurement that says
    something twice, or nothing), u is the shortest solution.
    """

    def __init__(
        self, operator: LinearOperator, c: Covariance, s: Covariance, tolerance: float = 1e-6, most: int = 200
    ):
        self.operator, self.c, self.s, self.tolerance, self.most = operator, c, s, tolerance, most
        self.solved: Solved | None = None  # of the last conjugate gradients
        self._factor: tuple[str, Tensor, Tensor | None] | None = None
        spectrum = operator.spectrum()
        self._numbers = isinstance(c, Same) and isinstance(s, Same) and spectrum is not None
        if not self._numbers and math.prod(operator.out) <= DIRECT:
            self._factor = self._factored()

    def __call__(self, r: Tensor) -> Tensor:
        if self._numbers:
            return self._closed(r, self.c.mean(), self.s.mean())
        if self._factor is not None:
            return self._direct(r)
        self.solved = conjugate_gradients(self.apply, r, self._precondition(), self.tolerance, self.most)
        return self.solved.value

    def apply(self, u: Tensor) -> Tensor:
        """`(A C A^T + S) u`."""
        return self.operator(self.c.times(self.operator.adjoint(u))) + self.s.times(u)

    def _closed(self, r: Tensor, c: Tensor, s: Tensor) -> Tensor:
        spectrum = self.operator.spectrum()
        assert spectrum is not None
        c, s = c.to(r.device)[:, None], s.to(r.device)[:, None]
        values, coordinates = spectrum.values.to(r.device), spectrum.of(r)
        total = c * values**2 + s
        inverse = torch.where((total > 0) & (values > 0), 1 / torch.where(total > 0, total, 1.0), 0.0)
        u = spectrum.out(coordinates * inverse.to(r.dtype))
        # What no sample can make has the noise alone.
        rest = r - spectrum.out(coordinates)
        free = torch.where(s > 0, 1 / torch.where(s > 0, s, 1.0), 0.0).reshape(-1, *[1] * (r.ndim - 1))
        return u + free.to(r.dtype) * rest

    def _factored(self) -> tuple[str, Tensor, Tensor | None]:
        shape, out = self.operator.shape or (), self.operator.out
        a = self.operator.matrix()
        matrix = a @ self.c.matrix(shape).to(a) @ a.mT + self.s.matrix(out).to(a)
        matrix = (matrix + matrix.mT) / 2
        if bool((self.s.mean() > 0).all()):
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not bool(failed.any()):
                return "cholesky", factor, None
        values, vectors = torch.linalg.eigh(matrix)
        large = values > LEAST**2 * values.amax(-1, keepdim=True)
        return "eigen", vectors, torch.where(large, 1 / torch.where(large, values, 1.0), 0.0)

    def _direct(self, r: Tensor) -> Tensor:
        assert self._factor is not None
        kind, factor, inverse = self._factor
        flat = r.flatten(1).double()
        if len(factor) == 1:  # one matrix for all: the samples are its columns
            flat = flat.T[None]
        else:
            flat = flat[:, :, None]
        if kind == "cholesky":
            u = torch.cholesky_solve(flat, factor)
        else:
            assert inverse is not None
            u = factor @ (inverse[..., None] * (factor.mT @ flat))
        u = u[0].T if len(factor) == 1 else u[:, :, 0]
        return u.to(r.dtype).reshape(r.shape)

    def _precondition(self) -> Callable[[Tensor], Tensor] | None:
        s = self.s.mean()
        if self.operator.spectrum() is None or bool((s <= 0).any()):
            return None
        return lambda r: self._closed(r, self.c.mean(), s)


def prox(operator: LinearOperator, x: Tensor, y: Tensor, rho: float | Tensor, **options: float) -> Tensor:
    """The z with the least `|y - A z|^2 + rho |z - x|^2` `(B, *shape)`; rho > 0 is a number, `()` or `(B,)`."""
    if bool((torch.as_tensor(rho) <= 0).any()):
        raise ValueError(f"rho must be positive, got {rho}: without it the answer is x + A^+ (y - A x)")
    inverse = Inverse(operator.fit(x.shape[1:]), Same(1.0), Same(rho), **options)  # type: ignore[arg-type]
    return x + operator.adjoint(inverse(y - operator(x)))
