"""Claims of fewstep/sampling/gradient_estimation.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import NOISES, duel, exact, orders
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _is_ddim(seed: int) -> Outcome:
    problem = exact(VP(), seed)
    a, b = (
        made(problem.model, problem.noise, dtype=problem.noise.dtype)
        for made in (plan(VP(), "gradient-estimation", 10, gamma=1.0), plan(VP(), "ddim", 10))
    )
    return Outcome(
        float((a - b).abs().max()),
        1e-300,
        "tolerance",
        f"vp, 10 log-snr steps, 8-component mixture, {NOISES} noises",
        unit="largest difference",
    )


CLAIMS = (
    Claim("gradient-estimation", "is of order 1", lambda seed: orders(EDM(), "gradient-estimation", seed)),
    Claim("gradient-estimation", "gamma = 1 is ddim bit for bit", _is_ddim),
    Claim(
        "gradient-estimation",
        "beats ddim at 5 evaluations",
        lambda seed: duel(exact(EDM(), seed), "gradient-estimation", "ddim", 5, "log-snr"),
    ),
    Claim(
        "gradient-estimation",
        "beats ddim at 10 evaluations",
        lambda seed: duel(exact(EDM(), seed), "gradient-estimation", "ddim", 10, "log-snr"),
    ),
)
