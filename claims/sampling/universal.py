"""Claims of universal plans, beside plans made or learned for the very problem.

The mixtures and the shapes network took no part in the fit; the digits network did, with other noises. Which numbers of
evaluations have rows, and how much uneven mixtures weigh, was decided with their figures in sight.
"""

from __future__ import annotations

import functools

import torch

from claims.common import ENDPOINT, VP, Claim, Denoiser, Discrete, Flow, Outcome, Process, experiment, plan, slow
from claims.problems import mixture, wide
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.sampling.sample import choose_plan
from fewstep.searching.candidates import hand_made, rank, score
from fewstep.searching.learn import learn
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve
from fewstep.searching.zoo import mixture as of_the_zoo

NOISES = 64
TRAIN, HELD_OUT, ITERATIONS = 256, 64, 24
OLD = "dpmpp-3m on log-snr times, the default before"
TABLE_STD = 1.0  # of the data under a table of noise levels


def _table() -> Process:
    """The noise levels of Stable Diffusion: they begin at a log-SNR of -2.7, with some of the data left."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return Discrete(tuple(torch.cumprod(1 - betas, 0).tolist()))


@functools.cache
def _model(name: str) -> tuple[Denoiser, str]:
    if name == "vp":
        return _known(mixture(VP()), 0.5), "8-component mixture, vp"
    if name == "flow":
        return _known(wide(Flow()), 0.5), "mixture in 12 dimensions, flow"
    if name == "table":
        model = of_the_zoo(77, 64, 12, 1.0, 0.2)
        model.process = _table()
        return model, "mixture of 12 in 64 dimensions, variances 1/i, Stable Diffusion's noise levels"
    if name == "guided":
        return guide(load("digits"), "cfg", scale=3.0), "embedded digits under guidance of 3"
    if name == "guided shapes":
        return guide(load("shapes"), "cfg", scale=2.0), "embedded shapes under guidance of 2"
    return load(name), f"embedded {name}"


def _known(model: Denoiser, std: float) -> Denoiser:
    model.data_std = std
    return model


@functools.cache
def _problem(name: str, seed: int, first: int = 0, n: int = NOISES) -> Problem:
    dtype = torch.float64 if name in ("vp", "flow") else torch.float32
    return solve(_model(name)[0], seed, first, n if "shapes" not in name else n // 4, 100, dtype)


@experiment
def _default(seed: int, name: str, nfe: int) -> Outcome:
    model, about = _model(name)
    on = _problem(name, seed)
    theirs = score(plan(model.process, "dpmpp-3m", nfe, "log-snr"), model, on)
    ours = choose_plan(model, nfe)
    about = f"{nfe} evaluations, {about}, {len(on)} noises; {ours.about['options']}"
    return Outcome(score(ours, model, on), theirs, OLD, about, unit=ENDPOINT)


@experiment
def _against_hand_made(seed: int, name: str, nfe: int) -> Outcome:
    """The rival is the best on the very noises: the hand-made plans' best case."""
    model, about = _model(name)
    on = _problem(name, seed)
    best = rank(list(hand_made(model.process, nfe)), model, on)[0]
    about = f"{nfe} evaluations, {about}, {len(on)} noises"
    return Outcome(
        score(choose_plan(model, nfe), model, on),
        best.score,
        f"the best hand-made plan ({best.name})",
        about,
        unit=ENDPOINT,
    )


@experiment
def _against_learned(seed: int, name: str, nfe: int) -> Outcome:
    """Twice the error of a plan whose numbers were learned on this very problem, from the universal plan as well."""
    model, about = _model(name)
    on, taken = _problem(name, seed), choose_plan(model, nfe)
    train, held = _problem(name, seed, NOISES, TRAIN), _problem(name, seed, NOISES + TRAIN, HELD_OUT)
    starts = rank([*hand_made(model.process, nfe), taken], model, held)
    made, _ = learn(model, starts, train, held, iterations=ITERATIONS)
    assert made is not None
    learned = score(made, model, on)
    against = f"twice the error of the plan learned for this problem from {TRAIN} noises"
    about = f"{nfe} evaluations, {about}, {len(on)} noises; the learned plan has {learned:.4g}"
    return Outcome(score(taken, model, on), 2 * learned, against, about, unit=ENDPOINT)


PLACES = {
    "vp": "a mixture",
    "flow": "a mixture in 12 dimensions under a flow",
    "table": "a mixture in 64 dimensions on Stable Diffusion's noise levels",
    "digits": "the digits network",
    "guided": "the digits network under guidance of 3",
    "shapes": "the shapes network",
    "guided shapes": "the shapes network under guidance of 2",
}
QUICK = ("vp", "flow", "table")


CLAIMS = (
    *((Claim if name in QUICK else slow)("universal", f"nearer than the old default on {PLACES[name]}, {nfe} steps",
                                         _default(name, nfe))
      for name in PLACES for nfe in (4, 5, 8, 10) if (name, nfe) != ("shapes", 10)),  # where there is no row
    *(slow("universal", f"nearer than the best of all hand-made plans on {PLACES[name]}, {nfe} evaluations",
           _against_hand_made(name, nfe))
      for name in ("vp", "digits") for nfe in (5, 8)),
    *(slow("universal", f"within twice the error of what is learned for {PLACES[name]}, {nfe} evaluations",
           _against_learned(name, nfe))
      for name, nfe in (("vp", 4), ("vp", 5), ("vp", 8), ("digits", 5))),
)  # fmt: skip
