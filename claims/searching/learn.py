"""Claims of fewstep/searching/learn.py."""

from __future__ import annotations

import functools

from claims.claim import Claim, Outcome
from claims.problems import digits, exact
from claims.searches import problem, search
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import hand_made, rank, score
from fewstep.searching.learn import learn
from fewstep.searching.problem import Problem

TRAIN, HELD_OUT, VERDICT = 256, 128, 256
ITERATIONS = 8  # of Gauss-Newton for the leader; they stop early on the held-out noises


@functools.cache
def _learned(process: Process, nfe: int, seed: int) -> Outcome:
    problem = exact(process, seed, TRAIN + HELD_OUT + VERDICT)
    whole = Problem(problem.noise, problem.reference, {}, seed, 0)
    train, held = whole.part(0, TRAIN), whole.part(TRAIN, TRAIN + HELD_OUT)
    unseen = whole.part(TRAIN + HELD_OUT, len(whole))
    candidates = rank(list(hand_made(process, nfe)), problem.model, held)
    found, facts = learn(problem.model, candidates, train, held, iterations=ITERATIONS)
    assert found is not None
    # The rival is the best of all candidates on the very noises of the verdict: the hand-made plans' best case.
    best = min(((score(c.plan, problem.model, unseen), c.name) for c in candidates), key=lambda pair: pair[0])
    return Outcome(
        score(found, problem.model, unseen),
        best[0],
        f"the best of {len(candidates)} hand-made plans ({best[1]})",
        f"{nfe} evaluations, 8-component mixture, {process.name}; {TRAIN} noises to learn from, {HELD_OUT} held out,"
        f" {VERDICT} unseen; {facts['iterations']} iterations, {facts['parameters']} numbers",
        unit="relative end point error",
    )


def _digits(seed: int) -> Outcome:
    """From six common plans; the rival has five times the evaluations."""
    problem = digits(seed)
    whole = Problem(problem.noise, problem.reference, problem.condition, seed, 0)
    train, held, unseen = whole.part(0, 16), whole.part(16, 32), whole.part(32, 64)
    process = problem.model.process
    starts = [plan(process, s, 4, rule) for s in ("dpmpp-2m", "unipc-2", "vab-3") for rule in ("log-snr", "karras")]
    found, facts = learn(problem.model, rank(starts, problem.model, held), train, held, iterations=2)
    assert found is not None
    return Outcome(
        score(found, problem.model, unseen),
        score(plan(process, "ddim", 20, "log-snr"), problem.model, unseen),
        "ddim, 20 evaluations, times log-snr",
        f"4 evaluations, embedded digits; 16 noises to learn from, 16 held out, 32 unseen; {facts['iterations']}"
        f" iterations, {facts['parameters']} numbers, from six common plans",
        unit="relative end point error",
    )


def _five_against_twelve(process: Process | None, seed: int) -> Outcome:
    """The searched plan of 5 evaluations against 2M with 12, on the better of its two common rules."""
    where = problem(process, seed)
    job = search(process, 5, "learned-plan", seed)
    assert job.best is not None
    theirs = min((where.error(plan(where.model.process, "dpmpp-2m", 12, rule)), rule) for rule in ("log-snr", "karras"))
    return Outcome(
        where.error(job.best),
        theirs[0],
        f"dpmpp-2m, {theirs[1]}, 12 evaluations",
        f"5 evaluations, {where.name}; 64 noises to learn from, 64 held out, {len(where.noise)} unseen;"
        f" {job.best.name}, {job.evaluations} evaluations to find it",
        unit="relative end point error",
    )


CLAIMS = (
    Claim(
        "learned-plan",
        "5 evaluations reach what dpmpp-2m needs more than 12 for",
        lambda seed: _five_against_twelve(VP(), seed),
        quick=False,
    ),
    Claim(
        "learned-plan",
        "5 evaluations reach what dpmpp-2m needs more than 12 for on the embedded digits",
        lambda seed: _five_against_twelve(None, seed),
        quick=False,
    ),
    Claim(
        "learned-plan",
        "4 evaluations land nearer to the reference than 20 of ddim on the embedded digits",
        _digits,
        quick=False,
    ),
    Claim(
        "learned-plan",
        "beats every hand-made plan at 4 evaluations",
        lambda seed: _learned(VP(), 4, seed),
        quick=False,
    ),
    Claim(
        "learned-plan",
        "beats every hand-made plan at 8 evaluations",
        lambda seed: _learned(VP(), 8, seed),
        quick=False,
    ),
)
