"""CDIM: DDIM steps, each followed by as many steps down the residual as bring it to the size that it should have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.covariance import Same
from fewstep.operators.operator import COLUMNS, LinearOperator, Operator
from fewstep.restoration.fits import check_linear
from fewstep.restoration.gradients import reaching, squares, with_graph
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "cdim",
        paper="Constrained Diffusion Implicit Models (Jayaram et al., 2024)",
        arxiv="2411.00359",
        claim="ddim held to the residual that a state at its level has; few evaluations, one vector product",
        use="CDIM",
        facts={
            "form": "chain",
            "begins": True,
            "measures": ("spectrum",),
            "noise": ("none", "gaussian", "poisson"),
            "least": 2,
        },
    ),
)

LAST = 100  # steps down the residual at the end, which ask no network


@dataclass(frozen=True)
class Energy:
    """The law of `E = |A x - y|^2` for `x = alpha x0 + sigma eps`, `y = A x0 + n`, n of the deviation `noise`.

    Of one A it needs `(m, tr A A^T, tr (A A^T)^2)`, numbers or `(B,)`, and `|y|^2` and `|A^T y|^2` `(B,)`. What they
    say of x0 is taken from y, so that E less `(1 - alpha)^2 |y|^2` has the mean and deviation below exactly:

        E - (1 - alpha)^2 |y|^2 = b |n|^2 + sigma^2 |A eps|^2 + 2 (1 - alpha) (alpha n - sigma A eps) . A x0
                                  - 2 sigma n . A eps,    b = 1 - (1 - alpha)^2
    """

    count: Tensor
    trace: Tensor
    square: Tensor
    of_y: Tensor
    of_back: Tensor
    noise: float

    def mean(self, alpha: float, sigma: float) -> Tensor:
        """`(1 - alpha)^2 |y|^2 + sigma^2 tr(A A^T) + m noise^2 (1 - (1 - alpha)^2)`, `(B,)`."""
        left = (1 - alpha) ** 2
        return left * self.of_y + sigma**2 * self.trace + self.count * self.noise**2 * (1 - left)

    def deviation(self, alpha: float, sigma: float) -> Tensor:
        """Of E about that mean, `(B,)`."""
        left, n = (1 - alpha) ** 2, self.noise**2
        clean = (self.of_y - self.count * n).clamp_min(0)  # |A x0|^2, and |A^T A x0|^2
        back = (self.of_back - n * self.trace).clamp_min(0)
        own = 2 * (1 - left) ** 2 * self.count * n**2 + 2 * sigma**4 * self.square
        across = 4 * left * (alpha**2 * n * clean + sigma**2 * back) + 4 * sigma**2 * n * self.trace
        return (own + across).sqrt()


@dataclass(frozen=True)
class CDIM:
    """A DDIM step, then at most `corrections` steps along `-grad |A x0_hat(x) - y|^2` while the energy `|A x - y|^2` of
    the state is more than `mean + slack * deviation` of what it should be (algorithm 1 and section 3.3).

    A step goes only as far as the energy needs, the smaller root of a quadratic, or to its least where there is none.
    The last x0 is brought to the measurement exactly where that is exact, and else within the same bound. With noise
    that is not the same everywhere the residual is Pearson's, in deviations of what the model's x0 would be measured
    with. The state is taken in the units of a variance-preserving process.
    """

    corrections: int = 1
    slack: float = 1.0

    def __post_init__(self) -> None:
        if self.corrections < 1:
            raise ValueError(f"corrections must be at least 1, got {self.corrections}")

    @property
    def passes(self) -> float:
        """Of an evaluation: a forward one for the step, and one with its gradient for each correction."""
        return (1 + 3 * self.corrections) / self.each

    @property
    def each(self) -> int:
        """Evaluations of a step."""
        return 1 + self.corrections

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the traces of `A A^T` can be known."""
        check_linear("cdim", operator)
        assert isinstance(operator, LinearOperator)
        known = operator.spectrum() is not None if _plain(law) else operator.matrix_size() <= COLUMNS
        if not known:
            raise ValueError(
                f"'cdim' needs the singular values of {operator}, or with noise that differs its matrix, of at most"
                f" {COLUMNS} columns: it has {operator.matrix_size()}. dps and pigdm do without"
            )

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, y, a = live.start(), live.condition["y"], problem.operator
        for start, end in pairwise(times):
            x0 = live.evaluate(x, start).x0
            _, of_x, of_x0 = posterior(process, start, end, 0.0)
            x = of_x * x + of_x0 * x0
            weight, energy = self._weighed(problem, y, x0)
            alpha, sigma = process.alpha(end), process.sigma(end)
            if sigma == 0:
                return self._finished(x / alpha, y, weight, energy, problem)
            c = (alpha**2 + sigma**2) ** 0.5
            bound = energy.mean(alpha / c, sigma / c) + self.slack * energy.deviation(alpha / c, sigma / c)
            for _ in range(self.corrections):
                _, _, gradient = with_graph(
                    live,
                    x,
                    end,
                    lambda x0, w=weight: squares(w * (a(x0) - y)),  # type: ignore[misc]
                )
                step = reaching(weight * (a(x / c) - y), weight * a(gradient), bound)
                x = x - c * step.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * gradient
        return x

    def _finished(self, x: Tensor, y: Tensor, weight: Tensor | float, energy: Energy, problem: Problem) -> Tensor:
        a = problem.operator
        if _plain(problem.law) and energy.noise == 0:
            return x + a.pinv(y - a(x))
        bound = energy.mean(1.0, 0.0) + self.slack * energy.deviation(1.0, 0.0)
        for _ in range(LAST):
            r = weight * (a(x) - y)
            back = a.adjoint(weight * r)
            x = x - reaching(r, weight * a(back), bound).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * back
        return x

    @staticmethod
    def _weighed(problem: Problem, y: Tensor, x0: Tensor) -> tuple[Tensor | float, Energy]:
        """What residuals are multiplied by, and the law of their energy."""
        a, law = problem.operator, problem.law
        if _plain(law):
            own = a.spectrum().values.square()
            held = a.holds
            count = torch.tensor(float(y[0].numel() if held is None else held.sum()), dtype=torch.float64)
            back = squares(a.adjoint(y))
            std = float(problem.noise.mean().sqrt())
            sums = own.sum().to(y.device), own.square().sum().to(y.device)
            return 1.0, Energy(count.to(y.device), *sums, squares(y), back, std)
        weight = law.variance(a(x0)).rsqrt()
        matrix = (a.matrix() @ a.matrix().mT).to(y.device)
        w = weight.double().flatten(1).square()
        trace = w @ matrix.diagonal()
        square = ((w @ matrix.square()) * w).sum(1)
        own = weight * y
        count = torch.full_like(trace, float(w.shape[1]))
        return weight, Energy(count, trace, square, squares(own), squares(a.adjoint(weight * own)), 1.0)


def _plain(law: Any) -> bool:
    return isinstance(getattr(law, "covariance", None), Same)
