"""Claims of fewstep/sampling/heun.py."""

from __future__ import annotations

from claims.common import EDM, Claim, Flow, Outcome, plan, tolerance
from claims.duels import duel, orders
from claims.problems import NOISES, exact


def _euler_is_ddim(seed: int) -> Outcome:
    worst = 0.0
    for process in (EDM(), Flow()):
        a, b = (exact(process, seed).run(plan(process, solver, 10, "uniform")) for solver in ("euler", "ddim"))
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    about = f"edm and flow, 10 uniform steps, 8-component mixture, {NOISES} noises"
    return tolerance(worst, 1e-12, about, "largest relative difference")


CLAIMS = (
    Claim("euler", "is of order 1", orders(EDM(), "euler")),
    Claim("euler", "is ddim where alpha and sigma are straight lines in time", _euler_is_ddim),
    Claim("heun", "is of order 2", orders(EDM(), "heun")),
    *(Claim("heun", f"beats Euler with {nfe} evaluations to spend, on EDM's process and times{paper}",
            duel(EDM(), "heun", "euler", nfe, "karras"))
      for nfe, paper in ((10, ""), (20, ""), (36, " (the paper's 35 on CIFAR-10)"))),
)  # fmt: skip
