"""Claims of fewstep/searching/adadiff.py."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.metrics.endpoint import endpoint_error
from fewstep.searching.adadiff import Policy, adadiff
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve

NFE, NOISES, UNSEEN = 12, 320, 640
LESS = 0.01  # of accuracy that still counts as equal: about one standard error of UNSEEN samples at 0.9


@dataclass(frozen=True)
class Run:
    """What the policy does on unseen noises: every plan's samples, and which plan each request gets."""

    policy: Policy
    problem: Problem
    samples: list[Tensor]
    chosen: Tensor

    @property
    def steps(self) -> Tensor:
        return torch.tensor([made.nfe for made in self.policy.plans], dtype=torch.float64)

    def picked(self, chosen: Tensor) -> Tensor:
        return torch.stack(self.samples)[chosen, torch.arange(len(chosen))]

    def accuracy(self, chosen: Tensor) -> float:
        logits = digits_classifier()(self.picked(chosen))
        return float((logits.argmax(1) == self.problem.condition["label"]).double().mean())

    def error(self, chosen: Tensor) -> float:
        return endpoint_error(self.picked(chosen), self.problem.reference).value


STRICT, LOOSE = 0.1, 1.0  # tolerances of the endpoint error: the default, and one that leaves the class alone to judge


@functools.cache
@torch.no_grad()
def _run(seed: int, tolerance: float) -> Run:
    from fewstep.hub.models import load

    job = Job(load("digits"), NFE, method="adadiff", seed=seed, noises=NOISES, reference_nfe=40)
    with job:
        adadiff(job, tolerance=tolerance)
        unseen = solve(job.model, seed, 2 * NOISES, UNSEEN, job.reference_nfe, job.dtype)
        samples = [job.run(made, unseen) for made in job.result.plans]
    label = unseen.condition["label"]
    return Run(job.result, unseen, samples, job.result.choose(UNSEEN, label=label))


def _conditions(run: Run) -> str:
    counts = ", ".join(f"{label}: {count}" for label, count in enumerate(run.policy.counts()))
    return f"embedded digits, dpmpp-2m, times karras; evaluations by label {counts}; {NOISES} noises, {UNSEEN} unseen"


def _fixed(run: Run) -> Tensor:
    return torch.full((UNSEEN,), int(run.steps.argmax()))


def _fewer(tolerance: float, seed: int) -> Outcome:
    run = _run(seed, tolerance)
    return Outcome(
        float(run.steps[run.chosen].mean()), 0.7 * NFE, f"70 % of {NFE}", _conditions(run), unit="mean evaluations"
    )


def _equal(tolerance: float, seed: int) -> Outcome:
    run = _run(seed, tolerance)
    fixed = run.accuracy(_fixed(run))
    return Outcome(
        run.accuracy(run.chosen),
        fixed - LESS,
        f"{NFE} evaluations for every label, {fixed:.4g}, less {LESS}",
        f"{_conditions(run)}; mean {float(run.steps[run.chosen].mean()):.3g} evaluations",
        better="high",
        unit="verified accuracy",
    )


def _random(tolerance: float, seed: int, accuracy: bool) -> Outcome:
    """The same counts dealt to other requests: the mean of twenty deals."""
    run = _run(seed, tolerance)
    generator = torch.Generator().manual_seed(seed)
    deals = [run.chosen[torch.randperm(UNSEEN, generator=generator)] for _ in range(20)]
    measure = run.accuracy if accuracy else run.error
    return Outcome(
        measure(run.chosen),
        sum(measure(deal) for deal in deals) / len(deals),
        "the same counts dealt at random, mean of 20",
        f"{_conditions(run)}; mean {float(run.steps[run.chosen].mean()):.3g} evaluations",
        better="high" if accuracy else "low",
        unit="verified accuracy" if accuracy else "relative end point error",
    )


CLAIMS = tuple(
    Claim("adadiff", f"{sentence}, judged by {judge}", functools.partial(run, tolerance), quick=False)
    for tolerance, judge in ((STRICT, "endpoint and class"), (LOOSE, "class alone"))
    for sentence, run in (
        ("at least 30 % fewer evaluations on the digits", _fewer),
        ("as accurate as the fixed count on the digits", _equal),
        ("nearer to the reference than a random policy of the same mean", functools.partial(_random, accuracy=False)),
        ("more accurate than a random policy of the same mean", functools.partial(_random, accuracy=True)),
    )
)
