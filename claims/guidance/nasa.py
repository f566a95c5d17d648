"""Claims of NASA: captions of a circle without a colour, kept from red, on the embedded model of shapes in few steps.

It answers in one row, and classifier-free guidance in two, so that one has half the evaluations. The verifier reads
which colours and shapes a picture shows.
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


def _share(x: Tensor, name: str, value: str) -> float:
    return sum(any(getattr(thing, name) == value for thing in scene.things) for scene in verify(x)) / len(x)


def _red(word: str, against: str) -> Run:
    told = {"": "without", "cfg": f"cfg away from it, scale {SCALE:g}, {STEPS // 2} steps"}[against]

    def figures(seed: int) -> list[float]:
        sides = _drawn("nasa", word, seed), _drawn(against, word if against else "", seed)
        return [_share(x, "colour", "red") for x in sides]

    return over_seeds(figures, told, f"{ABOUT}, negative '{word}', alpha {ALPHA:g}", unit=RED)


def _round(word: str) -> Run:
    def figures(seed: int) -> list[float]:
        found = [_share(_drawn(method, w, seed), "shape", "circle") for method, w in (("", ""), ("nasa", word))]
        return [found[0] - found[1], 0.03]

    return over_seeds(figures, "tolerance", f"{ABOUT}, negative '{word}', alpha {ALPHA:g}", unit=ROUND)


CLAIMS: tuple[Claim, ...] = (
    *(slow("nasa", f"kept from '{word}', fewer pictures are red", _red(word, "")) for word in WORDS),
    *(slow("nasa", f"kept from '{word}', fewer are red than by cfg at equal cost", _red(word, "cfg"))
      for word in WORDS),
    *(slow("nasa", f"kept from '{word}', as many pictures show a circle", _round(word)) for word in WORDS),
)  # fmt: skip
