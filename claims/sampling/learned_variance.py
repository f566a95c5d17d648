"""Claims of fewstep/sampling/learned_variance.py."""

from __future__ import annotations

from collections.abc import Callable

from claims.common import Claim, Noise, Outcome, arms, experiment, plan, sliced_wasserstein
from claims.objectives import PROCESS
from claims.problems import mixture
from claims.variances import ABOUT, learned
from fewstep.sampling.learned_variance import chain_bound

STEPS, SAMPLES = 10, 4096
BOUNDS = {"beta-tilde, the lower bound": 0.0, "beta, the upper bound": 1.0}


def _distance(fraction: float | None, seed: int) -> float:
    made = plan(PROCESS, "ddpm-learned", STEPS, "log-snr", fraction=fraction)
    samples = made(learned(seed), Noise(seed).normal(0, (SAMPLES, 2)), seed=seed)
    return sliced_wasserstein(samples.double(), mixture(PROCESS).sample(SAMPLES, seed + 1), projections=64).value


def _nats(fraction: float | None, seed: int) -> float:
    times = plan(PROCESS, "ddim", STEPS, "log-snr", end="min").times
    data = mixture(PROCESS).sample(SAMPLES, seed + 1).float()
    return float(chain_bound(learned(seed), data, times, fraction, seed=seed).mean())


@experiment
def _duel(seed: int, figure: Callable[[float | None, int], float], against: str, unit: str) -> Outcome:
    """The learned fraction between the two bounds, against a fixed one."""
    about = f"{ABOUT}; {STEPS} steps, times log-snr, {SAMPLES} points"
    return arms(seed, figure, None, BOUNDS[against], against, about, unit=unit)


CLAIMS = tuple(
    Claim(method, f"{sentence} than with {against}", _duel(figure, against, unit), quick=False)
    for method, sentence, figure, unit in (
        ("ddpm-learned", "10 steps end nearer to the exact law", _distance, "sliced Wasserstein distance"),
        ("chain-bound", "the bound on the likelihood of 10 steps is lower", _nats, "nats a point"),
    )
    for against in BOUNDS
)
