"""The boundary of a consistency model: exact at the clean end, LCM's scalings elsewhere, saved and loaded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.core.config import built, config
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.core.student import Student
from fewstep.denoisers.boundary import Boundary
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP

F64 = torch.float64


class Threes(Denoiser):
    """A model whose x0 is 3 everywhere."""

    def __init__(self, process: object) -> None:
        super().__init__()
        self.process, self.shape = process, (2,)

    def forward(self, x: Tensor, t: Tensor, **condition: object) -> Prediction:
        return Prediction(torch.full_like(x, 3.0), "x0", x, t, self.process)


@pytest.mark.parametrize("process", [EDM(), VE(), VP(), Flow()], ids=lambda p: p.name)
def test_exact_at_the_clean_end_and_finite_at_pure_noise(process):
    model, x = Boundary(Threes(process)), torch.randn(2, 2, dtype=F64)
    answer = model(x, torch.tensor([process.t_zero, process.t_max], dtype=F64))
    assert torch.equal(answer.x0[0], x[0])
    torch.testing.assert_close(answer.x0[1], torch.full((2,), 3.0, dtype=F64), rtol=0, atol=1e-5)
    assert answer.kind == "x0"


def test_the_scalings_by_hand():
    """EDM, smallest noise 0.002: at 0.004 LCM's time is 20, c_skip = 0.25 / 400.25, c_out = 20 / sqrt(400.25)."""
    model, x = Boundary(Threes(EDM())), torch.full((1, 2), 7.0, dtype=F64)
    expected = 0.25 / 400.25 * 7.0 + 20 / math.sqrt(400.25) * 3.0
    torch.testing.assert_close(model(x, torch.tensor([0.004], dtype=F64)).x0, torch.full_like(x, expected))


def test_of_any_process_it_is_a_function_of_the_noise_to_signal_ratio():
    answers = []
    for process in (EDM(sigma_min=0.01), VP(t_min=float(VP().time(torch.tensor(-math.log(0.01), dtype=F64))))):
        t = process.time(torch.tensor([-math.log(0.02)], dtype=F64))
        x = process.alpha(t)[:, None] * torch.full((1, 2), 7.0, dtype=F64)
        answers.append(Boundary(Threes(process))(x, t).x0)
    torch.testing.assert_close(answers[0], answers[1])


def test_saved_and_built_again():
    base = GaussianMixture(torch.ones(2), torch.randn(2, 2), 0.3, EDM(), dtype=torch.float32)
    model = Boundary(base)
    model.student = Student("jump", "lcm", start=3.0)
    again = built(config(model), model.state_dict())
    x, t = torch.randn(3, 2), torch.tensor([0.0, 0.01, 1.0], dtype=F64)
    assert isinstance(again, Boundary) and again.student == model.student
    assert torch.equal(model(x, t).x0, again(x, t).x0)
