"""Claims of fewstep/sampling/heun.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import NOISES, duel, exact, orders
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan


def _euler_is_ddim(seed: int) -> Outcome:
    worst = 0.0
    for process in (EDM(), Flow()):
        problem = exact(process, seed)
        a, b = (
            plan(process, solver, 10, "uniform")(problem.model, problem.noise, dtype=problem.noise.dtype)
            for solver in ("euler", "ddim")
        )
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return Outcome(
        worst,
        1e-12,
        "tolerance",
        f"edm and flow, 10 uniform steps, 8-component mixture, {NOISES} noises",
        unit="largest relative difference",
    )


CLAIMS = (
    Claim("euler", "is of order 1", lambda seed: orders(EDM(), "euler", seed)),
    Claim("euler", "is ddim where alpha and sigma are straight lines in time", _euler_is_ddim),
    Claim("heun", "is of order 2", lambda seed: orders(EDM(), "heun", seed)),
    Claim(
        "heun",
        "beats Euler with 10 evaluations to spend, on EDM's process and times",
        lambda seed: duel(exact(EDM(), seed), "heun", "euler", 10, "karras"),
    ),
    Claim(
        "heun",
        "beats Euler with 20 evaluations to spend, on EDM's process and times",
        lambda seed: duel(exact(EDM(), seed), "heun", "euler", 20, "karras"),
    ),
    Claim(
        "heun",
        "beats Euler with 36 evaluations to spend, on EDM's process and times (the paper's 35 on CIFAR-10)",
        lambda seed: duel(exact(EDM(), seed), "heun", "euler", 36, "karras"),
    ),
)
