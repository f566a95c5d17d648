"""Claims of fewstep/searching/dynamic_compensation.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import digits, exact
from claims.searches import contest, error, search
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _squared(process: Process | None, made: Plan, seed: int) -> float:
    problem = digits(seed) if process is None else exact(process, seed)
    x = made(problem.model, problem.noise, dtype=problem.noise.dtype, **problem.condition)
    return float((x.double() - problem.reference.double()).square().mean())


def _fitted(process: Process | None, nfe: int, rule: str, seed: int, noises: int = 64) -> Outcome:
    job = search(process, nfe, "dc-solver", seed, noises, solver="unipc-2", timesteps=rule)
    assert job.best is not None
    return Outcome(
        _squared(process, job.best, seed),
        _squared(process, plan(job.process, "unipc-2", nfe=nfe, timesteps=rule), seed),
        f"unipc-2, {nfe} evaluations",
        f"{nfe} evaluations, times {rule}, {'embedded digits' if process is None else '8-component mixture, vp'};"
        " ratios fitted on 12 noises, measured on others",
        unit="mean squared distance from the reference",
    )


def _predicted(seed: int) -> Outcome:
    options = {"solver": "unipc-2", "timesteps": "uniform"}
    fitted = search(VP(), 7, "dc-solver", seed, **options)
    predicted = search(VP(), 7, "dc-solver", seed, fit_nfes=(5, 6, 8, 9), **options)
    assert fitted.best is not None and predicted.best is not None
    base = error(VP(), plan(VP(), "unipc-2", 7, "uniform"), seed)
    return Outcome(
        (base - error(VP(), predicted.best, seed)) / (base - error(VP(), fitted.best, seed)),
        0.5,
        "half of the gain",
        "gain over unipc-2 at 7 evaluations on uniform times, 8-component mixture, vp; ratios predicted from those"
        " fitted at 5, 6, 8 and 9 evaluations, 256 noises that were not fitted",
        better="high",
        unit="gain of predicted ratios in parts of that of fitted ones",
    )


CLAIMS = (
    *(
        Claim(
            "dc-solver",
            f"is nearer to the reference than unipc-2 at {nfe} evaluations on {rule} times",
            lambda seed, nfe=nfe, rule=rule: _fitted(VP(), nfe, rule, seed),
            quick=nfe < 7,
        )
        for rule in ("uniform", "log-snr")
        for nfe in (5, 6, 7, 8)
    ),
    Claim(
        "dc-solver",
        "is nearer to the reference than unipc-2 at 6 evaluations on log-snr times of the embedded digits",
        lambda seed: _fitted(None, 6, "log-snr", seed, 32),
        quick=False,
    ),
    Claim(
        "dc-solver",
        "beats its bases on their best rules at 6 evaluations",
        lambda seed: contest(
            VP(),
            6,
            "dc-solver",
            [(s, r) for s in ("unipc-2", "unipc-3", "dpmpp-2m") for r in ("log-snr", "karras", "uniform", "short")],
            seed,
        ),
        quick=False,
    ),
    Claim(
        "dc-solver",
        "ratios predicted from other numbers of evaluations bring over half of the gain",
        _predicted,
        quick=False,
    ),
)
