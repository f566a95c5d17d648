"""Random products: their bases, blocks and seeds."""

from __future__ import annotations

import pytest
import torch

from fewstep.operators.sensing import Sensing, hadamard


def test_hadamards_transform():
    matrix = hadamard(torch.eye(8, dtype=torch.float64))
    two = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64) / 2**0.5
    assert torch.allclose(matrix, torch.kron(two, torch.kron(two, two)))


@pytest.mark.parametrize("rows", ["orthonormal", "hadamard"])
@pytest.mark.parametrize("shape", [(1, 4, 6), (16,), (1, 3, 5)])
def test_orthonormal_rows(rows: str, shape: tuple[int, ...]):
    a = Sensing(0.5, rows, seed=3).fit(shape).matrix()
    assert a.shape == (round(0.5 * a.shape[1]), a.shape[1])
    assert torch.allclose(a @ a.T, torch.eye(len(a), dtype=torch.float64))
    assert not torch.allclose(a, Sensing(0.5, rows, seed=4).fit(shape).matrix())


def test_gaussian_entries_have_the_variance_of_a_count():
    a = Sensing(100, "gaussian").fit((200,)).matrix()
    assert float(a.var()) == pytest.approx(0.01, rel=0.05)  # of 20,000 draws: 5 deviations


@pytest.mark.parametrize("rows", ["orthonormal", "hadamard", "gaussian"])
def test_every_block_is_measured_by_the_same(rows: str):
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    y = Sensing(5, rows, block=4)(x)
    assert y.shape == (2, 5, 1, 2)
    for number in range(2):
        alone = Sensing(5, rows)(x[..., 4 * number : 4 * number + 4].contiguous())
        assert torch.allclose(y[:, :, 0, number], alone)


def test_bad_input():
    for count in (0, 1.5, -1, True, 0.0):
        with pytest.raises(ValueError, match=r"a count of products \(1 or more\) or a share"):
            Sensing(count)
    with pytest.raises(ValueError, match="did you mean 'hadamard'"):
        Sensing(2, "hadamar")
    with pytest.raises(ValueError, match="takes more products than the 8 numbers of samples"):
        Sensing(9).fit((8,))
    with pytest.raises(ValueError, match=r"needs sizes that 3 divides, got samples of shape \(1, 4, 4\)"):
        Sensing(1, block=3).fit((1, 4, 4))
    with pytest.raises(ValueError, match=r"a random matrix of 12288 columns is too large \(at most 4096\)"):
        Sensing(0.1).fit((3, 64, 64))
    with pytest.raises(ValueError, match="the side of a block is a whole number of at least 1, got 0"):
        Sensing(1, block=0)
