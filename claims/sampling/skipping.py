"""Claims of fewstep/sampling/skipping.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import Problem, digits, exact
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.skipping import reuse, skip

STEPS = 50


def _against_uniform(problem: Problem, solver: str, delta: float, timesteps: str = "log-snr") -> Outcome:
    """The criterion against evaluations reused at equal distances, at least as many of them made."""
    made = plan(problem.model.process, solver, STEPS, timesteps)
    whole = made(problem.model, problem.noise, dtype=problem.noise.dtype, **problem.condition)
    run = skip(made, delta).run(problem.model, problem.noise, dtype=problem.noise.dtype, **problem.condition)
    mean = float(run.report["nfe_per_sample"].double().mean())
    kept = {round(i * (STEPS - 1) / (round(mean + 0.5) - 1)) for i in range(round(mean + 0.5))}
    uniform = reuse(made, [i for i in range(STEPS) if i not in kept])
    x = uniform(problem.model, problem.noise, dtype=problem.noise.dtype, **problem.condition)
    return Outcome(
        float((run.samples - whole).norm() / whole.norm()),
        float((x - whole).norm() / whole.norm()),
        f"uniform skipping, {uniform.nfe} evaluations",
        f"{solver}, {STEPS} steps, {timesteps}, delta {delta:g}: {mean:.1f} evaluations a sample, {problem.name},"
        f" {len(problem.noise)} noises",
        unit="relative difference from the run with all evaluations",
    )


CLAIMS = (
    Claim(
        "adaptive-diffusion",
        "beats uniform skipping of ddim on the mixture",
        lambda seed: _against_uniform(exact(VP(), seed), "ddim", 0.1),
    ),
    Claim(
        "adaptive-diffusion",
        "beats uniform skipping of ddim on uniform times, the paper's, on the mixture",
        lambda seed: _against_uniform(exact(VP(), seed), "ddim", 0.1, "uniform"),
    ),
    Claim(
        "adaptive-diffusion",
        "beats uniform skipping of ddim on the embedded digits",
        lambda seed: _against_uniform(digits(seed), "ddim", 0.2),
        quick=False,
    ),
    Claim(
        "adaptive-diffusion",
        "beats uniform skipping of dpmpp-2m on the embedded digits",
        lambda seed: _against_uniform(digits(seed), "dpmpp-2m", 0.2),
        quick=False,
    ),
)
