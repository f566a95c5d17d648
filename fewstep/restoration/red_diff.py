"""RED-Diff: the sample itself is moved until the measurement and the denoiser agree; a mode, no draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.restoration.adam import Adam
from fewstep.restoration.dps import residual_weights
from fewstep.restoration.measured import Problem, brought

METHODS = (
    Method(
        "red-diff",
        paper="A Variational Perspective on Solving Inverse Problems with Diffusion Models (Mardani et al., 2023)",
        arxiv="2305.04391",
        claim="Adam on the sample, the denoiser as a regulariser; a mode and no draw; no vector product",
        use="REDDiff",
        facts={
            "form": "chain",
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian", "poisson"),
            "mode": True,
        },
    ),
)


@dataclass(frozen=True)
class REDDiff:
    """mu follows Adam down `|y - A(mu)|^2 / 2 + lam w (eps_hat - eps) . mu`, `x_t = alpha mu + sigma eps`, t falling
    (algorithm 1). The denoiser is not differentiated: with `w (eps_hat - eps) = w (alpha / sigma) (mu - x0_hat)` its
    pull is towards x0_hat, and finite at alpha = 0.

    Which w? For data `N(m, C)` the mean of the pull over eps is `w (alpha / sigma) (I + u C)^{-1} (mu - m)` with
    `u = (alpha / sigma)^2`; that of the mode is `C^{-1} (mu - m)`. No w that knows nothing of C makes the two equal at
    any u, since `(I + u C)^{-1}` is no multiple of `C^{-1}`: they agree as u grows, and only for `w = alpha / sigma`,
    where the pull is `(C + I / u)^{-1} (mu - m)`, the score of the data at a noise of `1 / u`. So

        "inverse-snr"   w = sigma / alpha, the paper's: a pull of `mu - x0_hat`, whatever the level; its end is no mode
        "constant"      w = 1
        "score"         w = alpha / sigma, lam = noise^2: falling levels lead to the mode of the posterior

    Args:
        weights: one of these. lam: 0.25 (the paper's) unless it is "score". rate: of Adam, down to 0 along a cosine.
        restarts: how often t starts to fall again, on the same budget.

    The score's weights raise the error of a draw as they raise the pull, by alpha / sigma: with them each step asks at
    eps and at -eps, two evaluations, whose errors cancel to first order.
    """

    weights: Literal["inverse-snr", "constant", "score"] = "inverse-snr"
    lam: float | None = None
    rate: float = 0.1
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.weights not in ("inverse-snr", "constant", "score"):
            raise ValueError(f"weights must be 'inverse-snr', 'constant' or 'score', got {self.weights!r}")
        if not self.rate > 0 or self.restarts < 0 or (self.lam is not None and not self.lam >= 0):
            raise ValueError(
                f"rate must be above 0, restarts and lam at least 0, got {self.rate}, {self.restarts} and {self.lam}"
            )

    @property
    def each(self) -> int:
        """Evaluations of a step."""
        return 2 if self.weights == "score" else 1

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` for the weights that need the noise, where there is none."""
        if self.weights == "score" and getattr(law, "none", False):
            raise ValueError("weights='score' weigh the prior by the noise: give noise above 0, or other weights")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        y, like = live.condition["y"], live.start()
        mu = first_guess(problem, y, like)
        scale, variance = _scale(problem, y)
        lam = self.lam if self.lam is not None else variance if self.weights == "score" else 0.25
        asked = [t for start in range(self.restarts + 1) for t in times[:-1][start :: self.restarts + 1]]
        adam = Adam(self.rate, len(asked))
        for number, t in enumerate(asked):
            if number and t > asked[number - 1]:  # another fall begins
                adam.forget()
            eps, alpha, sigma = live.noise(), process.alpha(t), process.sigma(t)
            x0 = live.evaluate(alpha * mu + sigma * eps, t).x0
            if self.each == 2:
                x0 = (x0 + live.evaluate(alpha * mu - sigma * eps, t).x0) / 2
            gradient = _misfit(problem, mu, y, scale) + lam * self.pull(alpha / sigma) * (mu - x0)
            mu = mu - adam.move(gradient)
        return mu

    def pull(self, ratio: float) -> float:
        """`w alpha / sigma`, the factor of `mu - x0_hat`; ratio: alpha / sigma."""
        return {"inverse-snr": 1.0, "constant": ratio, "score": ratio**2}[self.weights]


def first_guess(problem: Problem, y: Tensor, like: Tensor) -> Tensor:
    """Where mu begins: at the mode under a normal prior of the data's deviation, which is `A^+ y` without noise and
    does not divide the noise by small singular values with it; at 0 where A is not linear."""
    if not isinstance(problem.operator, LinearOperator):
        return torch.zeros_like(like)
    return brought(problem.operator, torch.zeros_like(like), y, problem.ratio(y))


def _scale(problem: Problem, y: Tensor) -> tuple[Tensor | float, float]:
    """What residuals are multiplied by, and the mean variance that they then have."""
    weights = residual_weights(problem, y)
    return weights, 0.5 if isinstance(weights, Tensor) else float(problem.noise.mean())


def _misfit(problem: Problem, mu: Tensor, y: Tensor, scale: Tensor | float) -> Tensor:
    """The gradient of half the square of the weighed residual."""
    if isinstance(problem.operator, LinearOperator):
        return problem.operator.adjoint((problem.operator(mu) - y) * scale**2)  # type: ignore[no-any-return]
    with torch.enable_grad():
        state = mu.detach().requires_grad_(True)
        value = ((problem.operator(state) - y) * scale).flatten(1).square().sum() / 2
        (gradient,) = torch.autograd.grad(value, state)
    return gradient
