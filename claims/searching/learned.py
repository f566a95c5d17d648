"""Claims of what is learned beside a plan's times: every number of it, or the count for a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.common import ENDPOINT, F64, VP, Outcome, Process, compared, endpoint_error, experiment, plan, slow
from claims.problems import digits, exact
from claims.searching.grids import problem, search
from fewstep.hub.models import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.searching.adadiff import Policy, adadiff
from fewstep.searching.candidates import hand_made, rank, score
from fewstep.searching.job import Job
from fewstep.searching.learn import learn
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve

NFE, NOISES, UNSEEN = 12, 320, 640
ACCURACY = "verified accuracy"
LESS = 0.01  # of accuracy that still counts as equal: about one standard error of UNSEEN samples at 0.9
STRICT, LOOSE = 0.1, 1.0  # tolerances of the endpoint error: the default, and one that leaves the class alone to judge
TRAIN, HELD_OUT, VERDICT = 256, 128, 256
ITERATIONS = 8  # of Gauss-Newton for the leader; they stop early on the held-out noises


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
        about = f"embedded digits, dpmpp-2m, times karras; evaluations by label {counts}"
        return f"{about}; {NOISES} noises, {UNSEEN} unseen"

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


@experiment
def _learned(seed: int, nfe: int) -> Outcome:
    on = exact(VP(), seed, TRAIN + HELD_OUT + VERDICT)
    whole = Problem(on.noise, on.reference, {}, seed, 0)
    train, held = whole.part(0, TRAIN), whole.part(TRAIN, TRAIN + HELD_OUT)
    unseen = whole.part(TRAIN + HELD_OUT, len(whole))
    candidates = rank(list(hand_made(VP(), nfe)), on.model, held)
    made, facts = learn(on.model, candidates, train, held, iterations=ITERATIONS)
    assert made is not None
    # The rival is the best of all candidates on the very noises of the verdict: the hand-made plans' best case.
    theirs, name = min(((score(c.plan, on.model, unseen), c.name) for c in candidates), key=lambda pair: pair[0])
    about = f"{nfe} evaluations, {on.name}; {TRAIN} noises to learn from, {HELD_OUT} held out, {VERDICT} unseen;"
    about += f" {facts['iterations']} iterations, {facts['parameters']} numbers"
    against = f"the best of {len(candidates)} hand-made plans ({name})"
    return Outcome(score(made, on.model, unseen), theirs, against, about, unit=ENDPOINT)


def _digits(seed: int) -> Outcome:
    """From six common plans; the rival has five times the evaluations."""
    on = digits(seed)
    whole, process = Problem(on.noise, on.reference, on.condition, seed, 0), on.model.process
    train, held, unseen = whole.part(0, 16), whole.part(16, 32), whole.part(32, 64)
    starts = [plan(process, s, 4, rule) for s in ("dpmpp-2m", "unipc-2", "vab-3") for rule in ("log-snr", "karras")]
    made, facts = learn(on.model, rank(starts, on.model, held), train, held, iterations=2)
    assert made is not None
    errors = [score(p, on.model, unseen) for p in (made, plan(process, "ddim", 20, "log-snr"))]
    about = f"4 evaluations, embedded digits; 16 noises to learn from, 16 held out, 32 unseen; {facts['iterations']}"
    about += f" iterations, {facts['parameters']} numbers, from six common plans"
    return compared(errors, "ddim, 20 evaluations, times log-snr", about, unit=ENDPOINT)


@experiment
def _five_against_twelve(seed: int, where: Process | str) -> Outcome:
    """The searched plan of 5 evaluations against 2M with 12, on the better of its two common rules."""
    on, job = problem(where, seed), search(where, 5, "learned-plan", seed)
    assert job.best is not None
    rules = ("log-snr", "karras")
    theirs, rule = min((on.error(plan(on.model.process, "dpmpp-2m", 12, rule)), rule) for rule in rules)
    about = f"5 evaluations, {on.name}; 64 noises to learn from, 64 held out, {len(on.noise)} unseen; {job.best.name},"
    about += f" {job.evaluations} evaluations to find it"
    return Outcome(on.error(job.best), theirs, f"dpmpp-2m, {rule}, 12 evaluations", about, unit=ENDPOINT)


CLAIMS = (
    *(slow("adadiff", f"{sentence}, judged by {judge}", measured(tolerance))
      for tolerance, judge in ((STRICT, "endpoint and class"), (LOOSE, "class alone"))
      for sentence, measured in (
          ("at least 30 % fewer evaluations on the digits", _fewer),
          ("as accurate as the fixed count on the digits", _equal),
          (
              "nearer to the reference than a random policy of the same mean",
              lambda t: _random(t, Run.error, "low", ENDPOINT),
          ),
          ("more accurate than a random policy of the same mean", lambda t: _random(t, Run.accuracy, "high", ACCURACY)),
      )),
    slow("learned-plan", "5 evaluations reach what dpmpp-2m needs more than 12 for", _five_against_twelve(VP())),
    slow("learned-plan", "5 evaluations reach what dpmpp-2m needs more than 12 for on the embedded digits",
         _five_against_twelve("digits")),
    slow("learned-plan", "4 evaluations land nearer to the reference than 20 of ddim on the embedded digits", _digits),
    *(slow("learned-plan", f"beats every hand-made plan at {nfe} evaluations", _learned(nfe)) for nfe in (4, 8)),
)  # fmt: skip
