"""Answers changed in another kind, and sums over each sample."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.prediction import Prediction
from fewstep.guidance.kinds import inner, into, norm, through
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

F64 = torch.float64
X, VALUE = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda process: process.name)
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_a_change_in_another_kind_comes_back(kind, process):
    for t in (0.2, 0.8):
        answer = Prediction(VALUE, kind, X, torch.tensor(t, dtype=F64), process)
        for other in ("x0", "eps", "v", "velocity"):
            torch.testing.assert_close(into(other, answer), answer.to(other))
            changed = answer.replaced(through(lambda value: 2 * value + 1, answer, other))
            torch.testing.assert_close(changed.to(other), 2 * answer.to(other) + 1)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_what_is_finite_stays_finite_at_both_ends(kind):
    for t in (0.0, 1.0):
        answer = Prediction(VALUE, kind, X, torch.tensor(t, dtype=F64), Flow())
        for other in ("x0", "eps", "velocity"):
            assert bool(torch.isfinite(into(other, answer)).all())
            same = through(lambda value: value, answer, other)
            torch.testing.assert_close(same, VALUE, rtol=1e-9, atol=1e-9)


def test_sums_over_each_sample():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    assert norm(a)[0].item() == 5 and 0 < norm(a)[1].item() < 1e-30 and norm(a).shape == (2, 1)
    assert inner(a, b).tolist() == [[11.0], [0.0]] and inner(X, VALUE).shape == (3, 1, 1)
