"""Parallel beams: sums along rows, columns and diagonals, and what every view keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.operators.projections import Projections
from fewstep.operators.sparse import SparseOperator

X = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rows_and_columns():
    y = Projections(2)(X)  # 0 and 90 degrees
    assert y.shape == (2, 3, 2, 11)
    # The middles of an even number of pixels lie between two detectors.
    columns = torch.nn.functional.pad(X.sum(2), (1, 2))
    shifted = (columns + columns.roll(1, -1)) / 2
    assert torch.allclose(y[:, :, 0], shifted)
    assert torch.allclose(y[:, :, 1, 3:8], X.sum(3)) and float(y[:, :, 1, :3].abs().max()) == 0


def test_every_view_keeps_the_sum_and_the_middle_of_mass():
    angles = [0.0, 17.0, 45.0, 123.4]
    x = X.abs()
    y = Projections(angles)(x)
    assert torch.allclose(y.sum(-1), x.sum((2, 3))[..., None].expand(-1, -1, 4))
    across, down = torch.arange(8).double() - 3.5, torch.arange(5).double() - 2
    turn = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    wanted = (x * across).sum((2, 3))[..., None] * turn.cos() + (x * down[:, None]).sum((2, 3))[..., None] * turn.sin()
    assert torch.allclose((y * (torch.arange(11).double() - 5)).sum(-1), wanted)


class Picked(SparseOperator):
    """The third element, and three times the sum of the first two, said in parts."""

    def entries(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor, Tensor]:
        return (2,), torch.tensor([[0, 1, 1, 1], [2, 0, 1, 1]]), torch.tensor([1.0, 3.0, 2.0, 1.0])


def test_a_sparse_matrix_is_the_same_for_every_channel_and_its_parts_add_up():
    x = torch.arange(8.0).reshape(1, 2, 4)
    assert Picked()(x).tolist() == [[[2.0, 3.0], [6.0, 27.0]]] and Picked()(x[:, 1]).tolist() == [[6.0, 27.0]]
    half = Picked()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.tolist() == [[[2.0, 3.0], [6.0, 27.0]]]


def test_bad_input():
    for angles in (0, [], [float("nan")]):
        with pytest.raises(ValueError, match="projections take at least one angle"):
            Projections(angles)
    with pytest.raises(ValueError, match=r"pictures \(C, H, W\), not of sizes \(4, 4, 4\): take a volume's slices"):
        Projections(3)(torch.zeros(1, 1, 4, 4, 4))
