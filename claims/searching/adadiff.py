"""Claims of fewstep/searching/adadiff.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.common import ENDPOINT, F64, Claim, Outcome, endpoint_error, experiment
from claims.problems import Problem
from fewstep.hub.models import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.searching.adadiff import Policy, adadiff
from fewstep.searching.job import Job
from fewstep.searching.reference import solve

NFE, NOISES, UNSEEN = 12, 320, 640
ACCURACY = "verified accuracy"
LESS = 0.01  # of accuracy that still counts as equal: about one standard error of UNSEEN samples at 0.9
STRICT, LOOSE = 0.1, 1.0  # tolerances of the endpoint error: the default, and one that leaves the class alone to judge


@dataclass(frozen=True)
class Run:
    """What the policy does on unseen noises: every plan's samples, and which plan each request gets."""

    policy: Policy
    problem: Problem
    samples: list[Tensor]
    chosen: Tensor

    @property
    def steps(self) -> Tensor:
        return torch.tensor([made.nfe for made in self.policy.plans], dtype=F64)

    @property
    def mean(self) -> float:
        return float(self.steps[self.chosen].mean())

    @property
    def about(self) -> str:
        counts = ", ".join(f"{label}: {count}" for label, count in enumerate(self.policy.counts()))
        return (
            f"embedded digits, dpmpp-2m, times karras; evaluations by label {counts}; {NOISES} noises, {UNSEEN} unseen"
        )

    def picked(self, chosen: Tensor) -> Tensor:
        return torch.stack(self.samples)[chosen, torch.arange(len(chosen))]

    def accuracy(self, chosen: Tensor) -> float:
        logits = digits_classifier()(self.picked(chosen))
        return float((logits.argmax(1) == self.problem.condition["label"]).double().mean())

    def error(self, chosen: Tensor) -> float:
        return endpoint_error(self.picked(chosen), self.problem.reference).value


@functools.cache
@torch.no_grad()
def _run(seed: int, tolerance: float) -> Run:
    job = Job(load("digits"), NFE, method="adadiff", seed=seed, noises=NOISES, reference_nfe=40)
    with job:
        adadiff(job, tolerance=tolerance)
        unseen = solve(job.model, seed, 2 * NOISES, UNSEEN, job.reference_nfe, job.dtype)
        samples = [job.run(made, unseen) for made in job.result.plans]
    return Run(job.result, unseen, samples, job.result.choose(UNSEEN, label=unseen.condition["label"]))


@experiment
def _fewer(seed: int, tolerance: float) -> Outcome:
    run = _run(seed, tolerance)
    return Outcome(run.mean, 0.7 * NFE, f"70 % of {NFE}", run.about, unit="mean evaluations")


@experiment
def _equal(seed: int, tolerance: float) -> Outcome:
    run = _run(seed, tolerance)
    fixed = run.accuracy(torch.full((UNSEEN,), int(run.steps.argmax())))
    against = f"{NFE} evaluations for every label, {fixed:.4g}, less {LESS}"
    about = f"{run.about}; mean {run.mean:.3g} evaluations"
    return Outcome(run.accuracy(run.chosen), fixed - LESS, against, about, better="high", unit=ACCURACY)


@experiment
def _random(seed: int, tolerance: float, figure: Callable[[Run, Tensor], float], better: str, unit: str) -> Outcome:
    """The same counts dealt to other requests: the mean of twenty deals."""
    run, generator = _run(seed, tolerance), torch.Generator().manual_seed(seed)
    deals = [run.chosen[torch.randperm(UNSEEN, generator=generator)] for _ in range(20)]
    theirs = sum(figure(run, deal) for deal in deals) / len(deals)
    against, about = "the same counts dealt at random, mean of 20", f"{run.about}; mean {run.mean:.3g} evaluations"
    return Outcome(figure(run, run.chosen), theirs, against, about, better, unit)


CLAIMS = tuple(
    Claim("adadiff", f"{sentence}, judged by {judge}", measured(tolerance), quick=False)
    for tolerance, judge in ((STRICT, "endpoint and class"), (LOOSE, "class alone"))
    for sentence, measured in (
        ("at least 30 % fewer evaluations on the digits", _fewer),
        ("as accurate as the fixed count on the digits", _equal),
        (
            "nearer to the reference than a random policy of the same mean",
            lambda t: _random(t, Run.error, "low", ENDPOINT),
        ),
        ("more accurate than a random policy of the same mean", lambda t: _random(t, Run.accuracy, "high", ACCURACY)),
    )
)  # fmt: skip
