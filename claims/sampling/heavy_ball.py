"""Claims of fewstep/sampling/heavy_ball.py."""

from __future__ import annotations

import math

from claims.claim import Claim, Outcome
from claims.problems import exact, smooth, spread_grid
from fewstep.core.check import stability
from fewstep.core.noise import Noise
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.heavy_ball import heavy_ball


def _radius(seed: int) -> Outcome:
    made = plan(VP(), "plms", 10)
    return Outcome(
        stability(heavy_ball(made, 0.7)),
        stability(made),
        "plms without momentum",
        "plms, 10 steps, log-snr, vp; largest k of d(x/alpha)/d(log-SNR) = -k x/alpha with no growth; damping 0.7",
        better="high",
        unit="stability radius",
    )


def _error(seed: int) -> Outcome:
    problem = exact(VP(), seed)
    made = plan(VP(), "plms", 12)
    return Outcome(
        problem.error(heavy_ball(made, 0.7)),
        problem.error(made),
        "plms without momentum",
        f"plms, 12 steps, log-snr, {problem.name}, {len(problem.noise)} noises; damping 0.7",
        unit="relative end point error",
    )


def _order(seed: int) -> Outcome:
    """What momentum costs: the order falls to 1 whatever the solver's."""
    noise = Noise(seed).normal(0, (32, 2)).double()
    answer = plan(VP(), "ab-5", timesteps=spread_grid(VP(), 800))(smooth(VP()), noise, dtype=noise.dtype)
    errors = []
    for n in (96, 192):
        made = heavy_ball(plan(VP(), "dpmpp-2m", timesteps=spread_grid(VP(), n)), 0.7)
        errors.append(float((made(smooth(VP()), noise, dtype=noise.dtype) - answer).norm()))
    measured = math.log2(errors[0] / errors[1])
    return Outcome(
        abs(measured - 1),
        0.2,
        "tolerance",
        f"dpmpp-2m with damping 0.7 measures {measured:.2f}; 96 and 192 steps, smooth 5-component mixture",
        unit="|measured order - 1|",
    )


CLAIMS = (
    Claim("heavy-ball", "widens the stability of plms", _radius),
    Claim("heavy-ball", "lowers the error of plms at 12 steps on the mixture", _error),
    Claim("heavy-ball", "leaves order 1", _order),
)
