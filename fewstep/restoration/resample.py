"""ReSample: latents fitted to the measurement at every step, and made a state of the next level again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.restoration.gradients import fitted
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "resample",
        paper="Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency (Song et al., 2023)",
        arxiv="2307.08123",
        claim="latents that fit any measurement as well as the noise allows; the network is not differentiated",
        use="ReSample",
        facts={
            "form": "chain",
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian"),
            "states": ("latents",),
        },
    ),
)


@dataclass(frozen=True)
class ReSample:
    """A DDIM step to z'; z0 fitted to `|y - A D(z)|`; and a draw of the state given both (algorithm 1):

        N(z; alpha_b z0_y, sigma_b^2) N(z'; z, gamma s^2),    s the deviation of the ancestral step.

    A fit begins at the model's z0 and ends where the residual is what the noise alone leaves. While much noise is left
    it is one of pixels, from D(z0), that is then encoded, which moves z0 far and cheaply; in the last steps it is one
    of latents, through the decoder. The last one is the sample.

    Args:
        gamma: how much more the draw trusts the fit than the step. inner: gradient steps of a fit, at most.
        latents: the share of the steps, the last ones, whose fit is in latents: 0 none of them, 1 all.
        every: so many steps between two fits; the last step has one.
    """

    gamma: float = 40.0
    inner: int = 20
    latents: float = 0.5
    every: int = 1

    def __post_init__(self) -> None:
        if not self.gamma >= 0 or not 0 <= self.latents <= 1:
            raise ValueError(f"gamma must be at least 0 and latents 0 to 1, got {self.gamma} and {self.latents}")
        if self.inner < 1 or self.every < 1:
            raise ValueError(f"inner and every must be at least 1, got {self.inner} and {self.every}")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, count = live.start(), len(times) - 1
        for number, (a, b) in enumerate(pairwise(times), 1):
            z0 = live.evaluate(x, a).x0
            s = posterior(process, a, b)[0]
            _, of_x, of_x0 = posterior(process, a, b, 0.0)
            x = of_x * x + of_x0 * z0
            if number % self.every and number < count:
                continue
            z0 = self.fit(live, problem, z0, in_latents=number > round((1 - self.latents) * count))
            alpha, own, far = process.alpha(b), process.sigma(b) ** 2, self.gamma * s**2
            if own == 0:
                x = alpha * z0
            else:
                x = (far * alpha * z0 + own * x) / (far + own) + (far * own / (far + own)) ** 0.5 * live.noise()
        return x

    def fit(self, live: Live, problem: Problem, z0: Tensor, in_latents: bool) -> Tensor:
        """z0 moved until it decodes to what was measured."""
        y = live.condition["y"]
        bound = problem.energy(y)
        if in_latents:
            return fitted(problem.operator, z0, y, bound, self.inner)
        data = fitted(problem.of_data, problem.model.decode(z0), y, bound, self.inner)
        return problem.model.encode(data)
