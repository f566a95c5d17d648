"""Claims of fewstep/hub/diffusers_scheduler.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from claims.common import ENDPOINT, Claim, Discrete, Outcome, compared, endpoint_error, plan
from claims.problems import Problem, problem

EVALUATIONS = 8


def _loop(scheduler: Any, on: Problem) -> Tensor:
    """What a pipeline does with a scheduler, on a network that predicts eps."""
    x = on.noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(on.model(x, t.double()).eps, t, x, return_dict=False)[0]
    return x


def _more_accurate(seed: int) -> Outcome:
    """The default solver and times against DPM-Solver++ 2M as diffusers sets it up."""
    import diffusers

    process = Discrete.linear()
    on = problem(process, seed)
    theirs = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    theirs.set_timesteps(EVALUATIONS)
    ours = plan(process, "dpmpp-3m", EVALUATIONS).as_diffusers_scheduler(like=theirs)
    errors = [endpoint_error(_loop(each, on), on.reference).value for each in (ours, theirs)]
    about = f"{on.name}, {EVALUATIONS} evaluations, the same loop and network"
    return compared(errors, "DPMSolverMultistepScheduler as it comes", about, unit=ENDPOINT)


def _same(seed: int) -> Outcome:
    """A corrector's plan through the scheduler and by itself, in float64."""
    on, made = problem(Discrete.linear(), seed), plan(Discrete.linear(), "unipc-3", EVALUATIONS, "karras")
    # Only the times differ, which a pipeline hands to its network in float32.
    off = (_loop(made.as_diffusers_scheduler(), on) - on.run(made)).abs()
    return Outcome(float(off.max()), 1e-5, "a tolerance", f"{on.name}, unipc-3, {EVALUATIONS} steps")


CLAIMS = (
    Claim("diffusers-scheduler",
          "dpmpp-3m on log-SNR times in a pipeline's loop ends nearer than diffusers' own default DPM-Solver++",
          _more_accurate, quick=False),
    Claim("diffusers-scheduler", "gives the plan's own samples, corrector included", _same, quick=False),
)  # fmt: skip
