"""A particle filter of the calibrated chain: exact as the particles grow in number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.covariance import Covariance
from fewstep.operators.krylov import dot
from fewstep.operators.solve import Inverse
from fewstep.restoration.calibrate import calibration_of
from fewstep.restoration.calibrated import left_open
from fewstep.restoration.measured import Problem
from fewstep.restoration.moments import LEAST_ALPHA
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "particles",
        paper="Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023)",
        arxiv="2306.17775",
        claim="the calibrated chain as a filter: exact as the particles grow in number; one vector product",
        use="Particles",
        facts={
            "form": "chain",
            "begins": True,
            "measures": ("linear",),
            "noise": ("none", "gaussian"),
            "draws": "particles",
        },
    ),
)

CHANCE = 1 << 27  # the first draw of the filter's own chance


@dataclass(frozen=True)
class Particles:
    """K runs of one measurement, weighed against each other at each level and resampled.

    The step from a to b proposes as `Calibrated(wide=1)` does. Under the model `x0 ~ N(x0_hat(x_a), C)`,
    `x_b = k x0 + (d / sigma_a) x_a + s z`, `y = A x0 + noise` that proposal is the law of x_b given y, up to a shift of
    its mean where it goes back along the network, and the weights are

        psi_b(x_b) p(x_b | x_a) / (q(x_b | x_a, y) psi_a(x_a)),    psi(x) = N(y; A x0_hat(x), A C A^T + S),

    (Wu et al., equation 10), with the exact likelihood at the end. A population whose effective size falls below half
    is resampled systematically.

    Args:
        particles: K, at least 2. pull, calibration: as for `Calibrated`.
    """

    passes = 3
    particles: int = 64
    pull: Literal["jacobian", "covariance"] = "jacobian"
    calibration: Calibration | None = None
    sizes: list[Tensor] = field(default_factory=list, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise ValueError(f"a filter needs at least 2 particles, got {self.particles}")
        if self.pull not in ("jacobian", "covariance"):
            raise ValueError(f"pull must be 'jacobian' or 'covariance', got {self.pull!r}")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        """`sizes` receives the effective sizes `(steps, measurements)` of each batch."""
        x, y, k = live.start(), live.condition["y"], self.particles
        if len(x) % k:
            raise ValueError(f"{len(x)} samples are no whole number of populations of {k}")
        calibration = self.calibration or calibration_of(problem.model)
        logs = torch.zeros(len(x) // k, k, dtype=torch.float64, device=x.device)
        sizes: list[Tensor] = []
        before: Tensor | None = None  # log p(y | x_b, x_a) + log q / p of the step that led here
        for number, (a, b) in enumerate(pairwise(times)):
            c = calibration.covariance(torch.tensor(process.log_snr(a), device=x.device))
            x0, move, twist = self._seen(live, process, x, a, c, y, problem)
            logs = logs + (twist if before is None else twist - before).view(-1, k)
            x0, move, x, logs, size = self._resampled(live, number, x0, move, x, logs)
            sizes.append(size)
            s, of_x, of_x0 = posterior(process, a, b)
            mean = of_x * x + of_x0 * x0
            inverse = Inverse(problem.operator, c, problem.noise)
            straight = c.times(problem.operator.adjoint(inverse(self._r(y, x0, problem))))
            x = mean + of_x0 * (straight + left_open(live, problem, c, number))
            if s == 0:  # the end: the proposal is x0 given y, and its weight under the exact likelihood is one
                break
            x, shift = x + s * live.noise(), of_x0 * (move - straight)
            before = self._before(x, mean, shift, c, s, of_x0, x0, y, problem)
            x = x + shift
        _, _, x, _, size = self._resampled(live, len(times), x, x, x, logs, always=True)
        self.sizes.append(torch.stack([*sizes, size]))
        return x

    @staticmethod
    def _r(y: Tensor, x0: Tensor, problem: Problem) -> Tensor:
        left: Tensor = y - problem.operator(x0)
        return left

    def _seen(
        self, live: Live, process: Process, x: Tensor, t: float, c: Covariance, y: Tensor, problem: Problem
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x0, its move towards the measurement, and the logarithm of the twist `(B,)`."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        inverse = Inverse(problem.operator, c, problem.noise)
        along = self.pull == "jacobian" and alpha > LEAST_ALPHA * sigma
        with torch.set_grad_enabled(along):
            state = x.detach().requires_grad_(True) if along else x
            x0 = live.evaluate(state, t).x0
            r = y - problem.operator(x0.detach())
            back = problem.operator.adjoint(inverse(r))
            if along:
                (pulled,) = torch.autograd.grad(x0, state, back)
                move = sigma**2 / alpha * pulled
            else:
                move = c.times(back)
        return x0.detach(), move.detach(), _log_density(r, inverse)

    def _before(
        self,
        x: Tensor,
        mean: Tensor,
        shift: Tensor,
        c: Covariance,
        s: float,
        k: float,
        x0: Tensor,
        y: Tensor,
        problem: Problem,
    ) -> Tensor:
        """`log q(x_b) + log psi_a - log p(x_b)` `(B,)` up to a constant, x being x_b without its shift.

        `q psi_a / p` at x is `p(y | x_b, x_a)`; the shift adds the change of `log p(x_b | x_a)`.
        """
        off = x - mean
        found = x0 + k * c.times(c.resolvent(k**2, s**2, off))
        left = c.left(k**2, s**2)
        before = _log_density(self._r(y, found, problem), Inverse(problem.operator, left, problem.noise))
        moved = off + shift
        change = dot(moved, c.resolvent(k**2, s**2, moved)) - dot(off, c.resolvent(k**2, s**2, off))
        return before + 0.5 * change.flatten()

    def _resampled(
        self, live: Live, number: int, x0: Tensor, move: Tensor, x: Tensor, logs: Tensor, always: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The particles, those of populations of small effective size drawn anew, with their log-weights and sizes."""
        weights = logs.softmax(1)
        size = 1 / weights.square().sum(1)
        groups, k = logs.shape
        poor = torch.ones_like(size, dtype=torch.bool) if always else size < k / 2
        chance = live.source.normal(CHANCE + number, (len(x), 1), x.device, torch.float64)[:, 0].view(groups, k)
        points = (torch.arange(k, device=x.device, dtype=torch.float64) + torch.special.ndtr(chance[:, :1])) / k
        chosen = torch.searchsorted(weights.cumsum(1), points.clamp_max(1 - 1e-12)).clamp_max(k - 1)
        if always:  # in no order: the first n of them are n draws
            chosen = chosen.gather(1, chance.argsort(1))
        own = torch.arange(k, device=x.device).expand(groups, k)
        index = torch.where(poor[:, None], chosen, own) + k * torch.arange(groups, device=x.device)[:, None]
        index = index.flatten()
        return x0[index], move[index], x[index], torch.where(poor[:, None], 0.0, logs), size


def _log_density(r: Tensor, inverse: Inverse) -> Tensor:
    """`log N(r; 0, G)` `(B,)` up to what is the same for all."""
    return -0.5 * dot(r, inverse(r)).flatten()
