"""Claims of fewstep/processes/mean_reverting.py."""

from __future__ import annotations

from torch import Tensor

from claims.bridges import ode_duel
from claims.common import Claim
from claims.duels import formulas
from fewstep.processes.mean_reverting import MeanReverting

PROCESS = MeanReverting()


def _g2(t: Tensor) -> Tensor:
    """g^2 = 2 spread^2 theta, with theta = -drift."""
    return PROCESS.diffusion2(t) + 2 * PROCESS.spread**2 * PROCESS.drift(t)


CLAIMS = (
    Claim("mean-reverting", "its formulas agree with each other and with its SDE",
          formulas(PROCESS, _g2, "g^2 against 2 spread^2 theta")),
    *(Claim("mean-reverting", f"MR Sampler of order 2 beats Euler at {nfe} evaluations",
            ode_duel(PROCESS, "dpmpp-2m", "euler", nfe, "uniform"))
      for nfe in (5, 10)),
)  # fmt: skip
