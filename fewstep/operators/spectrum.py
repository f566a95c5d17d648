"""Singular values and vectors of linear operators, `A = U S V^T`, in the forms in which they are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fewstep.operators.cosine import cosine_matrix

LEAST = 1e-6  # of the largest singular value: one below it counts as zero


class Spectrum(nn.Module):
    """`A = U diag(s) V^T`, with d columns of V: `values` `(d,)` in float64, zero for what the measurement does not see.

    `into` and `back` go to the coordinates of V and from them, `of` to those of U and `out` from them; the coordinates
    of U are padded with zeros, or cut, to d. What of y lies outside the range of A, `of` loses.
    """

    values: Tensor

    def __init__(self, values: Tensor, shape: Sequence[int], out: Sequence[int]):
        super().__init__()
        self.shape, self.measured = tuple(shape), tuple(out)
        largest = values.max() if values.numel() else values.new_zeros(())
        self.register_buffer("values", torch.where(values > LEAST * largest, values, 0.0), persistent=False)

    def into(self, x: Tensor) -> Tensor:
        """`V^T x` `(B, d)` of samples."""
        raise NotImplementedError

    def back(self, z: Tensor) -> Tensor:
        """`V z` `(B, *shape)`."""
        raise NotImplementedError

    def of(self, y: Tensor) -> Tensor:
        """`U^T y` `(B, d)` of measurements, zero where the singular value is."""
        raise NotImplementedError

    def out(self, z: Tensor) -> Tensor:
        """`U z` `(B, *measured)`, of the coordinates whose singular value is not zero."""
        raise NotImplementedError

    def seen(self) -> Tensor:
        """Which coordinates the measurement sees, `(d,)`."""
        return self.values > 0

    def inverse(self) -> Tensor:
        """`1 / s`, 0 where s is, `(d,)`."""
        return torch.where(self.values > 0, 1 / self.values.clamp_min(torch.finfo(self.values.dtype).tiny), 0.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self.seen().sum())} of {len(self.values)} seen)"


class Dense(Spectrum):
    """Of a matrix `(m, d)`, by its singular value decomposition in float64."""

    u: Tensor
    v: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int], out: Sequence[int]):
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=True)
        d = vh.shape[0]
        rank = min(d, u.shape[0])
        values = torch.zeros(d, dtype=torch.float64, device=s.device)
        values[:rank] = s
        super().__init__(values, shape, out)
        kept = torch.zeros(u.shape[0], d, dtype=torch.float64, device=s.device)
        kept[:, :rank] = u[:, :rank]
        self.register_buffer("u", kept * self.seen(), persistent=False)
        self.register_buffer("v", vh.mT.contiguous(), persistent=False)

    def into(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.v.to(x.dtype)

    def back(self, z: Tensor) -> Tensor:
        return (z @ self.v.to(z.dtype).mT).reshape(-1, *self.shape)

    def of(self, y: Tensor) -> Tensor:
        return y.flatten(1) @ self.u.to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return (z @ self.u.to(z.dtype).mT).reshape(-1, *self.measured)


class Chosen(Spectrum):
    """Of `values x` at each element `(d,)`, of which the measurement holds those at `places` `(m,)`, in this order."""

    places: Tensor

    def __init__(self, values: Tensor, places: Tensor, shape: Sequence[int], out: Sequence[int]):
        super().__init__(values.abs(), shape, out)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("signs", torch.where(values < 0, -1.0, 1.0).to(torch.float64), persistent=False)

    signs: Tensor

    def into(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def back(self, z: Tensor) -> Tensor:
        return z.reshape(-1, *self.shape)

    def of(self, y: Tensor) -> Tensor:
        z = torch.zeros(len(y), math.prod(self.shape), dtype=y.dtype, device=y.device)
        z[:, self.places] = y.flatten(1)
        return z * (self.signs * self.seen()).to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return (z * (self.signs * self.seen()).to(z.dtype))[:, self.places].reshape(-1, *self.measured)


def on_axis(x: Tensor, matrix: Tensor | None, axis: int) -> Tensor:
    """A matrix applied along one axis of samples, counted without the batch's; None is the identity."""
    if matrix is None:
        return x
    return (x.movedim(axis + 1, -1) @ matrix.to(x.dtype).mT).movedim(-1, axis + 1)


class Axes(Spectrum):
    """Of a Kronecker product of matrices along the axes of a sample: the products of their singular values."""

    def __init__(self, matrices: Sequence[Tensor | None], shape: Sequence[int], out: Sequence[int]):
        product = torch.ones((), dtype=torch.float64)
        parts: list[Dense | None] = []
        for matrix, n in zip(matrices, shape, strict=True):
            part = None if matrix is None else Dense(matrix, (n,), (matrix.shape[0],))
            own = torch.ones(n, dtype=torch.float64) if part is None else part.values
            product = product[..., None] * own.to(product.device if part is None else own.device)
            parts.append(part)
        super().__init__(product.flatten(), shape, out)
        self.parts = nn.ModuleDict({str(axis): part for axis, part in enumerate(parts) if part is not None})

    def _each(self, x: Tensor, shape: Sequence[int], name: str, transposed: bool) -> Tensor:
        x = x.reshape(-1, *shape)
        for axis, part in self.parts.items():
            matrix: Tensor = getattr(part, name)
            x = on_axis(x, matrix.mT if transposed else matrix, int(axis))
        return x

    def into(self, x: Tensor) -> Tensor:
        return self._each(x, self.shape, "v", True).flatten(1)

    def back(self, z: Tensor) -> Tensor:
        return self._each(z, self.shape, "v", False)

    def of(self, y: Tensor) -> Tensor:
        # A value small beside the largest product counts as zero, though it may not be so along its own axis.
        return self._each(y, self.measured, "u", True).flatten(1) * self.seen().to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return self._each(z * self.seen().to(z.dtype), self.shape, "u", False)


class Cyclic(Spectrum):
    """Of a cyclic convolution along the last axes of a sample, given its kernel's Fourier transform.

    With `A = F^* diag(k) F`, `|A| = F^* diag(|k|) F` is symmetric and real, and diagonal in the Hartley transform
    `H x = Re F x - Im F x`, which is its own inverse; A is `|A|` after a turn of the phases, `F^* diag(k / |k|) F`.
    """

    phase: Tensor

    def __init__(self, transform: Tensor, shape: Sequence[int]):
        """transform: complex `(*size)`, unnormalised, of a real kernel whose middle is at the origin."""
        self.axes = transform.ndim
        rest = math.prod(tuple(shape)[: len(tuple(shape)) - transform.ndim])
        modulus = transform.abs()
        super().__init__(modulus.flatten().repeat(rest).double(), shape, shape)
        turned = torch.where(modulus > 0, transform / modulus.clamp_min(1e-300), 1.0)
        self.register_buffer("phase", turned, persistent=False)

    def _hartley(self, x: Tensor) -> Tensor:
        f = torch.fft.fftn(x, dim=tuple(range(-self.axes, 0)), norm="ortho")
        return f.real - f.imag

    def _turn(self, y: Tensor, back: bool) -> Tensor:
        dims = tuple(range(-self.axes, 0))
        phase = self.phase.conj() if back else self.phase
        f = torch.fft.fftn(y, dim=dims)
        return torch.fft.ifftn(f * phase.to(f.dtype), dim=dims).real

    def into(self, x: Tensor) -> Tensor:
        return self._hartley(x).flatten(1)

    def back(self, z: Tensor) -> Tensor:
        return self._hartley(z.reshape(-1, *self.shape))

    def of(self, y: Tensor) -> Tensor:
        return self.into(self._turn(y, True)) * self.seen().to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return self._turn(self.back(z * self.seen().to(z.dtype)), False)


class Symmetric(Spectrum):
    """Of an operator with the cosines along the last axes of a sample as eigenvectors: `C^T diag(values) C`."""

    signs: Tensor

    def __init__(self, eigenvalues: Tensor, shape: Sequence[int]):
        """eigenvalues: of each frequency `(*size)`, of either sign."""
        self.axes = range(len(tuple(shape)) - eigenvalues.ndim, len(tuple(shape)))
        every = eigenvalues.double().flatten().repeat(math.prod(tuple(shape)[: self.axes.start]))
        super().__init__(every.abs(), shape, shape)
        self.register_buffer("signs", torch.where(every < 0, -1.0, 1.0).double() * self.seen(), persistent=False)

    def into(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            x = on_axis(x, cosine_matrix(x.shape[axis + 1]).to(x), axis)
        return x.flatten(1)

    def back(self, z: Tensor) -> Tensor:
        x = z.reshape(-1, *self.shape)
        for axis in self.axes:
            x = on_axis(x, cosine_matrix(x.shape[axis + 1]).to(x).mT, axis)
        return x

    def of(self, y: Tensor) -> Tensor:
        return self.into(y) * self.signs.to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return self.back(z * self.signs.to(z.dtype))


class Right(Spectrum):
    """Of an operator whose right singular vectors and values are known; the left ones are `A v / s`.

    Args:
        turn: `V^T x` `(B, d)`, and back. operator: `A x`, and `A^T y`.
    """

    def __init__(
        self,
        values: Tensor,
        turn: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        operator: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        shape: Sequence[int],
        out: Sequence[int],
    ):
        super().__init__(values, shape, out)
        self._turn, self._operator = turn, operator

    def into(self, x: Tensor) -> Tensor:
        return self._turn[0](x)

    def back(self, z: Tensor) -> Tensor:
        return self._turn[1](z)

    def of(self, y: Tensor) -> Tensor:
        return self.into(self._operator[1](y)) * self.inverse().to(y.dtype)

    def out(self, z: Tensor) -> Tensor:
        return self._operator[0](self.back(z * self.inverse().to(z.dtype)))
