"""Claims of NASA: captions of a circle without a colour, kept from red, on the embedded shapes in few steps and in one.

It answers in one row, and classifier-free guidance in two, so that one has half the evaluations. The one-step student
is `shapes-4`, whose training is the same for any number of steps; its guidance is inside, and there CFG's rule is
applied to its finished pictures, in two evaluations. The verifier reads which colours and shapes a picture shows.
"""

from __future__ import annotations

import functools

from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from claims.common import sample
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.metrics.shapes_verifier import verify

N, STEPS, ALPHA, SCALE = 192, 4, 0.3, 1.5
ABOUT = f"embedded shapes, 'a circle', {N} pictures, {STEPS} steps of the default plan"
ONE = f"embedded shapes-4 in one evaluation, 'a circle', {N} pictures"
WORDS = ("red", "a red")  # the second as captions have it in training: never a colour first
RED, ROUND = "share of pictures with something red", "share of pictures with a circle, less than without"


@functools.cache
def _drawn(method: str, negative: str, seed: int) -> Tensor:
    model, steps = load("shapes"), STEPS
    if method == "nasa":
        model = guide(model, "nasa", negative=negative, alpha=ALPHA)
    elif method == "cfg":
        model, steps = guide(model, "cfg", scale=SCALE, negative=negative), STEPS // 2
    return sample(model, N, steps=steps, seed=seed, text="a circle").clamp(-1, 1)


@functools.cache
def _jumped(method: str, negative: str, seed: int) -> Tensor:
    """In one evaluation of the student, or in two by CFG's rule."""
    student = load("shapes-4")
    model = guide(student, "nasa", negative=negative, alpha=ALPHA) if method == "nasa" else student
    x = sample(model, N, steps=1, seed=seed, text="a circle")
    if method == "cfg":
        away = sample(student, N, steps=1, seed=seed, text=negative)
        x = away + SCALE * (x - away)
    return x.clamp(-1, 1)


def _share(x: Tensor, name: str, value: str) -> float:
    return sum(any(getattr(thing, name) == value for thing in scene.things) for scene in verify(x)) / len(x)


def _red(word: str, against: str, one: bool = False) -> Run:
    """Red ones; one: in one step of the student."""
    far = f"cfg's rule on its pictures, scale {SCALE:g}, 2 evaluations" if one else (
        f"cfg away from it, scale {SCALE:g}, {STEPS // 2} steps"
    )  # fmt: skip
    told, drawn = {"": "without", "cfg": far}[against], _jumped if one else _drawn

    def figures(seed: int) -> list[float]:
        sides = drawn("nasa", word, seed), drawn(against, word if against else "", seed)
        return [_share(x, "colour", "red") for x in sides]

    return over_seeds(figures, told, f"{ONE if one else ABOUT}, negative '{word}', alpha {ALPHA:g}", unit=RED)


def _round(word: str, one: bool = False) -> Run:
    drawn = _jumped if one else _drawn

    def figures(seed: int) -> list[float]:
        found = [_share(drawn(method, w, seed), "shape", "circle") for method, w in (("", ""), ("nasa", word))]
        return [found[0] - found[1], 0.03]

    return over_seeds(figures, "tolerance", f"{ONE if one else ABOUT}, negative '{word}', alpha {ALPHA:g}", unit=ROUND)


CLAIMS: tuple[Claim, ...] = (
    *(slow("nasa", f"kept from '{word}', fewer pictures are red", _red(word, "")) for word in WORDS),
    *(slow("nasa", f"kept from '{word}', fewer are red than by cfg at equal cost", _red(word, "cfg"))
      for word in WORDS),
    *(slow("nasa", f"kept from '{word}', as many pictures show a circle", _round(word)) for word in WORDS),
    *(slow("nasa", f"in one step, kept from '{word}', fewer pictures are red", _red(word, "", one=True))
      for word in WORDS),
    *(slow("nasa", f"in one step, kept from '{word}', fewer are red than by cfg's rule in two",
           _red(word, "cfg", one=True)) for word in WORDS),
    *(slow("nasa", f"in one step, kept from '{word}', as many pictures show a circle", _round(word, one=True))
      for word in WORDS),
)  # fmt: skip
