"""CFG-Zero*, "zero-star"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scaled import Scaled
from torch import Tensor

import fewstep as fs
from fewstep.core.prediction import Prediction
from fewstep.guidance.zero_star import zero_star
from fewstep.processes.flow import Flow

F64 = torch.float64
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


class Velocity(Scaled):
    """The model's velocity, the one without a label times a number."""

    def __init__(self, factor: float = 1.0):
        super().__init__(Flow())
        self.factor = factor

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **condition: Any) -> Prediction:
        assert label is not None
        # Not along the state, as the exact velocities are.
        lean = torch.tensor([0.3, -0.2, 0.1], dtype=x.dtype)
        velocity = super().forward(x, t, label).velocity + torch.where(label[:, None] == 2, lean, 0 * lean)
        return Prediction(velocity * torch.where(label[:, None] == 2, self.factor, 1.0), "velocity", x, t, self.process)


def guided(factor: float = 1.0, **options: Any) -> Tensor:
    t, label = torch.tensor(0.4, dtype=F64), torch.zeros(4, dtype=torch.long)
    return zero_star(Velocity(factor), 3.0, **options)(X, t, label=label).value


def test_the_size_of_the_empty_answer_does_not_matter():
    for factor in (0.01, -2.0, 300.0):
        torch.testing.assert_close(guided(factor), guided(), rtol=1e-9, atol=1e-9)
    t, label = torch.tensor(0.4, dtype=F64), torch.zeros(4, dtype=torch.long)
    c, u = (Velocity()(X, t, label=label + n).value for n in (0, 2))
    s = (c * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
    torch.testing.assert_close(guided(), s * u + 3.0 * (c - s * u))
    assert bool(torch.isfinite(guided(0.0)).all())


def test_the_first_evaluations_do_not_move():
    model = Velocity()
    plan = fs.plan(model.process, "ddim", 6)
    made = zero_star(model, 3.0, zero_steps=2)
    states = plan.run(made, X, label=0, dtype=F64, trajectory=True).trajectory
    torch.testing.assert_close(states[2], states[0])
    assert float((states[3] - states[2]).norm()) > 0.01
    with pytest.raises(ValueError, match="zero_steps counts the evaluations of a run"):
        made(X, torch.tensor(0.4), label=torch.zeros(4).long())
    with pytest.raises(ValueError, match="zero_steps must be a whole number of at least 0"):
        zero_star(model, 3.0, zero_steps=-1)
