"""Claims of fewstep/sampling/learned_variance.py."""

from __future__ import annotations

from collections.abc import Callable

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS
from claims.problems import mixture
from claims.variances import ABOUT, learned
from fewstep.core.noise import Noise
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.sampling.build import plan
from fewstep.sampling.learned_variance import chain_bound

STEPS, SAMPLES = 10, 4096
BOUNDS = {"beta-tilde, the lower bound": 0.0, "beta, the upper bound": 1.0}


def _distance(seed: int, fraction: float | None) -> float:
    made = plan(PROCESS, "ddpm-learned", STEPS, "log-snr", fraction=fraction)
    samples = made(learned(seed), Noise(seed).normal(0, (SAMPLES, 2)), seed=seed)
    return sliced_wasserstein(samples.double(), mixture(PROCESS).sample(SAMPLES, seed + 1), projections=64).value


def _nats(seed: int, fraction: float | None) -> float:
    times = plan(PROCESS, "ddim", STEPS, "log-snr", end="min").times
    data = mixture(PROCESS).sample(SAMPLES, seed + 1).float()
    return float(chain_bound(learned(seed), data, times, fraction, seed=seed).mean())


def _duel(measure: Callable[[int, float | None], float], against: str, unit: str) -> Outcome:
    return over_seeds(
        lambda seed: (measure(seed, None), measure(seed, BOUNDS[against])),
        SEEDS,
        against,
        f"{ABOUT}; {STEPS} steps, times log-snr, {SAMPLES} points",
        unit=unit,
    )


CLAIMS = tuple(
    Claim(
        method,
        f"{sentence} than with {against}",
        lambda seed, measure=measure, against=against, unit=unit: _duel(measure, against, unit),  # type: ignore[misc]
        quick=False,
    )
    for method, sentence, measure, unit in (
        ("ddpm-learned", "10 steps end nearer to the exact law", _distance, "sliced Wasserstein distance"),
        ("chain-bound", "the bound on the likelihood of 10 steps is lower", _nats, "nats a point"),
    )
    for against in BOUNDS
)
