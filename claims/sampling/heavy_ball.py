"""Claims of fewstep/sampling/heavy_ball.py."""

from __future__ import annotations

import math

from claims.common import ENDPOINT, F64, VP, Claim, Noise, Outcome, compared, plan, tolerance
from claims.problems import problem, smooth, spread_grid
from fewstep.core.check import stability
from fewstep.sampling.heavy_ball import heavy_ball


def _radius(seed: int) -> Outcome:
    made = plan(VP(), "plms", 10)
    about = "plms, 10 steps, log-snr, vp; largest k of d(x/alpha)/d(log-SNR) = -k x/alpha with no growth; damping 0.7"
    figures = stability(heavy_ball(made, 0.7)), stability(made)
    return compared(figures, "plms without momentum", about, better="high", unit="stability radius")


def _error(seed: int) -> Outcome:
    on, made = problem(VP(), seed), plan(VP(), "plms", 12)
    about = f"plms, 12 steps, log-snr, {on.about}; damping 0.7"
    return Outcome(on.error(heavy_ball(made, 0.7)), on.error(made), "plms without momentum", about, unit=ENDPOINT)


def _order(seed: int) -> Outcome:
    """What momentum costs: the order falls to 1 whatever the solver's."""
    noise = Noise(seed).normal(0, (32, 2)).double()
    answer = plan(VP(), "ab-5", timesteps=spread_grid(VP(), 800))(smooth(VP()), noise, dtype=F64)
    errors = []
    for n in (96, 192):
        made = heavy_ball(plan(VP(), "dpmpp-2m", timesteps=spread_grid(VP(), n)), 0.7)
        errors.append(float((made(smooth(VP()), noise, dtype=F64) - answer).norm()))
    measured = math.log2(errors[0] / errors[1])
    about = f"dpmpp-2m with damping 0.7 measures {measured:.2f}; 96 and 192 steps, smooth 5-component mixture"
    return tolerance(abs(measured - 1), 0.2, about, "|measured order - 1|")


CLAIMS = (
    Claim("heavy-ball", "widens the stability of plms", _radius),
    Claim("heavy-ball", "lowers the error of plms at 12 steps on the mixture", _error),
    Claim("heavy-ball", "leaves order 1", _order),
)
