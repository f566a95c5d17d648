"""Claims of fewstep/sampling/consistency.py."""

from __future__ import annotations

from torch import Tensor

from claims.common import EDM, F64, Answers, Claim, Noise, Outcome, plan


def _rough(x: Tensor, t: Tensor) -> Tensor:
    """A consistency model of a normal distribution of standard deviation 1 that errs the more, the more noise there is:
    the exact end of the probability flow, `x / sqrt(1 + t^2)`, times `1 + t / 100`."""
    return x / (1 + t**2).sqrt() * (1 + t / 100)


def _better(seed: int) -> Outcome:
    """The error of the spread of 4096 samples of 64 numbers, whose standard deviation is 1."""
    model, noise, errors = Answers(_rough, EDM(), (64,)), Noise(seed).normal(0, (4096, 64), "cpu", F64), []
    for times in ([80.0, 2.0, 0.0], [80.0, 0.0]):
        x = plan(model.process, "multistep-consistency", timesteps=times)(model, noise, seed=seed, dtype=F64)
        errors.append(abs(float(x.std()) - 1))
    return Outcome(errors[0], errors[1], "one step", "error of the standard deviation, a model that errs by t / 100")


CLAIMS = (Claim("multistep-consistency", "a second step mends what a rough model does in one", _better),)
