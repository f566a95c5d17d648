"""Predictor-corrector sampling: after every reverse step, Langevin steps at the new noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.sampling.common import ddim
from fewstep.sampling.ddim import ancestral

METHODS = (
    Method(
        "pc",
        paper="Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)",
        arxiv="2011.13456",
        claim="reverse steps corrected by Langevin steps whose size follows from a signal-to-noise ratio",
        use="pc",
        facts={"live": True, "stochastic": True},
    ),
)

PREDICTORS = ("ddpm", "ddim")


def langevin(live: Live, x: Tensor, t: float, snr: float = 0.16) -> Tensor:
    """One Langevin step at time t: `x + tau g + sqrt(2 tau) z`, with g the score and `tau = 2 (snr |z| / |g|)^2`.

    The norms are the expected ones, `|z| = sqrt(d)` and `|g| = sqrt(d) / sigma`, so `tau = 2 (snr sigma)^2`. The
    paper's code takes the batch's means, on which a sample must not depend; a sample's own would make tau follow x and
    z, which spoils the law: by 4/d of its variance, without a bound in two dimensions. Algorithm 5's factor 1 - beta_i
    is that of one step of a fine table, nearly 1, and left out.
    """
    eps, sigma = live.evaluate(x, t).eps, live.process.sigma(t)
    return x - eps * (2 * snr**2 * sigma) + live.noise() * (2 * snr * sigma)


def pc(
    live: Live,
    process: Process,
    times: Sequence[float],
    predictor: str = "ddpm",
    corrections: int = 1,
    snr: float = 0.16,
) -> Tensor:
    """Predictor-corrector sampling (Algorithms 2 to 5), for any process; nothing corrects the clean sample.

    Args:
        predictor: "ddpm", the ancestral step (stochastic), or "ddim", that of the ODE.
        corrections: Langevin steps after each predictor step, one evaluation each; with 0 it is the predictor.
        snr: ratio of the Langevin drift to its noise, in norms; the paper's 0.16 is for images.

    Raises:
        ValueError: an unknown predictor, a negative count, an snr that is not positive.
    """
    if predictor not in PREDICTORS:
        raise suggest("predictor", predictor, PREDICTORS)
    if isinstance(corrections, bool) or int(corrections) != corrections or corrections < 0:
        raise ValueError(f"corrections must be a whole number of at least 0, got {corrections!r}")
    if not snr > 0:
        raise ValueError(f"snr must be positive, got {snr}")
    x = live.start()
    for a, b in pairwise(times):
        prediction = live.evaluate(x, a)
        if predictor == "ddim":
            x = ddim(process, x, a, b, prediction)  # type: ignore[arg-type, assignment]
        else:
            s, sigma_a, sigma_b = ancestral(process, a, b, 1.0), process.sigma(a), process.sigma(b)
            direction = math.sqrt(max(sigma_b**2 - s**2, 0.0))
            x = x * (direction / sigma_a) + prediction.x0 * (process.alpha(b) - process.alpha(a) * direction / sigma_a)
            if s > 0:
                x = x + live.noise(a, b) * s
        if process.sigma(b) > 0:
            for _ in range(int(corrections)):
                x = langevin(live, x, b, snr)
    return x
