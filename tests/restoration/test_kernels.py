"""Families of kernels against the blurs that they are made of."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, normal

import fewstep as fs
from fewstep.restoration.kernels import Kernels


@pytest.mark.parametrize(("taps", "shape"), [((3,), (D,)), ((3, 5), (2, 6, 7))])
def test_every_row_has_its_own_blur(taps, shape):
    phi, x = normal(3, *taps, seed=1).abs(), normal(3, *shape, seed=2)
    phi = phi / phi.flatten(1).sum(1).reshape(-1, *[1] * len(taps))
    family = Kernels(fs.operators.Blur(torch.ones(taps)).fit(shape))
    found = family.apply(phi.flatten(1), x)
    columns = (family.columns(x) @ phi.flatten(1).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(columns, found.flatten(1), atol=1e-10)
    for row in range(3):
        assert torch.allclose(found[row], fs.operators.Blur(phi[row])(x[row : row + 1])[0], atol=1e-10)


def test_frequencies_say_what_was_measured():
    phi, x = torch.tensor([[0.2, 0.7, 0.1], [0.25, 0.5, 0.25]], dtype=torch.float64), normal(2, D, seed=2)
    family = Kernels(fs.operators.Blur(torch.ones(3)).fit((D,)))
    told, deviation, seen = family.measured(phi, family.apply(phi, x), 0.1)
    assert torch.allclose(told[seen], family.into(x)[seen], atol=1e-9)
    assert seen.sum(1).tolist() == [6, 5]  # 1, 2, 1 has an exact zero
    assert float(deviation[0, 0]) == pytest.approx(0.1)


def test_only_cyclic_blurs_have_unknown_kernels():
    for operator in (fs.operators.Identity().fit((D,)), fs.operators.Blur(torch.ones(3), border="reflect").fit((D,))):
        with pytest.raises(ValueError, match="unknown kernels start from a cyclic Blur"):
            Kernels(operator)
