"""DAPS: at each noise level a sample of the data, moved by the measurement, and fresh noise on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.covariance import Covariance, Same
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.solve import Inverse
from fewstep.restoration.calibrate import calibration_of
from fewstep.restoration.calibrated import left_open
from fewstep.restoration.langevin import metropolis
from fewstep.restoration.measured import Problem

METHODS = (
    Method(
        "daps",
        paper="Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al., 2024)",
        arxiv="2407.01521",
        claim="any operator and noise with a density; errors of early levels are forgotten; no vector product",
        use="DAPS",
        facts={
            "form": "chain",
            "begins": True,
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian", "poisson"),
        },
    ),
)

MOVES = 1 << 28  # the first draw of the moves within a level


@dataclass(frozen=True)
class DAPS:
    """From level to level: x0 by `inner` evaluations of the flow, a draw of `N(x0, C) p(y | x)`, noise again.

    The draw is exact where A is linear and the noise Gaussian, and `moves` Langevin steps accepted or refused by
    Metropolis' rule elsewhere (section 3.2; the paper does not refuse).

    Args:
        spread: C: "measured" as `fs.calibrate` has it; "moment", that of data of one variance; "sigma", the paper's
            `(sigma / alpha)^2`.
        inner: evaluations at each level. moves: Langevin steps of a draw that is not exact. step: their size, in units
            of C.
    """

    spread: Literal["measured", "moment", "sigma"] = "measured"
    inner: int = 1
    moves: int = 50
    step: float = 0.1
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.spread not in ("measured", "moment", "sigma"):
            raise ValueError(f"spread must be 'measured', 'moment' or 'sigma', got {self.spread!r}")
        if self.inner < 1 or self.moves < 1 or not self.step > 0:
            raise ValueError(
                f"inner and moves must be at least 1 and step above 0, got {self.inner}, {self.moves}, {self.step}"
            )

    @property
    def each(self) -> int:
        """Evaluations of a level."""
        return self.inner

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` for noise without a density where the draw needs one."""
        if not self._exact(operator, law) and not hasattr(law, "log_prob"):
            raise ValueError("'daps' needs noise with a density (log_prob) for this operator")
        if not self._exact(operator, law) and getattr(law, "none", False):
            raise ValueError("'daps' divides by the noise of an operator that is not linear: give noise above 0")

    @staticmethod
    def _exact(operator: Operator, law: Any) -> bool:
        return isinstance(operator, LinearOperator) and isinstance(getattr(law, "covariance", None), Covariance)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x = live.start()
        for number, (a, b) in enumerate(pairwise(times)):
            x0 = self._flow(live, process, x, a)
            c = self._spread(process, problem, a)
            if self._exact(problem.operator, problem.law):
                r = live.condition["y"] - problem.operator(x0)
                u = Inverse(problem.operator, c, problem.noise)(r)
                x0 = x0 + c.times(problem.operator.adjoint(u)) + left_open(live, problem, c, number)
            else:
                x0 = self._moved(live, problem, x0, c, number)
            x = process.alpha(b) * x0
            if process.sigma(b) > 0:
                x = x + process.sigma(b) * live.noise()
        return x

    def _flow(self, live: Live, process: Process, x: Tensor, t: float) -> Tensor:
        """x0 by DDIM over `inner` even log-SNRs from t to the cleanest level."""
        low, high = process.log_snr(t), process.log_snr(process.t_min)
        low = low if math.isfinite(low) else process.log_snr(process.t_max - 1e-3 * (process.t_max - process.t_min))
        inside = [process.time(low + (high - low) * k / self.inner) for k in range(1, self.inner)]
        for a, b in pairwise([t, *(time for time in inside if time < t), process.t_zero]):
            x0 = live.evaluate(x, a).x0
            share = process.sigma(b) / process.sigma(a)
            x = share * x + (process.alpha(b) - share * process.alpha(a)) * x0
        return x / process.alpha(process.t_zero)

    def _spread(self, process: Process, problem: Problem, t: float) -> Covariance:
        if self.spread == "measured":
            calibration = self.calibration or calibration_of(problem.model)
            return calibration.covariance(torch.tensor(process.log_snr(t)))
        alpha, sigma = process.alpha(t), process.sigma(t)
        if self.spread == "sigma":
            return Same((sigma / max(alpha, 1e-3 * sigma)) ** 2)
        std = problem.model.facts.data_std or 1.0
        return Same(std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2))

    def _moved(self, live: Live, problem: Problem, x0: Tensor, c: Covariance, number: int) -> Tensor:
        """Langevin steps with Metropolis' rule on `N(x0, c) p(y | x)`, c taken for its mean variance."""
        variance, y = float(c.mean()), live.condition["y"]
        h = self.step * variance

        def target(x: Tensor) -> Tensor:
            near = (x - x0).double().flatten(1).square().sum(1) / (2 * variance)
            return problem.law.log_prob(y, problem.operator(x)).double() - near  # type: ignore[no-any-return]

        return metropolis(target, x0, h, self.moves, live.source, MOVES + number * self.moves * 2)
