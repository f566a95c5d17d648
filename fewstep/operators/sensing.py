"""Compressed sensing: fewer random products of a sample than it has numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.operators.cosine import cosine_matrix
from fewstep.operators.operator import COLUMNS, LinearOperator, size_axes
from fewstep.operators.spectrum import Right, Spectrum

METHODS = (
    Method(
        "sensing",
        paper="Compressed sensing (Donoho, 2006)",
        claim="fewer random products than numbers, of the sample or of each of its blocks",
        use="Sensing",
    ),
)

ROWS = ("orthonormal", "hadamard", "gaussian")


class Sensing(LinearOperator):
    """`y = A x` with a random A of m rows and d columns, d the numbers of a sample, or of a block of it.

    Args:
        count: m, a whole number, or a share of d between 0 and 1.
        rows: "orthonormal", of a random basis; "hadamard", rows of a fast one (random signs, the Hadamard transform
            along the power of two in d, the cosine transform along what is left of it), without a matrix; or
            "gaussian", entries of variance 1 / m.
        block: the side of blocks of all channels, each measured by the same A: y is `(m, *size / block)`, else `(m,)`.
        seed: of A.

    Raises:
        ValueError: more rows than numbers, a block that does not divide the size, more than 4096 columns with a matrix.
    """

    matrix_given: Tensor
    signs: Tensor
    chosen: Tensor

    def __init__(self, count: int | float, rows: str = "orthonormal", block: int | None = None, seed: int = 0):
        super().__init__()
        if rows not in ROWS:
            raise suggest("kind of rows", rows, ROWS)
        whole = isinstance(count, int) and not isinstance(count, bool)
        if isinstance(count, bool) or not (count >= 1 if whole else 0 < count < 1):
            raise ValueError(f"sensing takes a count of products (1 or more) or a share (0.25), got {count!r}")
        if block is not None and block < 1:
            raise ValueError(f"the side of a block is a whole number of at least 1, got {block}")
        self.count, self.rows, self.block, self.seed = count, rows, block, seed

    def config(self) -> dict[str, Any]:
        return {"count": self.count, "rows": self.rows, "block": self.block, "seed": self.seed}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = size_axes(shape)
        if self.block is not None and any(shape[axis] % self.block for axis in axes):
            raise ValueError(f"{self} needs sizes that {self.block} divides, got samples of shape {shape}")
        grid = () if self.block is None else tuple(shape[axis] // self.block for axis in axes)
        self.grid, self.columns = grid, math.prod(shape) // math.prod(grid)
        self.m = self.count if isinstance(self.count, int) else max(1, round(self.count * self.columns))
        if self.m > self.columns:
            what = "samples" if self.block is None else "blocks"
            raise ValueError(f"{self} takes more products than the {self.columns} numbers of {what}, {shape}")
        if self.rows != "hadamard" and self.columns > COLUMNS:
            raise ValueError(
                f"a random matrix of {self.columns} columns is too large (at most {COLUMNS}): take rows='hadamard', or"
                " a block"
            )
        self._drawn()
        return (self.m, *grid)

    def _drawn(self) -> None:
        generator, d = torch.Generator().manual_seed(self.seed), self.columns
        if self.rows == "hadamard":
            signs = torch.randint(0, 2, (d,), generator=generator).double() * 2 - 1
            self.register_buffer("signs", signs, persistent=False)
            self.register_buffer("chosen", torch.randperm(d, generator=generator)[: self.m], persistent=False)
            return
        rows = d if self.rows == "orthonormal" else self.m
        matrix = torch.randn(rows, d, generator=generator, dtype=torch.float64)
        matrix = torch.linalg.qr(matrix).Q if self.rows == "orthonormal" else matrix / math.sqrt(self.m)
        self.register_buffer("matrix_given", matrix, persistent=False)
        self.register_buffer("chosen", torch.arange(self.m), persistent=False)

    def _blocks(self, x: Tensor) -> Tensor:
        """`(B, blocks, d)` of samples."""
        if self.block is None:
            return x.reshape(len(x), 1, -1)
        axes = size_axes(x.shape[1:])
        for axis in reversed(axes):
            x = x.unflatten(axis + 1, (-1, self.block))
        grid = [axis + 1 + number for number, axis in enumerate(axes)]
        return x.movedim(grid, list(range(1, 1 + len(grid)))).reshape(len(x), -1, self.columns)

    def _whole(self, blocks: Tensor) -> Tensor:
        assert self.shape is not None
        if self.block is None:
            return blocks.reshape(-1, *self.shape)
        axes = size_axes(self.shape)
        x = blocks.reshape(-1, *self.grid, *self.shape[: axes.start], *[self.block] * len(axes))
        grid = [axis + 1 + number for number, axis in enumerate(axes)]
        return x.movedim(list(range(1, 1 + len(grid))), grid).reshape(-1, *self.shape)

    def _turned(self, blocks: Tensor, back: bool) -> Tensor:
        """All d products with the basis, or back from them."""
        if self.rows != "hadamard":
            basis = self.matrix_given.to(blocks.dtype)
            return blocks @ (basis if back else basis.mT)
        signs = self.signs.to(blocks.dtype)
        two = self.columns & -self.columns  # the power of two in d
        cosines = cosine_matrix(self.columns // two).to(blocks)
        z = (blocks if back else blocks * signs).unflatten(-1, (-1, two))
        z = hadamard((cosines.mT if back else cosines) @ z).flatten(-2)
        return z * signs if back else z

    def act(self, x: Tensor) -> Tensor:
        y = self._turned(self._blocks(x), False)[..., self.chosen]
        return y.mT.reshape(len(x), *self.out)

    def transpose(self, y: Tensor) -> Tensor:
        products = y.reshape(len(y), self.m, -1).mT
        if self.rows == "gaussian":
            return self._whole(self._turned(products, True))
        z = torch.zeros(*products.shape[:2], self.columns, dtype=y.dtype, device=y.device)
        z[..., self.chosen] = products
        return self._whole(self._turned(z, True))

    def find_spectrum(self) -> Spectrum | None:
        if self.rows == "gaussian":
            return super().find_spectrum()
        assert self.shape is not None
        values = torch.zeros(self.columns, dtype=torch.float64, device=self.chosen.device)
        values[self.chosen] = 1
        count, d = math.prod(self.grid), self.columns
        turn = (
            lambda x: self._turned(self._blocks(x), False).flatten(1),
            lambda z: self._whole(self._turned(z.reshape(-1, count, d), True)),
        )
        return Right(values.repeat(count), turn, (self.act, self.transpose), self.shape, self.out)


def hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of the last axis, whose length is a power of two; its own inverse."""
    n, half = x.shape[-1], 1
    while half < n:
        a, b = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack((a + b, a - b), -2).flatten(-3)
        half *= 2
    return x / math.sqrt(n)
