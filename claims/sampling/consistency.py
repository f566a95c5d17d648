"""Claims of fewstep/sampling/consistency.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64


class Rough(Denoiser):
    """A consistency model of a normal distribution of standard deviation 1 that errs the more, the more noise there is:
    the exact end of the probability flow, `x / sqrt(1 + t^2)`, times `1 + t / 100`."""

    def __init__(self, process: EDM):
        super().__init__()
        self.process, self.shape = process, (64,)

    def forward(self, x: torch.Tensor, t: torch.Tensor, **condition: object) -> Prediction:
        return Prediction(x / (1 + t**2).sqrt() * (1 + t / 100), "x0", x, t, self.process)


def _better(seed: int) -> Outcome:
    """The error of the spread of 4096 samples of 64 numbers, whose standard deviation is 1."""
    model = Rough(EDM())
    noise = Noise(seed).normal(0, (4096, 64), "cpu", F64)
    errors = []
    for times in ([80.0, 2.0, 0.0], [80.0, 0.0]):
        x = plan(model.process, "multistep-consistency", timesteps=times)(model, noise, seed=seed, dtype=F64)
        errors.append(abs(float(x.std()) - 1))
    return Outcome(errors[0], errors[1], "one step", "error of the standard deviation, a model that errs by t / 100")


CLAIMS = (Claim("multistep-consistency", "a second step mends what a rough model does in one", _better),)
