"""A network that also learns the variance of the reverse step, between its two bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser

METHODS = (
    Method(
        "learned-variance",
        paper="Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)",
        arxiv="2102.09672",
        claim="the reverse step's variance, learned as a fraction of the way between its bounds, in logarithms",
        use="LearnedVariance",
    ),
)


@dataclass(frozen=True)
class Reverse:
    """The step from time a down to b of any Gaussian process: numbers in float64, of the shape of a and b.

    `q(x_b | x_a, x0) = N(x x_a + x0 x0, exp(small))`. The variance of `q(x_b | x_a)` is larger by that of x0 given
    x_a: `exp(small) (1 + gap Var[x0 | x_a])`, with `gap` the rise of alpha^2 / sigma^2 from a to b. `exp(small + span)`
    is the variance for data of variance one. Under a variance-preserving process the two are the paper's beta-tilde and
    beta (section 3.1).
    """

    x: Tensor
    x0: Tensor
    small: Tensor
    span: Tensor
    gap: Tensor


def reverse_step(process: Process, a: Tensor, b: Tensor) -> Reverse:
    """The step from a to b (later to earlier). Finite at alpha_a = 0; at sigma_b = 0 `small` is -inf and `gap` inf."""
    alpha_a, sigma_a, alpha_b, sigma_b = process.alpha(a), process.sigma(a), process.alpha(b), process.sigma(b)
    log_snr_b = process.log_snr(b)
    share = -torch.expm1(2 * (process.log_snr(a) - log_snr_b))  # of x_b's noise that is fresh, sigma_b^2 aside
    gap = (2 * log_snr_b).exp() * share
    return Reverse(
        x=alpha_a * sigma_b**2 / (alpha_b * sigma_a**2),
        x0=alpha_b * share,
        small=2 * sigma_b.log() + share.log(),
        span=torch.log1p(gap * sigma_a**2 / (alpha_a**2 + sigma_a**2)),
        gap=gap,
    )


@dataclass(slots=True)
class SpreadPrediction(Prediction):
    """A prediction that knows its spread: `fraction` `(B, *shape)`, 0 at the variance's lower bound, 1 at its upper."""

    fraction: Tensor


class LearnedVariance(NetworkDenoiser):
    """`NetworkDenoiser` for a network with twice as many outputs along the first axis: `(B, 2 C, ...)`.

    The first half is what it `predicts`. The second, w, is the reverse variance: log-variance
    `small + (1 + w) / 2 span` of the current step (`reverse_step`; the paper's equation 15), whatever the step's
    length, and halfway between the bounds at the start of training. Trained by `fewstep.training.learned_variance`; the
    solver "ddpm-learned" draws with it, every other one ignores it.

    Raises ValueError at the first call when the network does not return twice as many numbers as its input has.
    """

    def _halves(self, both: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output for an input like x as the prediction and the fraction."""
        if both.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"a learned variance needs a network that answers {2 * x.shape[1]} values for {x.shape[1]}"
                f" along the first axis (unet: out={2 * x.shape[1]}, mlp: out=2), got shape {tuple(both.shape)}"
            )
        value, second = both.chunk(2, dim=1)
        return value, 0.5 + 0.5 * second

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> SpreadPrediction:
        seen, noise, scale = self._seen(x, t)
        value, fraction = self._halves(self._call(seen, noise, self._told(condition, t)), x)
        made = self._answer(value, x, t, scale)
        return SpreadPrediction(made.value, made.kind, x, t, self.process, fraction)

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        return self.loss_parts(x0, eps, t, **condition)[:2]

    def loss_parts(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class, with the fraction for the term that trains it."""
        seen, noise, target = self._task(x0, eps, t)
        value, fraction = self._halves(self._call(seen, noise, self._told(condition)), x0)
        return value, target, fraction
