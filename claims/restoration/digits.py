"""Restoration by a network, whose posterior nobody knows: proper scores on held-out digits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, over_seeds, slow
from claims.restoration.league import UNSEEN
from fewstep.data.open import open_built_in
from fewstep.metrics.energy_score import energy_score
from fewstep.operators.operator import LinearOperator

PICTURES, DRAWS, NOISE, NFE = 20, 8, 0.05, 20
PROBLEMS = ("half seen", "2x smaller", "blurred", "16 projections")
ABOUT = "digits, {}, noise 0.05, 20 held-out pictures x 8 draws, {} evaluations"
SCORE = "energy score"
METHODS: dict[str, dict[str, Any]] = {
    "calibrated": {"method": "calibrated"},
    "mmps": {"method": "mmps", "options": {"iterations": 3}},
    "pigdm": {"method": "pigdm"},
    "ddnm-plus": {"method": "ddnm-plus"},
    "ddrm": {"method": "ddrm"},
    "diffpir": {"method": "diffpir"},
    "dps": {"method": "dps"},
    "daps": {"method": "daps"},
    "red-diff": {"method": "red-diff"},
}
CHEAP = ("ddnm-plus", "ddrm", "diffpir")  # a forward pass alone: they are given twice the evaluations too


@functools.cache
def model() -> Any:
    return fs.load("digits")


@functools.cache
def pictures(first: int = 0) -> Tensor:
    return open_built_in("digits", split="validation").images[first : first + PICTURES]


@functools.cache
def operator(problem: str) -> LinearOperator:
    if problem == "half seen":
        mask = torch.zeros(1, 8, 8)
        mask[..., :4] = 1
        made = fs.operators.Inpaint(mask)
    elif problem == "2x smaller":
        made = fs.operators.Downsample(2)
    elif problem == "blurred":
        made = fs.operators.Blur("gaussian", width=1.0)
    else:
        made = fs.operators.Sensing(16)
    return made.fit((1, 8, 8))  # type: ignore[no-any-return]


@functools.cache
def score(name: str, problem: str, nfe: int, seed: int) -> float:
    """The energy score of a method's draws, on pictures that no option was chosen by."""
    a, truth = operator(problem), pictures(PICTURES)
    y = a.measure(truth, NOISE, seed=seed)
    x = fs.restore(model(), y, a, NOISE, n=DRAWS, nfe=nfe, seed=seed, **METHODS[name])
    return energy_score(x, truth).value


def beats(rival: str, problem: str, factor: float = 1.0, theirs: int = NFE) -> Claim:
    """A claim that the default's draws score better than a rival's, times a factor."""

    def run(seed: int) -> tuple[float, float]:
        return score("calibrated", problem, NFE, seed), factor * score(rival, problem, theirs, seed)

    more = f" at {theirs} evaluations" if theirs != NFE else ""
    said = f"{factor:g} times {rival}" if factor != 1 else f"{rival}{more}"
    about = ABOUT.format(problem, NFE)
    return slow("calibrated", f"scores better than {said} on digits, {problem}",
                over_seeds(run, said, about, unit=SCORE), seed=UNSEEN)  # fmt: skip


def sure(seed: int) -> tuple[float, float]:
    """Of captioned scenes, whose network is surer than its mean error: moves held to the measured, and not."""
    scenes = open_built_in("shapes", split="validation")
    pictures, given = scenes.batch(torch.arange(8) + 8 * seed)
    mask = torch.zeros(1, 32, 32)
    mask[..., :16] = 1
    a = fs.operators.Inpaint(mask).fit((3, 32, 32))
    y = a.measure(pictures, NOISE, seed=seed)
    how: dict[str, Any] = {"n": 4, "nfe": NFE, "seed": seed, "text": given["text"]}
    held, free = (
        energy_score(fs.restore(fs.load("shapes"), y, a, NOISE, options={"most": most}, **how), pictures).value
        for most in (3.0, float("inf"))
    )
    return held, free


CLAIMS = (
    slow(
        "calibrated",
        "on scenes, half seen, moves held to three times the measured score better than any",
        over_seeds(
            sure,
            "most=inf",
            "shapes with captions, half seen, noise 0.05, 8 held-out x 4 draws, 20 evaluations",
            unit=SCORE,
        ),
        seed=UNSEEN,
    ),
    *(beats(rival, problem) for problem in PROBLEMS for rival in METHODS if rival not in ("calibrated", "mmps")),
    *(beats("mmps", problem, factor=1.02) for problem in PROBLEMS),
    *(beats(rival, problem, theirs=2 * NFE) for problem in PROBLEMS for rival in CHEAP),
)
