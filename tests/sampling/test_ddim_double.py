"""Double steps with noise back over half of the way ("ddim-double")."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from tests.distillation.regressions import COVARIANCE, MEAN

F64 = torch.float64


class Doubled(Denoiser):
    """A student of a Gaussian whose DDIM step over two intervals of a grid is exact, and over the last one."""

    def __init__(self, process, times):
        super().__init__()
        self.process, self.shape = process, (2,)
        self.map = GaussianMap(MEAN, COVARIANCE, process)
        self.to = {a: b for a, b in zip(times, [*times[2:], times[-1]], strict=False)}

    def forward(self, x, t, **condition):
        return self.map(x, t, to=torch.full((len(x),), self.to[float(t)], dtype=F64))


def law(process, t):
    """The covariance at a time."""
    return process.alpha(t) ** 2 * COVARIANCE + process.sigma(t) ** 2 * torch.eye(2, dtype=F64)


class Basis:
    """Noise that is a basis: row k has its one in number k of the draws, all rows at once."""

    def __init__(self, draws):
        self.draws = draws

    def normal(self, draw, shape, device, dtype):
        out = torch.zeros(shape, dtype=dtype)
        out[1 + 2 * draw, 0] = out[2 + 2 * draw, 1] = 1.0
        return out


@pytest.mark.parametrize("process", [Flow(), VP(), EDM()], ids=lambda process: process.name)
def test_every_state_has_the_law_of_its_time(process):
    """Mean and covariance of the affine map from all noises to the sample, read off a basis of them."""
    for steps in (1, 2, 3, 5, 8):
        whole = plan(process, "ddim", steps, "karras").times
        for end in range(1, steps + 1):
            times = whole[: end + 1]
            made = plan(process, "ddim-double", timesteps=times)
            model, draws = Doubled(process, times), max(end - 1, 0)
            rows = 1 + 2 * (1 + draws)
            source = Basis(draws)
            noise = source.normal(0, (rows, 2), "cpu", F64)
            # From the process's own law at the first time, which pure noise has only where alpha is 0.
            factor = torch.linalg.cholesky(law(process, times[0]))
            start = (process.alpha(times[0]) * MEAN + noise @ factor.T) / made.start[1]
            x = made(model, start, source=source, dtype=F64)
            mean, basis = x[0], x[1:] - x[0]
            wanted = law(process, times[-1])
            assert float((mean - process.alpha(times[-1]) * MEAN).abs().max()) < 1e-10
            assert float((basis.T @ basis - wanted).abs().max()) < 1e-10 * max(1.0, float(wanted.max()))
            assert made.nfe == end


class Linear(Denoiser):
    """x0 = x / (1 + t): linear in the state, so that the sample is a known sum."""

    def __init__(self, process):
        super().__init__()
        self.process, self.shape = process, (3,)

    def forward(self, x, t, **condition):
        return Prediction(x / (1 + t), "x0", x, t, self.process)


def test_it_is_the_papers_sampler_by_hand():
    process, times = EDM(), [8.0, 3.0, 1.0, 0.2, 0.0]
    made = plan(process, "ddim-double", timesteps=times)
    noise, source = Noise(1).normal(0, (4, 3), "cpu", F64), Noise(9)
    x = noise * 8.0
    for k, (t, s, far) in enumerate([(8.0, 3.0, 1.0), (3.0, 1.0, 0.2), (1.0, 0.2, 0.0)], start=1):
        x0 = x / (1 + t)
        x = x0 + far / t * (x - x0)
        x = x + math.sqrt(s**2 - far**2) * source.normal(k, (4, 3), "cpu", F64)
    assert made.nfe == 4 and made.stochastic
    torch.testing.assert_close(made(Linear(process), noise, seed=9, dtype=F64), x / 1.2)


def test_one_step_is_ddim():
    noise = Noise(1).normal(0, (4, 3), "cpu", F64)
    one, ddim = (plan(Flow(), name, 1)(Linear(Flow()), noise, dtype=F64) for name in ("ddim-double", "ddim"))
    assert torch.equal(one, ddim)
