"""Claims of fewstep/hub/diffusers_scheduler.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import Problem, exact
from fewstep.metrics.endpoint import endpoint_error
from fewstep.processes.discrete import Discrete
from fewstep.sampling.build import plan

EVALUATIONS = 8


def _loop(scheduler: Any, problem: Problem) -> Tensor:
    """What a pipeline does with a scheduler, on a network that predicts eps."""
    x = problem.noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = problem.model(x, t.double()).eps
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x


def _more_accurate(seed: int) -> Outcome:
    """The default solver and times against DPM-Solver++ 2M as diffusers sets it up."""
    import diffusers

    process = Discrete.linear()
    problem = exact(process, seed)
    theirs = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    theirs.set_timesteps(EVALUATIONS)
    ours = plan(process, "dpmpp-3m", EVALUATIONS).as_diffusers_scheduler(like=theirs)
    errors = [endpoint_error(_loop(each, problem), problem.reference).value for each in (ours, theirs)]
    conditions = f"{problem.name}, {EVALUATIONS} evaluations, the same loop and network"
    return Outcome(*errors, "DPMSolverMultistepScheduler as it comes", conditions, "low", "relative end point error")


def _same(seed: int) -> Outcome:
    """A corrector's plan through the scheduler and by itself, in float64."""
    process = Discrete.linear()
    problem = exact(process, seed)
    made = plan(process, "unipc-3", EVALUATIONS, "karras")
    # Only the times differ, which a pipeline hands to its network in float32.
    off = (
        _loop(made.as_diffusers_scheduler(), problem) - made(problem.model, problem.noise, dtype=torch.float64)
    ).abs()
    return Outcome(float(off.max()), 1e-5, "a tolerance", f"{problem.name}, unipc-3, {EVALUATIONS} steps", "low")


CLAIMS = (
    Claim(
        "diffusers-scheduler",
        "dpmpp-3m on log-SNR times in a pipeline's loop ends nearer than diffusers' own default DPM-Solver++",
        _more_accurate,
        quick=False,
    ),
    Claim("diffusers-scheduler", "gives the plan's own samples, corrector included", _same, quick=False),
)
