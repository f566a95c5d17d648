"""The reference: the probability-flow ODE from the same noises, solved by a high-order method in many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.data.dataset import Dataset
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.problem import Problem, draw, run_all
from fewstep.searching.shared import _nothing, run_shared

SOLVER, TIMES = "vab-3", "karras"


def reference_plan(model: Denoiser, nfe: int) -> Plan:
    """Third-order Adams-Bashforth on the velocity, which stays third-order up to sigma = 0."""
    return make_plan(model.process, SOLVER, timesteps=TIMES, nfe=nfe)


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Mean L2 error of a batch over the mean L2 norm of the reference; infinite if x is not finite."""
    difference = (x.double() - reference.double()).flatten(1).norm(dim=1).mean()
    value = float(difference / reference.double().flatten(1).norm(dim=1).mean())
    return value if value == value else float("inf")


def solve(
    model: Denoiser,
    seed: int,
    first: int,
    n: int,
    nfe: int,
    dtype: torch.dtype,
    data: Dataset | None = None,
    tick: Callable[[], None] = _nothing,
    given: Mapping[str, Tensor] | None = None,
) -> Problem:
    """n noises of the stream `seed` from number `first` on, with the conditions of as many rows of the data or those
    given, in turn, and the reference's answers; `tick` is called before each call of the network."""
    noise, condition = draw(model, seed, first, n, dtype, data, given)
    answers = _answers(model, nfe, Problem(noise, noise, condition, seed, first), tick)
    return Problem(noise, answers, condition, seed, first)


def _answers(model: Denoiser, nfe: int, problem: Problem, tick: Callable[[], None] = _nothing) -> Tensor:
    """The reference's samples `(n, *shape)`; `ValueError` where they are not finite."""
    plan = reference_plan(model, nfe)
    samples = run_shared([plan], model, problem, tick)[0].samples
    if samples is None:  # say where it went wrong
        return run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
    return samples


def error_estimate(model: Denoiser, problem: Problem, nfe: int) -> float:
    """How far the reference is from itself with half the evaluations, on at most 64 noises.

    A third-order method's own error is about a seventh of that: a careful upper bound.
    """
    part = problem.part(0, 64)
    return relative_error(_answers(model, nfe // 2, part), part.reference)
