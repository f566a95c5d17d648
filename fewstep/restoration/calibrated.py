"""The default: the measured covariance of the model's error, and what the measurement leaves open as noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.covariance import Covariance
from fewstep.operators.operator import LinearOperator
from fewstep.operators.solve import Inverse
from fewstep.restoration.calibrate import calibration_of
from fewstep.restoration.measured import Problem
from fewstep.restoration.moments import At
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "calibrated",
        claim="the model's measured error as C; exact at any number of steps on a Gaussian",
        use="Calibrated",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian")},
    ),
)

EXTRA = 1 << 29  # the first draw of measurements' noise within a run, beyond those of its steps


@dataclass(frozen=True)
class Calibrated:
    """C as measured by `fs.calibrate`, and ancestral steps with what the measurement leaves open added to their noise.

    From a to b, with s the posterior's deviation and k the coefficient of x0,

        x_b = k x0_y + (d / sigma_a) x_a + s z + sqrt(wide) k w,    w ~ N(0, C - C A^T (A C A^T + S)^{-1} A C).

    The move goes back along the network, whose own covariance at a state, `(sigma^2 / alpha) J`, is not the measured
    mean C: where it is larger the measurement would be overshot, and the next step by more. So a move m is shortened
    until A m is at most `most` times `A C A^T (A C A^T + S)^{-1} r`, which is where C would move the measurement.

    Args:
        pull: "jacobian" goes back along the network (one vector product), "covariance" by C itself (none).
        most: at least 1, inf for no end. On a Gaussian with its own covariance the two are equal, whatever this is.
        wide: the share of the variance of w, 0 to 1. With 1 a Gaussian's law is exact at any number of steps; where
            `p(x0 | x_t)` has several modes less is nearer.
        calibration: by default the model's own, which is measured where it has none.
    """

    pull: Literal["jacobian", "covariance"] = "jacobian"
    wide: float = 0.3
    most: float = 3.0
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.most >= 1:
            raise ValueError(f"most is at least 1 time the measured move, got {self.most}")
        if self.pull not in ("jacobian", "covariance"):
            raise ValueError(f"pull must be 'jacobian' or 'covariance', got {self.pull!r}")
        if not 0 <= self.wide <= 1:
            raise ValueError(f"wide is a share of a variance, 0 to 1, got {self.wide}")

    @property
    def jacobian(self) -> bool:
        return self.pull == "jacobian"

    def covariance(self, at: At) -> Covariance:
        """C at the evaluation's level."""
        return self._known(at.model).covariance(at.alpha.log() - at.sigma.log())

    def _known(self, model: object) -> Calibration:
        return self.calibration or calibration_of(model)  # type: ignore[arg-type]

    def __call__(self, at: At) -> Tensor:
        c = self.covariance(at)
        u = Inverse(at.operator, c, at.noise)(at.r)
        own = c.times(at.operator.adjoint(u))
        if not self.jacobian:
            return own
        move = at.pull(u)
        return move if math.isinf(self.most) else shortened(move, own, at.operator, self.most)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        """The chain, on a live run of the posterior denoiser."""
        x = live.start()
        calibration = self._known(problem.model)
        for number, (a, b) in enumerate(pairwise(times)):
            s, of_x, k = posterior(process, a, b)
            x0 = live.evaluate(x, a).x0
            x = of_x * x + k * x0
            if s > 0:
                x = x + s * live.noise()
            if self.wide > 0:
                c = calibration.covariance(torch.tensor(process.log_snr(a), device=x.device))
                x = x + math.sqrt(self.wide) * k * left_open(live, problem, c, number)
        return x


def shortened(move: Tensor, own: Tensor, operator: LinearOperator, most: float) -> Tensor:
    """A move `(B, *shape)`, times the share up to 1 by which A of it along itself is `most` times A of another."""
    made, meant = operator(move).flatten(1), operator(own).flatten(1)
    size = made.square().sum(1).clamp_min(torch.finfo(made.dtype).tiny)
    share = (most * (made * meant).sum(1) / size).clamp(0, 1)
    return share.reshape(-1, *[1] * (move.ndim - 1)).to(move) * move


def left_open(live: Live, problem: Problem, c: Covariance, number: int) -> Tensor:
    """A draw of `N(0, C - C A^T (A C A^T + S)^{-1} A C)`."""
    z = live.noise()
    e = live.source.normal(EXTRA + number, (len(z), *problem.operator.out), z.device, z.dtype)
    return agreed(problem.operator, c, problem.noise, z, e)


def agreed(
    operator: LinearOperator, c: Covariance, s: Covariance, z: Tensor, e: Tensor, r: Tensor | float = 0.0
) -> Tensor:
    """A draw of `N(0, C)` given that A of it, with noise of covariance S, is r: one of C and one of S, of the standard
    normal z `(B, *shape)` and e `(B, *measured)`, made to agree by one solve."""
    u = c.root(z)
    return u - c.times(operator.adjoint(Inverse(operator, c, s)(operator(u) + s.root(e) - r)))
