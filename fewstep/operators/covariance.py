"""Covariances of samples and of noise: a number, a variance for each element or frequency, or a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.operators.cosine import cosine_matrix
from fewstep.operators.spectrum import on_axis


class Covariance:
    """A covariance C of samples of one shape, the same for a whole batch, or, with a batch's axis, one for each."""

    def times(self, x: Tensor) -> Tensor:
        """`C x` of vectors `(B, *shape)`."""
        raise NotImplementedError

    def root(self, z: Tensor) -> Tensor:
        """`C^(1/2) z`: a draw of `N(0, C)` from standard normals `(B, *shape)`."""
        raise NotImplementedError

    def scaled(self, factor: float | Tensor) -> Covariance:
        """`factor C`; the factor is a number, `()` or `(B,)`."""
        raise NotImplementedError

    def mean(self) -> Tensor:
        """The mean variance of an element, `(1,)` or `(B,)`."""
        raise NotImplementedError

    def resolvent(self, k: float, s: float, x: Tensor) -> Tensor:
        """`(k C + s I)^{-1} x` of vectors `(B, *shape)`; s above 0."""
        raise NotImplementedError

    def left(self, k: float, s: float) -> Covariance:
        """`C - k C (k C + s I)^{-1} C`: what is left of C once `sqrt(k) x + sqrt(s) z` is known, x having C."""
        raise NotImplementedError

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """C as matrices `(1 or B, d, d)` in float64."""
        d, rows = math.prod(shape), len(self.mean())
        eye = torch.eye(d, dtype=torch.float64, device=self.mean().device)
        if rows == 1:
            return self.times(eye.reshape(d, *shape)).reshape(1, d, d)
        columns = [self.times(one.reshape(1, *shape).expand(rows, *shape)).reshape(rows, d) for one in eye]
        return torch.stack(columns, 2)


def _rows(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, `()` or `(B,)`, shaped to multiply `(B, *shape)`."""
    value = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def _left(variances: Tensor, k: float, s: float) -> Tensor:
    total = k * variances + s
    return torch.where(total > 0, variances * s / torch.where(total > 0, total, 1.0), 0.0)


class Same(Covariance):
    """`c I`. c: a number, `()` or `(B,)`."""

    def __init__(self, variance: float | Tensor):
        self.variance = torch.as_tensor(variance, dtype=torch.float64).reshape(-1)

    def times(self, x: Tensor) -> Tensor:
        return _rows(self.variance, x) * x

    def root(self, z: Tensor) -> Tensor:
        return _rows(self.variance.sqrt(), z) * z

    def scaled(self, factor: float | Tensor) -> Same:
        return Same(self.variance * torch.as_tensor(factor).to(self.variance).reshape(-1))

    def mean(self) -> Tensor:
        return self.variance

    def resolvent(self, k: float, s: float, x: Tensor) -> Tensor:
        return x / _rows(k * self.variance + s, x)

    def left(self, k: float, s: float) -> Same:
        return Same(_left(self.variance, k, s))


class Elements(Covariance):
    """A variance for each element: `(*shape)`, or `(1 or B, *shape)` with `batched`."""

    def __init__(self, variances: Tensor, batched: bool = False):
        self.variances = variances.double() if batched else variances.double()[None]

    def times(self, x: Tensor) -> Tensor:
        return self.variances.to(x) * x

    def root(self, z: Tensor) -> Tensor:
        return self.variances.sqrt().to(z) * z

    def scaled(self, factor: float | Tensor) -> Elements:
        return Elements(self.variances * _rows(factor, self.variances), batched=True)

    def mean(self) -> Tensor:
        return self.variances.flatten(1).mean(1)

    def resolvent(self, k: float, s: float, x: Tensor) -> Tensor:
        return x / (k * self.variances + s).to(x)

    def left(self, k: float, s: float) -> Elements:
        return Elements(_left(self.variances, k, s), batched=True)


class Cosine(Covariance):
    """A variance for each frequency of the cosine transform along all axes but the channels, as `Elements` has them."""

    def __init__(self, variances: Tensor, batched: bool = False):
        self.variances = variances.double() if batched else variances.double()[None]

    def _turned(self, x: Tensor, factors: Tensor) -> Tensor:
        first = 1 if x.ndim > 2 else 0
        for axis in range(first, x.ndim - 1):
            x = on_axis(x, cosine_matrix(x.shape[axis + 1]).to(x), axis)
        x = factors.to(x) * x
        for axis in range(first, x.ndim - 1):
            x = on_axis(x, cosine_matrix(x.shape[axis + 1]).to(x).mT, axis)
        return x

    def times(self, x: Tensor) -> Tensor:
        return self._turned(x, self.variances)

    def root(self, z: Tensor) -> Tensor:
        return self._turned(z, self.variances.sqrt())

    def scaled(self, factor: float | Tensor) -> Cosine:
        return Cosine(self.variances * _rows(factor, self.variances), batched=True)

    def mean(self) -> Tensor:
        return self.variances.flatten(1).mean(1)

    def resolvent(self, k: float, s: float, x: Tensor) -> Tensor:
        return self._turned(x, 1 / (k * self.variances + s))

    def left(self, k: float, s: float) -> Cosine:
        return Cosine(_left(self.variances, k, s), batched=True)


class Full(Covariance):
    """A matrix `(d, d)`, or `(1 or B, d, d)`, symmetric and not negative."""

    def __init__(self, matrix: Tensor):
        self.values = matrix.double().reshape(-1, *matrix.shape[-2:])
        self._root: Tensor | None = None

    def times(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.values.to(x).expand(len(x), -1, -1), x.flatten(1)).reshape(x.shape)

    def root(self, z: Tensor) -> Tensor:
        if self._root is None:
            values, vectors = torch.linalg.eigh(self.values)
            self._root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        return torch.einsum("bij,bj->bi", self._root.to(z).expand(len(z), -1, -1), z.flatten(1)).reshape(z.shape)

    def scaled(self, factor: float | Tensor) -> Full:
        return Full(self.values * _rows(factor, self.values))

    def mean(self) -> Tensor:
        return self.values.diagonal(dim1=1, dim2=2).mean(1)

    def matrix(self, shape: Sequence[int]) -> Tensor:
        return self.values

    def resolvent(self, k: float, s: float, x: Tensor) -> Tensor:
        whole = k * self.values + s * torch.eye(self.values.shape[-1], dtype=torch.float64, device=self.values.device)
        flat = x.flatten(1).double()
        found = torch.linalg.solve(whole, flat.T[None] if len(whole) == 1 else flat[:, :, None])
        return (found[0].T if len(whole) == 1 else found[:, :, 0]).to(x.dtype).reshape(x.shape)

    def left(self, k: float, s: float) -> Full:
        values, vectors = torch.linalg.eigh(self.values)
        return Full((vectors * _left(values.clamp_min(0), k, s).unsqueeze(-2)) @ vectors.mT)


class Applied(Covariance):
    """A covariance known by its products alone: `apply(x)` is `C x`, and `draw(z)`, where given, a draw of its law.

    variance: the mean variance of an element.
    """

    def __init__(
        self, apply: Callable[[Tensor], Tensor], variance: float, draw: Callable[[Tensor], Tensor] | None = None
    ):
        self.apply, self.draw = apply, draw
        self.variance = torch.as_tensor(variance, dtype=torch.float64).reshape(1)

    def times(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def root(self, z: Tensor) -> Tensor:
        if self.draw is None:
            raise ValueError("this covariance is known by its products alone: give draw=... to draw from it")
        return self.draw(z)

    def scaled(self, factor: float | Tensor) -> Applied:
        root = torch.as_tensor(factor, dtype=torch.float64) ** 0.5
        draw = None if self.draw is None else lambda z: _rows(root, z) * self.root(z)
        return Applied(lambda x: _rows(factor, x) * self.times(x), float(self.variance) * float(factor), draw)

    def mean(self) -> Tensor:
        return self.variance
