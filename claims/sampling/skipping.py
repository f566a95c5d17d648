"""Claims of fewstep/sampling/skipping.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, Process, compared, experiment, gap, plan
from claims.problems import problem
from fewstep.sampling.skipping import reuse, skip

STEPS = 50


@experiment
def _against_uniform(seed: int, where: Process | str, solver: str, delta: float, timesteps: str = "log-snr") -> Outcome:
    """The criterion against evaluations reused at equal distances, at least as many of them made."""
    on = problem(where, seed)
    made = plan(on.model.process, solver, STEPS, timesteps)
    whole, run = on.run(made), on.run(skip(made, delta).run)
    mean = float(run.report["nfe_per_sample"].double().mean())
    count = round(mean + 0.5)
    kept = {round(i * (STEPS - 1) / (count - 1)) for i in range(count)}
    uniform = reuse(made, [i for i in range(STEPS) if i not in kept])
    about = f"{solver}, {STEPS} steps, {timesteps}, delta {delta:g}: {mean:.1f} evaluations a sample, {on.about}"
    figures, against = (
        (gap(run.samples, whole), gap(on.run(uniform), whole)),
        f"uniform skipping, {uniform.nfe} evaluations",
    )
    return compared(figures, against, about, unit="relative difference from the run with all evaluations")


CLAIMS = (
    Claim("adaptive-diffusion", "beats uniform skipping of ddim on the mixture", _against_uniform(VP(), "ddim", 0.1)),
    Claim("adaptive-diffusion", "beats uniform skipping of ddim on uniform times, the paper's, on the mixture",
          _against_uniform(VP(), "ddim", 0.1, "uniform")),
    *(Claim("adaptive-diffusion", f"beats uniform skipping of {solver} on the embedded digits",
            _against_uniform("digits", solver, 0.2), quick=False)
      for solver in ("ddim", "dpmpp-2m")),
)  # fmt: skip
