"""Claims of fewstep/sampling/brownian.py."""

from __future__ import annotations

from claims.common import Claim, Outcome, experiment, gap, plan
from claims.problems import problem
from fewstep.sampling.brownian import BrownianNoise


@experiment
def _change(seed: int, solver: str) -> Outcome:
    on, found = problem("digits", seed, 16), {}
    for brownian in (True, False):
        made = [plan(on.model.process, solver, n) for n in (20, 40)]
        x, y = (on.run(p, seed=seed, source=BrownianNoise(p, seed) if brownian else None) for p in made)
        found[brownian] = gap(x, y)
    about = f"{solver}, 20 against 40 steps from the same noise, log-snr, embedded digits, 16 noises"
    return Outcome(found[True], found[False], "fresh noise at every step", about, unit="relative change of the picture")


CLAIMS = tuple(
    Claim("brownian", f"keeps the picture of {solver} when its steps are doubled", _change(solver), quick=False)
    for solver in ("dpmpp-2m-sde", "ddpm")
)
