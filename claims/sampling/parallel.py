"""Claims of fewstep/sampling/parallel.py."""

from __future__ import annotations

from typing import Any

from claims.common import Claim, Outcome, Plan, experiment, gap, plan, tolerance
from claims.problems import problem
from fewstep.sampling.parallel import run_parallel

STEPS, BOUND, NOISES = 50, 1e-2, 16
SOLVERS = (("ddim", "ddim"), ("ddpm", "the stochastic ddpm"), ("dpmpp-2m", "dpmpp-2m"))


def _run(seed: int, solver: str) -> tuple[Plan, Any, float]:
    on = problem("digits", seed, NOISES)
    made = plan(on.model.process, solver, STEPS)
    result = run_parallel(made, on.model, on.noise, STEPS, BOUND, seed=seed, **on.condition)
    return made, result, gap(result.samples, made(on.model, on.noise, seed=seed, **on.condition))


@experiment
def _depth(seed: int, solver: str) -> Outcome:
    made, result, error = _run(seed, solver)
    about = f"{solver}, {STEPS} steps, window {STEPS}, tolerance {BOUND:g}, embedded digits, {NOISES} noises;"
    about += f" {result.nfe} evaluations a sample, relative difference {error:.2g}"
    against = "a third of the sequential run's calls"
    return Outcome(result.depth, made.nfe / 3, against, about, unit="network calls one after the other")


@experiment
def _held(seed: int, solver: str) -> Outcome:
    _, result, error = _run(seed, solver)
    about = f"{solver}, {STEPS} steps, window {STEPS}, embedded digits, {NOISES} noises; {result.depth} calls"
    return tolerance(error, BOUND, about, "relative difference from the sequential samples")


CLAIMS = (
    *(Claim("paradigms", f"needs less than a third of the calls of {what} at 50 steps", _depth(solver), quick=False)
      for solver, what in SOLVERS),
    *(Claim("paradigms", f"keeps its tolerance on {what} at 50 steps", _held(solver), quick=False)
      for solver, what in SOLVERS),
)  # fmt: skip
