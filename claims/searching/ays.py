"""Claims of fewstep/searching/ays.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import mixture
from claims.searches import contest, search
from fewstep.core.noise import Noise
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

RULES = ("karras", "log-snr", "uniform")


def _ancestral(seed: int) -> Outcome:
    """What the bound bounds: the distribution of the reverse SDE's discretisation."""
    job = search(VP(), 10, "ays", seed, solver="ddim", floor=0.0)
    assert job.best is not None
    model, n = mixture(VP()), 4096
    noise = Noise(seed).normal(0, (n, 2), "cpu", torch.float64)
    data = model.sample(n, seed + 1)

    def distance(made: object) -> float:
        x = made(model, noise, seed=seed, dtype=torch.float64)  # type: ignore[operator]
        return sliced_wasserstein(x, data, projections=64).value

    theirs = min((distance(plan(VP(), "ddpm", 10, rule)), rule) for rule in RULES)
    return Outcome(
        distance(plan(VP(), "ddpm", timesteps=list(job.best.times))),
        theirs[0],
        f"{theirs[1]}, the best of {len(RULES)}",
        f"ddpm, 10 evaluations, 8-component mixture, vp, {n} samples",
        unit="sliced Wasserstein distance",
    )


CLAIMS = (
    Claim("ays", "the paper's schedule samples the SDE better than hand-made ones at 10 evaluations", _ancestral),
    *(
        Claim(
            "ays",
            f"the paper's schedule beats karras, log-snr and uniform times under {solver} at 10 evaluations",
            lambda seed, solver=solver: contest(
                VP(), 10, "ays", [(solver, rule) for rule in RULES], seed, solver=solver, floor=0.0
            ),
        )
        for solver in ("ddim", "dpmpp-2m")
    ),
    *(
        Claim(
            "ays",
            f"with a floor of its own it beats dpmpp-2m at {nfe} evaluations",
            lambda seed, nfe=nfe: contest(VP(), nfe, "ays", [("dpmpp-2m", rule) for rule in RULES], seed),
        )
        for nfe in (5, 8)
    ),
    Claim(
        "ays",
        "with a floor of its own it beats dpmpp-2m at 8 evaluations on the embedded digits",
        lambda seed: contest(None, 8, "ays", [("dpmpp-2m", rule) for rule in RULES], seed, noises=32),
        quick=False,
    ),
)
