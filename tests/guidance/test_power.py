"""The power of a model's law: its eps times a number in every kind of prediction, and what it says it is made of."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.power import Power
from fewstep.processes.vp import VP

F64 = torch.float64


class Kind(GaussianMixture):
    kind = "x0"

    def forward(self, x, t, **condition):
        answer = super().forward(x, t)
        return Prediction(answer.to(self.kind), self.kind, x, t, self.process)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score", "flow"])
def test_eps_is_multiplied_whatever_is_predicted(kind):
    model = Kind(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2, VP())
    model.kind = kind
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (torch.tensor(0.3, dtype=F64), torch.tensor([0.1, 0.5, 0.9], dtype=F64)):
        base, answer = model(x, t), fs.guide(model, "power", beta=1.7)(x, t)
        assert answer.kind == kind
        torch.testing.assert_close(answer.eps, 1.7 * base.eps)
        torch.testing.assert_close(answer.score, 1.7 * base.score)
        assert torch.equal(Power(model, 1.0)(x, t).value, base.value)


def test_at_a_clean_state_it_stays_there():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.2, VP())
    x = torch.randn(3, 2, dtype=F64)
    answer = Power(model, 2.0)(x, torch.tensor(model.process.t_zero, dtype=F64))
    torch.testing.assert_close(answer.x0, x)


def test_powers_multiply():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.2, VP())
    x, t = torch.randn(3, 2, dtype=F64), torch.tensor(0.5, dtype=F64)
    betas, (answer,) = Power(Power(model, 2.0), 1.5).terms(x, t, None, {})
    assert betas == (3.0,) and torch.equal(answer.value, model(x, t).value)
    assert Power(model, 2.0).describe()["power"] == 2.0


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_input(beta):
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.2, VP())
    with pytest.raises(ValueError, match="beta must be above 0 and finite, got"):
        fs.guide(model, "power", beta=beta)
