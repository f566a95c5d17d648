"""What is wrong with an operator is found and said. Method: check-operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.operators.blur import Blur
from fewstep.operators.checks import MEND, check_operator, lanczos
from fewstep.operators.downsample import Downsample
from fewstep.operators.jpeg import Jpeg
from fewstep.operators.mask import Inpaint
from fewstep.operators.matrix import Matrix
from fewstep.operators.nonlinear import Clip, Nonlinear

F64 = torch.float64


def test_a_sound_one_is_told_by_its_rank_condition_and_norm():
    matrix = torch.diag(torch.tensor([4.0, 2.0, 0.5, 0.0], dtype=F64))
    for dtype in (torch.float32, F64):
        report = fs.check_operator(Matrix(matrix), (1, 2, 2), dtype=dtype)
        assert report.ok and report.raise_if_wrong() is report and report.measured == (4,)
        assert (report.rank, report.rank_error) == (3, 0)
        assert report.norm == pytest.approx(4) and report.condition == pytest.approx(8)
    text = str(report)
    assert "fits: matrix:<4x4>, (1, 2, 2) to (4,)" in text and "rank 3 of 4" in text and "seconds a call" in text


def test_beyond_a_few_numbers_by_lanczos():
    mask = Inpaint("random", share=0.3)
    report = check_operator(mask, (1, 30, 40))
    assert report.ok and 0 < report.rank_error < 20 and abs(report.rank - 360) < 4 * report.rank_error
    assert report.norm == pytest.approx(1) and report.condition == pytest.approx(1, rel=1e-3)
    assert f"rank {report.rank:.0f} +- " in str(report)
    small = check_operator(Downsample(2), (1, 30, 40))
    assert abs(small.rank - 300) < 4 * small.rank_error and small.norm == pytest.approx(0.5, rel=1e-4)
    blur = check_operator(Blur("gaussian", width=0.4), (1, 24, 24))
    values = torch.linalg.svdvals(Blur("gaussian", width=0.4).fit((24, 24)).matrix())  # along one axis, as a vector's
    assert blur.norm == pytest.approx(1, rel=1e-3) and 1 < blur.condition <= float(values[0] / values[-1]) ** 2 * 1.001


def test_lanczos_finds_the_values_of_a_small_matrix():
    values = torch.tensor([0.0, 0.0, 1.0, 4.0, 9.0], dtype=F64)
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    ritz, weights = lanczos(lambda x: x * values, start, 5)
    for value in (0.0, 1.0, 4.0, 9.0):
        part = (weights * ((ritz - value).abs() < 1e-8)).sum(1)
        wanted = (start.square() * (values == value)).sum(1) / start.square().sum(1)
        if value:  # where a Krylov space has ended, zeros are added without weight
            assert torch.allclose(part, wanted)
    assert torch.allclose(weights.sum(1), torch.ones(3, dtype=F64))


class Untrue(Matrix):
    """With an adjoint of another matrix."""

    def transpose(self, y: Tensor) -> Tensor:
        return super().transpose(y.flip(-1))


MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
WRONG = {
    "adjoint": Untrue(MATRIX),
    "linear": lambda x: x.clamp_min(0),
    "alone": lambda x: x - x.mean(0),
    "dtype": Nonlinear(lambda x: x.double()),
    "again": lambda x: x * torch.rand(()),
    "finite": lambda x: x / 0,
    "slope": Nonlinear(lambda x: x.detach().square() + 0 * x),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str):
    torch.manual_seed(0)
    report = check_operator(WRONG[name], (6,))
    assert not report.ok and report.advice == MEND[name] and "FAILS" in str(report) and MEND[name] in str(report)
    with pytest.raises(ValueError) as caught:
        report.raise_if_wrong()
    assert str(caught.value) == MEND[name]


def test_functions_and_their_adjoints():
    assert check_operator(lambda x: x @ MATRIX.T, (6,)).ok
    assert check_operator(lambda x: x @ MATRIX.T, (6,), adjoint=lambda y: y @ MATRIX).ok
    assert check_operator(lambda x: x @ MATRIX.T, (6,), adjoint=lambda y: y @ MATRIX.T).advice == MEND["adjoint"]
    affine = check_operator(lambda x: x + 1, (6,))
    assert affine.advice == MEND["linear"]


def test_what_is_not_linear_is_checked_by_its_gradient():
    for operator in (Nonlinear(torch.tanh), Clip(-0.3, 0.4)):
        report = check_operator(operator, (1, 8, 8))
        assert report.ok and report.rank != report.rank and "rank" not in str(report)
    # A rounding's differences are not its gradient, which JPEG's goes straight through: said, not hidden.
    assert check_operator(Jpeg(20), (1, 8, 8)).advice == MEND["slope"]


def test_bad_input():
    with pytest.raises(ValueError, match="an adjoint goes with a function"):
        check_operator(Matrix(MATRIX), (6,), adjoint=lambda y: y)
    with pytest.raises(ValueError, match="checked in float32 or float64, got torch.float16"):
        check_operator(Matrix(MATRIX), (6,), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"a matrix of 6 columns measures samples of 6 numbers, not \(7,\)"):
        check_operator(Matrix(MATRIX), (7,))
