"""Claims of fewstep/sampling/parallel.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import digits
from fewstep.sampling.build import plan
from fewstep.sampling.parallel import run_parallel

STEPS, TOLERANCE, NOISES = 50, 1e-2, 16


def _run(seed: int, solver: str):
    problem = digits(seed).part(NOISES)
    made = plan(problem.model.process, solver, STEPS)
    result = run_parallel(made, problem.model, problem.noise, STEPS, TOLERANCE, seed=seed, **problem.condition)
    exact = made(problem.model, problem.noise, seed=seed, **problem.condition)
    return made, result, float((result.samples - exact).norm() / exact.norm())


def _depth(seed: int, solver: str) -> Outcome:
    made, result, error = _run(seed, solver)
    return Outcome(
        result.depth,
        made.nfe / 3,
        "a third of the sequential run's calls",
        f"{solver}, {STEPS} steps, window {STEPS}, tolerance {TOLERANCE:g}, embedded digits, {NOISES} noises;"
        f" {result.nfe} evaluations a sample, relative difference {error:.2g}",
        unit="network calls one after the other",
    )


def _held(seed: int, solver: str) -> Outcome:
    made, result, error = _run(seed, solver)
    return Outcome(
        error,
        TOLERANCE,
        "tolerance",
        f"{solver}, {STEPS} steps, window {STEPS}, embedded digits, {NOISES} noises; {result.depth} calls",
        unit="relative difference from the sequential samples",
    )


CLAIMS = tuple(
    claim
    for solver, what in (("ddim", "ddim"), ("ddpm", "the stochastic ddpm"), ("dpmpp-2m", "dpmpp-2m"))
    for claim in (
        Claim(
            "paradigms",
            f"needs less than a third of the calls of {what} at 50 steps",
            lambda seed, solver=solver: _depth(seed, solver),
            quick=False,
        ),
        Claim(
            "paradigms",
            f"keeps its tolerance on {what} at 50 steps",
            lambda seed, solver=solver: _held(seed, solver),
            quick=False,
        ),
    )
)
