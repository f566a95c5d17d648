"""Claims of fewstep/searching/learn.py."""

from __future__ import annotations

from claims.common import ENDPOINT, VP, Claim, Outcome, Process, compared, experiment, plan
from claims.problems import Problem, digits, exact
from claims.searches import problem, search
from fewstep.searching.candidates import hand_made, rank, score
from fewstep.searching.learn import learn

TRAIN, HELD_OUT, VERDICT = 256, 128, 256
ITERATIONS = 8  # of Gauss-Newton for the leader; they stop early on the held-out noises


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
    Claim("learned-plan", "5 evaluations reach what dpmpp-2m needs more than 12 for",
          _five_against_twelve(VP()), quick=False),
    Claim("learned-plan", "5 evaluations reach what dpmpp-2m needs more than 12 for on the embedded digits",
          _five_against_twelve("digits"), quick=False),
    Claim("learned-plan", "4 evaluations land nearer to the reference than 20 of ddim on the embedded digits",
          _digits, quick=False),
    *(Claim("learned-plan", f"beats every hand-made plan at {nfe} evaluations", _learned(nfe), quick=False)
      for nfe in (4, 8)),
)  # fmt: skip
