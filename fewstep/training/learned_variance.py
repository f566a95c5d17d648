"""The loss of a learned variance: the variational bound of one step, with its mean held fixed (iDDPM's hybrid loss)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.training.constraint import x0_error
from fewstep.training.objective import Step

METHODS = (
    Method(
        "hybrid-vlb",
        kind="term",
        paper="Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)",
        arxiv="2102.09672",
        claim="trains the reverse variance by the bound, and leaves the mean to the simple loss",
        use="VariationalBound",
    ),
)


def divergence(fraction: Tensor, span: Tensor, gap: Tensor, error2: Tensor) -> Tensor:
    """KL, in nats, from the true step `N(m, small)` to one with `fraction` whose x0 is off by `error2` (squared).

    `1/2 (log(p / q) + (q + d^2) / p - 1)` with `log(p / q) = fraction span` and `d^2 / q = gap error2`.
    """
    log_ratio = fraction * span
    return 0.5 * (log_ratio + torch.expm1(-log_ratio) + (-log_ratio).exp() * gap * error2)


def earlier(process: Process, t: Tensor, steps: int) -> Tensor:
    """The time one step before t in a chain of `steps`, even in the angle `atan(sigma / alpha)`, float64.

    That is the paper's cosine schedule with any process. Near the data a step at most halves the angle, so it never
    reaches sigma = 0; a table has no time below its first, where t itself is returned: a step of zero length.
    """
    low, high = (math.atan(math.exp(-process.log_snr(end))) for end in (process.t_min, process.t_max))
    angle = torch.atan((-process.log_snr(t)).exp())
    before = torch.maximum(angle - (high - low) / steps, 0.5 * angle)
    found = process.time(-before.tan().log())
    return torch.where(process.sigma(found) > 0, found, t)


class VariationalBound:
    """A `Term` for `LearnedVariance`: `steps` times the bound's divergence of the step before t, in nats per value.

    No gradient reaches the mean. The paper's hybrid loss is `Objective(denoiser, terms=[(0.001, VariationalBound())])`
    (section 3.1, equation 16).

    steps: of the chain whose reverse steps are learned. What is learned at one length nearly fits others, not
    exactly: the best fraction is `log(1 + gap Var[x0 | x]) / log(1 + gap Var_1)`, which tends to the ratio of the
    variances as steps shorten, and to 1 as they lengthen.
    """

    def __init__(self, steps: int = 1000) -> None:
        if steps < 1:
            raise ValueError(f"the chain needs at least one step, got {steps}")
        self.steps = steps

    def __call__(self, step: Step) -> Tensor:
        if step.fraction is None:
            raise ValueError(f"the bound trains a LearnedVariance, got {type(step.denoiser).__name__}")
        made = reverse_step(step.denoiser.process, step.t, earlier(step.denoiser.process, step.t, self.steps))
        error2 = x0_error(step).detach().square()
        nats = divergence(step.fraction, expand(made.span, error2), expand(made.gap, error2), error2)
        return self.steps * nats.flatten(1).mean(1)
