"""Claims of fewstep/sampling/interpolant_sde.py."""

from __future__ import annotations

import functools

from claims.between import DATA, OTHER, between, distance, learned
from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64
from fewstep.sampling.build import plan


def _law(seed: int, epsilon: float) -> Outcome:
    exact, n = between("linear", "quadratic"), 2048
    floor = max(distance(DATA.sample(n, seed + i), seed) for i in range(1, 6))
    made = plan(exact.process, "interpolant-sde", 100, "uniform", epsilon=epsilon)
    return Outcome(
        distance(made(exact, OTHER.sample(n, seed + 9), seed=seed, dtype=F64), seed),
        1.5 * floor,
        "1.5 times the most of five sets of exact samples",
        f"epsilon = {epsilon:g} gamma^2, quadratic latent, 100 even steps, {n} samples, exact fields",
        unit="sliced Wasserstein distance",
    )


def _learned(seed: int) -> Outcome:
    """The same network, once with the diffusion and once without."""

    def run(s: int) -> tuple[float, float]:
        model, x1 = learned(s, 800), OTHER.sample(2048, s + 9)
        figures = [
            distance(plan(model.process, "interpolant-sde", 50, "uniform", epsilon=c)(model, x1, seed=s, dtype=F64), s)
            for c in (2.0, 0.0)
        ]
        return figures[0], figures[1]

    return over_seeds(
        run,
        range(seed, seed + 3),
        "epsilon = 0, 50 evaluations",
        "epsilon = 2 gamma^2, brownian latent, 50 evaluations, mlp of width 48 after 800 steps, 2048 samples",
        unit="sliced Wasserstein distance",
    )


CLAIMS = (
    *(
        Claim("interpolant-sde", f"keeps the law at epsilon = {c:g} gamma^2", functools.partial(_law, epsilon=c), False)
        for c in (0.0, 1.0, 5.0)
    ),
    Claim("interpolant-sde", "makes up for a learned field's errors by its diffusion", _learned, quick=False),
)
