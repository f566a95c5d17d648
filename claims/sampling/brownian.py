"""Claims of fewstep/sampling/brownian.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import digits
from fewstep.sampling.brownian import BrownianNoise
from fewstep.sampling.build import plan


def _change(seed: int, solver: str) -> Outcome:
    problem = digits(seed).part(16)
    found = {}
    for brownian in (True, False):
        x, y = (
            made(
                problem.model,
                problem.noise,
                seed=seed,
                source=BrownianNoise(made, seed) if brownian else None,
                **problem.condition,
            )
            for made in (plan(problem.model.process, solver, n) for n in (20, 40))
        )
        found[brownian] = float((x - y).norm() / y.norm())
    return Outcome(
        found[True],
        found[False],
        "fresh noise at every step",
        f"{solver}, 20 against 40 steps from the same noise, log-snr, embedded digits, 16 noises",
        unit="relative change of the picture",
    )


CLAIMS = tuple(
    Claim(
        "brownian",
        f"keeps the picture of {solver} when its steps are doubled",
        lambda seed, solver=solver: _change(seed, solver),
        quick=False,
    )
    for solver in ("dpmpp-2m-sde", "ddpm")
)
