"""Multistep consistency sampling ("multistep-consistency")."""

from __future__ import annotations

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64


class Linear(Denoiser):
    """x0 = x / (1 + t): linear in the state, so that the sample is a known sum."""

    def __init__(self, process):
        super().__init__()
        self.process, self.shape = process, (3,)

    def forward(self, x, t, **condition):
        return Prediction(x / (1 + t), "x0", x, t, self.process)


def test_it_is_algorithm_1():
    process, times = EDM(), [80.0, 5.0, 0.7, 0.0]
    made = plan(process, "multistep-consistency", timesteps=times)
    noise, source = Noise(1).normal(0, (4, 3), "cpu", F64), Noise(9)
    x = noise * 80.0
    for k, (a, b) in enumerate([(80.0, 5.0), (5.0, 0.7)]):
        x = x / (1 + a) + b * source.normal(k + 1, (4, 3), "cpu", F64)
    assert made.nfe == 3
    torch.testing.assert_close(made(Linear(process), noise, seed=9, dtype=F64), x / 1.7)


def test_one_step_is_the_models_answer():
    process = Flow()
    made = plan(process, "multistep-consistency", 1)
    noise = Noise(1).normal(0, (4, 3), "cpu", F64)
    assert not made.stochastic
    torch.testing.assert_close(made(Linear(process), noise, dtype=F64), noise / 2)


def test_the_scale_of_the_data_goes_with_the_noise():
    """Under a process with alpha < 1 the noised sample is `alpha x0 + sigma z`."""
    process = Flow()
    made = plan(process, "multistep-consistency", timesteps=[1.0, 0.25, 0.0])
    noise = Noise(1).normal(0, (4, 3), "cpu", F64)
    middle = 0.75 * noise / 2 + 0.25 * Noise(9).normal(1, (4, 3), "cpu", F64)
    torch.testing.assert_close(made(Linear(process), noise, seed=9, dtype=F64), middle / 1.25)
